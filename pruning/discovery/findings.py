"""What is learnt of a network's neurons while it runs: who goes with whom, owns, is read, stays, and why."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.comparing import MOST, Compared
from pruning.discovery.positions import Axis, Positions, compact, varies
from pruning.discovery.sizes import Counted
from pruning.discovery.states import Edge
from pruning.discovery.values import (
    Address,
    Blend,
    Reading,
    Shown,
    Value,
    column,
    nobody,
)


@dataclass(frozen=True)
class Ways:
    """How what may be followed in two ways is followed: that by which more parameters are some neuron's is taken.

    Attributes:
        matrices: Whether a matrix that meets neurons along one of its axes goes on as one; else its other axis stays.
            And whether of two dimensions that a product gives together the last is that of neurons; else the first; and
            whether a batch of matrices that meets what the code made gives what the code made.
        turned: Whether of neurons that run across others, where both are added, the fewer go on, and those to each of
            which the same weights are applied end there; else the more go on, and these do.
        heads: Whether neurons that lie in two dimensions, of which a weight reads the last, go as heads do: as a whole
            each; else as many as that reads, one of each head together.
        groups: Whether the groups of every convolution go as a whole; else those do of which there are more, groups or
            channels in each of them.
        columns: Whether a matrix that is computed, and multiplied with neurons, goes with these, a column of it with
            each (weights that another network gives); else its rows are heads, and what these share stays.
        pairs: Whether of a product that pairs neurons, `h.T @ h`, the rows (0) or the columns (1) alone are neurons';
            None where both stay for it.
    """

    matrices: bool = True
    turned: bool = False
    heads: bool = False
    groups: bool = False
    columns: bool = False
    pairs: int | None = None


@dataclass
class Propagation:
    """What is learnt about a model's neurons while its graph is gone through.

    Attributes:
        positions: Which places belong together.
        readings: Who reads neurons, in the order in which they do.
        owning: Axes that compute neurons or go along with them.
        states: Which of the model's outputs, counted as they lie flat, are recurrent states to be given back.
        even: Recurrent layers whose state is read as wide as their neurons are many, so that all must be as wide.
        blends: Operations that take neurons together.
        begun: The numbers of the model's inputs that a recurrence begins with, as a state.
        used: The numbers of those that something else reads.
        shown: Module, and whether its first input or its first output → the neurons there; None if calls differ.
        looked: Parameter → the neurons in what its rows give where code looks them up (`table[rows]`); None if its
            look-ups differ.
        multiplied: Parameter → the neurons over which a product of it with another parameter sums, as they lie in that.
        served: What the code made, by its identity, and a dimension of it → this, and the neurons that it met first.
        masks: Memory → a mask that lies there, the same for all heads, and the heads that it served first.
        factors: The parameters that are multiplied with others, so that what reads is their product.
        called: The modules that are called, and not only asked for their parameters.
        touched: The parameters and buffers that what the network returns is computed from.
        met: Those that some operation read.
        silent: Axes whose neurons stay whatever comes of it, so that they are nobody's.
        counted: Numbers that calls are told in the network's code, by module, call and place, each as often as it
            counts something else.
        given: The places of each of the model's outputs, counted as they lie flat, in the last call.
        carried: Places of states that go from call to call, numbered as a parameter's are → where they go in and out.
        dividing: Axes of parameters that something is divided by, of which zero would make no number.
        steps: Whether something is computed of neurons that is the same for many values, as a spike is.
        ways: How what may be followed in two ways is followed.
        crossed: Whether it made a difference how matrices are.
        clashed: And neurons that run across others.
        shared: Whether a weight reads neurons that lie in two dimensions.
        laid: And rows of matrices that may be heads.
        paired: Whether a product pairs neurons, each with each.
        grouped: Whether groups of convolutions of several channels go as a whole.
        parted: The kernels of those of which channels go, one of each group together, and how many groups they have.
        compared: What the network's code compares widths with that it reads of tensors.
        reads: The places that each of these counts.
    """

    positions: Positions = field(default_factory=Positions)
    readings: list[Reading] = field(default_factory=list)
    owning: dict[Axis, None] = field(default_factory=dict)
    states: set[int] = field(default_factory=set)
    even: set[str] = field(default_factory=set)
    blends: list[Blend] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    shown: dict[tuple[str, bool], Shown | None] = field(default_factory=dict)
    looked: dict[str, Shown | None] = field(default_factory=dict)
    multiplied: dict[str, Tensor] = field(default_factory=dict)
    served: dict[tuple[int, int], tuple[Value, Tensor]] = field(default_factory=dict)
    masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    factors: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    met: set[str] = field(default_factory=set)
    silent: Collection[Axis] = ()
    counted: dict[tuple[str, str, int], list[Counted]] = field(default_factory=dict)
    given: dict[int, Tensor] = field(default_factory=dict)
    carried: dict[Axis, Edge] = field(default_factory=dict)
    dividing: set[Axis] = field(default_factory=set)
    steps: bool = False
    ways: Ways = field(default_factory=Ways)
    crossed: bool = False
    clashed: bool = False
    shared: bool = False
    laid: bool = False
    paired: bool = False
    grouped: bool = False
    parted: dict[str, int] = field(default_factory=dict)
    compared: dict[tuple[Any, ...], None] = field(default_factory=dict)
    reads: list[Tensor] = field(default_factory=list)
    _functions: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _calls: dict[tuple[int, str], int] = field(default_factory=dict)

    def place(self, address: Address, dim: int) -> Tensor:
        """Return the numbers of an address's places along one dimension of the whole."""
        if (address.name, dim) in self.silent:
            return nobody(address.extent)
        (distinct,) = compact(address.coordinates[dim])  # a whole weight would be as large again
        first = self.positions.number((address.name, dim), address.shape[dim])
        return (first + distinct).expand(address.extent)

    def axis(self, address: Address, dim: int) -> Tensor:
        """Return the numbers of all places along one dimension of a parameter, (size,)."""
        size = address.shape[dim]
        if (address.name, dim) in self.silent:
            return nobody((size,))
        return self.positions.number((address.name, dim), size) + torch.arange(size)

    def show(self, module: str, value: Value, *, entering: bool) -> None:
        """Note what a module's first input, or its first output, shows in a call."""
        _show(self.shown, (module, entering), value)

    def look(self, table: str, value: Value) -> None:
        """Note what looking up rows of a parameter gives."""
        _show(self.looked, table, value)

    def count(self, counted: Counted) -> None:
        """Note what a number that a call is told counts."""
        known = self.counted.setdefault((counted.module, counted.call, counted.place), [])
        if not any(_same(counted.places, other.places) and counted.number == other.number for other in known):
            known.append(counted)

    def comparing(self, size: int, places: Tensor) -> int:
        """Return a size that the network's code reads as one that tells what it is compared with."""
        known = (number for number, other in enumerate(self.reads) if _same(places, other))
        number = next(known, len(self.reads))
        self.reads += [places] * (number == len(self.reads))
        return Compared(size, ("read", number, size), self._compare)

    def along(self, value: Value | Address, dim: int, end: int | None) -> Tensor:
        """Return the places along one dimension of a tensor, as far as to its end or as it is told."""
        if isinstance(value, Address):
            dims = value.dims(dim)
            places = self.place(value, dims[0]) if len(dims) == 1 else nobody(value.extent)
        else:
            places = value.places
        return column(places, dim % places.ndim)[:end].clone()

    def as_many(self, sizes: Sequence[Any], shape: Sequence[int]) -> Tensor | None:
        """Return the neurons that a tensor of these sizes has as many of as one of them was read of; None of none."""
        formed = [size.formed if isinstance(size, Compared) else 0 for size in sizes]
        read = [one[1] if isinstance(one, tuple) and one[0] == "read" else -1 for one in formed]
        along = [dim for dim, number in enumerate(read) if number >= 0 and varies(self.reads[number], 0)]
        if len(along) != 1 or len(sizes) != len(shape):
            return None
        return self.reads[read[along[0]]].view(-1, *[1] * (len(shape) - along[0] - 1)).expand(tuple(shape))

    def _compare(self, comparison: tuple[Any, ...]) -> None:
        if len(self.compared) < MOST:
            self.compared[comparison] = None

    def function(self, path: str, entered: int, kind: str) -> Tensor:
        """Return the number of an operation: the same each time that its module is called."""
        self._calls[entered, kind] = self._calls.get((entered, kind), 0) + 1
        key = path, kind, self._calls[entered, kind]
        return torch.tensor(self._functions.setdefault(key, len(self._functions) + 1))


def _show(known: dict[Any, Shown | None], key: Any, value: Value) -> None:
    """Note what a value shows; nothing where it was another before."""
    shown = Shown.of(value)
    if key in known:
        before = known[key]
        shown = before if before is not None and before.same(shown) else None
    known[key] = shown


def carry(into: Propagation, kept: Address, value: Value) -> None:
    """Let what is kept in a tensor go with the neurons that are written into it."""
    for dim in range(len(kept.shape)):
        if varies(value.places, dim) and not value.padded:
            into.positions.link(into.axis(kept, dim), column(value.places, dim))
            into.owning[kept.name, dim] = None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
