"""Which places in parameters belong together: each place has a number, and what must stay or go together is linked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        mixed: What mixes its places, so that they go as one; empty if nothing does.
        marks: What is known of it: `conv`, `head`, `rnn`, `snn`, `random`.
    """

    places: Mapping[Axis, tuple[int, ...]]
    reason: str
    mixed: str
    marks: frozenset[str]


@dataclass
class Positions:
    """Numbers for places, links between them, and reasons why some cannot go.

    Attributes:
        first: Axis → the number of its index 0.
        sizes: Axis → how many places it has.
        quiet: Whether what is done now changes no answer, so that it is no reason against anything.
    """

    first: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    _next: int = 1  # 0 is what belongs to no neuron
    _links: list[Tensor] = field(default_factory=list)
    _said: dict[str, list[tuple[Tensor, str]]] = field(default_factory=lambda: {"reason": [], "mixed": [], "mark": []})
    _shares: list[tuple[Tensor, Tensor, int, str]] = field(default_factory=list)
    _widths: list[tuple[Tensor, list[int], str]] = field(default_factory=list)
    _known: tuple[int, Tensor] | None = None
    quiet: bool = False

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

    def mix(self, places: Tensor, dim: int, what: str) -> None:
        """Say that something mixes all that lies along a dimension, so that it stays or goes as one."""
        self.link(places, places.narrow(dim, 0, 1))
        self._say("mixed", places, what)

    def hold(self, places: Tensor, dims: list[int], reason: str) -> None:
        """Say why there must stay as many neurons as there are along these dimensions, if neurons run along them."""
        if not self.quiet:
            self._widths.append((places, dims, reason))

    def share(self, one: Tensor, other: Tensor, dim: int, reason: str) -> None:
        """Link `one` with `other` if neurons run along a dimension of `other`; if not, `one` cannot go for this reason.

        A head's dimensions may share one scale among all heads: this is known once it is known what makes up a head.
        """
        if not self.quiet:
            self._shares.append((one, other, dim, reason))

    def freeze(self, places: Tensor, reason: str) -> None:
        """Say why these places cannot go."""
        if not self.quiet:
            self._say("reason", places, reason)

    def mark(self, places: Tensor, kind: str) -> None:
        """Say what kind of neuron these places belong to."""
        self._say("mark", places, kind)

    def members(self) -> Tensor:
        """Return for each place the number of the group that it is in, as far as is known."""
        members = self._members()
        for one, other, dim, reason in self._shares:
            if self._runs(members, other, [dim]):
                self.link(one, other)
            else:
                self.freeze(one, reason)
        self._shares.clear()
        known = len(self._links)
        if self._known is None or self._known[0] != known:
            self._known = known, torch.from_numpy(self._members())
        return self._known[1]

    def groups(self) -> list[Group]:
        """Return what belongs together, in the order in which the places were numbered; the first reason counts."""
        members = self.members().numpy()
        for places, dims, reason in self._widths:
            if self._runs(members, places, dims):
                self.freeze(places, reason)
        said = {kind: self._said_of(kind, members) for kind in self._said}
        return [
            Group(
                places,
                reason=next(iter(said["reason"].get(group, ())), ""),
                mixed=next(iter(said["mixed"].get(group, ())), ""),
                marks=frozenset(said["mark"].get(group, ())),
            )
            for group, places in self._places_of(members).items()
        ]

    @staticmethod
    def _runs(members: np.ndarray[Any, np.dtype[np.int64]], places: Tensor, dims: list[int]) -> bool:
        """Return whether different groups lie along one of these dimensions."""
        groups = torch.where(places > 0, torch.from_numpy(members)[places], -1)
        return any(varies(groups, dim) for dim in dims)

    def _members(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return for each place the number of its group."""
        links = torch.cat(self._links, dim=1).numpy() if self._links else np.zeros((2, 0), dtype=int)
        graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), shape=(self._next, self._next))
        found: np.ndarray[Any, np.dtype[np.int64]] = connected_components(graph, directed=False)[1].astype(np.int64)
        return found

    def _said_of(self, kind: str, members: np.ndarray[Any, np.dtype[np.int64]]) -> dict[int, dict[str, None]]:
        """Return what was said of each group, in order."""
        found: dict[int, dict[str, None]] = {}
        for places, words in self._said[kind]:
            for group in np.unique(members[places.numpy()]):
                found.setdefault(int(group), {})[words] = None
        return found

    def _places_of(self, members: np.ndarray[Any, np.dtype[np.int64]]) -> dict[int, dict[Axis, tuple[int, ...]]]:
        """Return the places of each group."""
        places_of: dict[int, dict[Axis, tuple[int, ...]]] = {}
        for axis, first in self.first.items():
            own = members[first : first + self.sizes[axis]]
            order = np.argsort(own, kind="stable")
            found, starts = np.unique(own[order], return_index=True)
            for group, indices in zip(found, np.split(order, starts[1:]), strict=True):
                places_of.setdefault(int(group), {})[axis] = tuple(indices.tolist())
        return places_of

    def _say(self, kind: str, places: Tensor, words: str) -> None:
        """Note some words on the groups that these places will belong to."""
        (small,) = compact(places)
        found = torch.unique(small)
        found = found[found > 0]
        if len(found):
            self._said[kind].append((found, words))


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
