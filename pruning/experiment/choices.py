"""What neurons are chosen by: the steps of the comparison, and what each ranks neurons by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pruning.core.tables import CRITERIA, SIGNALS
from pruning.experiment.measured import Calibration
from pruning.fusion.fused import Fusion, fusion

FOLDS = 5
"""Parts that measured neurons are cut into where weights are learned."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a variant chooses neurons by.

    Attributes:
        by: `fused`, a signal whose importance is taken as it is, or `random`.
        strategy: How signals are fused.
        signals: Which ones.
        scope: The choice's own scope of comparison (see `retention`); empty for the experiment's.
    """

    by: str = "fused"
    strategy: str = "simple"
    signals: tuple[str, ...] = SIGNALS
    scope: str = ""


VARIANTS = {
    "random": Choice(by="random"),
    "traditional": Choice(by="hessian"),
    "weights": Choice(signals=("weights",)),
    "weights+activations": Choice(signals=("weights", "activations")),
    "weights+activations+gradients": Choice(signals=("weights", "activations", "gradients")),
    "simple": Choice(),
    "adaptive": Choice(strategy="adaptive"),
    "learned": Choice(strategy="learned"),
    "surgeon": Choice(by="surgeon", scope="absolute"),
}
"""The steps of the comparison. `simple` to `learned` fuse all signals; `learned` weighs the field's criteria too."""
CONTROL, TRADITIONAL, RANDOM = "dense", "traditional", "random"


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
    """Return the fusion of a choice; only a learned one looks at measured removals and the field's criteria."""
    learned = choice.strategy == "learned"
    return fusion(
        calibration.tables,
        strategy=choice.strategy,
        seed=calibration.seed,
        signals=choice.signals,
        folds=FOLDS,
        oracle=oracle if learned and weights is None else None,
        criteria=calibration.tables["criteria"][["layer", "neuron", *CRITERIA]] if learned else None,
        weights=weights if learned else None,
    )


def choice_of(variant: str) -> Choice:
    """Return what a variant chooses by.

    Raises:
        ValueError: If there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; known: {list(VARIANTS)}.")
    return VARIANTS[variant]
