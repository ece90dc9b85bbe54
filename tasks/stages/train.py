"""The stage `train`: a dense language model from the corpus, or the user's own model as it is."""

from dataclasses import fields
from math import nan

import pandas as pd
import torch

from pruning.evaluation.measures import loss_of
from pruning.models import build
from pruning.models import settings as settings_of
from pruning.models.base import LanguageModel
from pruning.training.loop import Trained
from pruning.training.recipes import Recipe
from pruning.training.schemas import HISTORY
from tasks.common.checkpoints import forget, train_to_the_end
from tasks.common.devices import device
from tasks.common.job import Job
from tasks.common.models import write_model
from tasks.common.tables import write_table
from tasks.common.windows import read_windows, vocabulary_size
from tasks.own import adapted, read_own

TEXT = ("batch", "bptt")


def run(job: Job) -> pd.DataFrame | None:
    """Write the trained model and its history; return how long a training token took."""
    source = job.settings("model")["source"]
    if source:
        if job.writes:
            _take(job, source)
        return None
    last, model, timing = trained(job, 0)
    if not job.writes:
        return None
    write_model(job.output("model"), model)
    write_table(job.output("history"), last.history.assign(phase="train")[["phase", *last.history.columns]], HISTORY)
    forget(job)
    return timing


def trained(job: Job, further: int) -> tuple[Trained, LanguageModel, pd.DataFrame | None]:
    """Return what `train_to_the_end` gives, and the model, from a seed that lies this much further than `train`'s."""
    settings = job.settings("train")
    family, seed = settings["family"], settings["seed"] + further
    make = {name: settings[name] for name in settings_of(family) if name != "vocabulary"}
    shape = {name: settings[name] for name in TEXT}
    recipe = Recipe(**{field.name: settings[field.name] for field in fields(Recipe)})
    torch.manual_seed(seed)
    model = build(family, vocabulary=vocabulary_size(job), **make).to(device())
    windows, valid = read_windows(job, "train", **shape), read_windows(job, "valid", **shape)
    model.expect(window.targets for window in windows)
    last, timing = train_to_the_end(job, model, windows, valid, recipe, seed)
    return last, model, timing


def _take(job: Job, source: str) -> None:
    """Write the user's model as it is, and a history of no step: its loss on the validation batches."""
    model = adapted(source)
    write_model(job.output("model"), model)
    loss = loss_of(model, read_own(source).valid, track=job.track, what="valid").mean
    row = {"phase": "train", "step": 0, "tokens": 0, "train_loss": nan, "valid_loss": loss, "learning_rate": 0.0}
    write_table(job.output("history"), pd.DataFrame([row]), HISTORY)
