"""What the stages read: which part of the text is for what, the dense model, its signals, and their settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pruning.data.corpus import HELD_OUT
from pruning.data.windows import Windows
from pruning.experiment.measured import MEASURED, Calibration
from pruning.models.base import LanguageModel
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.models import read_language_model
from tasks.common.tables import read_table
from tasks.common.tokens import Stored, read_tokens
from tasks.common.windows import first_token, read_windows
from tasks.experiment.settings import STRETCHES

COLUMNS = 10
"""Columns of validation text."""


class Case:
    """Which dense model and text a stage is of: `prune` and `prune_text@2` the given one, `prune_model@2` another.

    Attributes:
        text: The seed of the calibration.
        model: The seed that is added to the training's; 0 for the given model.
    """

    def __init__(self, job: Job) -> None:
        of, number = job.stage.name.partition("_")[2], str(job.stage.variant)
        self.text = int(number) if of == "text" else 0
        self.model = int(number) if of == "model" else 0


class Rolled:
    """A text from one of its places on, what stands before that at the end."""

    def __init__(self, tokens: Stored, start: int) -> None:
        self._tokens, self._start = tokens, start

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Return the tokens at these places."""
        return self._tokens[(places + self._start) % len(self)]


class DividedText:
    """The job's corpus, and which part of it is for what."""

    def __init__(self, job: Job) -> None:
        self._job, corpus = job, job.input("prepare/corpus")
        self.train, self.valid = (read_tokens(corpus, split) for split in ("train", "valid"))
        self._first = first_token(job.input("prepare/vocabulary"))
        removed = job.setting("validation").removed
        self.cut = min(removed, len(self.valid) // 2)

    def calibration(self, seed: int) -> Windows:
        """Return the training text that signals are measured on, which starts elsewhere for each seed."""
        return self._training(**self._job.settings("calibration"), start=seed * len(self.train) // STRETCHES)

    @property
    def training(self) -> Windows:
        """Training text for the extra training."""
        treatment = self._job.setting("treatment")
        return self._training(batch=treatment.batch, bptt=treatment.bptt, start=0)

    @property
    def judged(self) -> Windows:
        """Validation text that perplexity is measured on."""
        tokens = self.valid[self.cut : self.cut + self._job.setting("validation").judged]
        return Windows(tokens, first=self._first, batch=COLUMNS, bptt=100)

    @property
    def removal(self) -> Windows:
        """Validation text that removals are measured on; perplexity is judged on what follows it."""
        bptt = min(50, self.cut // (2 * COLUMNS))  # two windows at least, for their halves are compared
        return Windows(self.valid[: self.cut], first=self._first, batch=COLUMNS, bptt=bptt)

    def _training(self, *, batch: int, bptt: int, start: int) -> Windows:
        return Windows(Rolled(self.train, start), first=self._first, batch=batch, bptt=bptt)


def labelled(job: Job) -> Windows | None:
    """Return the text that was held out from training for signals that look at labels, if there is any."""
    if not len(read_tokens(job.input("prepare/corpus"), HELD_OUT)):
        return None
    return read_windows(job, HELD_OUT, **job.settings("calibration"))


def read_dense(job: Job) -> LanguageModel:
    """Return the dense model that dvc.yaml lists: the given one, or one trained beside it."""
    trained = "train/model" in job.stage.inputs
    return read_language_model(job.input("train/model" if trained else "prepare/model"))


def read_calibration(signals: Path, seed: int) -> Calibration:
    """Return what the stage `calibrate` measured with a seed."""
    tables = {name: read_table(signals / f"{name}.parquet") for name in MEASURED}
    return Calibration(tables, read_covariances(signals / "covariance.safetensors"), seed)


def effort(job: Job) -> Mapping[str, Mapping[str, Any]]:
    """Return the signals' settings: params.yaml's, and the experiment's limits in their place."""
    limits, settings = job.setting("effort"), {}
    for name in MEASURED:
        asked = {key: value for key, value in job.settings(name).items() if key != "seed"}
        for limit in ("activation_samples", "batches"):
            if limit in asked and limits.windows:
                asked[limit] = min(asked[limit], limits.windows)
        settings[name] = asked
    if limits.probes:
        settings["hessian"]["probes"] = limits.probes
    return settings
