"""Covariances of wide layers in little memory: a few directions, and what these leave of each variance."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning.core.statistics import Covariance, Moments, deviated, scale_of

SHORTENED = 0.2
"""Which share of the directions is shortened when others go."""


class Sketch(Covariance):
    """Count, mean and variances of a vector, and its co-moments along so many directions.

    Σ (x − mean)(x − mean)ᵀ ≈ RᵀR + diag(σ − Σ_r R_r²), with the exact sums σ of squares: what R's rows, the directions,
    leave of each variable's is taken to be its own. R is a sketch by Frequent Directions (Ghashami, Liberty, Phillips
    & Woodruff 2016): once it has more than twice `rank` rows it is rotated to its singular vectors, of which the `rank`
    longest stay. From the squared lengths of the shortest fifth of these that of the longest one which goes is taken
    off (Desai, Ghashami & Phillips 2016). So RᵀR is off by no more along any direction than 1 / (rank / 5 − k) of the
    squares outside of the k largest directions, for every k, and in practice by as little as if nothing were taken off,
    which could lose a direction that comes again and again.
    Two sketches merge to one with the same bound, in any number of shards; equal shards give equal bytes.

    A sketch takes 2 · rank · n numbers and 4 · rank · n operations a sample, where `Covariance` takes n² of each. All
    that such a state tells is told, of n² numbers if it is a matrix.

    Attributes:
        count: Number of samples.
        mean: (n,) float64 like all below.
        squares: σ, (n,).
        rows: R, (at most 2 · rank, n).
        rank: How many directions are kept at least.
    """

    def __init__(self, count: int, mean: Tensor, squares: Tensor, rows: Tensor, rank: int) -> None:
        self.count, self.mean, self.squares, self.rank = count, mean, squares, rank
        self.rows = shrunk(rows, rank)

    @classmethod
    def empty(cls, size: int, rank: int = 1) -> "Sketch":
        """Return the state that has seen nothing of `size` variables."""
        nothing = torch.zeros(size, dtype=torch.float64)
        return cls(0, nothing, nothing.clone(), torch.zeros(0, size, dtype=torch.float64), rank)

    def update(self, batch: Tensor, repeats: Tensor | None = None) -> None:
        """Take in `batch`, (samples, n); `repeats`, (samples,), says how often each sample counts, if not once."""
        count, mean, deviations = deviated(batch.detach().cpu().double(), repeats)
        merged = self.merge(type(self)(count, mean, deviations.square().sum(0), deviations, self.rank))
        self.count, self.mean, self.squares, self.rows = merged.count, merged.mean, merged.squares, merged.rows

    def merge(self, other: "Sketch") -> "Sketch":
        """Return the state of both samples together."""
        if other.count == 0:
            return self
        count = self.count + other.count
        shift = other.mean - self.mean
        between = self.count * other.count / count
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + shift.square() * between
        apart = shift[None] * between**0.5
        return type(self)(count, mean, squares, torch.cat([self.rows, other.rows, apart]), self.rank)

    @property
    def products(self) -> Tensor:  # type: ignore[override] # made when asked for
        """Σ (x − mean)(x − mean)ᵀ as far as it is known, (n, n)."""
        found = self.rows.T @ self.rows
        found.diagonal().copy_(self.squares)
        return found

    @property
    def moments(self) -> Moments:
        """The same of each variable by itself, which is exact."""
        return Moments(self.count, self.mean, self.squares)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, (n,), which is exact; zero where fewer than two samples were seen."""
        return self.moments.variance

    def precision(self, ridge: float, *, correlation: bool = False) -> Tensor:
        """Return the diagonal of the inverse of the covariance plus a ridge, (n,), in n · rank² operations.

        With D = diag(d) + ridge and the singular values s and vectors v of R D^-½ it is
        (1 − Σ v² + Σ v² / (1 + s²)) / D (Woodbury's identity).
        """
        rows, left = self.factors(centred=True)
        if correlation:
            deviation = self.variance.sqrt()
            rows = torch.where(self.varies, rows / deviation, 0)
            left = torch.where(self.varies, left / self.variance, 1)
        alone = left + ridge * (1 if correlation else scale_of(self.variance))
        _, values, vectors = torch.linalg.svd(rows / alone.sqrt(), full_matrices=False)
        told = vectors.square()
        rest = (1 - told.sum(0)).clamp(min=0)
        precision: Tensor = (rest + told.T @ (1 / (1 + values.square()))) / alone
        return precision

    def factors(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Return R (directions, n) and d (n,) so that RᵀR + diag(d) is the covariance, or the second moment."""
        left = (self.squares - self.rows.square().sum(0)).clamp(min=0)
        if centred:
            count = max(self.count - 1, 1)
            return self.rows / count**0.5, left / count
        count = max(self.count, 1)
        return torch.cat([self.rows / count**0.5, self.mean[None]]), left / count


def shrunk(rows: Tensor, rank: int) -> Tensor:
    """Return at most 2 · rank rows that have nearly the same products as these; `rank` at a time are taken in.

    >>> round(shrunk(torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)), 1).norm().item() ** 2, 6)
    5.0
    """
    if len(rows) <= 2 * rank:
        return rows
    kept = rows[: 2 * rank]
    for more in torch.split(rows[2 * rank :], rank):
        kept = _rotated(torch.cat([kept, more]), rank)
    return kept


def _rotated(rows: Tensor, rank: int) -> Tensor:
    """Return `rank` rows: the longest singular vectors, the last of them shortened by the first that goes."""
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    rotated: Tensor = vectors[:, -rank:].T @ rows
    some = math.ceil(SHORTENED * rank)
    squares = values[-rank:][:some]
    excess = (squares - values[-rank - 1].clamp(min=0)).clamp(min=0)
    rotated[:some].mul_(torch.where(excess > 0, excess / squares, 0).sqrt()[:, None])
    return rotated


def numbers_of(size: int, rank: int | None) -> int:
    """Return how many numbers `covariance_of` keeps of so many variables, at most."""
    return size**2 if rank is None or 2 * rank >= size else 2 * rank * size


def covariance_of(size: int, rank: int | None) -> Covariance:
    """Return the empty state of so many variables: exact, or a sketch where these are more than twice its rank.

    >>> [type(covariance_of(64, rank)).__name__ for rank in (None, 16, 32)]
    ['Covariance', 'Sketch', 'Covariance']

    Args:
        size: Variables.
        rank: Directions of a sketch; None for exact ones whatever the width.
    """
    return Covariance.empty(size) if rank is None or 2 * rank >= size else Sketch.empty(size, rank)


def rank_of(layers: Mapping[str, Sequence[Covariance]]) -> int | None:
    """Return the rank of the sketches among some layers' states; None where all are exact."""
    return next((one.rank for groups in layers.values() for one in groups if isinstance(one, Sketch)), None)
