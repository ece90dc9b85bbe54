"""Which places in parameters belong together: each place has a number, and what must stay or go together is linked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Axis = tuple[str, int]
"""A parameter's or a buffer's name, and one of its dimensions."""


Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of places that stay or go together, each one neuron if no reason speaks against it.

    All have as many places in the same dimensions, for the same reason: those of one layer lie in one such set, and one
    array says where.

    Attributes:
        places: Axis → each group's indices along it, ascending, (groups, places).
        reason: Why they cannot go; empty if they can.
        mixed: What mixes the places of the first, so that they go as one; empty if nothing does.
        marks: What is known of the first: `conv`, `head`, `rnn`, `snn`, `random`.
    """

    places: Mapping[Axis, Indices]
    reason: str
    mixed: str
    marks: frozenset[str]

    def __len__(self) -> int:
        """How many groups."""
        return len(next(iter(self.places.values())))

    def in_blocks(self, blocks: int, *, beside: bool) -> "Groups":
        """Return as many groups of several of these: neighbouring ones, or every so many-th."""
        return replace(
            self,
            places={
                axis: np.sort((own if beside else _dealt(own, blocks)).reshape(blocks, -1), axis=1)
                for axis, own in self.places.items()
            },
        )


def _dealt(own: Indices, count: int) -> Indices:
    """Return the rows in another order: the 0th, count-th, …, then the 1st, and so on."""
    return own.reshape(-1, count, own.shape[1]).swapaxes(0, 1)


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
    _shares: list[tuple[Tensor, Tensor, list[int], str]] = field(default_factory=list)
    _taken: list[tuple[Tensor, int, Tensor, str]] = field(default_factory=list)
    _widths: list[tuple[Tensor, list[int], str]] = field(default_factory=list)
    _known: tuple[int, Tensor] | None = None
    quiet: bool = False

    def copied(self) -> "Positions":
        """Return the same, of which more can be said without changing this."""
        said = {kind: [*words] for kind, words in self._said.items()}
        return replace(self, _links=[*self._links], _said=said, _shares=[*self._shares], _taken=[*self._taken])

    def number(self, axis: Axis, size: int) -> int:
        """Return the number of an axis's index 0, numbering its places if they are new."""
        if axis not in self.first:
            self.first[axis], self.sizes[axis] = self._next, size
            self._next += size
        return self.first[axis]

    def axis_of(self, places: Tensor) -> Tensor:
        """Return for each place the number of the axis that it is on, counted in the order of their numbers."""
        firsts = torch.tensor(sorted(self.first.values()))
        return torch.searchsorted(firsts, places.contiguous(), right=True)

    def link(self, one: Tensor, other: Tensor) -> None:
        """Say that the places in `one` belong with those in `other`, element by element after broadcasting."""
        pairs = torch.stack([part.flatten() for part in compact(one, other)])
        pairs = pairs[:, (pairs[0] > 0) & (pairs[1] > 0) & (pairs[0] != pairs[1])]
        if pairs.shape[1]:
            coded = torch.unique(pairs[0] * self._next + pairs[1])  # sooner than that of columns
            self._links.append(torch.stack([coded // self._next, coded % self._next]))

    def mix(self, places: Tensor, dim: int, what: str) -> None:
        """Say that something mixes all that lies along a dimension, so that it stays or goes as one."""
        first = places.narrow(dim, 0, 1)
        if not bool(first.all()):  # padded, which is nobody's
            first = places.amax(dim, keepdim=True)
        self.link(places, first)
        self._say("mixed", places, what)

    def take(self, places: Tensor, dim: int, what: str) -> Tensor:
        """Say that something takes together what lies along a dimension, for each of several; return whose that is.

        Where these are several neurons (heads), what it takes goes as one, and what comes of it is that neuron's. Where
        they are the same neurons (the gates of a cell), it is a statistic of neurons that belongs to none of them.
        Which of both is known once it is known what belongs together; what came last is asked first, so that of heads
        that are averaged the dimensions are neurons, whatever was summed within a head before.
        """
        (first,) = compact(places.amax(dim, keepdim=True))
        distinct, order = torch.unique(first, return_inverse=True)
        number = self.number((f"statistic {self._next}", 0), len(distinct))
        shape = [1 if other == dim % places.ndim else size for other, size in enumerate(places.shape)]
        statistic = torch.where(first > 0, number + order, 0).expand(shape)
        self._taken.append((places, dim % places.ndim, statistic, what))
        return statistic

    def hold(self, places: Tensor, dims: list[int], reason: str) -> None:
        """Say why there must stay as many neurons as there are along these dimensions, if neurons run along them."""
        if not self.quiet:
            self._widths.append((places, dims, reason))

    def share(self, one: Tensor, other: Tensor, dims: list[int], reason: str) -> None:
        """Link `one` with `other` if neurons run along dimensions of `other`; if not, `one` cannot go for this reason.

        A head's dimensions may share one scale among all heads: this is known once it is known what makes up a head.
        """
        if not self.quiet:
            self._shares.append((one, other, dims, reason))

    def freeze(self, places: Tensor, reason: str) -> None:
        """Say why these places cannot go."""
        if not self.quiet:
            self._say("reason", places, reason)

    def stay(self, places: Tensor) -> bool:
        """Return whether it is known already that none of these places can go: there are reasons, or all go as one."""
        members = self._members()
        groups = np.unique(members[places[places > 0].numpy()])
        return len(groups) < 2 or bool((self._reasons(members)[0][groups] > 0).all())

    def mark(self, places: Tensor, kind: str) -> None:
        """Say what kind of neuron these places belong to."""
        self._say("mark", places, kind)

    def members(self) -> Tensor:
        """Return for each place the number of the group that it is in, as far as is known."""
        members, known = self._members(), len(self._links)
        for places, dim, statistic, what in reversed(self._taken):  # what takes heads together leaves none to take
            others = [other for other in range(places.ndim) if other != dim]
            if self._runs(members, places, others) and len(self._links) > known:
                members, known = self._merged(members, self._links[known:]), len(self._links)
            if self._runs(members, places, others):
                self.mix(places, dim, what)
                self.link(places, statistic)
        members = self._merged(members, self._links[known:])
        self._taken.clear()
        for one, other, dims, reason in self._shares:
            if self._runs(members, other, dims):
                self.link(one, other)
            else:
                self.freeze(one, reason)
        self._shares.clear()
        known = len(self._links)
        if self._known is None or self._known[0] != known:
            self._known = known, torch.from_numpy(self._members())
        return self._known[1]

    def groups(self) -> list[Groups]:
        """Return what belongs together, in the order in which the places were numbered; the first reason counts."""
        members = self.members().numpy()
        for places, dims, reason in self._widths:
            if self._runs(members, places, dims):
                self.freeze(places, reason)
        reasons, words = self._reasons(members)
        sets = self._alike(members, reasons)
        numbers, firsts = np.unique(sets, return_index=True)
        said = {kind: self._said_of(kind, members, firsts) for kind in ("mixed", "mark")}
        places_of = self._places_of(members, sets)
        return [
            Groups(
                places_of[number],
                reason=words[reasons[first]],
                mixed=next(iter(said["mixed"].get(first, ())), ""),
                marks=frozenset(said["mark"].get(first, ())),
            )
            for first, number in sorted(zip(firsts.tolist(), numbers.tolist(), strict=True))
            if number
        ]

    @staticmethod
    def _runs(members: Indices, places: Tensor, dims: list[int]) -> bool:
        """Return whether different groups lie along one of these dimensions."""
        groups = torch.where(places > 0, torch.from_numpy(members)[places], -1)
        return any(varies(groups, dim) for dim in dims)

    def _members(self) -> Indices:
        """Return for each place the number of its group."""
        links = torch.cat(self._links, dim=1).numpy() if self._links else np.zeros((2, 0), dtype=int)
        graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), shape=(self._next, self._next))
        found: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
        return found

    @staticmethod
    def _merged(members: Indices, links: Sequence[Tensor]) -> Indices:
        """Return for each place the number of its group once there are these links, too."""
        if not links:
            return members
        pairs, size = members[torch.cat([*links], dim=1).numpy()], int(members.max()) + 1
        graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(size, size))
        found: Indices = connected_components(graph, directed=False)[1].astype(np.int64)[members]
        return found

    def _reasons(self, members: Indices) -> tuple[Indices, list[str]]:
        """Return for each group the number of the first reason that was said of it, 0 for none, and all reasons."""
        numbers = {"": 0}
        found = np.zeros(members.max() + 1, dtype=np.int64)
        for places, words in self._said["reason"]:
            groups = members[places.numpy()]
            found[groups[found[groups] == 0]] = numbers.setdefault(words, len(numbers))
        return found, list(numbers)

    def _alike(self, members: Indices, reasons: Indices) -> Indices:
        """Return a number for each group, the same where as many places lie in the same dimensions for one reason.

        It is 0 where no place lies in any dimension.
        """
        found = np.zeros(len(reasons), dtype=np.int64)
        for axis, first in self.first.items():
            groups, counts = np.unique(members[first : first + self.sizes[axis]], return_counts=True)
            _, kinds = np.unique(np.stack([found[groups], counts]), axis=1, return_inverse=True)
            found[groups] = found.max() + 1 + kinds
        _, kinds = np.unique(np.stack([found, reasons]), axis=1, return_inverse=True)
        return np.where(found > 0, kinds + 1, 0)

    def _said_of(self, kind: str, members: Indices, groups: Indices) -> dict[int, dict[str, None]]:
        """Return what was said of each of some groups, in order."""
        found: dict[int, dict[str, None]] = {}
        for places, words in self._said[kind]:
            for group in np.intersect1d(members[places.numpy()], groups):
                found.setdefault(int(group), {})[words] = None
        return found

    def _places_of(self, members: Indices, sets: Indices) -> dict[int, dict[Axis, Indices]]:
        """Return for each set of groups their places, a row for each group."""
        places_of: dict[int, dict[Axis, Indices]] = {}
        for axis, first in self.first.items():
            own = members[first : first + self.sizes[axis]]
            order = np.argsort(own, kind="stable")
            numbers = sets[own[order]]
            for number in np.unique(numbers):
                within = order[numbers == number]
                count = len(np.unique(own[within]))
                places_of.setdefault(int(number), {})[axis] = within.reshape(count, -1)
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
