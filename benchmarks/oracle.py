"""Measured removal against one masked forward for each neuron, taking turns in one run on the same windows.

`python -m benchmarks.oracle --corpus FOLDER --checkpoint FILE`. The peer is a model with the neuron's outgoing weights
at zero, run on the window and compared with the dense losses; it does a few neurons of each layer, ours does all of
them, and both are seconds for one neuron and token. Then what the two found for those neurons: the largest difference
between them, also as a share of the estimate's standard error, and how far their standard errors agree.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from benchmarks import asked
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import mask, others
from pruning.core.statistics import ClusteredMean
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import IGNORED, Window, Windows
from pruning.models.base import LanguageModel, State
from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary


class Masked:
    """The peer: one masked forward for each neuron, state carried; some neurons of each layer."""

    def __init__(self, model: LanguageModel, neurons: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.dense = model
        self.state: State | None = None
        self.names, self.models = [], []
        for layer in model.layers():
            for neuron in torch.randperm(layer.width, generator=generator)[:neurons].tolist():
                self.names.append((layer.name, neuron))
                self.models.append(mask(model, {layer.name: others(layer.width, [neuron])}))
        self.states: list[State | None] = [None] * len(self.models)
        self.found = ClusteredMean.empty(len(self.models))

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor, targets: torch.Tensor) -> float:
        """Measure one window and return the seconds for one neuron and token, the dense forward left out."""
        dense, self.state = self._losses(self.dense, tokens, targets, self.state)
        start, sums = time.perf_counter(), []
        for place, model in enumerate(self.models):
            losses, self.states[place] = self._losses(model, tokens, targets, self.states[place])
            sums.append((losses - dense).sum(0))
        seconds = time.perf_counter() - start
        self.found.update(torch.stack(sums, dim=1), (targets != IGNORED).sum(0))
        return seconds / len(self.models) / tokens.numel()

    def _losses(
        self, model: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor, state: State | None
    ) -> tuple[torch.Tensor, State]:
        logits, state = model(tokens, state)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view(targets.shape), state


def main() -> None:
    """Print both costs, their ratio, and how far the numbers are apart."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--corpus", type=asked.splits, required=True, help="a folder of published splits")
    parser.add_argument(
        "--checkpoint", type=asked.checkpoint, required=True, help="a dense model, its vocabulary beside it"
    )
    parser.add_argument("--batch", type=asked.count, default=10, help="columns of a window")
    parser.add_argument("--bptt", type=asked.count, default=50, help="steps of a window")
    parser.add_argument("--windows", type=asked.count, default=4, help="windows that are measured")
    parser.add_argument("--peers", type=asked.count, default=4, help="neurons of each layer that the peer measures")
    parser.add_argument(
        "--words", type=asked.count, default=64, help="word types that stand for the vocabulary at each token"
    )
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    model, vocabulary = read_checkpoint(given.checkpoint).decoupled("untie"), read_vocabulary(given.checkpoint)
    tokens_of = read_splits(given.corpus, vocabulary)["valid"]
    windows = Windows(tokens_of, first=vocabulary[END_OF_LINE], batch=given.batch, bptt=given.bptt)
    peer, theirs = Masked(model, given.peers, seed=1), []
    tokens, marks = given.windows * given.batch * given.bptt, []

    def turns(items: Sequence[Window], what: str) -> Iterator[Window]:  # noqa: ARG001 - the signature is Track's
        for item in items:
            theirs.append(peer.read(*item))
            start = time.perf_counter()
            try:
                yield item
            finally:  # after the last window nobody asks for more
                marks.append(time.perf_counter() - start)

    ours = oracle(model, windows, Ablation(neurons="all", tokens=tokens, words=given.words, seed=1), track=turns)
    each = [seconds / len(ours) / given.batch / given.bptt for seconds in marks]
    ratios = np.array(theirs) / np.array(each)
    print(f"masked forward {1e6 * np.median(theirs):8.1f} µs for one neuron and token")
    print(f"oracle         {1e6 * np.median(each):8.1f} µs, dense forward and choice of words included")
    print(
        f"ratio          {np.median(ratios):8.1f} (of {len(ratios)} windows: {ratios.min():.1f} to {ratios.max():.1f})"
    )
    _compare(peer, ours)


def _compare(peer: Masked, ours: pd.DataFrame) -> None:
    """Print how far the numbers are apart."""
    rows = ours.set_index(["layer", "neuron"]).loc[peer.names]
    apart = np.abs(rows["loss_increase"].to_numpy() - peer.found.mean.numpy())
    error = rows["standard_error"].to_numpy()
    print(f"largest difference {apart.max():.1e} nat/token, {100 * (apart / error).max():.2f}% of its standard error")
    print(f"standard errors agree within {100 * np.abs(error / peer.found.standard_error.numpy() - 1).max():.3f}%")


if __name__ == "__main__":
    main()
