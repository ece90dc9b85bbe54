"""Many signals become one importance for each neuron."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from pruning.signals.scaling import scaled
from pruning.tables import CRITERIA, SIGNALS, table

STRATEGIES = ("simple",)


def fuse(signals: Mapping[str, pd.DataFrame], *, strategy: str, seed: int) -> pd.DataFrame:
    """Return the `importance` table: each signal's importance, the shares used, their fusion, and what else there is.

    `simple`: fused = mean over signals of the importance scaled within its layer (q05 → 0, q95 → 1, clipped), so an
    outlier cannot flatten the others and each signal has an equal say.

    Args:
        signals: Signal or criterion → its table; the same neurons in each. Criteria (`CRITERIA`) stand beside the
            fused importance and are no part of it.
        strategy: How to weigh the signals.
        seed: Seed of the random control.

    Raises:
        ValueError: For an unknown strategy, or tables of different neurons.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown fusion {strategy!r}; known: {list(STRATEGIES)}.")
    frame = _side_by_side(signals)
    shares = {signal: 1 / len(SIGNALS) for signal in SIGNALS}
    columns = {f"{signal}_share": share for signal, share in shares.items()}
    relative = pd.DataFrame({signal: frame.groupby("layer")[signal].transform(_scaled) for signal in SIGNALS})
    fused = relative.mul(pd.Series(shares)).sum(axis=1)
    random = np.random.default_rng(seed).random(len(frame))
    others = {name: frame.pop(name) for name in CRITERIA}
    return table("importance", frame.assign(**columns, fused=fused, random=random, **others))


def _side_by_side(signals: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a neuron with one column a signal or criterion."""
    names = (*SIGNALS, *CRITERIA)
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
