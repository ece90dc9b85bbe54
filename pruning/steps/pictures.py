"""Importance as a picture: each layer's neurons in order, those that stay in colour."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pruning.core.neurons import Keep
from pruning.extras import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


def figure_of(table: pd.DataFrame, by: str, keep: Keep | None) -> "Figure":
    """Return one picture for each layer: its neurons from the most important down, those removed in grey.

    Args:
        table: The `importance` table.
        by: The column that is shown.
        keep: Kept neurons of each layer, of those that are not whole; None if nothing is removed.

    Raises:
        ValueError: For an unknown column.
        ModuleNotFoundError: Without matplotlib, which the extra `plots` brings.
    """
    if by not in table.columns[2:]:
        raise ValueError(f"Unknown importance {by!r}; known: {list(table.columns[2:])}.")
    layers = list(dict.fromkeys(table["layer"]))
    rows = math.ceil(len(layers) / COLUMNS)
    figure: Figure = needed("matplotlib.figure", "plots").Figure(
        figsize=(3.6 * min(COLUMNS, len(layers)), 2.6 * rows + 0.4), layout="constrained"
    )
    grid = np.atleast_1d(figure.subplots(rows, min(COLUMNS, len(layers)), squeeze=False)).flatten()
    for axes in grid[len(layers) :]:
        axes.remove()
    for axes, name in zip(grid, layers, strict=False):
        values = table.loc[table["layer"] == name].sort_values("neuron")[by].to_numpy(dtype=float)
        order = np.argsort(-values, kind="stable")
        kept = np.ones(len(values), dtype=bool)
        if keep is not None and name in keep:
            kept[:] = False
            kept[np.asarray(keep[name])] = True
        colors = np.where(kept[order], "C0", "0.75")
        axes.bar(np.arange(len(values)), values[order], width=1.0, color=colors)
        axes.set(title=f"{name}: {int(kept.sum())} of {len(values)}" if keep is not None else name)
        axes.set(xlabel="neurons, ordered", ylabel=by)
    what = "" if keep is None else "; kept in blue, removed in grey"
    figure.suptitle(f"Importance by layer{what}")
    return figure
