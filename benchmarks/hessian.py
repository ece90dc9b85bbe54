"""Hessian traces of all neurons against PyHessian-style probing as HAP does it: one neuron after another.

`python -m benchmarks.hessian --checkpoint … --corpus …`; needs `pip install pyhessian==0.1`. Both read the
same window of text. The peer, 300 probes a neuron, is measured on a few neurons with a few probes each: its time and
the variance of its probes are extrapolated to all neurons and 300 probes. Ours is run on the same window, and the
number of its probes that gives the same mean squared standard error on the same neurons follows from its own errors.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import asked
from pruning.core.neurons import NeuronLayer
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel
from pruning.signals.curvature import owned_parameters
from pruning.signals.hessian import hessian
from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary

PROBES = 300
"""Probes that HAP gives each neuron."""


class Flat(nn.Module):
    """The model as PyHessian calls one: from inputs to logits, one row a place."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, (T · B, V)."""
        logits, _ = self.model(tokens)
        return logits.flatten(0, 1)


def peer_probes(
    model: LanguageModel, window: Windows, neurons: Sequence[tuple[NeuronLayer, int]], probes: int
) -> tuple[float, Tensor]:
    """Return the peer's seconds for one probe and its probes' values, (neurons, probes)."""
    from pyhessian import hessian as pyhessian
    from pyhessian.utils import group_product, hessian_vector_product

    names = list(owned_parameters(model, model.layers()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)  # as few parameters as it can do with
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls `backward(create_graph=True)`
        peer = pyhessian(Flat(model), F.cross_entropy, data=(window[0].tokens, window[0].targets.flatten()), cuda=False)
    found = torch.empty(len(neurons), probes)
    start = time.perf_counter()
    for row, (layer, neuron) in enumerate(neurons):
        masks = _masks(model, names, layer, neuron)
        for column in range(probes):
            signs = [torch.randint_like(mask, 2) * 2 - 1 for mask in masks]
            vector = [sign * mask for sign, mask in zip(signs, masks, strict=True)]
            product = hessian_vector_product(peer.gradsH, peer.params, vector)
            found[row, column] = group_product(product, vector).item()
    seconds = (time.perf_counter() - start) / found.numel()
    model.zero_grad()
    model.requires_grad_(True)
    return seconds, found.double()


def _masks(model: LanguageModel, names: Sequence[str], layer: NeuronLayer, neuron: int) -> list[Tensor]:
    """Return, for each parameter, 1 where it holds the neuron's own weights and 0 elsewhere."""
    parameters = dict(model.named_parameters())
    masks = {name: torch.zeros_like(parameters[name], requires_grad=False) for name in names}
    for piece in layer.owned:
        masks[piece.parameter].index_fill_(piece.dim, piece.indices(torch.tensor([neuron]), layer.width), 1.0)
    return [masks[name] for name in names]


def compare(model: LanguageModel, window: Windows, *, neurons: int, peer: int, ours: int) -> None:
    """Print what the same standard error costs the peer and us."""
    layers = model.layers()
    step = sum(layer.width for layer in layers) // neurons
    everyone = [(layer, neuron) for layer in layers for neuron in range(layer.width)]
    places = range(step // 2, len(everyone), step)
    seconds, probed = peer_probes(model, window, [everyone[place] for place in places], peer)
    wanted = probed.var(1).mean().item() / PROBES
    print(f"peer: {seconds:.3f} s a probe, measured on {len(probed)} neurons × {peer} probes", flush=True)
    start = time.perf_counter()
    table = hessian(model, window, probes=ours, stability=2, seed=1)
    own_seconds = (time.perf_counter() - start) / ours
    chosen = table.iloc[list(places)]
    own = chosen["trace_standard_error"].pow(2).mean()
    apart = torch.tensor(chosen["trace"].to_numpy()) - probed.mean(1)
    errors = (torch.tensor(chosen["trace_standard_error"].to_numpy()).square() + probed.var(1) / peer).sqrt()
    needed = ours * own / wanted
    total, own_total = seconds * PROBES * len(everyone), own_seconds * needed
    print(f"peer: standard error {wanted**0.5:.2e} (RMS) with {PROBES} probes, extrapolated")
    print(f"peer: {total:.0f} s for {len(everyone)} neurons × {PROBES} probes, extrapolated")
    print(f"ours: {own_seconds:.3f} s a probe for all neurons, measured on {ours} probes of the same window")
    print(f"ours: {needed:.0f} probes, {own_total:.0f} s, to the same standard error, extrapolated")
    print(f"traces of the same neurons differ by at most {(apart / errors).abs().max():.1f} standard errors")
    print(f"ratio: {total / own_total:.0f}")


def rank_twice(model: LanguageModel, windows: Sequence[Windows], *, probes: int, stability: float) -> None:
    """Print how much alike two independent runs on different text rank neurons, and what they cost."""
    runs = []
    for seed, text in enumerate(windows):
        start = time.perf_counter()
        runs.append(hessian(model, text, probes=probes, stability=stability, seed=seed))
        print(f"run {seed + 1}: {runs[-1]['samples'].max()} probes, {time.perf_counter() - start:.0f} s")
    both = runs[0].assign(other=runs[1]["importance"])
    for layer, rows in both.groupby("layer"):
        agreement = spearmanr(rows["importance"], rows["other"]).statistic
        print(f"{layer}: Spearman {agreement:.3f} between two independent runs, {stability} promised")


def main() -> None:
    """Print the ratio and the stability of the ranking."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hessian", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--checkpoint", type=asked.checkpoint, required=True, help="a dense model, its vocabulary beside it"
    )
    parser.add_argument("--corpus", type=asked.splits, required=True, help="a folder of published splits")
    parser.add_argument("--columns", type=asked.count, default=32, help="columns of a window")
    parser.add_argument("--bptt", type=asked.count, default=35, help="steps of a window")
    parser.add_argument("--neurons", type=asked.count, default=8, help="neurons that the peer is measured on")
    parser.add_argument("--peer", type=asked.count, default=20, help="probes that it gives each")
    parser.add_argument("--ours", type=asked.count, default=40, help="probes of ours")
    parser.add_argument(
        "--probes", type=asked.index, default=1000, help="budget of each ranking; 0 leaves rankings out"
    )
    parser.add_argument("--stability", type=asked.share, default=0.9, help="stability that the rankings are to have")
    given = parser.parse_args()
    logging.getLogger("pruning").addHandler(logging.NullHandler())
    torch.manual_seed(1)
    torch.set_flush_denormal(True)
    model = read_checkpoint(given.checkpoint).decoupled()
    vocabulary = read_vocabulary(given.checkpoint)
    tokens, first = read_splits(given.corpus, vocabulary)["train"], vocabulary[END_OF_LINE]
    shape = {"first": first, "batch": given.columns, "bptt": given.bptt}
    window = Windows(tokens[: given.columns * given.bptt], **shape)
    compare(model, window, neurons=given.neurons, peer=given.peer, ours=given.ours)
    if given.probes:
        halves = [Windows(half, **shape) for half in tokens.chunk(2)]
        rank_twice(model, halves, probes=given.probes, stability=given.stability)


if __name__ == "__main__":
    main()
