"""Numbers in a network's own modules, and in the calls of their code, that follow the widths of layers."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pruning.core.neurons import NeuronLayer, Slice
from pruning.discovery.held import hold
from pruning.discovery.sizes import Sizing
from pruning.discovery.states import Boundary, Edge, State
from pruning.discovery.widths import READ


@dataclass(frozen=True)
class Number:
    """A number in a user's own module, or in its settings, that is so many times the width of a layer.

    Attributes:
        module: The module's path in the network.
        attribute: Its name, behind those that lead to it, as in `settings.model.width`.
        place: Where in it, if it is a tuple or list.
        layer: The layer's name.
        factor: What the width is multiplied by.
    """

    module: str
    attribute: str
    place: int | None
    layer: str
    factor: int

    def concerns(self, names: Container[str]) -> bool:
        """Return whether it follows one of these layers."""
        return self.layer in names

    def set(self, network: nn.Module, widths: Mapping[str, int]) -> None:
        """Let the number be what it is for this width."""
        hold(network.get_submodule(self.module), self.attribute, self.place, self.factor * widths[self.layer])


@dataclass(frozen=True)
class Size(Number):
    """A number that a call in a module's code is told, such as the 16 of `view(B, T, 16)`: `attribute` is the call.

    Attributes:
        number: The number that the code says.
        counts: The layers whose neurons it counts: (name, how often each neuron, width); none if it is the same
            however many there are, as a head's dimensions are. None of the size of what the code makes of numbers.
    """

    place: int
    number: int
    counts: tuple[tuple[str, int, int], ...] | None = None

    def __str__(self) -> str:
        """Return the function that is told it, where it is called, and the number."""
        function, *around = self.attribute.split("<")
        named = (frame for frame in around if frame and ">" not in frame)  # not a lambda or the loop of a list
        where, _, line = next(named, "").partition("+")
        stands = f" in `{where}`, its line {int(line.partition(':')[0] or 0) + 1}," if where else ""
        return f"`{function}`{stands} {'as' if self.read else 'with'} {self.number}"

    def of(self, layer: NeuronLayer) -> "Size":
        """Return the number as one that follows a layer."""
        made = ((layer.name, self.number // layer.width, layer.width),)
        counts = made if self.counts is None else self.counts
        return replace(self, layer=layer.name, counts=counts)

    @property
    def read(self) -> bool:
        """Whether the code is not told the number but reads it of a tensor: `place` is the dimension."""
        return self.attribute.partition("<")[0] in READ

    def concerns(self, names: Container[str]) -> bool:
        """Return whether it counts neurons of one of these layers, or follows it."""
        return self.layer in names or any(name in names for name, *_ in self.counts or ())

    def fitting(self, widths: Mapping[str, int]) -> int:
        """Return the number that fits these widths."""
        gone = sum(factor * (width - widths.get(name, width)) for name, factor, width in self.counts or ())
        return self.number - gone

    def set(self, network: nn.Module, widths: Mapping[str, int]) -> None:
        """Let the module's calls have the number that fits these widths; what they read is computed with as it was."""
        sizing, now = Sizing.of(network.get_submodule(self.module)), self.fitting(widths)
        if self.read:
            sizing.keep(self.attribute, self.place, (self.number, str(self.counts)), now)
        else:
            sizing.tell(self.attribute, self.place, self.number, now)


@dataclass(frozen=True)
class Kept(Number):
    """A number that stays what it was, as the code divides by it; the sizes in its calls follow instead.

    So may a number of heads, or what a module of PyTorch's tells of its width.
    """

    number: int

    def set(self, network: nn.Module, widths: Mapping[str, int]) -> None:  # noqa: ARG002 - as every number is told
        """Let the number be what it was."""
        setattr(network.get_submodule(self.module), self.attribute, self.number)


@dataclass(frozen=True)
class Carried(Number):
    """Where a state that forward takes and gives back holds a layer's neurons: `attribute` is the argument.

    Attributes:
        place: At which place the argument stands.
        width: The layer's width before any neuron was removed.
        part: Which of the argument's tensors it is.
        output: Which of the tensors that the network gives its new value is.
        dim: The dimension that neurons run along, counted from the last.
        size: How long that was.
        start: Where along it the layer's neurons begin, `factor` places each.
    """

    place: int
    width: int
    part: int
    output: int
    dim: int
    size: int
    start: int

    @classmethod
    def of(cls, edge: Edge, layer: NeuronLayer, piece: Slice) -> "Iterator[Carried]":
        """Yield where a state holds a layer's neurons: once for each of the stacked copies that it holds."""
        state, width = edge.state, layer.width
        for block in range(piece.blocks):
            start = piece.start + block * piece.size * width
            own = (width, state.part, state.output, edge.dim, edge.size, start)
            yield cls("", state.argument, state.place, layer.name, piece.size, *own)

    def set(self, network: nn.Module, widths: Mapping[str, int]) -> None:
        """Let the network take and give the state with as many neurons as are left."""
        state = State(self.attribute, self.place, self.part, self.output)
        cuts = Boundary.of(network.get_submodule(self.module)).cuts
        known = {edge: own for edge, own in cuts.items() if edge.state == state and edge.dim == self.dim}
        edge, own = next(iter(known.items()), (Edge(state, self.dim, self.size), {}))
        before, _ = own.get(self.start, (self.width * self.factor, 0))  # of a network that was pruned before
        cuts[edge] = {**own, self.start: (before, widths[self.layer] * self.factor)}


def concerning(numbers: Iterable[Number], names: Container[str]) -> list[Number]:
    """Return the numbers that follow some of these layers, and all sizes of a call of which one does."""
    numbers = list(numbers)
    calls = {(number.module, number.attribute) for number in numbers if number.concerns(names)}
    return [n for n in numbers if n.concerns(names) or (isinstance(n, Size) and (n.module, n.attribute) in calls)]


def number_of(plan: Mapping[str, Any]) -> Number:
    """Return a number as it was from its values by name."""
    if "output" in plan:
        return Carried(**plan)
    if "counts" not in plan:
        return Kept(**plan) if "number" in plan else Number(**plan)
    return Size(**{**plan, "counts": tuple(tuple(count) for count in plan["counts"])})
