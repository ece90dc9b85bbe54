"""Streaming statistics: small states that batches update, that merge, and whose size no number of batches changes.

Every state has `update(batch)`, which returns nothing, `merge(other)`, which returns the state of both, and
properties for what it has learnt. Two halves merged equal the whole, so shards can be computed anywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from pruning.core.devices import finest

ROUNDING = 1e-10
"""Relative spread below which a float64 variable counts as constant: far above its rounding, far below float32's."""
TOGETHER = 1024
"""Columns of half an inverse that are made together; narrower matrices are inverted at once."""


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of each variable (Chan, Golub & LeVeque 1983).

    Attributes:
        count: Number of samples.
        mean: (n,) float64.
        squares: Σ (x − mean)², (n,) float64.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, size: int) -> Self:
        """Return the state that has seen nothing of `size` variables."""
        return cls(0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))

    def update(self, batch: Tensor) -> None:
        """Take in `batch`, (samples, n)."""
        values = finely(batch)
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        merged = self.merge(type(self)(len(values), mean.cpu(), squares.cpu()))
        self.count, self.mean, self.squares = merged.count, merged.mean, merged.squares

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        if other.count == 0:
            return self
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + shift.square() * (self.count * other.count / count)
        return type(self)(count, mean, squares)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, (n,); zero where fewer than two samples were seen."""
        return self.squares / max(self.count - 1, 1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean, √(variance / count), (n,)."""
        return (self.variance / max(self.count, 1)).sqrt()


@dataclass
class Covariance:
    """Count, mean and co-moment matrix of a vector, in float64.

    Attributes:
        count: Number of samples.
        mean: (n,).
        products: Σ (x − mean)(x − mean)ᵀ, (n, n).
    """

    count: int
    mean: Tensor
    products: Tensor

    @classmethod
    def empty(cls, size: int) -> Self:
        """Return the state that has seen nothing of `size` variables."""
        return cls(0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64))

    def update(self, batch: Tensor, repeats: Tensor | None = None) -> None:
        """Take in `batch`, (samples, n); `repeats`, (samples,), says how often each sample counts, if not once."""
        count, mean, deviations = deviated(finely(batch), repeats)
        merged = self.merge(type(self)(count, mean.cpu(), (deviations.T @ deviations).cpu()))
        self.count, self.mean, self.products = merged.count, merged.mean, merged.products

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        if other.count == 0:
            return self
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = torch.outer(shift, shift).mul_(self.count * other.count / count)
        products = (self.products + other.products).add_(between)  # in place, since a wide layer's pages cost more
        return type(self)(count, mean, products)

    @property
    def moments(self) -> Moments:
        """The same of each variable by itself, whose merging takes n numbers and no n²."""
        return Moments(self.count, self.mean, self.products.diagonal().clone())

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, (n,); zero where fewer than two samples were seen."""
        return self.products.diagonal() / max(self.count - 1, 1)

    @property
    def matrix(self) -> Tensor:
        """Unbiased covariance, (n, n)."""
        return self.products / max(self.count - 1, 1)

    @property
    def second_moment(self) -> Tensor:
        """Mean of x xᵀ, (n, n): the mean is not taken off."""
        return self.products / max(self.count, 1) + torch.outer(self.mean, self.mean)

    @property
    def varies(self) -> Tensor:
        """Whether each variable's standard deviation is more than what rounding its mean leaves, (n,)."""
        return self.moments.squares > self.count * (ROUNDING * self.mean).square()

    @property
    def correlation(self) -> Tensor:
        """Pearson correlation, (n, n); zero with and 1 on the diagonal for a variable that never varies."""
        inverse = torch.where(self.varies, self.moments.squares.rsqrt(), 0)
        return (self.products * inverse[:, None] * inverse[None, :]).fill_diagonal_(1).clamp(-1, 1)

    def precision(self, ridge: float, *, correlation: bool = False) -> Tensor:
        """Return the diagonal of the inverse of the covariance plus a ridge on its diagonal, (n,).

        Its inverse is what of each variable's variance the others do not explain linearly.

        Args:
            ridge: What is added to each variance, relative to their mean; as it is where nothing varies.
            correlation: Whether it is of the correlation.
        """
        matrix = self.correlation if correlation else self.matrix
        added = ridge * scale_of(matrix.diagonal())
        return inverse_diagonal(matrix + added * torch.eye(len(matrix), dtype=matrix.dtype))


@dataclass
class Histogram:
    """Counts of each variable between fixed edges, and its smallest and largest value.

    Attributes:
        edges: Ascending inner edges, (bins − 1,), shared by all variables; the outer bins are open.
        counts: (n, bins).
        smallest: (n,).
        largest: (n,).
    """

    edges: Tensor
    counts: Tensor
    smallest: Tensor
    largest: Tensor

    @classmethod
    def empty(cls, size: int, edges: Tensor) -> Self:
        """Return the state that has seen nothing of `size` variables."""
        infinite = torch.full((size,), float("inf"), dtype=torch.float64)
        return cls(edges, torch.zeros(size, len(edges) + 1, dtype=torch.int64), infinite, -infinite)

    def update(self, batch: Tensor) -> None:
        """Take in `batch`, (samples, n)."""
        values = batch.detach().contiguous()
        size, bins = self.counts.shape
        places = torch.bucketize(values, self.edges.to(values)) + torch.arange(size, device=values.device) * bins
        self.counts += torch.bincount(places.flatten(), minlength=size * bins).view(size, bins).cpu()
        self.smallest = torch.minimum(self.smallest, values.amin(0).cpu().double())
        self.largest = torch.maximum(self.largest, values.amax(0).cpu().double())

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        return type(self)(
            self.edges,
            self.counts + other.counts,
            torch.minimum(self.smallest, other.smallest),
            torch.maximum(self.largest, other.largest),
        )

    @property
    def entropy(self) -> Tensor:
        """Shannon entropy of each variable's histogram, (n,) nat."""
        return entropy(self.counts.double())

    @property
    def range(self) -> Tensor:
        """Largest minus smallest value, (n,)."""
        return self.largest - self.smallest


@dataclass
class ClusteredMean:
    """Mean over tokens of variables that are summed in clusters of neighbouring, so not independent, tokens.

    With s_c the sum and n_c the tokens of cluster c: mean r = Σ s_c / Σ n_c, and its standard error is that of a ratio,
    √(C / (C − 1) · Σ (s_c − r n_c)²) / Σ n_c (Cochran 1977, §6.4). Variables may have seen different clusters.

    Attributes:
        clusters: C for each variable, (n,) float64 like all below.
        tokens: Σ n_c.
        sums: Σ s_c.
        squares: Σ s_c².
        products: Σ s_c n_c.
        sizes: Σ n_c².
    """

    clusters: Tensor
    tokens: Tensor
    sums: Tensor
    squares: Tensor
    products: Tensor
    sizes: Tensor

    @classmethod
    def empty(cls, size: int) -> Self:
        """Return the state that has seen nothing of `size` variables."""
        return cls(*(torch.zeros(size, dtype=torch.float64) for _ in range(6)))

    def update(self, sums: Tensor, counts: Tensor, places: Tensor | None = None) -> None:
        """Take in clusters' sums, (clusters, n), and tokens, (clusters,); of the variables at `places` only, if given.

        A cluster without tokens is none.
        """
        kept = counts > 0
        s, n = sums.detach().cpu().double()[kept.cpu()], counts[kept].cpu().double()[:, None]
        where = torch.arange(len(self.sums)) if places is None else places
        ones = torch.ones_like(s)
        parts = (ones, n * ones, s, s.square(), s * n, n.square() * ones)
        for total, part in zip(vars(self).values(), parts, strict=True):
            total.index_add_(0, where, part.sum(0))

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        return type(self)(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def mean(self) -> Tensor:
        """Mean per token, (n,); NaN where nothing was seen."""
        return self.sums / self.tokens

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean, (n,); NaN where fewer than two clusters were seen."""
        spread = self.squares - 2 * self.mean * self.products + self.mean.square() * self.sizes
        return (self.clusters / (self.clusters - 1) * spread.clamp(min=0)).sqrt() / self.tokens


def finely(values: Tensor) -> Tensor:
    """Return values in float64, where they are if that device has it: their sums are smaller than they are to move."""
    own = values.detach()
    return (own if finest(own.device) is torch.float64 else own.cpu()).double()


def deviated(values: Tensor, repeats: Tensor | None) -> tuple[int, Tensor, Tensor]:
    """Return how many samples there are, their mean, and each one's deviation times the root of how often it counts.

    >>> deviated(torch.tensor([[1.0], [4.0]]), torch.tensor([2, 1]))[:2]
    (3, tensor([2.]))

    Args:
        values: Samples, (samples, n).
        repeats: How often each counts, (samples,); None for once.
    """
    if repeats is None:
        mean = values.mean(0)
        return len(values), mean, values - mean
    times = repeats.detach().to(values)
    count = int(times.sum())
    mean = times @ values / max(count, 1)
    return count, mean, (values - mean) * times.sqrt()[:, None]


def entropy(masses: Tensor) -> Tensor:
    """Return −Σ p log p over the last dimension of non-negative masses, in nat; 0 where there is no mass.

    >>> entropy(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    tensor([0.6931, 0.0000])
    """
    total = masses.sum(-1, keepdim=True)
    shares = masses / total
    surprise: Tensor = -torch.special.xlogy(shares, shares).nan_to_num()
    return surprise.sum(-1) + 0.0


def quantile(values: Tensor, share: float) -> Tensor:
    """Return the quantile of any number of values as `torch.quantile` does of up to 2²⁴: between two it is linear.

    >>> quantile(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5)
    tensor(2.5000)
    """
    flat = values.flatten()
    place = share * (len(flat) - 1)
    low, high = (flat.kthvalue(bound + 1).values for bound in (math.floor(place), math.ceil(place)))
    value: Tensor = torch.lerp(low, high, place - math.floor(place))
    return value


def inverse_diagonal(matrix: Tensor) -> Tensor:
    """Return the diagonal of the inverse of a symmetric positive definite matrix, (n,).

    Half of an inverse is enough: with A = L Lᵀ it is Σ_k (L⁻¹)_ki². Of a wide matrix L⁻¹ is made some columns at a
    time, without their rows of zeros: fewer operations, the same digits, and no third matrix.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:  # not positive definite within rounding
        whole: Tensor = torch.linalg.inv(matrix)
        return whole.diagonal().clone()
    parts = []
    for start in range(0, len(matrix), TOGETHER):
        rest = factor[start:, start:]
        some = torch.eye(len(rest), min(TOGETHER, len(rest)), dtype=matrix.dtype)
        half: Tensor = torch.linalg.solve_triangular(rest, some, upper=False)
        parts.append(half.square_().sum(0))
    return torch.cat(parts)


def scale_of(variances: Tensor) -> Tensor:
    """Return the mean of variances, by which a ridge is measured; 1 where nothing varies."""
    mean = variances.mean()
    return torch.where(mean > 0, mean, 1.0)


class Mergeable(Protocol):
    """A state that another of its kind can be added to."""

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""


State = TypeVar("State", bound=Mergeable)


def merged(states: Sequence[State]) -> State:
    """Return the state of all samples together."""
    return reduce(lambda one, other: one.merge(other), states)


def jackknife_error(groups: Sequence[State], estimate: Callable[[State], Tensor]) -> Tensor:
    """Return the delete-one-group jackknife standard error of an estimate (Tukey 1958; Künsch 1989).

    √((G − 1)/G · Σ_g (θ₋g − mean θ₋)²) with G groups of consecutive batches; consecutive, because neighbouring
    tokens are not independent.

    Args:
        groups: At least two states of disjoint samples.
        estimate: What is estimated from a state, (n,).

    Raises:
        ValueError: If there is only one group.
    """
    if len(groups) < 2:
        raise ValueError(f"Expected at least two groups of text, to know how much they differ, got {len(groups)}.")
    without = torch.stack([estimate(merged([*groups[:g], *groups[g + 1 :]])) for g in range(len(groups))])
    return ((len(groups) - 1) * without.var(0, correction=0)).sqrt()
