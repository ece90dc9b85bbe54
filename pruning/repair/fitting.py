"""The fit behind a repair: how lost numbers follow from those that are left, by ridge regression on their moments."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.core.statistics import Covariance, merged

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge strengths tried, relative to the mean variance of the kept outputs."""
STRONG = (1.0, 10.0, 100.0)
"""Those tried besides where there may be few samples: of what is read once in a whole sequence, say."""
HELD_OUT = 4
"""Every fourth group of text is held out while the ridge strength is chosen; of fewer groups, the last."""
MEAN, NONE = float("inf"), -1.0
"""Instead of a strength: the mean alone, and nothing at all."""
SEVERAL = 1024
"""Kept numbers up to which each fold is held out in turn; of more, whose fits take long, only the last is."""


@dataclass(frozen=True)
class Fit:
    """How removed outputs follow from kept ones: h_removed ≈ slopes · h_kept + intercept.

    Attributes:
        slopes: (removed, kept).
        intercept: (removed,).
    """

    slopes: Tensor
    intercept: Tensor


def best_ridge(
    groups: list[Covariance], kept: Tensor, removed: Tensor, readers: Tensor, *, intercept: bool = True
) -> float:
    """Return the relative ridge strength whose fit on most groups of text predicts the others' readings best.

    The error is E‖W_:P (h_P − B h_K − c)‖² over held-out groups, from their moments alone.

    Args:
        groups: Covariance of the layer's outputs in each group of text.
        kept: Kept neurons.
        removed: Removed neurons.
        readers: What reads each neuron, (width, n).
        intercept: Whether the fit has one.

    Raises:
        ValueError: If there is only one group, of which nothing can be held out.
    """
    if len(groups) < 2:
        raise ValueError(
            f"Expected at least two groups of text, to hold one out while the ridge strength is chosen, got "
            f"{len(groups)}; measure the covariances on more batches, or repair by 'mean'."
        )
    every = min(HELD_OUT, len(groups))
    held_out = merged(groups[every - 1 :: every])
    fitted_on = merged([group for index, group in enumerate(groups) if index % every != every - 1])
    gram = (readers[removed] @ readers[removed].T).cpu().double()
    fits = {ridge: fit_of(fitted_on, kept, removed, ridge=ridge, intercept=intercept) for ridge in RIDGES}
    errors = {ridge: (gram * error_of(fit, held_out, kept, removed)).sum().item() for ridge, fit in fits.items()}
    return min(errors, key=errors.__getitem__)


def cross_validated(
    folds: Sequence[Covariance], kept: Tensor, removed: Tensor, readers: Tensor, *, intercept: bool
) -> Fit:
    """Return the fit on all folds, with the ridge strength whose fits on the others predict each fold's readings best.

    To leave everything as it was cut, and to give the mean alone, are among what is tried, so that few samples, or
    numbers that have nothing to do with each other, do no harm.

    Args:
        folds: Moments of parts of the data.
        kept: Which of their numbers are at hand.
        removed: Which are to follow from these.
        readers: What reads each of those to follow, (removed, n).
        intercept: Whether the fit has one.
    """
    folds = [fold for fold in folds if fold.count]
    cut = Fit(readers.new_zeros(len(removed), len(kept)), readers.new_zeros(len(removed)))
    gram = readers @ readers.T
    ways: dict[float, float] = {}
    for held_out in range(len(folds)) if len(kept) <= SEVERAL else [len(folds) - 1]:
        others = [fold for number, fold in enumerate(folds) if number != held_out]
        for ridge in (*RIDGES, *STRONG, MEAN, NONE) if others else (NONE,):
            fit = cut if ridge == NONE else _fitted(merged(others), kept, removed, ridge, intercept=intercept)
            error = (gram * error_of(fit, folds[held_out], kept, removed)).sum().item() * folds[held_out].count
            ways[ridge] = ways.get(ridge, 0.0) + error
    best = min(ways, key=ways.__getitem__)
    return cut if best == NONE else _fitted(merged(folds), kept, removed, best, intercept=intercept)


def _fitted(state: Covariance, kept: Tensor, removed: Tensor, ridge: float, *, intercept: bool) -> Fit:
    if ridge == MEAN:
        return fit_of(state, kept, removed, ridge=0.0, slopes=False, intercept=intercept)
    return fit_of(state, kept, removed, ridge=ridge, intercept=intercept)


def fit_of(
    state: Covariance, kept: Tensor, removed: Tensor, *, ridge: float, slopes: bool = True, intercept: bool = True
) -> Fit:
    """Return the regression of removed outputs on kept ones; only their means where `slopes` is false."""
    mean = state.mean if intercept else torch.zeros_like(state.mean)
    if not slopes:
        return Fit(state.mean.new_zeros(len(removed), len(kept)), mean[removed])
    matrix = state.matrix if intercept else state.second_moment
    inner = matrix[kept][:, kept]
    strength = (ridge * inner.diagonal().mean()).clamp(min=torch.finfo(inner.dtype).tiny)  # also if nothing varies
    damped = inner + strength * torch.eye(len(kept), dtype=inner.dtype)
    found = torch.linalg.solve(damped, matrix[kept][:, removed]).T  # not lstsq, whose last bits differ between calls
    return Fit(found, mean[removed] - found @ mean[kept])


def error_of(fit: Fit, state: Covariance, kept: Tensor, removed: Tensor) -> Tensor:
    """Return E[e eᵀ] of e = h_removed − slopes · h_kept − intercept over the text of `state`, (removed, removed)."""
    weights = torch.zeros(len(removed), len(state.mean), dtype=state.mean.dtype)
    weights[:, removed] = torch.eye(len(removed), dtype=state.mean.dtype)
    weights[:, kept] = -fit.slopes
    mean = weights @ state.mean - fit.intercept
    spread: Tensor = weights @ (state.products / state.count) @ weights.T
    return spread + torch.outer(mean, mean)
