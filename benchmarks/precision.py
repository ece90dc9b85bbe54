"""How well removal is predicted: divergence, label term and the field's criteria against measured removal.

`python -m benchmarks.precision --corpus FOLDER --checkpoint FILE`, with a folder of published splits such as the Penn
Treebank's and a dense LSTM of its vocabulary. The truth is the loss increase of every neuron on the second half of the
validation text. Its first half stands for text that is held out from training and whose labels may be used. Every
figure is the Spearman correlation within layers, averaged over them, with its 95% interval over neurons; the second
one is divided by the root of the truth's reliability, which is what a perfect prediction would reach.
"""

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pruning.ablation.intervention import Intervention, intervention
from pruning.ablation.oracle import Ablation, oracle, split_half_reliability
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.fusion.learned import bootstrapped, interval, within_layers
from pruning.models.base import LanguageModel
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.schemas import CRITERIA
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary
from tasks.shown.console import track

SHAPE = {"batch": 10, "bptt": 35}
Predictions = dict[str, np.ndarray]


def predictions(model: LanguageModel, train: Windows, labelled: Windows, seed: int) -> Predictions:
    """Return what each way to predict says of every neuron."""
    rows: Predictions = {}
    start = time.perf_counter()
    short = intervention(model, train, labelled, Intervention(tokens=3_000, seed=seed), track=track)
    print(f"intervention: {time.perf_counter() - start:.0f} s", flush=True)
    trained = intervention(model, train, train, Intervention(tokens=700, batches=len(labelled), seed=seed), track=track)
    longer = oracle(model, train, Ablation(neurons="all", tokens=10_000, words=64, seed=seed), track=track)
    rows["loss increase, 3,000 training tokens"] = oracle(
        model, train, Ablation(neurons="all", tokens=3_000, words=64, seed=seed), track=track
    )["loss_increase"].to_numpy()
    near, far = short["divergence"].to_numpy(), longer["divergence"].to_numpy()
    labels, overfitted = short["label_term"].to_numpy(), trained["label_term"].to_numpy()
    rows["divergence, 3,000 training tokens"] = near
    rows["divergence, 10,000 training tokens"] = far
    rows["label term, held-out text"] = labels
    rows["label term, as much training text"] = overfitted
    rows["**divergence (3,000) + label term, held-out text** (`intervention`)"] = near + labels
    rows["divergence (3,000) + half of it"] = near + labels / 2
    rows["divergence (10,000) + label term, held-out text"] = far + labels
    rows["divergence (3,000) + label term, training text"] = near + overfitted
    start = time.perf_counter()
    _, states = activations(model, train, activation_samples=60, bins=32, track=track)
    order = surgeon(states, sensitivities(model, train, batches=15, seed=seed, track=track), damping=1e-4)
    rows["`surgeon`"] = order["importance"].to_numpy()
    table = criteria(model, train, batches=20, bins=8, classes=8, ridge=1e-4, seed=seed, track=track)
    print(f"surgeon and criteria: {time.perf_counter() - start:.0f} s", flush=True)
    return rows | {f"`{name}`": table[name].to_numpy() for name in CRITERIA}


def report(truth: pd.DataFrame, predicted: Mapping[str, np.ndarray]) -> list[str]:
    """Return the table."""
    layers, increase = truth["layer"].to_numpy(dtype=str), truth["loss_increase"].to_numpy()
    sizes = truth.groupby("layer").size()
    reliability = float(np.average([split_half_reliability(rows) for _, rows in truth.groupby("layer")], weights=sizes))
    most = f"The truth's reliability is {reliability:.2f}, so {math.sqrt(reliability):.2f} is the most to be had."
    lines = [most, "", "| predictor | Spearman | 95% | over √reliability | " + " | ".join(sizes.index) + " |",
             "|---|---:|---|---:|" + "---:|" * len(sizes)]  # fmt: skip
    drawn = bootstrapped(layers, increase, predicted, seed=1)
    for name, values in predicted.items():
        low, high = interval(drawn[name])
        whole = within_layers(layers, values, increase)
        each = [within_layers(layers[layers == layer], values[layers == layer], increase[layers == layer])
                for layer in sizes.index]  # fmt: skip
        cells = [f"{whole:.2f}", f"{low:.2f} to {high:.2f}", f"{whole / math.sqrt(reliability):.2f}"]
        lines.append("| " + " | ".join([name, *cells, *(f"{value:.2f}" for value in each)]) + " |")
    return lines


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of published splits")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a dense model, its vocabulary beside it")
    parser.add_argument("--tokens", type=int, default=20_000, help="that the truth is measured on")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    vocabulary = read_vocabulary(given.checkpoint)
    splits, model = read_splits(given.corpus, vocabulary), read_checkpoint(given.checkpoint).decoupled().eval()
    half = len(splits["valid"]) // 2
    texts = {"train": splits["train"], "labelled": splits["valid"][:half], "judged": splits["valid"][half:]}
    windows = {name: Windows(text, first=vocabulary[END_OF_LINE], **SHAPE) for name, text in texts.items()}
    print(f"dense: {loss_of(model, windows['judged']).perplexity:.1f} on the judged half", flush=True)
    start = time.perf_counter()
    truth = oracle(
        model, windows["judged"], Ablation(neurons="all", tokens=given.tokens, words=64, seed=7), track=track
    )
    print(f"truth: {time.perf_counter() - start:.0f} s", flush=True)
    print("\n".join(report(truth, predictions(model, windows["train"], windows["labelled"], given.seed))))


if __name__ == "__main__":
    main()
