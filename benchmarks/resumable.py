"""A benchmark in phases whose trainings fit into so many seconds: kept in a folder, it goes on from where it was."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.core.devices import twin_of, wait_for
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of, size_of
from pruning.models.base import LanguageModel
from pruning.training.loop import Trained
from pruning.training.recipes import Recipe

KEEPING = 1.04
"""What an epoch takes with all that is kept between, over what its steps and its validation take."""
LEAVING = 5.0
"""Seconds that a process needs to keep all and end."""
STREAM = 200
"""Steps of a window of the text that models are judged on."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is trained, and how much text is read at once.

    Attributes:
        width: Units of each of the two layers, and the size of the embedding.
        rank: Size of the embedding of the pruned model.
        share: Of the parameters of the untied model of this width, the pruned model has at most so many.
        floor: Fewest units of a pruned layer.
        multiple: Of which the widths are multiples.
        vocabulary: Most word types.
        batch: Columns in training.
        bptt: Steps of a window in training.
        calibration: Windows that units are chosen by.
        tokens: Most tokens of a split.
        probe: Steps that are timed.
        streams: Columns of the text that models are judged on: one, as published perplexities are.
    """

    width: int = 1500
    rank: int = 288
    share: float = 0.1
    floor: int = 256
    multiple: int = 8
    vocabulary: int = 10_000
    batch: int = 40
    bptt: int = 35
    calibration: int = 48
    tokens: int = 10**7
    probe: int = 40
    streams: int = 1


class OutOfTime(Exception):
    """The process has used its seconds; all is kept."""


class Kept:
    """What is known so far, in a folder: facts as JSON, and each phase's tensors; a kill leaves a whole file there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.facts: dict[str, Any] = json.loads(self._facts.read_text()) if self._facts.exists() else {}

    @property
    def _facts(self) -> Path:
        return self.folder / "facts.json"

    def note(self, **facts: Any) -> None:
        """Keep facts by name."""
        self.facts |= facts
        replaced(self._facts, json.dumps(self.facts, indent=1))

    def save(self, name: str, tensors: dict[str, Tensor], **metadata: str) -> None:
        """Keep tensors under a name."""
        whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        part = self.folder / f"{name}.part"
        save_file(whole, part, metadata)
        os.replace(part, self.folder / f"{name}.safetensors")

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return the tensors of that name and their metadata, or None."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


@dataclass
class Bench:
    """What the phases share.

    Attributes:
        sizes: Of models and batches.
        texts: Split → token numbers.
        end_of_line: The number of the token that a text begins after.
        types: How many word types there are.
        device: Where models compute.
        kept: What is known so far.
        report: Writes the report; it is called whenever something new is known.
        seed: Of weights and dropout.
        every: Seconds between two times that a training is kept.
        limit: Seconds of this process after which it begins no epoch.
        start: When the process began.
        before: Seconds that earlier processes spent, as far as something came of them.
    """

    sizes: Sizes
    texts: dict[str, Tensor]
    end_of_line: int
    types: int
    device: torch.device
    kept: Kept
    report: Callable[["Bench"], None]
    seed: int
    every: float
    limit: float
    start: float
    before: float

    @property
    def used(self) -> float:
        """Seconds of this process."""
        return time.perf_counter() - self.start

    @property
    def spent(self) -> float:
        """Seconds of all processes, as far as something came of them."""
        return self.before + self.used

    def say(self, line: str) -> None:
        """Show a line and the time."""
        print(f"{self.spent:7.1f} s  {line}", flush=True)

    def windows(self, split: str, batch: int, bptt: int) -> Windows:
        """Return a split as windows."""
        return Windows(self.texts[split], first=self.end_of_line, batch=batch, bptt=bptt)

    @property
    def training(self) -> Windows:
        """The training text."""
        return self.windows("train", self.sizes.batch, self.sizes.bptt)

    @property
    def validation(self) -> Windows:
        """The validation text as epochs are compared by it."""
        return self.windows("valid", self.sizes.batch // 2, 3 * self.sizes.bptt)

    def note(self, **facts: Any) -> None:
        """Keep facts and the time, and write the report anew."""
        self.kept.note(spent=self.spent, **facts)
        self.report(self)

    def judge(self, phase: str, model: LanguageModel) -> None:
        """Keep a phase's perplexities and its sizes."""
        if phase in self.kept.facts.get("rows", {}):
            return
        numbers: dict[str, Any] = {"widths": list(model.widths()), "embedding": model.encoder.embedding_dim}
        numbers |= {"parameters": size_of(model).parameters, "lstm": recurrent_weights(model)}
        for split in ("valid", "test"):
            numbers[split] = loss_of(model, self.windows(split, self.sizes.streams, STREAM)).perplexity
        self.note(rows=self.kept.facts.get("rows", {}) | {phase: numbers | {"at": self.spent}})
        self.say(f"{phase}: {numbers}")

    def epochs(self, phase: str, model: LanguageModel, training: "Training", until: float) -> int:
        """Return how many epochs of a training fit until so many seconds are spent, by a few steps; decided once."""
        plan = self.kept.facts.get("plan", {})
        if phase not in plan:
            steps = len(self.training)
            recipe = replace(training.recipe, epochs=1, portion=min(1.0, self.sizes.probe / steps))
            few = Windows(self.texts["valid"][: self.sizes.batch], first=0, batch=self.sizes.batch, bptt=1)
            works: list[Callable[[], object]] = [
                lambda: list(training.way(twin_of(model), self.training, few, recipe=recipe, seed=1)),
                lambda: loss_of(model, self.validation),
            ]
            some, validating = (self.timed(work) for work in works)
            step = some / max(1, round(recipe.portion * steps))
            seconds, an_epoch = until - self.spent, KEEPING * (steps * step + validating)
            epochs = max(1, math.floor(seconds / an_epoch))
            self.note(plan=plan | {phase: {"epochs": epochs, "milliseconds": 1000 * step, "seconds": seconds}})
            self.say(f"{phase}: {epochs} epochs of {steps} steps of {1000 * step:.2f} ms in {seconds:.0f} s")
        return int(self.kept.facts["plan"][phase]["epochs"])

    def timed(self, work: Callable[[], object]) -> float:
        """Return how long some work takes, after a first time that does not count."""
        for _ in range(2):
            wait_for(self.device)
            start = time.perf_counter()
            work()
            wait_for(self.device)
        return time.perf_counter() - start

    def trained(self, phase: str, model: LanguageModel, training: "Training", until: float) -> LanguageModel:
        """Return the model at its best epoch; training goes on from where it was, and is kept every so many seconds.

        Args:
            phase: Its name.
            model: It is trained in place.
            training: How; its recipe's epochs are as many as fit unless they are given.
            until: Seconds spent after which no more epochs fit.

        Raises:
            OutOfTime: After an epoch, if the process has no time for one more.
        """
        epochs = training.recipe.epochs or self.epochs(phase, model, training, until)
        recipe, known = replace(training.recipe, epochs=epochs), self.kept.load(phase)
        last = state_of(*known) if known else None
        if not (last and last.finished):
            saved = mark = time.perf_counter()
            for last in training.way(  # noqa: B020 - it goes on from the last one
                model, self.training, self.validation, recipe=recipe, seed=self.seed, resume=last
            ):
                now = time.perf_counter()
                took, mark = now - mark, now
                out = not last.finished and self.used + 2 * took + LEAVING > self.limit
                valid = math.exp(last.history["valid_loss"].iloc[-1])
                self.say(f"{phase}: epoch {ends(last.history)} of {epochs}, valid {valid:.2f}, {took:.1f} s")
                if last.finished or out or now - saved >= self.every:
                    self.kept.save(phase, tensors_of(last), finished=str(int(last.finished)))
                    self._note_curve(phase, last.history)
                    saved = time.perf_counter()
                if out:
                    raise OutOfTime(phase)
        assert last is not None
        self._note_curve(phase, last.history)
        model.load_state_dict(last.best())
        return model.eval()

    def _note_curve(self, phase: str, history: pd.DataFrame) -> None:
        self.note(curves=self.kept.facts.get("curves", {}) | {phase: curve(history)})


class Way(Protocol):
    """What trains a model in place, as `train` does."""

    def __call__(
        self, model: Any, windows: Windows, valid: Windows, *, recipe: Recipe, seed: int, resume: Trained | None = None
    ) -> Iterator[Trained]:
        """Yield where training stands after each epoch."""


@dataclass(frozen=True)
class Training:
    """What trains, and how; a recipe of no epochs is given as many as fit."""

    way: Way
    recipe: Recipe


def ends(history: pd.DataFrame) -> int:
    """Return how many epochs a history holds."""
    return int(history["valid_loss"].notna().sum())


def curve(history: pd.DataFrame) -> list[list[float]]:
    """Return the training loss (the epoch's mean) and the validation loss of each epoch, nat/token."""
    epochs = history["valid_loss"].notna().iloc[::-1].cumsum().iloc[::-1]
    means = history.groupby(epochs)["train_loss"].mean().iloc[::-1]
    return [[float(a), float(b)] for a, b in zip(means, history["valid_loss"].dropna(), strict=True)]


def tensors_of(state: Trained) -> dict[str, Tensor]:
    """Return all of a state but whether it is finished."""
    history = {
        f"history.{name}": torch.from_numpy(column.to_numpy(copy=True)) for name, column in state.history.items()
    }
    return state.tensors | history


def state_of(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Trained:
    """Return the state that `tensors_of` took apart."""
    names = [name for name in tensors if name.startswith("history.")]
    order = ("step", "tokens", "train_loss", "valid_loss", "learning_rate")
    history = pd.DataFrame({name: tensors[f"history.{name}"].numpy() for name in order})
    rest = {name: tensor for name, tensor in tensors.items() if name not in names}
    return Trained(rest, history, finished=metadata["finished"] == "1")


def recurrent_matrices(model: LanguageModel) -> list[torch.nn.Parameter]:
    """Return the weight matrices between embedding and decoder."""
    outside = ("encoder", "decoder", "projection")
    return [p for name, p in model.named_parameters() if name.partition(".")[0] not in outside and p.ndim > 1]


def recurrent_weights(model: LanguageModel) -> int:
    """Return the weights of the recurrent layers, biases left out."""
    return sum(matrix.numel() for matrix in recurrent_matrices(model))


def replaced(path: Path, text: str) -> None:
    """Write a text file in one step."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
