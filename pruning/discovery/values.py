"""To whom the elements of a tensor belong: places in parameters that compute them, or a parameter's own places.

Each element of an intermediate tensor carries the number of the place in a parameter that computes it, 0 where it
belongs to no neuron.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.positions import Axis, varies

MADE = -1
"""The number of what computes nothing from anything: `zeros`, `new_ones`, …"""

GIVEN = -2
"""The number of the first of the model's inputs; the others have those below it, as far as they are only moved."""

COMBINED = "goes into a matrix that is made in each call, of which it is not seen what it reads"
"""How an obstacle ends where parameters that are combined with others alone read the neurons."""

UNREAD = 1 - 2**62
"""The number of no operation: a reader does not read this place."""


@dataclass(frozen=True)
class Value:
    """To whom the elements of an intermediate tensor belong.

    Attributes:
        places: Numbers of places, shaped like the tensor; 0 belongs to nobody.
        functions: The operation that computed each element, by a number, whatever moved it since: two readers of one
            neuron may read different functions of it. `MADE` is what the network's code made of numbers.
        padded: The recurrent layers whose state it is, or is made of, as far as this keeps its width and has zeros
            behind the neurons that are left.
    """

    places: Tensor
    functions: Tensor
    padded: frozenset[str] = frozenset()

    @property
    def free(self) -> bool:
        """Whether the network's code made it of numbers, in a shape that may follow from the neurons' own."""
        return bool((self.functions == MADE).all()) and not bool(self.places.any())

    def fixed(self, dim: int) -> bool:
        """Whether it is several along a dimension, counted from the last, and not as many as the code repeats it."""
        dim += self.places.ndim
        if dim < 0 or self.places.shape[dim] < 2:
            return False
        return bool(self.places.any()) or not bool(
            (self.functions.narrow(dim, 1, self.places.shape[dim] - 1) == MADE).all()
        )

    def shaped(self, shape: Sequence[int]) -> "Value":
        """Return the value in another shape."""
        return replace(self, places=self.places.reshape(shape), functions=self.functions.reshape(shape))


@dataclass(frozen=True)
class Address:
    """A parameter or buffer, or a view of one.

    Attributes:
        name: Its name in the model.
        shape: The shape of the whole.
        coordinates: For each dimension of the whole, the index of each element along it, shaped like the view.
        beside: Views of other parameters, of the same shape, that are combined with it element by element, or that are
            multiplied with it as matrices are and so run along another axis.
        scaled: By which neurons it is multiplied, element by element, each in the shape of the view.
        computed: Whether it is combined with what the network computes, so that it is a matrix made in a call.
        combined: Whether it is combined with other parameters, so that it is a matrix made in a call.
        bent: Whether something is computed of it that is not zero where it is, or not twice as large.
    """

    name: str
    shape: tuple[int, ...]
    coordinates: tuple[Tensor, ...]
    beside: tuple["Address", ...] = ()
    scaled: tuple[Value, ...] = ()
    computed: bool = False
    combined: bool = False
    bent: bool = False

    @classmethod
    def whole(cls, name: str, shape: tuple[int, ...]) -> "Address":
        """Return the address of a whole parameter."""
        indices = [torch.arange(size).view(-1, *[1] * (len(shape) - dim - 1)) for dim, size in enumerate(shape)]
        return cls(name, shape, tuple(index.expand(shape) for index in indices) or (nobody(()),))

    @property
    def extent(self) -> tuple[int, ...]:
        """The shape of the view."""
        return tuple(self.coordinates[0].shape)

    def moved(self, change: Callable[[Tensor], Tensor]) -> "Address":
        """Return another view of it, and of what is beside it."""
        beside = tuple(other.moved(change) for other in self.beside)
        scaled = tuple(replace(one, places=change(one.places), functions=change(one.functions)) for one in self.scaled)
        return replace(self, coordinates=tuple(change(part) for part in self.coordinates), beside=beside, scaled=scaled)

    @property
    def parts(self) -> tuple["Address", ...]:
        """The views that it consists of: its own and those beside it."""
        return self, *self.beside

    def running(self) -> list[int]:
        """Return the axes of the view along which it does not repeat itself."""
        return [axis for axis in range(len(self.extent)) if self.dims(axis)]

    def dims(self, axis: int) -> list[int]:
        """Return the dimensions of the whole that an axis of the view runs along."""
        return [dim for dim in range(len(self.shape)) if varies(self.coordinates[dim], axis)]


@dataclass(frozen=True)
class Reading:
    """That a module reads neurons linearly.

    Attributes:
        axis: The parameter and its dimension that has a column for each neuron.
        bias: What is added to what the columns give; empty if nothing is.
        module: The module that reads, the parameter's own.
        functions: The operations that computed what each place along the axis reads, by their numbers; `UNREAD` where
            another reader reads it.
        seen: The places that compute what is read, as they lie in it.
        padding: Whether zeros are put around it first.
        padded: Whether it is read from a padded state.
        product: Whether it is read by a product of matrices.
        idle: Whether nothing that the network returns or keeps depends on what is computed from it.
        combined: Whether what reads is a matrix that is made of several parameters in each call.
        training: Whether it is read only while the network is trained.
    """

    axis: Axis
    bias: str
    module: str
    functions: Tensor
    seen: Tensor
    padding: bool = False
    padded: frozenset[str] = frozenset()
    product: bool = False
    idle: bool = False
    combined: bool = False
    training: bool = False


@dataclass(frozen=True)
class Shown:
    """That a module's first input or first output has neurons along one of its dimensions.

    Attributes:
        dim: That dimension, counted from the last.
        places: The places that compute them, one for each index along it.
        functions: The operations that computed what is there, by their numbers.
    """

    dim: int
    places: Tensor
    functions: Tensor

    @classmethod
    def of(cls, value: Value) -> "Shown | None":
        """Return what a value shows; None if its neurons run along several dimensions, or along none."""
        places = value.places
        running = [dim for dim in range(places.ndim) if varies(places, dim)]
        if len(running) != 1 or value.padded:
            return None
        return cls(running[0] - places.ndim, column(places, running[0]), column(value.functions, running[0]))

    def same(self, other: "Shown | None") -> bool:
        """Return whether another call shows the same neurons."""
        return other is not None and self.dim == other.dim and torch.equal(self.places, other.places)


@dataclass(frozen=True)
class Blend:
    """An operation that takes all neurons together, so that what is left of them gives another number.

    Attributes:
        when: Its name, and which of that name it was: what data decide leaves out or adds is mostly of other names.
        places: The neurons, by the places that compute them.
        dim: The dimension along which they are taken together.
        what: The operation, for a sentence.
        module: The module that calls it.
        other: The same of a second tensor, which is summed over together with the first.
        among: The places by groups, along dimension 1, of each of which it takes all: these are to be the same.
    """

    when: tuple[str, int]
    places: Tensor
    dim: int
    what: str
    module: str
    other: int | None = None
    among: Tensor | None = None

    @property
    def extreme(self) -> bool:
        """Whether it gives one of the neurons: one that says zero or not, as the others have it."""
        return self.what.partition(" ")[0] in {"max", "min", "amax", "amin"}


def flat(values: object) -> Iterator[Any]:
    """Yield what lies in nested tuples, lists and dictionaries."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from flat(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from flat(value)
    else:
        yield values


def mapped(values: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return nested tuples of tensors with each tensor changed, and None for what is no tensor."""
    if isinstance(values, (tuple, list)):
        return tuple(mapped(value, change) for value in values)
    return change(values) if isinstance(values, Tensor) else None


def nobody(shape: Sequence[int]) -> Tensor:
    """Return places that belong to no neuron."""
    return torch.zeros((), dtype=torch.int64).expand(tuple(int(size) for size in shape))


def column(places: Tensor, dim: int) -> Tensor:
    """Return what is found along one dimension where all others are at 0; nobody's where another is empty."""
    if not places.numel():
        return nobody(places.shape[dim : dim + 1])
    for other in reversed(range(places.ndim)):
        if other != dim:
            places = places.select(other, 0)
    return places


def squeezed(places: Tensor) -> Tensor:
    """Return the same places, repeated by strides of 0 wherever they are the same along a dimension."""
    shape = places.shape
    for dim in range(places.ndim):
        if places.shape[dim] > 1 and (places.stride(dim) == 0 or bool((places == places.narrow(dim, 0, 1)).all())):
            places = places.narrow(dim, 0, 1)
    return places.expand(shape)


def exchanged(values: Any, change: Callable[[Address], Any]) -> Any:
    """Return nested arguments with each view of a parameter changed."""
    if isinstance(values, (tuple, list)):
        return type(values)(exchanged(value, change) for value in values)
    if isinstance(values, dict):
        return {name: exchanged(value, change) for name, value in values.items()}
    return change(values) if isinstance(values, Address) else values
