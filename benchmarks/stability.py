"""How alike the sets are that two calibrations choose, by the number of tokens they read.

`python -m benchmarks.stability --into FOLDER...`, with folders of `python -m benchmarks.subjects`. Two calibrations of
`surgeon` read training text and have no token in common; half of the neurons stay, of each layer or of all. What counts
is the share of the kept neurons that both keep. Covariances and sensitivities are each measured on that many tokens.
With `--pieces` it is the divergence / the divergence and the label term, by the pieces of `benchmarks.subjects`.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import asked
from benchmarks.removals import CALIBRATION, TOKENS, Subject, kept, read, table
from pruning.data.windows import Windows
from pruning.selection.allocation import Allocation
from pruning.selection.retention import retention
from pruning.signals.activations import activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon

SIZES = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
KEEP = 0.5
CALIBRATIONS = (0, 1)


def order(subject: Subject, part: int, tokens: int) -> pd.DataFrame:
    """Return the surgeon's order from so many tokens of the first or the second half of the training text."""
    text = subject.texts["train"]
    start = part * (len(text) // 2)
    windows = Windows(text[start : start + tokens], first=subject.first, **CALIBRATION)
    _, states = activations(subject.model, windows, activation_samples=len(windows), bins=32)
    moments = sensitivities(subject.model, windows, batches=len(windows), seed=1 + part)
    return surgeon(states, moments, damping=1e-4)[["layer", "neuron", "importance"]]


def sizes(subject: Subject) -> list[int]:
    """Return the numbers of tokens that half of the training text has."""
    return [size for size in SIZES if size <= len(subject.texts["train"]) // 2]


def alike(one: pd.DataFrame, other: pd.DataFrame, scope: str, keep: float = KEEP) -> float:
    """Return which share of the neurons that one importance keeps the other one keeps too."""
    chosen = [
        retention(frame, Allocation(retain=keep, floor=1, scope=scope), variant="-", by="importance")["kept"].to_numpy()
        for frame in (one, other)
    ]
    return float((chosen[0] & chosen[1]).sum() / chosen[0].sum())


def agreements(folder: Path, device: str) -> Iterator[tuple[int, float, float]]:
    """Yield tokens and how alike two of the surgeon's sets are, of each layer and of all; measured unless kept."""
    subject = kept(folder, device)
    for size in sizes(subject):
        orders = [
            table(folder, f"order-{part}-{size}", lambda part=part, size=size: order(subject, part, size))  # type: ignore[misc]
            for part in CALIBRATIONS
        ]
        yield size, alike(*orders, scope="layer"), alike(*orders, scope="global")


def of_pieces(folder: Path, share: float = 0.75) -> Iterator[tuple[int, float, float]]:
    """Yield tokens and how alike the sets of two calibrations by divergence and by it + label term are in each layer.

    One reads the even and the other the odd pieces of labelled and judged text.
    """
    texts = [read(folder, text) for text in ("labelled", "judged")]
    divergence, term = (
        np.concatenate([getattr(text, name) for text in texts]) for name in ("divergence", "label_term")
    )
    keys = pd.read_parquet(folder / "judged-0.parquet")[["layer", "neuron"]]
    for count in (1, 2, 4, 7, 14):
        if 2 * count <= len(term):
            parts = [slice(start, start + 2 * count - 1, 2) for start in (0, 1)]
            alone = [keys.assign(importance=divergence[part].mean(0)) for part in parts]
            both = [keys.assign(importance=(divergence + share * term)[part].mean(0)) for part in parts]
            yield count * TOKENS, alike(*alone, scope="layer"), alike(*both, scope="layer")


def needed(tokens: np.ndarray, reached: np.ndarray, wanted: float = 0.95) -> float:
    """Return how many tokens it takes until a share is reached: between two numbers linear in their logarithm.

    >>> needed(np.array([10, 1000]), np.array([0.9, 1.0]))
    100.0
    """
    if reached[-1] < wanted:
        return float("inf")
    place = int(np.argmax(reached >= wanted))
    if place == 0:
        return float(tokens[0])
    low, high = np.log(tokens[place - 1 : place + 1])
    share = (wanted - reached[place - 1]) / (reached[place] - reached[place - 1])
    return float(np.round(np.exp(low + share * (high - low)), 6))


def report(reached: Mapping[str, list[tuple[int, float, float]]]) -> list[str]:
    """Return the table as Markdown: each layer's half / the half of all, or by divergence / with the label term."""
    columns = sorted({row[0] for rows in reached.values() for row in rows})
    lines = ["| dense model | " + " | ".join(f"{size:,}" for size in columns) + " | 95% from |"]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    for name, rows in reached.items():
        cells = {size: f"{layer:.1%} / {whole:.1%}" for size, layer, whole in rows}
        tokens = np.array([row[0] for row in rows])
        from_tokens = [needed(tokens, np.array([row[column] for row in rows])) for column in (1, 2)]
        said = " / ".join("more" if np.isinf(number) else f"{number:,.0f}" for number in from_tokens)
        lines.append(f"| {name} | " + " | ".join(cells.get(size, "") for size in columns) + f" | {said} |")
    return lines


def main() -> None:
    """Measure what the folders lack and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stability", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--into", type=asked.there, nargs="+", required=True, help="folders of dense models")
    parser.add_argument("--device", type=asked.device, default="cpu", help="where signals are measured")
    parser.add_argument("--pieces", action="store_true", help="by divergence and label term instead of the surgeon")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    print("\n".join(report({
        folder.name: [*(of_pieces(folder) if given.pieces else agreements(folder, given.device))]
        for folder in given.into
    })))  # fmt: skip


if __name__ == "__main__":
    main()
