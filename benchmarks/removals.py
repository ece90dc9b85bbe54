"""Every neuron of a dense model removed on three texts, in pieces that are kept in a folder, and what signals say.

A subject is a dense model with three texts: `train`, `labelled`, which stands for text that is held out from training
and whose labels may be used, and `judged`, on which the truth is measured. Of further texts, labels alone are read. A
piece is some 5,000 tokens of one text: the loss increase and the divergence of every neuron, and its label term at
first order. What is in the folder is not measured again, so several processes may share the pieces.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.ablation.intervention import label_terms
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.progress import silently
from pruning.data.windows import Windows
from pruning.models import describe, rebuild
from pruning.models.base import LanguageModel
from pruning.signals.activations import activations
from pruning.signals.cooperative import cooperative
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.schemas import CRITERIA
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.signals.weights import weights

TEXTS = ("judged", "labelled", "train")
PIECE = {"batch": 10, "bptt": 35}
"""Columns and steps of the windows that removal is measured on."""
TOKENS = 15 * 350
"""Of a piece."""
TRAINED = 2
"""Pieces of the training text: the labels there are no use."""
CALIBRATION = {"batch": 32, "bptt": 35}
SEED = 7
DENSE, STORED = "dense.safetensors", "text "


@dataclass(frozen=True)
class Subject:
    """A dense model, its texts by name, and the token that a text begins after."""

    model: LanguageModel
    texts: Mapping[str, Tensor]
    first: int

    def piece(self, text: str, place: int) -> Windows:
        """Return one piece of a text."""
        start = place * TOKENS
        return Windows(self.texts[text][start : start + TOKENS], first=self.first, **PIECE)

    def pieces(self, text: str) -> int:
        """Return how many whole pieces of a text are measured."""
        return min(len(self.texts[text]) // TOKENS, TRAINED if text == "train" else 10**9)

    def labels(self, text: str = "labelled") -> Windows:
        """Return the labelled text, or another, as signals read it."""
        return Windows(self.texts[text], first=self.first, **CALIBRATION)

    def calibration(self) -> Windows:
        """Return the training text as signals read it."""
        return Windows(self.texts["train"], first=self.first, **CALIBRATION)


def keep(folder: Path, subject: Subject) -> None:
    """Write a subject into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = describe(subject.model)
    texts = {STORED + name: tokens.to(torch.int32) for name, tokens in subject.texts.items()}
    part = folder / f"{DENSE}.part"
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole | texts, part, {"config": json.dumps(config), "first": str(subject.first)})
    part.replace(folder / DENSE)


def kept(folder: Path, device: str, made: Callable[[], Subject] | None = None) -> Subject:
    """Return the subject of a folder, made unless it is there; its layers have readers of their own."""
    if not (folder / DENSE).is_file():
        if made is None:
            raise SystemExit(
                f"Expected a dense model in {folder}, got none; `python -m benchmarks.subjects` makes one."
            )
        keep(folder, made())
    with safe_open(folder / DENSE, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    texts = {name.removeprefix(STORED): tensors.pop(name).long() for name in [*tensors] if name.startswith(STORED)}
    model = rebuild(json.loads(metadata["config"]), tensors).decoupled().eval().to(device)
    return Subject(model, texts, int(metadata["first"]))


def removed(subject: Subject, text: str, place: int) -> pd.DataFrame:
    """Return what the removal of each neuron does on one piece of text."""
    windows = subject.piece(text, place)
    table = oracle(subject.model, windows, Ablation(neurons="all", tokens=10**9, words=64, seed=SEED))
    terms = label_terms(subject.model, windows, 10**9, silently)
    places = [*zip(table["layer"], table["neuron"], strict=True)]
    return table.assign(
        label_term=[float(terms[layer].mean[neuron]) for layer, neuron in places],
        label_error=[float(terms[layer].standard_error[neuron]) for layer, neuron in places],
    )


def signals(subject: Subject, seed: int = 1) -> pd.DataFrame:
    """Return what every signal and criterion says on training text, in the order of `removed`'s rows."""
    model, windows = subject.model, subject.calibration()
    active, states = activations(model, windows, activation_samples=60, bins=32)
    order = surgeon(states, sensitivities(model, windows, batches=15, seed=seed), damping=1e-4)
    field = criteria(model, windows, batches=20, bins=8, classes=8, ridge=1e-4, seed=seed)
    measured = {
        "weights": weights(model, threshold=0.1, bins=32), "activations": active,
        "cooperative": cooperative(model, states, strong=0.75), "surgeon": order,
        "gradients": gradients(model, windows, batches=20),
        "hessian": hessian(model, windows, probes=60, stability=0.9, seed=seed),
    }  # fmt: skip
    columns: dict[str, Any] = {name: signal["importance"] for name, signal in measured.items()}
    return active[["layer", "neuron"]].assign(**columns, **{name: field[name] for name in CRITERIA})


def labelled(subject: Subject, seed: int = 1) -> pd.DataFrame:
    """Return what the gates' gradients and the criteria say of all labelled text, in the order of `removed`'s rows."""
    model, windows = subject.model, subject.labels()
    gates = gradients(model, windows, batches=len(windows))
    field = criteria(model, windows, batches=len(windows), bins=8, classes=8, ridge=1e-4, seed=seed)
    columns = {"gradients": gates["importance"], **{name: field[name] for name in CRITERIA}}
    return gates[["layer", "neuron"]].assign(**columns)


def table(
    folder: Path, name: str, made: Callable[[], pd.DataFrame], say: Callable[[str], None] = print
) -> pd.DataFrame:
    """Return a table of a folder, made unless it is there."""
    path = folder / f"{name}.parquet"
    if not path.is_file():
        say(f"{folder.name}: {name}")
        part = path.with_suffix(f".{torch.randint(10**9, ()).item()}.part")
        made().to_parquet(part)
        part.replace(path)
    return pd.read_parquet(path)


def measure(folder: Path, subject: Subject, only: Sequence[str] = ()) -> None:
    """Measure all that the folder lacks, or those named only, as `judged-3`, `signals` or `criteria`."""
    works: dict[str, Callable[[], pd.DataFrame]] = {
        f"{text}-{place}": lambda text=text, place=place: removed(subject, text, place)  # type: ignore[misc]
        for text in TEXTS
        for place in range(subject.pieces(text))
    }
    works["signals"] = lambda: signals(subject)
    works["criteria"] = lambda: labelled(subject)
    for name, work in works.items():
        if not only or name in only or name.partition("-")[0] in only:
            table(folder, name, work)


@dataclass(frozen=True)
class Read:
    """Some pieces of a text together, in the order of the neurons.

    Attributes:
        increase: Loss increase, nat/token, (pieces, neurons), like all below.
        divergence: KL(dense ‖ without the neuron).
        label_term: −∂L/∂m of its gate.
        tokens: Of each piece, (pieces,).
    """

    increase: np.ndarray
    divergence: np.ndarray
    label_term: np.ndarray
    tokens: np.ndarray


def read(folder: Path, text: str) -> Read:
    """Return what a folder knows of a text."""
    paths = sorted(folder.glob(f"{text}-*.parquet"), key=lambda path: int(path.stem.rpartition("-")[2]))
    if not paths:
        raise SystemExit(f"Expected pieces of the text {text!r} in {folder}, got none.")
    frames = [pd.read_parquet(path) for path in paths]
    columns = [np.stack([frame[name] for frame in frames]) for name in ("loss_increase", "divergence", "label_term")]
    return Read(*columns, np.array([frame["samples"].max() for frame in frames]))
