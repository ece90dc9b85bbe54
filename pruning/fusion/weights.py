"""How much each signal counts in a layer: what the signals themselves tell, without any measured removal."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from pruning.signals.scaling import scaled

TRANSFORMS = ("scaled", "rank")


def variance_reliability(importance: np.ndarray, standard_error: np.ndarray) -> float:
    """Return the share of an estimate's variance over neurons that is no noise, in [0, 1].

    ρ = var(true) / var(observed) = 1 − mean(se²) / var(importance): what two halves of the data would correlate by,
    were each as large as the whole (classical test theory: Spearman 1910; Lord & Novick 1968). An importance that is
    the same for every neuron tells none from another and has 0.
    """
    variance = importance.var()
    if variance <= (1e-12 * np.abs(importance).max(initial=0.0)) ** 2:
        return 0.0
    return float(np.clip(1 - np.mean(np.square(standard_error)) / variance, 0, 1))


def without_noise(correlation: float, reliability: float) -> float:
    """Return a correlation with the truth as it would be, were the truth known exactly: correlation / √reliability.

    Spearman's correction for attenuation (1904), of the truth's noise alone. Not a number where the truth is all noise.

    >>> without_noise(0.6, 0.36)
    1.0

    Args:
        correlation: With what was measured.
        reliability: What two measurements as long as that one would correlate by.
    """
    return float(correlation / np.sqrt(reliability)) if reliability > 0 else float("nan")


def agreements(ranks: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """Return each signal's Pearson correlation with the mean of the others, the item–rest correlation, (signals,).

    Args:
        ranks: Each neuron's rank by each signal, (neurons, signals).
        varies: Whether a signal tells neurons apart, (signals,); one that does not has 0 and is in nobody's mean.
    """
    correlations = np.zeros(len(varies))
    for signal in np.flatnonzero(varies):
        others = varies & (np.arange(len(varies)) != signal)
        if others.any():
            correlations[signal] = correlation(ranks[:, signal], ranks[:, others].mean(axis=1))
    return correlations


def adaptive(reliabilities: np.ndarray, agreement: np.ndarray) -> np.ndarray:
    """Return the weights of one layer's signals: ∝ reliability × max(agreement, 0); non-negative, summing to 1.

    A signal counts as far as it repeats itself and as far as the others see what it sees. Where no signal agrees with
    the others (or there is but one), the reliabilities alone decide; where every reliability is 0, all count the same.
    So a constant signal has no weight unless all are constant.
    """
    for weights in (reliabilities * np.maximum(agreement, 0), reliabilities, np.ones_like(reliabilities)):
        if weights.sum() > 0:
            return np.asarray(weights / weights.sum())
    raise ValueError("Expected at least one signal, got none.")


def relative(frame: pd.DataFrame, names: Sequence[str], transform: str) -> pd.DataFrame:
    """Return the signals on a common scale within each layer: `scaled` (see `scaling.scaled`) or `rank`, in [0, 1]."""
    change = _scaled if transform == "scaled" else _ranked
    return pd.DataFrame({name: frame.groupby("layer")[name].transform(change) for name in names})


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Pearson correlation of two samples; 0 where one of them does not vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation of two samples; 0 where one of them does not vary."""
    return correlation(pd.Series(one).rank().to_numpy(), pd.Series(other).rank().to_numpy())


def _scaled(values: pd.Series) -> np.ndarray:
    return scaled(torch.tensor(values.to_numpy())).numpy()


def _ranked(values: pd.Series) -> np.ndarray:
    if len(values) < 2:
        return np.full(len(values), 0.5)
    return ((values.rank() - 1) / (len(values) - 1)).to_numpy()
