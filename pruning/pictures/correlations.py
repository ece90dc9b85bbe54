"""How far signals rank neurons alike: rank correlations within layers, each a number and a colour."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pruning.core.options import expect_known
from pruning.pictures.canvas import drawn, sheet
from pruning.pictures.importance import columns_of
from pruning.pictures.style import FAINT, SIGNED, SMALL, WIDTH

if TYPE_CHECKING:
    from pruning.pictures.figure import Picture

MEASURED = "measured removal"
"""What the table `oracle` is called among the signals."""
DARK = 0.6
"""The correlation beyond which its number is written in white."""


def rank_correlations(
    table: pd.DataFrame, removals: pd.DataFrame | None = None, *, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return Spearman's correlation of each two signals within layers, averaged over them by their neurons.

    Neurons that one of two lacks count for neither; a layer in which one of them says the same of all neurons, or that
    has fewer than three, does not count.

    >>> table = pd.DataFrame({"layer": "a", "neuron": range(4), "up": [1, 2, 3, 4], "down": [4, 3, 2, 1]})
    >>> rank_correlations(table, columns=["up", "down"])["up"].round(3).tolist()
    [1.0, -1.0]

    Args:
        table: The `importance` table.
        removals: The `oracle` table, which then is one signal more.
        columns: Of the table; by default the signals that were measured, `fused` and `surgeon`.

    Raises:
        ValueError: For an unknown column.
    """
    expect_known("importance", list(table.columns[2:]), *(columns or ()))
    names = list(columns or columns_of(table))
    frame = table[["layer", "neuron", *names]]
    if removals is not None:
        truth = removals[["layer", "neuron", "loss_increase"]].rename(columns={"loss_increase": MEASURED})
        frame, names = frame.merge(truth, on=["layer", "neuron"], how="left"), [*names, MEASURED]
    found = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for one, other in product(names, names):
        if names.index(one) < names.index(other):
            found.loc[one, other] = found.loc[other, one] = _within_layers(frame, one, other)
    return found


def _within_layers(frame: pd.DataFrame, one: str, other: str) -> float:
    known = frame.dropna(subset=[one, other])
    values, sizes = [], []
    for _, rows in known.groupby("layer"):
        pair = rows[[one, other]].astype(float)
        if len(pair) > 2 and (np.ptp(pair.to_numpy(), axis=0) > 0).all():
            values.append(np.corrcoef(*pair.rank().to_numpy().T)[0, 1])
            sizes.append(len(pair))
    return float(np.average(values, weights=sizes)) if values else np.nan


@drawn
def correlations(
    table: pd.DataFrame, removals: pd.DataFrame | None = None, *, columns: Sequence[str] | None = None
) -> "Picture":
    """Return a picture of `rank_correlations`; 1 is the same order of neurons, −1 the opposite one.

    Args:
        table: The `importance` table.
        removals: The `oracle` table.
        columns: Of the table.
    """
    found = rank_correlations(table, removals, columns=columns)
    size = len(found)
    picture = sheet(0.42 * size + 2.4, min(WIDTH, 0.72 * size + 3.6))
    axes = picture.subplots()
    below = np.tril(np.ones((size, size), dtype=bool), k=-1)
    image = axes.imshow(np.where(below, found, np.nan), cmap=SIGNED, vmin=-1, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(below), strict=True):
        value = found.iloc[row, column]
        word, colour = ("–", FAINT) if np.isnan(value) else (f"{value:.2f}", "white" if abs(value) > DARK else "black")
        axes.text(column, row, word, ha="center", va="center", color=colour, fontsize=SMALL)
    axes.set_xticks(range(size - 1), found.columns[:-1], rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(1, size), found.index[1:])
    axes.set(xlim=(-0.5, size - 1.5), ylim=(size - 0.5, 0.5))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    picture.colorbar(image, ax=axes, label="Spearman's rank correlation", shrink=0.9)
    measured = "" if removals is None else f"; {MEASURED} of {len(removals):,}"
    layers = table["layer"].nunique()
    within = f"within {layers} layers" if layers > 1 else "of one layer"
    picture.suptitle(f"How alike signals rank {len(table):,} neurons, {within}{measured}")
    return picture
