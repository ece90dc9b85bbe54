"""Fusion of whichever signals were measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pruning.fusion.fused import Fusion, fusion
from pruning.signals.schemas import BESIDE, CRITERIA, SIGNALS

REMOVALS_READ = 20
"""Batches that measured removal reads for each neuron."""
FOLDS = 5
"""Most parts that measured neurons are cut into for `learned`."""


def fused(
    tables: Mapping[str, pd.DataFrame],
    *,
    strategy: str,
    seed: int,
    removals: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Fusion:
    """Return the fusion of the signals in `tables`; see `pruning.fusion.fused`.

    Args:
        tables: Signal → `layer`, `neuron`, `importance`, `standard_error`.
        strategy: `simple`, `adaptive` or `learned`.
        seed: Seed of folds, of the bootstrap and of the random control.
        removals: Measured removals of some neurons.
        weights: Of an earlier fusion.
    """
    folds = FOLDS if removals is None else max(2, min(FOLDS, int(removals.groupby("layer").size().min()) // 2))
    return fusion(
        _complete(tables), strategy=strategy, seed=seed, signals=list(tables), folds=folds, oracle=removals,
        weights=weights,
    )  # fmt: skip


def _complete(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables with one for everything else that `fusion` asks for.

    A signal that was not measured is 0 for every neuron, and to be left out of the fusion; what is only passed on is
    no number.
    """
    keys = next(iter(tables.values()))[["layer", "neuron"]]
    unmeasured = keys.assign(importance=0.0, standard_error=0.0)
    unknown = keys.assign(importance=np.nan, **dict.fromkeys(CRITERIA, np.nan))
    return {**dict.fromkeys(SIGNALS, unmeasured), **dict.fromkeys((*BESIDE, "criteria"), unknown), **tables}
