"""What covariances of few directions save of wide layers, and what they cost in quality.

`python -m benchmarks.sketches` prints processor seconds and memory of what reads covariances, exact and of a rank, for
one layer of tanh neurons (`--width`), as `python -m benchmarks.growth` measures them.
`python -m benchmarks.sketches --corpus FOLDER --checkpoint FILE` prints for each rank how far the surgeon's order
agrees with that by exact covariances (Spearman, mean over layers), and perplexity on validation text once half of the
neurons are removed and the readers refitted by `ridge`: the exact order repaired by sketches, and both by sketches.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks import asked
from benchmarks.growth import measured
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.models.base import LanguageModel
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances, activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon

PARTS = ("activations", "surgeon", "ridge")
SHAPE = {"batch": 20, "bptt": 35}
JUDGED = 20_000


def costs(width: int, ranks: Sequence[int], parts: Sequence[str]) -> None:
    """Print a row for each part."""
    heads = [*(f"rank {rank}" for rank in ranks), "exact"]
    print(f"| {width} units | " + " | ".join(f"{head}, s | MB" for head in heads) + " |")
    print("|---|" + "---:|---:|" * len(heads), flush=True)
    for part in parts:
        print(f"| {part} |", end="", flush=True)
        for rank in (*ranks, None):
            seconds, memory = measured(part, width, 1, rank)
            print(f" {seconds:.1f} | {memory:.0f} |", end="", flush=True)
        print()


def ordered(model: LanguageModel, train: Windows, rank: int | None, seed: int) -> tuple[pd.DataFrame, Covariances]:
    """Return the surgeon's table and the covariances by which readers are refitted."""
    _, states = activations(model, train, activation_samples=100, bins=32, rank=rank)
    moments = sensitivities(model, train, batches=40, seed=seed, rank=rank)
    return surgeon(states, moments, damping=1e-4), states


def quality(corpus: Path, checkpoint: Path, ranks: Sequence[int], keep: float, seed: int) -> None:
    """Print a row for each rank."""
    from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary

    model, vocabulary = read_checkpoint(checkpoint).decoupled(), read_vocabulary(checkpoint)
    splits = read_splits(corpus, vocabulary)
    train = Windows(splits["train"][:150_000], first=0, **SHAPE)
    valid = Windows(splits["valid"][:JUDGED], first=0, **SHAPE)
    allocation = Allocation(retain=keep, floor=1, scope="global")

    def perplexity(table: pd.DataFrame, states: Covariances) -> float:
        chosen = keep_of(retention(table, allocation, variant="some", by="importance"))
        return loss_of(reconstruct(model, chosen, states, repair="ridge"), valid).perplexity

    print(f"dense: {loss_of(model, valid).perplexity:.1f}\n")
    exact, states = ordered(model, train, None, seed)
    print("| rank | agreement of the order | exact order, perplexity | own order, perplexity |\n|---|---:|---:|---:|")
    whole = perplexity(exact, states)
    print(f"| exact | 1 | {whole:.1f} | {whole:.1f} |", flush=True)
    for rank in ranks:
        table, few = ordered(model, train, rank, seed)
        both = exact.merge(table, on=["layer", "neuron"]).groupby("layer")
        agreement = both[["place_x", "place_y"]].corr(method="spearman").iloc[::2, 1].mean()
        print(f"| {rank} | {agreement:.3f} | {perplexity(exact, few):.1f} | {perplexity(table, few):.1f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sketches", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--width", type=asked.count, default=8192, help="units of the layer whose cost is measured")
    parser.add_argument("--ranks", type=asked.count, nargs="+", default=[64, 256], help="directions of the covariances")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument(
        "--corpus", type=asked.splits, help="a folder of published splits; with it, quality is measured"
    )
    parser.add_argument("--checkpoint", type=asked.there, help="a model of its words")
    parser.add_argument("--keep", type=asked.share, default=0.5, help="share of the neurons that stay")
    parser.add_argument("--seed", type=asked.index, default=1, help="of what sensitivities draw")
    given = parser.parse_args()
    if given.corpus:
        quality(given.corpus, given.checkpoint, given.ranks, given.keep, given.seed)
    else:
        costs(given.width, given.ranks, given.parts)


if __name__ == "__main__":
    main()
