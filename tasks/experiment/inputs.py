"""What the experiment is made from: the dense model, the text and which part of it is for what, and settings."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pruning
from pruning.ablation.oracle import neurons_to_measure
from pruning.data.corpus import END_OF_LINE, SPLITS
from pruning.data.windows import Windows
from pruning.experiment.choices import FOLDS
from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import Effort
from pruning.experiment.trials import Texts, Treatment
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation
from pruning.training.loop import Recipe
from tasks.common.devices import compute_on, device
from tasks.common.models import read_language_model
from tasks.common.parameters import Parameters, Unexpected, checked
from tasks.common.pipeline import DATA, PARAMETERS
from tasks.common.published import read_checkpoint, read_splits, read_vocabulary
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table, read_tokens
from tasks.common.windows import first_token
from tasks.experiment.settings import Settings

CORPUS, VOCABULARY, MODEL = DATA / "prepare/corpus.parquet", DATA / "prepare/vocabulary.parquet", DATA / "train/model"
STRETCHES = 7
"""A calibration seed reads from this fraction of the training text further on than the one before."""
COLUMNS, FEWEST = 10, 200
"""Columns of validation text, and its fewest tokens."""
JUDGING = ("judging.py", "verdict.py")
"""Code of the library that compares cells and determines none."""


class Inputs:
    """The inputs of one set of options, checked before any long work."""

    def __init__(self, settings: Settings) -> None:
        """Read the parameters and the model, and refuse what cannot work.

        Raises:
            Unexpected: With one sentence on what is missing or does not fit.
        """
        self.settings = settings
        self.parameters: Parameters = checked(read_yaml(PARAMETERS))
        compute_on(self.parameters.compute)
        self._check_files()
        self._check_oracle()

    @cached_property
    def dense(self) -> LanguageModel:
        """The dense model that was given."""
        if self.settings.checkpoint is None:
            return read_language_model(MODEL)
        return read_checkpoint(Path(self.settings.checkpoint)).to(device())

    @cached_property
    def vocabulary(self) -> int:
        """How many token types the pipeline's corpus has."""
        return len(read_table(VOCABULARY))

    def windows(self, split: str, *, batch: int, bptt: int, start: int = 0) -> Windows:
        """Return a split as windows, turned round to start at a token."""
        return Windows(self._splits[split].roll(-start), first=self._first, batch=batch, bptt=bptt)

    def texts(self, calibration: int) -> Texts:
        """Return what is read for what; calibration text starts elsewhere for each seed."""
        start = calibration * len(self._splits["train"]) // STRETCHES
        judged = self._splits["valid"][self.cut :][: self.settings.judged]
        return Texts(
            calibration=self.windows("train", **self.parameters.calibration.model_dump(), start=start),
            training=self.windows("train", batch=self.settings.batch, bptt=self.settings.bptt),
            judged=Windows(judged, first=self._first, batch=COLUMNS, bptt=100),
        )

    @property
    def removal_text(self) -> Windows:
        """Validation text that removals are measured on; perplexity is judged on what follows it."""
        bptt = min(50, self.cut // (2 * COLUMNS))  # two windows at least, for their halves are compared
        return Windows(self._splits["valid"][: self.cut], first=self._first, batch=COLUMNS, bptt=bptt)

    @property
    def removal_settings(self) -> dict[str, Any]:
        """The settings of `oracle`."""
        tokens = min(self.settings.oracle_tokens, self.cut)
        measured = {"neurons": self.settings.oracle_neurons, "tokens": tokens, "most": tokens}
        return {**measured, "tolerance": 0.05, "words": 64, "seed": 1}

    @property
    def effort(self) -> Effort:
        """The signals' settings: params.yaml's, and what the options say in their place."""
        found: dict[str, dict[str, Any]] = {}
        for name in MEASURED:
            own = {key: value for key, value in getattr(self.parameters, name).model_dump().items() if key != "seed"}
            for limit in ("activation_samples", "batches"):
                if limit in own and self.settings.windows:
                    own[limit] = min(own[limit], self.settings.windows)
            found[name] = own
        if self.settings.probes:
            found["hessian"]["probes"] = self.settings.probes
        return found

    @property
    def treatment(self) -> Treatment:
        """What follows each choice."""
        settings, usual = self.settings, self.parameters.finetune
        same = {name: getattr(usual, name) for name in ("warmup", "weight_decay", "clip", "patience")}
        recipe = Recipe(epochs=1, portion=settings.portion, learning_rate=settings.learning_rate, **same)
        own = self.parameters.reconstruct.model_dump(exclude={"repair", "tokens"})
        imitation = Imitation(tokens=settings.imitation, **own)
        return Treatment(
            scope=settings.scope, floor=settings.floor, repair=settings.repair, imitation=imitation, recipe=recipe,
            distillation=settings.distillation,
        )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """A digest of the library's code, the dense model and the corpus."""
        digest = hashlib.sha256()
        code = [p for p in Path(pruning.__file__).parent.rglob("*.py") if p.name not in JUDGING]
        for path in [*sorted(code), *self._files]:
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def _files(self) -> list[Path]:
        """What is read of the dense model and the corpus."""
        if self.settings.checkpoint is None:
            return [CORPUS, VOCABULARY, *sorted(MODEL.glob("*"))]
        checkpoint = Path(self.settings.checkpoint)
        return [checkpoint, *sorted(checkpoint.parent.glob("*vocabulary*.txt")), *sorted(self._corpus.glob("*.t*"))]

    @property
    def _corpus(self) -> Path:
        return Path(str(self.settings.corpus))

    @cached_property
    def _splits(self) -> Mapping[str, Tensor]:
        if self.settings.checkpoint is not None:
            return read_splits(self._corpus, read_vocabulary(Path(self.settings.checkpoint)))
        return {split: torch.tensor(read_tokens(CORPUS, split), dtype=torch.long) for split in SPLITS}

    @cached_property
    def _first(self) -> int:
        if self.settings.checkpoint is not None:
            return read_vocabulary(Path(self.settings.checkpoint))[END_OF_LINE]
        return first_token(VOCABULARY)

    @property
    def cut(self) -> int:
        """Where the validation split is cut: removals are measured before, perplexity after; at most half is before."""
        return min(self.settings.oracle_tokens, len(self._splits["valid"]) // 2)

    def _check_files(self) -> None:
        if self.settings.checkpoint is None:
            for path in (CORPUS, VOCABULARY, MODEL):
                if not path.exists():
                    raise Unexpected(
                        f"Expected the pipeline's {path}, got none; run `dvc repro train`, or give --checkpoint."
                    )
            return
        if not Path(self.settings.checkpoint).is_file():
            raise Unexpected(f"Expected a file at --checkpoint, got none at {self.settings.checkpoint!r}.")
        if not self._corpus.is_dir():
            raise Unexpected(f"Expected a folder at --corpus, got none at {self.settings.corpus!r}.")

    def _check_oracle(self) -> None:
        """Refuse too little text, and a sample that weights cannot be learned from."""
        found = len(self._splits["valid"])
        if found < FEWEST:
            raise Unexpected(f"Expected at least {FEWEST} tokens in the validation split, got {found}.")
        layers = self.dense.decoupled().layers()
        measured = neurons_to_measure(layers, self.settings.oracle_neurons, seed=1)
        for layer, neurons in measured.items():
            if len(neurons) < 2 * FOLDS:
                raise Unexpected(
                    f"Expected at least {2 * FOLDS} measured neurons in each layer, got {len(neurons)} in {layer}; "
                    "give a larger --oracle-neurons."
                )
