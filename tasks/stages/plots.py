"""Which pictures the pipeline leaves, and where; how each is drawn stands in `pruning/pictures/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from pruning.pictures.cooperation import cooperation
from pruning.pictures.correlations import correlations
from pruning.pictures.costs import costs
from pruning.pictures.curves import finetuning, training
from pruning.pictures.importance import importance_by_layer
from pruning.pictures.retention import removal, retention
from pruning.selection.retention import keep_of
from tasks.common.writing import replacing

if TYPE_CHECKING:
    from pruning.pictures.figure import Picture

KIND = "png"
IMPORTANCE = "importance-{}"
"""What the picture of a variant's kept and removed neurons is called."""


def write_plots(
    folder: Path,
    *,
    histories: Mapping[str, pd.DataFrame],
    importance: pd.DataFrame,
    removals: pd.DataFrame,
    edges: Mapping[str, Tensor],
    kept: Mapping[str, pd.DataFrame],
    comparison: pd.DataFrame,
    path: pd.DataFrame,
) -> None:
    """Write every plot as a PNG, the same bytes for the same tables.

    Args:
        folder: Where they go.
        histories: `training` and `finetuning`, the tables of that.
        importance: The `importance` table.
        removals: The `oracle` table.
        edges: Of the graph of cooperation, layer → weights.
        kept: Variant → its `retention` table.
        comparison: The `comparison` table.
        path: The `path` table.
    """
    pictures = {
        "training": training(histories["training"]),
        "finetuning": finetuning(histories["finetuning"]),
        "retention": retention(comparison, path),
        "removal": removal(importance, removals),
        "correlations": correlations(importance, removals),
        "cooperation": cooperation(edges),
    }
    for variant, table in kept.items():
        title = f"What {variant} keeps and removes, by layer and signal"
        pictures[IMPORTANCE.format(variant)] = importance_by_layer(importance, keep_of(table), title=title)
    with replacing(folder) as aside:
        aside.mkdir()
        for name, picture in pictures.items():
            _write(aside / f"{name}.{KIND}", picture)


def write_costs(path: Path, curve: pd.DataFrame, variants: pd.DataFrame, notes: Sequence[str]) -> None:
    """Write the picture of perplexity, or the loss, against each cost; see `pruning.pictures.costs`."""
    with replacing(path) as aside:
        _write(aside, costs(curve, variants, notes))


def _write(path: Path, picture: "Picture") -> None:
    path.write_bytes(picture.image(KIND))
