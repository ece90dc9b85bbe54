"""What each step of the comparison ranks neurons by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pruning.experiment.measured import Calibration
from pruning.experiment.variants import FOLDS, Choice, choice_of
from pruning.fusion.fused import Fusion, fusion, learnable
from pruning.fusion.fusing import Fusing
from pruning.signals.schemas import LEARNABLE


def importance_of(
    calibration: Calibration,
    variant: str,
    *,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return what a variant ranks neurons by: `layer`, `neuron`, `importance`."""
    choice, tables = choice_of(variant), calibration.tables
    keys = tables["activations"][["layer", "neuron"]]
    if choice.by == "random":
        return keys.assign(importance=np.random.default_rng(calibration.seed).random(len(keys)))
    if choice.by != "fused":
        return keys.assign(importance=tables[choice.by]["importance"])
    fused = fused_by(calibration, choice, oracle=oracle, weights=weights)
    return keys.assign(importance=fused.importance["fused"])


def fused_by(
    calibration: Calibration,
    choice: Choice,
    *,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Fusion:
    """Return the fusion of a choice; only a learned one looks at measured removals, intervention and criteria."""
    learned = choice.strategy == "learned"
    return fusion(
        calibration.tables,
        Fusing(strategy=choice.strategy, seed=calibration.seed, signals=choice.signals, folds=FOLDS),
        oracle=oracle if learned and weights is None else None,
        criteria=learnable(calibration.tables, LEARNABLE) if learned else None,
        weights=weights if learned else None,
    )
