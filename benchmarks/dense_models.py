"""Small dense models of every family on several corpora, each trained and measured once and kept in a folder.

What `python -m benchmarks.transfer` compares: the truth (every neuron's removal on validation text), every signal and
criterion measured on training text, those that read labels measured again on text that was held out from training, and
what is left of the model when each score chooses half of the neurons and their readers are refitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.families import SPIKING
from pruning.ablation.intervention import label_terms
from pruning.ablation.oracle import Ablation, oracle
from pruning.data.corpus import END_OF_LINE, Fractions, number
from pruning.data.windows import Window, Windows
from pruning.evaluation.measures import loss_of
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
from pruning.signals.schemas import CRITERIA
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.signals.weights import weights
from pruning.training.loop import Recipe, train
from tasks.shown.console import track
from tasks.stages.prepare import read_texts

VOCABULARY, TRAINED, HELD_OUT, JUDGED = 1500, 200_000, 24_000, 20_000
"""Word types; tokens to train on, held out from training, and that chosen sets are judged by."""
STRETCHES = 50
"""Of the training text: each gives its beginning to training, its end to what is held out; both are of all of it."""
TRUTH = Ablation(neurons="all", tokens=12_000, words=64, seed=7)
SHORT = Ablation(neurons="all", tokens=3_000, words=64, seed=1)
RECIPE = Recipe(epochs=1, portion=1.0, learning_rate=8e-3, warmup=0.05, weight_decay=0.01, clip=0.5, patience=1)
CALIBRATION = {"batch": 32, "bptt": 35}
LABELLED = 20
"""Windows that what reads labels is measured on."""
KEEP, FLOOR = 0.5, 4
KINDS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "lstm": lambda width: {"family": "lstm", "widths": (width, width)},
    "gru": lambda width: {"family": "gru", "widths": (width, width)},
    "rnn": lambda width: {"family": "rnn", "widths": (width, width), "nonlinearity": "tanh"},
    "snn": lambda width: {"family": "snn", "widths": (width, width), **SPIKING},
    "mixed": lambda width: {
        "family": "mixed", "widths": (width // 2,) * 2, "cell": "lstm", "snn_widths": (width // 2,) * 2, **SPIKING,
    },
}  # fmt: skip
RATES = {"snn": 4e-3}


@dataclass(frozen=True)
class Texts:
    """A corpus: token numbers of what is trained on, held out from that, and of the rest of the splits."""

    training: Tensor
    held_out: Tensor
    valid: Tensor
    first: int
    types: int

    def windows(self, tokens: Tensor, *, batch: int, bptt: int) -> Windows:
        """Return tokens as windows."""
        return Windows(tokens, first=self.first, batch=batch, bptt=bptt)

    def judged(self) -> list[Window]:
        """Return the windows that models are judged by."""
        return [*islice(self.windows(self.valid, batch=10, bptt=100), JUDGED // 1000)]


def read_corpus(source: Path) -> Texts:
    """Return a part of a corpus: a folder of documents, a folder of published splits, or a text file."""
    corpus = number(read_texts(source, True, Fractions(0.04, 0.04), 1), VOCABULARY)
    splits = {name: torch.tensor(tokens, dtype=torch.long) for name, tokens in corpus.tokens.items()}
    words = corpus.vocabulary.set_index("text")["token"]
    stretches = splits["train"][: len(splits["train"]) // STRETCHES * STRETCHES].view(STRETCHES, -1)
    training, held_out = stretches[:, : TRAINED // STRETCHES], stretches[:, -HELD_OUT // STRETCHES :]
    first = int(words[END_OF_LINE])
    return Texts(training.flatten(), held_out.flatten(), splits["valid"], first, len(words))


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


def measured(model: LanguageModel, texts: Texts, seed: int = 1) -> tuple[pd.DataFrame, Covariances]:
    """Return each neuron's scores by column and what its removal costs, and the covariances for the repair.

    What was measured on held-out labels has `, held out` behind its name.
    """
    read = texts.windows(texts.training, **CALIBRATION)
    held = texts.windows(texts.held_out, **CALIBRATION)
    judged = texts.windows(texts.valid, **CALIBRATION)
    active, states = activations(model, read, activation_samples=60, bins=32, track=track)
    order = surgeon(states, sensitivities(model, read, batches=LABELLED, seed=seed, track=track), damping=1e-4)
    frame = active[["layer", "neuron"]].assign(
        weights=weights(model, threshold=0.1, bins=32)["importance"],
        activations=active["importance"],
        cooperative=cooperative(model, states, strong=0.75)["importance"],
        surgeon=order["importance"],
        divergence=oracle(model, read, SHORT, track=track)["divergence"],
        random=np.random.default_rng(seed).random(len(active)),
    )
    for suffix, text in (("", read), (", held out", held)):
        scores = criteria(model, text, batches=LABELLED, bins=8, classes=8, ridge=1e-4, seed=seed, track=track)
        traces = hessian(model, text, probes=LABELLED, stability=1.0, seed=seed, track=track)
        frame = frame.assign(**{
            f"hessian{suffix}": traces["importance"],
            f"gradients{suffix}": gradients(model, text, batches=LABELLED, track=track)["importance"],
            **{f"{name}{suffix}": scores[name] for name in CRITERIA},
        })  # fmt: skip
        terms = label_terms(model, text, LABELLED, track)
        places = zip(frame["layer"], frame["neuron"], strict=True)
        frame[f"label_term{suffix}"] = [float(terms[layer].mean[neuron]) for layer, neuron in places]
        frame[f"intervention{suffix}"] = frame["divergence"] + frame[f"label_term{suffix}"]
    truth = oracle(model, judged, TRUTH, track=track)
    columns = ["loss_increase", "standard_error", "divergence", "even", "odd"]
    return frame.assign(**{f"truth_{name}": truth[name] for name in columns}), states


def scores_of(frame: pd.DataFrame) -> list[str]:
    """Return the columns that neurons can be ranked by."""
    return [name for name in frame if name not in ("layer", "neuron") and not name.startswith("truth_")]


def chosen_sets(model: LanguageModel, frame: pd.DataFrame, states: Covariances, texts: Texts) -> pd.DataFrame:
    """Return each score's perplexity once it has chosen half of each layer and the readers are refitted."""
    judged = texts.judged()
    rows = [("dense", loss_of(model, judged).mean)]
    for name in scores_of(frame):
        allocation = Allocation(retain=KEEP, floor=FLOOR, scope="layer")
        keep = keep_of(retention(frame, allocation, variant=name, by=name))
        rows.append((name, loss_of(reconstruct(model, keep, states, repair="ridge"), judged).mean))
    return pd.DataFrame(rows, columns=["score", "loss"])


def kept(folder: Path, kind: str, width: int, texts: Callable[[], Texts]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a model's scores and what its chosen sets lose, measured unless the folder holds them."""
    paths = folder / "scores.parquet", folder / "sets.parquet"
    if not all(path.is_file() for path in paths):
        corpus = texts()
        model = trained(kind, width, corpus)
        frame, states = measured(model, corpus)
        sets = chosen_sets(model, frame, states, corpus)
        folder.mkdir(parents=True, exist_ok=True)
        for path, table in zip(paths, (frame, sets), strict=True):
            table.to_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    scores, sets = (pd.read_parquet(path) for path in paths)
    return scores, sets
