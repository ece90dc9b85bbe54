"""The OBS (Optimal Brain Surgeon) order: neurons removed one after the other, the rest refitted after each removal."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import pandas as pd
import torch
from torch import Tensor

from pruning.core.sketches import Sketch
from pruning.core.statistics import Covariance, jackknife_error, merged
from pruning.core.tables import table, unmeasured
from pruning.signals.activations import Covariances
from pruning.signals.scaling import signal_rows
from pruning.signals.schemas import SURGEON

LEAST = 1e-30
"""Least that is added to C's diagonal, so that a layer whose outputs never vary costs nothing instead of failing."""
NOTABLE = 1e-9
"""Least share of the loss that a swap must gain, above what rounding can feign."""
BLOCK = 64
"""Removals between two updates of whole matrices; in between, one removal costs width × BLOCK operations."""
WIDE = 1024
"""Neurons above which a quarter of removed ones is left out of the matrices: updates then cost two fifths in all."""


@dataclass(frozen=True)
class OrderEvidence:
    """What is known of each layer from some text: (covariance of its outputs, moments of their sensitivities)."""

    layers: Mapping[str, tuple[Covariance, Covariance]]

    def merge(self, other: Self) -> Self:
        """Return the evidence of both texts together."""
        both = zip(self.layers.items(), other.layers.values(), strict=True)
        return type(self)({name: (c.merge(d), g.merge(h)) for (name, (c, g)), (d, h) in both})

    def order(self, damping: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each neuron's place in the order of removal and its cost then."""
        return _order((name, _columns(c, g, damping)) for name, (c, g) in self.layers.items())


def surgeon(states: Covariances, sensitivities: Covariances, *, damping: float) -> pd.DataFrame:
    """Return the `surgeon` table: the order in which neurons of all layers are best removed when readers are refitted.

    The order of Optimal Brain Surgeon (OBS, Hassibi & Stork 1993) on whole columns. With C the covariance of a layer's
    outputs and M = E[γ γᵀ] the Gram matrix of its readers in units of the loss (see `sensitivities`), removing neuron
    j and refitting every reader on those left costs

        cost_j = ½ M_jj / [C⁻¹]_jj   (nat/token, to second order).

    The cheapest neuron of all layers goes first; its readers' columns move to the others and C⁻¹ loses a dimension,

        b = −[C⁻¹]_:j / [C⁻¹]_jj,   M ← (I + e_j bᵀ)ᵀ M (I + e_j bᵀ),   C⁻¹ ← C⁻¹ − [C⁻¹]_:j [C⁻¹]_j: / [C⁻¹]_jj,

    and so on to the last neuron, so one run gives a choice for every number of neurons.

    - cost: what the removal added, nat/token;
    - place: when it was removed, 1 for the first of all layers;
    - fisher: what M draws targets from;
    - importance: place over the number of neurons, comparable across layers. Its standard error is the jackknife over
      the groups of text.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> _, covariances = pruning.activations(unread, text, activation_samples=8, bins=4)
    >>> order = surgeon(covariances, pruning.sensitivities(unread, text, batches=8, seed=1), damping=1e-4)
    >>> order["place"][0].item(), order["cost"][0].item()
    (1, 0.0)

    Args:
        states: Covariance of each layer's outputs, in groups of text.
        sensitivities: Moments of the sensitivities, likewise; of a layer without them there are no numbers. Where the
            numbers of groups differ, neighbouring groups of the more are taken together, so all text counts.
        damping: Added to C's diagonal, relative to its mean.
    """
    left_out = [(name, len(groups[0].mean)) for name, groups in states.items() if name not in sensitivities]
    if not sensitivities:
        return unmeasured(SURGEON, left_out)
    count = min(len(groups) for groups in (*states.values(), *sensitivities.values()))
    measured = [name for name in states if name in sensitivities]
    pairs = {name: (_regrouped(states[name], count), _regrouped(sensitivities[name], count)) for name in measured}
    evidence = [OrderEvidence({name: (c[g], m[g]) for name, (c, m) in pairs.items()}) for g in range(count)]
    places, costs = merged(evidence).order(damping)
    neurons = sum(map(len, places.values()))
    errors = jackknife_error(evidence, lambda some: torch.cat(list(some.order(damping)[0].values()))) / neurons
    parts = []
    for name, error in zip(places, torch.split(errors, [len(ranks) for ranks in places.values()]), strict=True):
        samples = sum(group.count for group in states[name])
        components = {"cost": costs[name], "place": places[name]}
        parts.append(signal_rows(name, components, places[name] / neurons, error, samples))
    measured_rows = pd.concat(parts, ignore_index=True).assign(fisher=getattr(sensitivities, "fisher", ""))
    frames = [measured_rows[list(SURGEON.columns)], *([unmeasured(SURGEON, left_out)] if left_out else [])]
    return table(SURGEON, pd.concat(frames, ignore_index=True).astype({"place": "int64"}))


def _regrouped(groups: Sequence[Covariance], count: int) -> list[Covariance]:
    """Return the same text in `count` groups, neighbouring ones taken together."""
    ends = [place * len(groups) // count for place in range(count + 1)]
    return [merged(groups[start:end]) for start, end in pairwise(ends)]


def removal_order(
    layers: Mapping[str, tuple[Tensor, Tensor]], *, damping: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each neuron's place in the order of removal (1 first) and its cost then, both (width,) float64.

    Args:
        layers: Layer name → (C, M), both (width, width).
        damping: Added to C's diagonal, relative to its mean.
    """
    return _order((name, Columns(covariance, gram, damping=damping)) for name, (covariance, gram) in layers.items())


def _columns(states: Covariance, sensitivities: Covariance, damping: float) -> "Columns | Few":
    """Return a layer's neurons, of matrices that are held as the states hold them."""
    if isinstance(states, Sketch) and isinstance(sensitivities, Sketch):
        return Few(states.factors(centred=True), sensitivities.factors(centred=False), damping=damping)
    return Columns(states.matrix, sensitivities.second_moment, damping=damping)


def _order(layers: "Iterable[tuple[str, Columns | Few]]") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each neuron's place in the order of removal and its cost then, see `removal_order`.

    What goes from a layer changes no other layer's costs, so each is ordered by itself, and one is held at a time.
    """
    sequences = {name: _sequence(columns) for name, columns in layers}
    places = {name: torch.zeros(len(sequence), dtype=torch.float64) for name, sequence in sequences.items()}
    costs = {name: torch.zeros(len(sequence), dtype=torch.float64) for name, sequence in sequences.items()}
    gone = dict.fromkeys(sequences, 0)
    first = [(sequence[0][0], name) for name, sequence in sequences.items() if sequence]
    heapq.heapify(first)
    for place in range(1, sum(map(len, sequences.values())) + 1):
        cost, name = first[0]
        neuron = sequences[name][gone[name]][1]
        places[name][neuron], costs[name][neuron] = place, cost
        gone[name] += 1
        if gone[name] < len(sequences[name]):
            heapq.heapreplace(first, (sequences[name][gone[name]][0], name))
        else:
            heapq.heappop(first)
    return places, costs


def _sequence(columns: "Columns | Few") -> list[tuple[float, int]]:
    """Return each removal's cost and neuron, the cheapest of those left at a time."""
    sequence = []
    for _ in range(len(columns.alive)):
        sequence.append(columns.cheapest)
        columns.remove(columns.cheapest[1])
    return sequence


def swapped(covariance: Tensor, gram: Tensor, removed: Tensor, *, damping: float) -> Tensor:
    """Return as many removed neurons of a layer, after swaps with kept ones that lower the loss, (n,) ascending.

    Greedy removal never takes a step back. Here the best of all pairs of a removed and a kept neuron change places, as
    long as that lowers the loss once all readers are refitted (local search as in OSSCAR, Meng et al. 2024). With kept
    K, removed P, the regression B = C_PK C_KK⁻¹, its error's covariance Σ and X = M_PK + M_PP B, restoring i gains and
    then removing j costs

        gain_i = ½ (Σ M_PP Σ)_ii / Σ_ii,
        cost_ij = ½ (G_jj − 2 B_ij Z_ij + B_ij² q_i) / ([C_KK⁻¹]_jj + B_ij² / Σ_ii),

    where G is M after the refit, Z = Σ X and q = diag(Σ M_PP Σ), their rows over Σ_ii and Σ_ii².

    Args:
        covariance: C, (width, width).
        gram: M, (width, width).
        removed: Removed neurons.
        damping: Added to C's diagonal, relative to its mean.
    """
    damped, gram = _damped(covariance, damping), gram.double()
    gone = torch.zeros(len(damped), dtype=torch.bool)
    gone[removed] = True
    while 0 < gone.sum() < len(gone):
        lost, kept = gone.nonzero().flatten(), (~gone).nonzero().flatten()
        changes, loss = _changes_of_swaps(damped, gram, lost, kept)
        best = int(changes.argmin())
        if changes.flatten()[best] >= -NOTABLE * loss:
            break
        gone[lost[best // len(kept)]], gone[kept[best % len(kept)]] = False, True
    return gone.nonzero().flatten()


def _changes_of_swaps(damped: Tensor, gram: Tensor, lost: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """Return how each swap of a removed and a kept neuron changes the loss, (removed, kept) nat/token, and the loss."""
    inverse = torch.linalg.inv(damped[kept][:, kept])
    slopes = damped[lost][:, kept] @ inverse
    error = damped[lost][:, lost] - slopes @ damped[kept][:, lost]
    read, between = gram[lost][:, lost], gram[lost][:, kept]
    moved = between + read @ slopes
    variance = error.diagonal()[:, None]
    product = error @ read
    size = (product * error.T).sum(1)[:, None] / variance.square()
    after = gram.diagonal()[kept] + (slopes * (between + moved)).sum(0)
    numerator = after - 2 * slopes * (error @ moved) / variance + slopes.square() * size
    cost = 0.5 * numerator / (inverse.diagonal() + slopes.square() / variance)
    return cost - 0.5 * size * variance, 0.5 * product.diagonal().sum().item()


def _damped(covariance: Tensor, damping: float) -> Tensor:
    """Return the covariance with `damping` × its mean variance added to its diagonal."""
    strength = (damping * covariance.double().diagonal().mean()).clamp(min=LEAST)
    return covariance.double() + strength * torch.eye(len(covariance), dtype=torch.float64)


class Columns:
    """One layer's neurons while they are removed one by one: M and C⁻¹ of those left, updated in blocks.

    The matrices are M + X Yᵀ + Y Xᵀ and C⁻¹ − U Uᵀ, with a column of X, Y and U for each removal since the last
    block; only their diagonals are kept up to date, for nothing else decides. Row i is that of the neuron `rows[i]`.
    """

    def __init__(self, covariance: Tensor, gram: Tensor, *, damping: float) -> None:
        width = len(covariance)
        self.gram, self.inverse = gram.double().clone(), torch.linalg.inv(_damped(covariance, damping))
        self.alive, self.rows = torch.ones(width, dtype=torch.bool), torch.arange(width)
        self.gram_diagonal, self.inverse_diagonal = self.gram.diagonal().clone(), self.inverse.diagonal().clone()
        self.x, self.y, self.u = (torch.zeros(width, BLOCK, dtype=torch.float64) for _ in range(3))
        self.pending = 0
        self.cheapest = self._cheapest()

    def remove(self, neuron: int) -> None:
        """Remove a neuron and refit its readers on those left."""
        neuron, shown = int(torch.searchsorted(self.rows, neuron)), slice(self.pending)
        gram = (
            self.gram[:, neuron] + self.x[:, shown] @ self.y[neuron, shown] + self.y[:, shown] @ self.x[neuron, shown]
        )
        inverse = self.inverse[:, neuron] - self.u[:, shown] @ self.u[neuron, shown]
        moved = -inverse / inverse[neuron]
        moved[~self.alive], moved[neuron] = 0, -1  # exactly: rounding must not bring a removed neuron back
        self.alive[neuron] = False
        self.gram_diagonal += 2 * gram * moved + gram[neuron] * moved.square()
        self.inverse_diagonal -= inverse.square() / inverse[neuron]
        self.x[:, self.pending], self.y[:, self.pending] = gram + 0.5 * gram[neuron] * moved, moved
        self.u[:, self.pending] = inverse / inverse[neuron].sqrt()
        self.pending += 1
        if self.pending == BLOCK:
            self._flush()
        self.cheapest = self._cheapest()

    def _flush(self) -> None:
        """Add up what is pending."""
        product = self.x @ self.y.T
        self.gram += product + product.T
        self.inverse -= self.u @ self.u.T
        self.pending = 0
        if len(self.rows) > WIDE and self.alive.sum() <= 0.75 * len(self.rows):
            self._leave_out()

    def _leave_out(self) -> None:
        """Leave the removed neurons out of all that is updated."""
        left = self.alive.nonzero().flatten()
        self.gram, self.inverse = self.gram[left][:, left], self.inverse[left][:, left]
        self.rows, self.alive = self.rows[left], self.alive[left]
        self.gram_diagonal, self.inverse_diagonal = self.gram_diagonal[left], self.inverse_diagonal[left]
        self.x, self.y, self.u = self.x[left], self.y[left], self.u[left]

    def _cheapest(self) -> tuple[float, int]:
        """Return the lowest cost of a removal, nat/token, and its neuron; infinity once none is left."""
        if not self.alive.any():
            return float("inf"), -1
        cost = 0.5 * self.gram_diagonal.clamp(min=0) / self.inverse_diagonal
        value, neuron = cost.masked_fill(~self.alive, float("inf")).min(0)
        return value.item(), int(self.rows[neuron])


class Few:
    """The same of C ≈ RᵀR + diag(d) and M ≈ GᵀG + diag(e), of few directions: no matrix of n² numbers is made.

    With d damped and A = I + Σ_i r_i r_iᵀ / d_i over the neurons left, [C⁻¹]_ij = δ_ij / d_i − r_iᵀ A⁻¹ r_j / (d_i d_j)
    (Woodbury's identity). A removal takes a term off A (Sherman & Morrison) and adds G_:j bᵀ to G. What it adds to
    diag(e), e_j b bᵀ, is kept on the diagonal alone, as all that directions do not tell.
    """

    def __init__(self, covariance: tuple[Tensor, Tensor], gram: tuple[Tensor, Tensor], *, damping: float) -> None:
        (rows, diagonal), (self.gram, self.rest) = covariance, gram
        self.states, self.gram, self.rest = rows.T.contiguous(), self.gram.T.contiguous(), self.rest.clone()
        strength = damping * (rows.square().sum(0) + diagonal).mean()
        self.diagonal = diagonal + strength.clamp(min=LEAST)
        inner = torch.eye(len(rows), dtype=torch.float64) + (rows / self.diagonal) @ rows.T
        self.inner = torch.linalg.inv(inner)
        self.alive, self.rows = torch.ones(len(diagonal), dtype=torch.bool), torch.arange(len(diagonal))
        self.told = ((self.states @ self.inner) * self.states).sum(1)
        self.gram_diagonal = self.gram.square().sum(1) + self.rest
        self.cheapest = self._cheapest()

    def remove(self, neuron: int) -> None:
        """Remove a neuron and refit its readers on those left."""
        neuron = int(torch.searchsorted(self.rows, neuron))
        along = self.inner @ self.states[neuron]
        shares, own = self.states @ along, self.diagonal[neuron]
        left = own - shares[neuron]
        moved = shares * own / (self.diagonal * left)
        moved[~self.alive], moved[neuron] = 0, -1
        self.alive[neuron] = False
        reading, alone = self.gram[neuron].clone(), self.rest[neuron].clone()
        self.gram_diagonal += 2 * moved * (self.gram @ reading) + moved.square() * (reading @ reading + alone)
        self.gram.addr_(moved, reading)
        self.rest += moved.square() * alone
        self.rest[neuron] = self.gram_diagonal[neuron] = 0
        self.inner.addr_(along, along, alpha=1 / left.item())
        self.told += shares.square() / left
        if self.alive.sum() <= 0.75 * len(self.rows):
            self._leave_out()
        self.cheapest = self._cheapest()

    def _leave_out(self) -> None:
        """Leave the removed neurons out of all that is updated."""
        kept = self.alive.nonzero().flatten()
        for name in ("states", "gram", "rest", "diagonal", "told", "gram_diagonal", "rows", "alive"):
            setattr(self, name, getattr(self, name)[kept])

    def _cheapest(self) -> tuple[float, int]:
        """Return the lowest cost of a removal, nat/token, and its neuron; infinity once none is left."""
        if not self.alive.any():
            return float("inf"), -1
        inverse = (1 - self.told / self.diagonal) / self.diagonal
        cost = 0.5 * self.gram_diagonal.clamp(min=0) / inverse.clamp(min=torch.finfo(inverse.dtype).tiny)
        value, neuron = cost.masked_fill(~self.alive, float("inf")).min(0)
        return value.item(), int(self.rows[neuron])
