"""Importance by layer and signal: how many neurons have which, those that are kept apart from those removed."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pruning.core.neurons import Keep
from pruning.core.options import expect_known
from pruning.pictures.canvas import drawn, few, sheet, short, shown_layers
from pruning.pictures.style import FAINT, KEPT, REMOVED, SMALL, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

MOST = 12
"""Layers that one picture shows, unless they are named."""
BINS, FEWEST, EACH = 24, 6, 4
"""Bins at most and at least, and how many values there are for each."""
HEAVY = 30.0
"""Largest over middle importance from which on an axis is logarithmic."""
SHARE = 0.3
"""Largest importance from which on values up to 1 have an axis from 0 to 1."""
ACROSS = 4
"""Layers side by side where one column alone is shown."""


def columns_of(table: pd.DataFrame) -> list[str]:
    """Return the columns of an `importance` table that a picture shows: signals that were measured, `fused`, `surgeon`.

    >>> columns_of(pd.DataFrame({"hessian": [1.0], "weights": [np.nan], "hessian_share": [1.0], "fused": [1.0]}))
    ['hessian', 'fused']
    """
    signals = [name.removesuffix("_share") for name in table.columns if name.endswith("_share")]
    return [name for name in (*signals, "fused", "surgeon") if name in table.columns and table[name].notna().any()]


@drawn
def importance_by_layer(
    table: pd.DataFrame,
    keep: Keep | None = None,
    *,
    columns: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    title: str = "Importance of neurons, by layer and signal",
) -> "Picture":
    """Return a picture with a row for each layer and a column for each signal: how many neurons have which importance.

    Args:
        table: The `importance` table.
        keep: Kept neurons of each layer, of those that are not whole; None: nothing is said of what is removed.
        columns: Of the table; by default the signals that were measured, `fused` and `surgeon`.
        layers: Which layers, by default the first `MOST`.
        title: What stands above.

    Raises:
        ValueError: For an unknown column or layer.
    """
    expect_known("importance", list(table.columns[2:]), *(columns or ()))
    names = list(columns or columns_of(table))
    rows, others = shown_layers(list(dict.fromkeys(table["layer"])), layers, MOST)
    values = {layer: table[table["layer"] == layer].sort_values("neuron") for layer in rows}
    stays = {layer: kept_of(layer, len(own), keep) for layer, own in values.items()}
    edges = {name: edges_of(np.concatenate([own[name] for own in values.values()])) for name in names}
    grid = _grid(names, rows)
    height = (2.0 if len(names) == 1 else 1.45) * len(grid) + 1.3
    picture = sheet(height, WIDTH if len(names) > 1 else 2.9 * min(len(rows), ACROSS) + 0.6)
    panels = picture.subplots(len(grid), len(grid[0]), squeeze=False, sharex="col" if len(names) > 1 else False)
    for line, cells in zip(panels, grid, strict=True):
        for axes, cell in zip(line, cells, strict=True):
            if cell is None:
                axes.remove()
                continue
            layer, name = cell
            _panel(axes, values[layer][name].to_numpy(dtype=float), stays[layer], edges[name], split=keep is not None)
            _words(axes, layer, name, stays[layer], keep is not None, alone=len(names) == 1, first=name == names[0],
                   top=layer == rows[0], bottom=layer == rows[-1])  # fmt: skip
    _legend(picture, keep is not None)
    picture.suptitle(f"{title}{others}")
    return picture


def kept_of(layer: str, width: int, keep: Keep | Mapping[str, Sequence[int]] | None) -> np.ndarray:
    """Return which neurons of a layer stay, (width,) bool: all of a layer that is not named.

    >>> kept_of("a", 3, {"a": [0, 2]}).tolist()
    [True, False, True]
    """
    stays = np.ones(width, dtype=bool)
    if keep is not None and layer in keep:
        stays[:] = False
        stays[np.asarray(keep[layer], dtype=int)] = True
    return stays


def edges_of(values: np.ndarray) -> np.ndarray:
    """Return the edges of bins that hold all values, wider for the larger where these are far from the middle one.

    >>> edges_of(np.array([1.0, 1.0, 1.0, 100.0]))[-2:].round().tolist()
    [46.0, 100.0]
    """
    known = values[np.isfinite(values)]
    bins = int(np.clip(len(known) // EACH, FEWEST, BINS))
    if not len(known):
        return np.linspace(0, 1, bins + 1)
    low, middle, high = known.min(), np.median(known), known.max()
    if low > 0 and high / middle > HEAVY:
        return np.geomspace(low, high, bins + 1)
    if low >= 0 and SHARE < high <= 1:
        return np.linspace(0, 1, bins + 1)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _grid(names: Sequence[str], layers: Sequence[str]) -> list[list[tuple[str, str] | None]]:
    """Return which layer and column stands where; one column alone has its layers side by side."""
    if len(names) > 1:
        return [[(layer, name) for name in names] for layer in layers]
    across = min(len(layers), ACROSS)
    cells: list[tuple[str, str] | None] = [(layer, names[0]) for layer in layers]
    cells += [None] * (math.ceil(len(cells) / across) * across - len(cells))
    return [cells[start : start + across] for start in range(0, len(cells), across)]


def _panel(axes: "Axes", values: np.ndarray, stays: np.ndarray, edges: np.ndarray, *, split: bool) -> None:
    """Draw how many neurons have which importance; those removed stand on top of those kept."""
    known = np.isfinite(values)
    if not known.any():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=FAINT, fontsize=SMALL)
        return
    logarithmic = edges[1] - edges[0] < 0.5 * (edges[-1] - edges[-2])
    if logarithmic:
        axes.set_xscale("log")
    parts = [values[known & stays], values[known & ~stays]] if split else [values[known]]
    axes.hist(
        parts, bins=edges.tolist(), stacked=True, color=[KEPT, REMOVED][: len(parts)], edgecolor="white", linewidth=0.3
    )


def _words(
    axes: "Axes",
    layer: str,
    name: str,
    stays: np.ndarray,
    split: bool,
    *,
    alone: bool,
    first: bool,
    top: bool,
    bottom: bool,
) -> None:
    """Write what a panel shows: its layer on the left, its signal above, what is counted along its axes."""
    few(axes, horizontal=2 if not alone else 4)
    count = f"{int(stays.sum()):,} of {len(stays):,} kept" if split else f"{len(stays):,} neurons"
    if alone:
        axes.set_title(f"{short(layer, 28)}\n{count}", fontsize="small")
        axes.set(xlabel="importance" if name == "importance" else f"importance by {name}", ylabel="neurons")
        return
    if top:
        axes.set_title(name)
    if first:
        axes.set_ylabel(f"{short(layer, 20)}\n{count}\nneurons", fontsize=SMALL)
    if bottom:
        axes.set_xlabel("importance", fontsize=SMALL)


def _legend(picture: "Picture", split: bool) -> None:
    from matplotlib.patches import Patch

    if split:
        handles = [Patch(color=KEPT, label="kept"), Patch(color=REMOVED, label="removed")]
        picture.legend(handles=handles, loc="outside lower center", ncols=2)
