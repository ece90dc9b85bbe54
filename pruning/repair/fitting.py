"""The fit behind a repair: how lost numbers follow from those that are left, by ridge regression on their moments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.core.sketches import Sketch
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

    def moved(self, lost: Tensor, some: slice = slice(None)) -> Tensor:
        """Return what readers of kept outputs, or of some of them, gain by what they lose, (kept, b, n)."""
        return torch.einsum("pk,pbn->kbn", self.slopes[:, some].to(lost), lost)


@dataclass(frozen=True)
class LowRank:
    """The same where slopes = leftᵀ · right, of few directions: no number for each pair of neurons.

    Attributes:
        left: (directions, removed).
        right: (directions, kept).
        intercept: (removed,).
    """

    left: Tensor
    right: Tensor
    intercept: Tensor

    @property
    def slopes(self) -> Tensor:
        """The slopes one by one, (removed, kept)."""
        return self.left.T @ self.right

    def moved(self, lost: Tensor, some: slice = slice(None)) -> Tensor:
        """Return what readers of kept outputs, or of some of them, gain by what they lose, (kept, b, n)."""
        along = torch.einsum("rp,pbn->rbn", self.left.to(lost), lost)
        return torch.einsum("rk,rbn->kbn", self.right[:, some].to(lost), along)


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
    error = judging(readers[removed].cpu().double(), kept, removed)
    errors = {
        ridge: error(fit_of(fitted_on, kept, removed, ridge=ridge, intercept=intercept), held_out) for ridge in RIDGES
    }
    return min(errors, key=errors.__getitem__)


def cross_validated(
    folds: Sequence[Covariance], kept: Tensor, removed: Tensor, readers: Tensor, *, intercept: bool
) -> Fit | LowRank:
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
    cut = _constant(folds[0], kept, removed, readers.new_zeros(len(removed)))
    judged = judging(readers, kept, removed)
    ways: dict[float, float] = {}
    for held_out in range(len(folds)) if len(kept) <= SEVERAL else [len(folds) - 1]:
        others = [fold for number, fold in enumerate(folds) if number != held_out]
        for ridge in (*RIDGES, *STRONG, MEAN, NONE) if others else (NONE,):
            fit = cut if ridge == NONE else _fitted(merged(others), kept, removed, ridge, intercept=intercept)
            error = judged(fit, folds[held_out]) * folds[held_out].count
            ways[ridge] = ways.get(ridge, 0.0) + error
    best = min(ways, key=ways.__getitem__)
    return cut if best == NONE else _fitted(merged(folds), kept, removed, best, intercept=intercept)


def _fitted(state: Covariance, kept: Tensor, removed: Tensor, ridge: float, *, intercept: bool) -> Fit | LowRank:
    if ridge == MEAN:
        return fit_of(state, kept, removed, ridge=0.0, slopes=False, intercept=intercept)
    return fit_of(state, kept, removed, ridge=ridge, intercept=intercept)


def fit_of(
    state: Covariance, kept: Tensor, removed: Tensor, *, ridge: float, slopes: bool = True, intercept: bool = True
) -> Fit | LowRank:
    """Return the regression of removed outputs on kept ones; only their means where `slopes` is false."""
    mean = state.mean if intercept else torch.zeros_like(state.mean)
    if not slopes:
        return _constant(state, kept, removed, mean[removed])
    if isinstance(state, Sketch):
        return _fit_of_few(state, kept, removed, ridge=ridge, intercept=intercept)
    matrix = state.matrix if intercept else state.second_moment
    inner = matrix[kept][:, kept]
    strength = (ridge * inner.diagonal().mean()).clamp(min=torch.finfo(inner.dtype).tiny)  # also if nothing varies
    damped = inner + strength * torch.eye(len(kept), dtype=inner.dtype)
    found = torch.linalg.solve(damped, matrix[kept][:, removed]).T  # not lstsq, whose last bits differ between calls
    return Fit(found, mean[removed] - found @ mean[kept])


def _constant(state: Covariance, kept: Tensor, removed: Tensor, intercept: Tensor) -> Fit | LowRank:
    """Return the fit of no slopes."""
    if isinstance(state, Sketch):
        return LowRank(state.mean.new_zeros(0, len(removed)), state.mean.new_zeros(0, len(kept)), intercept)
    return Fit(state.mean.new_zeros(len(removed), len(kept)), intercept)


def _fit_of_few(state: Sketch, kept: Tensor, removed: Tensor, *, ridge: float, intercept: bool) -> LowRank:
    """Return the regression with S ≈ RᵀR + diag(d), by Woodbury's identity.

    Only R relates two neurons, so with D = diag(d_K) + λ I the slopes S_PK (S_KK + λ I)⁻¹ are
    R_Pᵀ (I + R_K D⁻¹ R_Kᵀ)⁻¹ R_K D⁻¹.
    """
    rows, left = state.factors(centred=intercept)
    own = rows[:, kept]
    strength = ridge * (own.square().sum(0) + left[kept]).mean()
    scaled = own / (left[kept] + strength.clamp(min=torch.finfo(own.dtype).tiny))
    inner = torch.eye(len(rows), dtype=rows.dtype) + scaled @ own.T
    right = torch.linalg.solve(inner, scaled)
    mean = state.mean if intercept else torch.zeros_like(state.mean)
    others = rows[:, removed]
    return LowRank(others, right, mean[removed] - others.T @ (right @ mean[kept]))


def judging(readers: Tensor, kept: Tensor, removed: Tensor) -> Callable[[Fit | LowRank, Covariance], float]:
    """Return (fit, text) → E‖Wᵀ e‖², with readers W (removed, n) and e as in `error_of`."""
    grams: list[Tensor] = []

    def error(fit: Fit | LowRank, state: Covariance) -> float:
        if isinstance(state, Sketch):
            return _error_of_few(fit, state, kept, removed, readers)
        grams[:] = grams or [readers @ readers.T]
        return (grams[0] * error_of(fit, state, kept, removed)).sum().item()

    return error


def _error_of_few(fit: Fit | LowRank, state: Sketch, kept: Tensor, removed: Tensor, readers: Tensor) -> float:
    """Return E‖Wᵀ (h_P − slopes · h_K − intercept)‖², of products of the readers alone, (n, kept) at most."""
    rows, left = state.rows / max(state.count, 1) ** 0.5, state.factors(centred=True)[1]
    left = left * max(state.count - 1, 1) / max(state.count, 1)
    gained = fit.moved(readers[:, None, :])[:, 0]  # slopesᵀ W
    directions = rows[:, removed] @ readers - rows[:, kept] @ gained
    mean = (state.mean[removed] - fit.intercept) @ readers - state.mean[kept] @ gained
    alone = left[removed] @ readers.square().sum(1) + left[kept] @ gained.square().sum(1)
    return float(directions.square().sum() + mean.square().sum() + alone)


def error_of(fit: Fit | LowRank, state: Covariance, kept: Tensor, removed: Tensor) -> Tensor:
    """Return E[e eᵀ] of e = h_removed − slopes · h_kept − intercept over the text of `state`, (removed, removed)."""
    weights = torch.zeros(len(removed), len(state.mean), dtype=state.mean.dtype)
    weights[:, removed] = torch.eye(len(removed), dtype=state.mean.dtype)
    weights[:, kept] = -fit.slopes
    mean = weights @ state.mean - fit.intercept
    spread: Tensor = weights @ (state.products / state.count) @ weights.T
    return spread + torch.outer(mean, mean)
