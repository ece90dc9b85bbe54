"""Which models are worth a look: those that no other beats in both cost and loss."""

import numpy as np


def on_front(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return which of n models are on the Pareto front, (n,) bool: no other is as good in both, and better in one.

    >>> on_front(np.array([1.0, 2.0, 2.0, 3.0]), np.array([9.0, 5.0, 6.0, 5.0])).tolist()
    [True, True, False, False]

    Args:
        costs: What each costs: milliseconds, parameters, multiply-adds.
        losses: What each loses; perplexity will do.
    """
    cheaper, better = np.less_equal.outer(costs, costs), np.less_equal.outer(losses, losses)
    beats: np.ndarray = cheaper & better & ~(cheaper.T & better.T)
    return np.logical_not(beats.any(axis=0))
