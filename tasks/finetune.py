"""The stage `finetune`, once for each variant: the loop of `train`, the same budget for all, the dense one included."""

import pandas as pd

from pruning.training import Recipe
from tasks.checkpoints import forget, train_to_the_end
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.models import read_model, write_model
from tasks.windows import read_windows


def run(job: Job) -> pd.DataFrame | None:
    """Write the fine-tuned model and its history; return how long a training token took."""
    settings = job.settings("finetune")
    shape = {name: settings.pop(name) for name in ("batch", "bptt")}
    seed = settings.pop("seed")
    model = read_model(job.input("prune/model"))
    windows, valid = read_windows(job, "train", **shape), read_windows(job, "valid", **shape)
    last, timing = train_to_the_end(job, model, windows, valid, Recipe(**settings), seed)
    write_model(job.output("model"), model)
    write_table(job.output("history"), last.history.assign(phase="finetune")[["phase", *last.history.columns]])
    forget(job)
    return timing
