"""How many neurons a layer keeps by how unequal their importance is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pruning.core.options import expect_known

_FACTORS = {"rnn": 0.85, "snn": 1.15, "mixed": 1.0, "dense": 1.0, "conv": 1.0, "head": 1.0}


@dataclass(frozen=True, kw_only=True)
class AdaptiveRate:
    """The settings of `adaptive_retention_rate`.

    Attributes:
        steps: (cv, share of importance): above that coefficient of variation, keep the smallest set holding the share.
        otherwise: Share of the neurons where no step applies.
        factors: Network type → factor of the rate.
        lowest: Smallest rate.
        highest: Largest rate.
    """

    steps: tuple[tuple[float, float], ...] = ((2.5, 0.7), (1.5, 0.8), (0.8, 0.9))
    otherwise: float = 0.6
    factors: Mapping[str, float] = field(default_factory=lambda: dict(_FACTORS))
    lowest: float = 0.05
    highest: float = 0.8


USUAL = AdaptiveRate()


def adaptive_retention_rate(
    scores: Sequence[float] | np.ndarray, network_type: str, *, thresholds: AdaptiveRate = USUAL
) -> float:
    """Return the share of neurons to keep, from how unequal their importance is.

    With cv = σ / mean (σ over all, ddof 0): above the first of `thresholds.steps` that cv exceeds, the size of the
    smallest set that holds that step's share of the importance, over the number of neurons; else the conservative
    `otherwise`. The result × the network type's factor lies within [lowest, highest].

    A negative score counts as 0: removing that neuron costs nothing. Scores that are all equal, or all ≤ 0, tell no
    neuron from another (cv = 0) and give the conservative share.

    >>> adaptive_retention_rate([1.0] * 10, "mixed")
    0.6
    >>> adaptive_retention_rate([100.0] + [0.0] * 99, "mixed")
    0.05

    Args:
        scores: Importance of each neuron, (width,).
        network_type: A key of `thresholds.factors`: `rnn`, `snn`, `mixed`, `dense`, `conv` or `head`.
        thresholds: The settings.

    Raises:
        ValueError: For an unknown network type, no scores, or a score that is no finite number.
    """
    expect_known("network type", thresholds.factors, network_type)
    values = np.asarray(scores, dtype=float).ravel()
    if not len(values):
        raise ValueError("Expected at least one score, got none.")
    if not np.isfinite(values).all():
        raise ValueError(f"Expected finite scores, got {int((~np.isfinite(values)).sum())} others.")
    share = _adaptive_share(np.maximum(values, 0.0), thresholds)
    return float(np.clip(share * thresholds.factors[network_type], thresholds.lowest, thresholds.highest))


def _adaptive_share(values: np.ndarray, thresholds: AdaptiveRate) -> float:
    """Return the share before the network type has its say."""
    largest = values.max()
    relative = values / largest if largest > 0 else values  # no sum of large scores overflows
    variation = relative.std() / relative.mean() if largest > 0 else 0.0
    for limit, held in sorted(thresholds.steps, reverse=True):
        if variation > limit:
            cumulated = np.cumsum(np.sort(relative)[::-1])
            reached = cumulated >= held * cumulated[-1] * (1 - 1e-12)
            return float(reached.argmax() + 1) / len(values)
    return thresholds.otherwise
