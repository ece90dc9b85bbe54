"""Small dense models of every family on several corpora, each trained and measured once and kept in a folder.

What `python -m benchmarks.transfer` compares: the truth (every neuron's removal on validation text), every signal and
criterion measured on training text, those that read labels measured again on text that was held out from training, and
what is left of the model when each score chooses half of the neurons and their readers are refitted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.families import WOKEN
from pruning.ablation.intervention import Intervention, intervention
from pruning.ablation.oracle import Ablation, oracle
from pruning.data.corpus import END_OF_LINE, SPLITS, Fractions, number, raw_lines
from pruning.data.windows import Window, Windows
from pruning.evaluation.measures import loss_of
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances, activations
from pruning.signals.cooperative import cooperative
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.schemas import CRITERIA, SIGNALS
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.signals.weights import weights
from pruning.training.loop import train
from pruning.training.recipes import Recipe
from tasks.common.models import read_language_model, write_model
from tasks.shown.console import track
from tasks.stages.prepare import published_files, read_texts, written

VOCABULARY, TRAINED, HELD_OUT, JUDGED = 1500, 300_000, 24_000, 20_000
"""Word types; tokens to train on, held out from training, and that chosen sets are judged by."""
STRETCHES = 50
"""Of the training text: each gives its beginning to training, its end to what is held out; both are of all of it."""
DEALT = ("train", "train", "valid", "test")
"""Where documents are dealt anew: what becomes of each four that follow one another."""
LABELS, JUDGES = 84_000, 42_000
"""Tokens that then give labels, and that judge."""
TRUTH = Ablation(neurons="all", tokens=16_000, words=64, seed=7)
RECIPE = Recipe(epochs=1, portion=1.0, learning_rate=8e-3, warmup=0.05, weight_decay=0.01, clip=0.5, patience=1)
CALIBRATION = {"batch": 32, "bptt": 35}
LABELLED = 20
"""Windows that what reads labels is measured on."""
KEEP, FLOOR = 0.5, 4
HELD = ", held out"
"""What stands behind the name of a score that was measured on labels held out from training."""
FUSED = ("simple", "adaptive")
"""Ways to fuse the signals that need no measured removal."""
KINDS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "lstm": lambda width: {"family": "lstm", "widths": (width, width)},
    "gru": lambda width: {"family": "gru", "widths": (width, width)},
    "rnn": lambda width: {"family": "rnn", "widths": (width, width), "nonlinearity": "tanh"},
    "snn": lambda width: {"family": "snn", "widths": (width, width), **WOKEN},
    "mixed": lambda width: {
        "family": "mixed", "widths": (width // 2,) * 2, "cell": "lstm", "snn_widths": (width // 2,) * 2, **WOKEN,
    },
}  # fmt: skip
RATES = {"snn": 4e-3}


@dataclass(frozen=True)
class Texts:
    """A corpus: token numbers of what is trained on, held out from that, and of the rest of the splits."""

    training: Tensor
    held_out: Tensor
    valid: Tensor
    test: Tensor
    first: int
    types: int

    def windows(self, tokens: Tensor, *, batch: int, bptt: int) -> Windows:
        """Return tokens as windows."""
        return Windows(tokens, first=self.first, batch=batch, bptt=bptt)

    def judged(self) -> list[Window]:
        """Return the windows that models are judged by."""
        return [*islice(self.windows(self.valid, batch=10, bptt=100), JUDGED // 1000)]


def read_corpus(source: Path, deal: int | None = None) -> Texts:
    """Return a part of a corpus: a folder of documents, a folder of published splits, or a text file.

    With a seed documents are `dealt`, and as much is held out as labels are read of.
    """
    texts = read_texts(source, True, Fractions(0.04, 0.04), 1) if deal is None else dealt(source, deal)
    corpus = number(texts, VOCABULARY)
    splits = {name: torch.tensor(tokens, dtype=torch.long) for name, tokens in corpus.tokens.items()}
    words = corpus.vocabulary.set_index("text")["token"]
    training = spread(splits["train"], TRAINED)
    held_out = spread(splits["train"], HELD_OUT if deal is None else LABELS, ends=True)
    first = int(words[END_OF_LINE])
    return Texts(training, held_out, splits["valid"], splits["test"], first, len(words))


def dealt(source: Path, seed: int) -> dict[str, Iterator[list[str]]]:
    """Return the lines of each split of a folder of documents, where half are trained on and a quarter judges.

    Of each four in the order of their names all splits have some: speeches by year are of the same times in all. Within
    a split they stand in random order, so that its beginning is of any of them.
    """
    if not source.is_dir() or published_files(source):
        raise SystemExit(f"Expected a folder of documents to deal, got {source}; leave out `--dealt`.")
    paths, random = sorted(source.glob("*.txt")), np.random.default_rng(seed)
    splits = [split for _ in paths[:: len(DEALT)] for split in random.permutation(DEALT)]
    order = random.permutation(len(paths))

    def lines(split: str) -> Iterator[list[str]]:
        own = [paths[index] for index in order if splits[index] == split]
        return (tokens for line in written(own) for tokens in raw_lines(line, lowercase=True))

    return {split: lines(split) for split in SPLITS}


def spread(tokens: Tensor, count: int, *, ends: bool = False) -> Tensor:
    """Return `count` tokens of a text in `STRETCHES` parts: the beginning, or the end, of each of as many stretches."""
    stretches = tokens[: len(tokens) // STRETCHES * STRETCHES].view(STRETCHES, -1)
    return (stretches[:, -count // STRETCHES :] if ends else stretches[:, : count // STRETCHES]).flatten()


def trained(kind: str, width: int, texts: Texts, seed: int = 1) -> LanguageModel:
    """Return a dense model after one reading of the training text."""
    torch.manual_seed(seed)
    model = build(
        **{"vocabulary": texts.types, "embedding": 64, "decoder": "untied", "dropout": 0.1, **KINDS[kind](width)}
    )
    windows = texts.windows(texts.training, batch=20, bptt=35)
    model.expect(window.targets for window in windows)
    recipe = RECIPE if kind not in RATES else Recipe(**{**vars(RECIPE), "learning_rate": RATES[kind]})
    for _ in train(model, windows, texts.judged(), recipe=recipe, seed=seed, track=track):
        continue
    return model.decoupled().eval()


def covariances(model: LanguageModel, texts: Texts) -> tuple[pd.DataFrame, Covariances]:
    """Return the signal `activations`, and the covariances that repairs and the surgeon read."""
    windows = texts.windows(texts.training, **CALIBRATION)
    return activations(model, windows, activation_samples=60, bins=32, track=track)


def measured(model: LanguageModel, texts: Texts, seed: int = 1) -> pd.DataFrame:
    """Return each neuron's scores by column and what its removal costs.

    What was measured on held-out labels has `, held out` behind its name; `error_` stands before the name of a signal
    for its standard error.
    """
    read = texts.windows(texts.training, **CALIBRATION)
    held = texts.windows(texts.held_out, **CALIBRATION)
    judged = texts.windows(texts.valid, **CALIBRATION)
    active, states = covariances(model, texts)
    order = surgeon(states, sensitivities(model, read, batches=LABELLED, seed=seed, track=track), damping=1e-4)
    tables = {
        "weights": weights(model, threshold=0.1, bins=32),
        "activations": active,
        "cooperative": cooperative(model, states, strong=0.75),
    }
    frame = active[["layer", "neuron"]].assign(
        **{name: signal["importance"] for name, signal in tables.items()},
        surgeon=order["importance"],
        random=np.random.default_rng(seed).random(len(active)),
    )
    for suffix, text in (("", read), (HELD, held)):
        traces = hessian(model, text, probes=LABELLED, stability=1.0, seed=seed, track=track)
        gates = gradients(model, text, batches=LABELLED, track=track)
        scores = criteria(model, text, batches=LABELLED, bins=8, classes=8, ridge=1e-4, seed=seed, track=track)
        removed = intervention(model, read, text, Intervention(batches=LABELLED, seed=seed), track=track)
        columns = {"hessian": traces["importance"], "gradients": gates["importance"]}
        columns |= {name: scores[name] for name in CRITERIA}
        columns |= {"label_term": removed["label_term"], "intervention": removed["importance"]}
        frame = frame.assign(**{name + suffix: column for name, column in columns.items()})
        if text is read:
            tables |= {"hessian": traces, "gradients": gates}
            columns["divergence"] = removed["divergence"]
    signals = {name: tables[name] for name in SIGNALS}
    frame = frame.assign(
        **{way: fuse(signals, Fusing(strategy=way, seed=seed))["fused"] for way in FUSED},
        **{f"error_{name}": signal.get("standard_error", 0.0) for name, signal in signals.items()},
    )
    truth = oracle(model, judged, TRUTH, track=track)
    columns = ["loss_increase", "standard_error", "divergence", "even", "odd"]
    return frame.assign(**{f"truth_{name}": truth[name] for name in columns})


def scores_of(frame: pd.DataFrame) -> list[str]:
    """Return the columns that neurons can be ranked by."""
    return [name for name in frame if name not in ("layer", "neuron") and not name.startswith(("truth_", "error_"))]


def chosen_sets(
    model: LanguageModel, frame: pd.DataFrame, states: Covariances, texts: Texts, names: Sequence[str]
) -> pd.DataFrame:
    """Return each score's loss once it has chosen half of each layer and the readers are refitted."""
    judged = texts.judged()
    rows = [("dense", loss_of(model, judged).mean)]
    for name in names:
        allocation = Allocation(retain=KEEP, floor=FLOOR, scope="layer")
        keep = keep_of(retention(frame, allocation, variant=name, by=name))
        rows.append((name, loss_of(reconstruct(model, keep, states, repair="ridge"), judged).mean))
    return pd.DataFrame(rows, columns=["score", "loss"])


def kept(
    folder: Path, kind: str, width: int, texts: Callable[[], Texts], seed: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a model's scores and what its chosen sets lose; what the folder holds of them is not measured again."""
    model, scores, sets = (folder / name for name in ("model", "scores.parquet", "sets.parquet"))
    folder.mkdir(parents=True, exist_ok=True)
    if not model.is_dir():
        write_model(model, trained(kind, width, texts(), seed))
    if not scores.is_file():
        _keep(measured(read_language_model(model), texts(), seed), scores)
    frame = pd.read_parquet(scores)
    if not sets.is_file():
        dense = read_language_model(model)
        _keep(chosen_sets(dense, frame, covariances(dense, texts())[1], texts(), scores_of(frame)), sets)
    return frame, pd.read_parquet(sets)


def _keep(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
