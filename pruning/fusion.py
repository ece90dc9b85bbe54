"""Many signals become one importance for each neuron."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from pruning.signals.scaling import scaled
from pruning.tables import BESIDE, CRITERIA, SIGNALS, table

STRATEGIES = ("simple",)


def fuse(signals: Mapping[str, pd.DataFrame], criteria: pd.DataFrame, *, strategy: str, seed: int) -> pd.DataFrame:
    """Return the `importance` table: signals, the shares used, their fusion, a random control, and the criteria.

    `simple`: fused = mean over signals of the importance scaled within its layer (q05 → 0, q95 → 1, clipped), so an
    outlier cannot flatten the others and each signal has an equal say.

    Args:
        signals: Signal name → its table; the same neurons in each.
        criteria: The `criteria` table of the same neurons; its criteria are passed on for variants to choose by.
        strategy: How to weigh the signals.
        seed: Seed of the random control.

    Raises:
        ValueError: For an unknown strategy, or tables of different neurons.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown fusion {strategy!r}; known: {list(STRATEGIES)}.")
    frame = _side_by_side(signals)
    if not criteria[["layer", "neuron"]].equals(frame[["layer", "neuron"]]):
        raise ValueError("Expected the same neurons in every table, got others in 'criteria'.")
    shares = {signal: 1 / len(SIGNALS) for signal in SIGNALS}
    columns = {f"{signal}_share": share for signal, share in shares.items()}
    relative = pd.DataFrame({signal: frame.groupby("layer")[signal].transform(_scaled) for signal in SIGNALS})
    fused = relative.mul(pd.Series(shares)).sum(axis=1)
    passed = {name: frame.pop(name) for name in BESIDE} | {name: criteria[name] for name in CRITERIA}
    random = np.random.default_rng(seed).random(len(frame))
    return table("importance", frame.assign(**columns, fused=fused, random=random, **passed))


def _side_by_side(signals: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a neuron with one column a signal or criterion."""
    names = (*SIGNALS, *BESIDE)
    missing = [name for name in names if name not in signals]
    if missing:
        raise ValueError(f"Expected the signals {list(names)}, got none of {missing}.")
    keys = signals[names[0]][["layer", "neuron"]]
    for name in names:
        if not signals[name][["layer", "neuron"]].equals(keys):
            raise ValueError(f"Expected the same neurons in every signal, got others in {name!r}.")
    return keys.assign(**{name: signals[name]["importance"] for name in names})


def _scaled(values: pd.Series) -> np.ndarray:
    return scaled(torch.tensor(values.to_numpy())).numpy()
