"""Which places in parameters belong together: each place has a number, and what must stay or go together is linked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Axis = tuple[str, int]
"""A parameter's or a buffer's name, and one of its dimensions."""


@dataclass(frozen=True)
class Group:
    """Places that stay or go together: one neuron, if no reason speaks against it.

    Attributes:
        places: Axis → indices along it, ascending.
        reason: Why it cannot go; empty if it can.
        marks: What is known of it: `conv`, `head`, `rnn`, `snn`.
    """

    places: Mapping[Axis, tuple[int, ...]]
    reason: str
    marks: frozenset[str]


@dataclass
class Positions:
    """Numbers for places, links between them, and reasons why some cannot go.

    Attributes:
        first: Axis → the number of its index 0.
        sizes: Axis → how many places it has.
    """

    first: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    _next: int = 1  # 0 is what belongs to no neuron
    _links: list[Tensor] = field(default_factory=list)
    _reasons: list[tuple[Tensor, str]] = field(default_factory=list)
    _marks: list[tuple[Tensor, str]] = field(default_factory=list)

    def number(self, axis: Axis, size: int) -> int:
        """Return the number of an axis's index 0, numbering its places if they are new."""
        if axis not in self.first:
            self.first[axis], self.sizes[axis] = self._next, size
            self._next += size
        return self.first[axis]

    def link(self, one: Tensor, other: Tensor) -> None:
        """Say that the places in `one` belong with those in `other`, element by element after broadcasting."""
        pairs = torch.stack([part.flatten() for part in compact(one, other)])
        pairs = pairs[:, (pairs[0] > 0) & (pairs[1] > 0) & (pairs[0] != pairs[1])]
        if pairs.shape[1]:
            self._links.append(torch.unique(pairs, dim=1))

    def freeze(self, places: Tensor, reason: str) -> None:
        """Say why these places cannot go."""
        found = self._known(places)
        if len(found):
            self._reasons.append((found, reason))

    def mark(self, places: Tensor, kind: str) -> None:
        """Say what kind of neuron these places belong to."""
        found = self._known(places)
        if len(found):
            self._marks.append((found, kind))

    def groups(self) -> list[Group]:
        """Return what belongs together, in the order in which the places were numbered; the first reason counts."""
        links = torch.cat(self._links, dim=1).numpy() if self._links else np.zeros((2, 0), dtype=int)
        graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), shape=(self._next, self._next))
        members = connected_components(graph, directed=False)[1]
        reasons: dict[int, str] = {}
        for places, reason in self._reasons:
            for group in np.unique(members[places.numpy()]):
                reasons.setdefault(int(group), reason)
        marks: dict[int, set[str]] = {}
        for places, mark in self._marks:
            for group in np.unique(members[places.numpy()]):
                marks.setdefault(int(group), set()).add(mark)
        places_of: dict[int, dict[Axis, tuple[int, ...]]] = {}
        for axis, first in self.first.items():
            own = members[first : first + self.sizes[axis]]
            order = np.argsort(own, kind="stable")
            found, starts = np.unique(own[order], return_index=True)
            for group, indices in zip(found, np.split(order, starts[1:]), strict=True):
                places_of.setdefault(int(group), {})[axis] = tuple(indices.tolist())
        return [
            Group(places, reasons.get(group, ""), frozenset(marks.get(group, ())))
            for group, places in places_of.items()
        ]

    @staticmethod
    def _known(places: Tensor) -> Tensor:
        """Return the distinct numbers in `places` that belong to a neuron."""
        (small,) = compact(places)
        found: Tensor = torch.unique(small)
        return found[found > 0]


def compact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors broadcast to one shape, but without the repetitions that are known to be such from all strides."""
    wide: tuple[Tensor, ...] = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    for dim in range(wide[0].ndim):
        if wide[0].shape[dim] > 1 and all(tensor.stride(dim) == 0 for tensor in wide):
            wide = tuple(tensor.narrow(dim, 0, 1) for tensor in wide)
    return wide


def varies(places: Tensor, dim: int) -> bool:
    """Return whether it depends on the index along `dim` to whom an element belongs.

    >>> varies(torch.tensor([[1, 2], [1, 2]]), 0), varies(torch.tensor([[1, 2], [1, 2]]), 1)
    (False, True)
    """
    if places.shape[dim] < 2 or places.stride(dim) == 0:
        return False
    (small,) = compact(places)
    return bool((small != small.narrow(dim, 0, 1)).any())
