"""States that a network's forward takes and gives back: how they are fed on, and how wide they go in and out."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from pruning.core.nested import mapped, tensors_in
from pruning.core.rebinding import keep_in_copies
from pruning.discovery.sizes import Sizing, Standing

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a network is called with: positional arguments and arguments by name."""
STEPS = 3
"""How many calls follow each other where what one gives goes into the next."""


@dataclass(frozen=True)
class State:
    """A tensor that a network is given, the new value of which it gives back for the next call.

    Attributes:
        argument: The argument of forward that it is, or is a part of.
        place: At which place that argument stands where it is not given by name.
        part: Which of the argument's tensors it is.
        output: Which of the tensors that the network gives its new value is.
    """

    argument: str
    place: int
    part: int
    output: int

    def __str__(self) -> str:
        """Return how it is called in a sentence; unlike any parameter."""
        return f"the state `{self.argument}`" + (f" (tensor {self.part})" if self.part else "")

    def among(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return the tensor among arguments; None where none is given."""
        tensors = parts(argument_of(args, kwargs, self.argument, self.place))
        return tensors[self.part] if self.part < len(tensors) else None

    def put(self, tensor: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments with another tensor in its place."""
        before = argument_of(args, kwargs, self.argument, self.place)
        return with_argument(args, kwargs, self.argument, self.place, exchanged(before, {self.part: tensor}))


@dataclass(frozen=True)
class Feeding:
    """How a network is called several times, what it gives as its state going into the next call.

    Attributes:
        states: What goes on.
        inputs: The calls by which it is known, a state in each.
        begins: For each row of calls, whether it begins with that state, or without one.
        rivals: For a state those of the outputs that might be it as well, as far as their shape tells.
    """

    states: tuple[State, ...]
    inputs: tuple[Arguments, ...]
    begins: tuple[bool, ...] = (True,)
    rivals: Mapping[State, tuple[int, ...]] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How often the network is called in all."""
        return STEPS * len(self.begins) * len(self.inputs)

    def rows(self, inputs: Sequence[Arguments]) -> Iterator[tuple[Arguments, Arguments]]:
        """Yield what each row of calls is given, a state in it, and what it begins with."""
        for given in inputs:
            for with_state in self.begins:
                yield given, given if with_state else self._without(given)

    def _without(self, given: Arguments) -> Arguments:
        for state in self.states:
            given = with_argument(*given, state.argument, state.place, None)
        return given

    def after(self, given: Arguments, outputs: Any) -> Arguments:
        """Return what the next call is given: the same inputs, and the state that the last one gave.

        Args:
            given: Inputs with a state as the network takes it.
            outputs: What it gave.
        """
        tensors = parts(outputs)
        for state in self.states:
            given = state.put(tensors[state.output], *given)
        return given

    def alike(self) -> tuple[Arguments, ...]:
        """Return the inputs with a state in which all neurons are alike, whatever their order, and not at rest."""
        return tuple(map(self._alike, self.inputs))

    def _alike(self, given: Arguments) -> Arguments:
        for state in self.states:
            tensor = state.among(*given)
            if tensor is not None and tensor.is_floating_point():
                given = state.put(torch.full_like(tensor, 0.25), *given)
        return given


def parts(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dictionaries and dataclasses, in order."""
    return [tensor for leaf in pytree.tree_leaves(value) for tensor in tensors_in(leaf)]


def exchanged(value: Any, others: Mapping[int, Tensor]) -> Any:
    """Return what is nested with other tensors at some places, counted as `parts` does; its types stay.

    >>> exchanged([torch.tensor(1), {"a": torch.tensor(2)}], {1: torch.tensor(5)})
    [tensor(1), {'a': tensor(5)}]
    """
    place = -1

    def change(tensor: Any) -> Any:
        nonlocal place
        place += 1
        return others.get(place, tensor)

    return pytree.tree_map(lambda leaf: mapped(change, leaf), value)


def argument_of(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, place: int) -> Any:
    """Return an argument by its name, or by its place; None where it is not given."""
    return kwargs.get(name) if name in kwargs or place >= len(args) else args[place]


def with_argument(args: Sequence[Any], kwargs: Mapping[str, Any], name: str, place: int, value: Any) -> Arguments:
    """Return the arguments with another value for one of them."""
    if name in kwargs or place >= len(args):
        return tuple(args), {**kwargs, name: value}
    return (*args[:place], value, *args[place + 1 :]), dict(kwargs)


@dataclass(frozen=True)
class Edge:
    """Where a state goes into a network and comes out of it.

    Attributes:
        state: Which it is.
        dim: The dimension that neurons run along, counted from the last.
        size: How long that was before any neuron was removed.
    """

    state: State
    dim: int
    size: int


class Boundary(Standing):
    """What a network calls as its `forward`: its own, with states narrowed that go in, and padded that come out.

    A state has the width that it had before any neuron was removed, each layer's neurons first and zeros behind, which
    nobody reads: so code that makes and carries states runs as it did. One that is given no wider than the neurons are
    many is taken, too, and then what is given back is no wider.

    Attributes:
        cuts: Edge → where a layer's neurons begin in the state → how many places they had, and how many they have.
    """

    def __init__(self, module: nn.Module, inner: Callable[..., Any] | None) -> None:
        super().__init__(module, inner)
        self.cuts: dict[Edge, dict[int, tuple[int, int]]] = {}

    @staticmethod
    def of(module: nn.Module) -> "Boundary":
        """Return what a network calls, put in the place of its own `forward` if it is not there yet."""
        forward = vars(module).get("forward")
        around = forward if isinstance(forward, Sizing) else None
        inner = around.inner if around is not None else forward
        if isinstance(inner, Boundary):
            return inner
        boundary = Boundary(module, inner)
        if around is not None:
            around.inner = boundary
        else:
            vars(module)["forward"] = boundary
            keep_in_copies(module, "forward")
        return boundary

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network's own `forward` does."""
        padded: dict[int, tuple[int, list[_Stretch]]] = {}
        for edge, cuts in self.cuts.items():
            stretches, state = _stretches(edge.size, cuts), edge.state.among(args, kwargs)
            left = sum(one.now for one in stretches)
            if left == edge.size:
                continue
            given = edge.size if state is None else _size(state, edge.dim)
            if given != left:
                padded[edge.state.output] = edge.dim, stretches
            if state is not None and given == edge.size:
                args, kwargs = edge.state.put(_narrowed(state, edge.dim, stretches), args, kwargs)
        outputs = self.__wrapped__(*args, **kwargs)
        tensors = parts(outputs) if padded else []
        wide = {
            place: _padded(tensors[place], dim, stretches)
            for place, (dim, stretches) in padded.items()
            if place < len(tensors) and _size(tensors[place], dim) == sum(one.now for one in stretches)
        }
        return exchanged(outputs, wide) if wide else outputs


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.ndim >= -dim else 0


@dataclass(frozen=True)
class _Stretch:
    """A part of a state: how long it was, and how long it is."""

    before: int
    now: int


def _stretches(size: int, cuts: Mapping[int, tuple[int, int]]) -> list[_Stretch]:
    """Return the parts of a state, one behind the other, those that are nobody's among them.

    >>> [(part.before, part.now) for part in _stretches(6, {1: (3, 2)})]
    [(1, 1), (3, 2), (2, 2)]
    """
    found, end = [], 0
    for start, (before, now) in sorted(cuts.items()):
        found += [_Stretch(start - end, start - end)] * (start > end) + [_Stretch(before, now)]
        end = start + before
    return found + [_Stretch(size - end, size - end)] * (size > end)


def _narrowed(state: Tensor, dim: int, stretches: Sequence[_Stretch]) -> Tensor:
    """Return a state without what stands behind each layer's neurons."""
    starts = itertools.accumulate((one.before for one in stretches), initial=0)
    pieces = [_piece(state, dim, start, one.now) for start, one in zip(starts, stretches, strict=False)]
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0].contiguous()


def _padded(state: Tensor, dim: int, stretches: Sequence[_Stretch]) -> Tensor:
    """Return a state with zeros behind each layer's neurons."""
    starts = itertools.accumulate((one.now for one in stretches), initial=0)
    pieces = [
        F.pad(_piece(state, dim, start, one.now), [0, 0] * (-1 - dim) + [0, one.before - one.now])
        for start, one in zip(starts, stretches, strict=False)
    ]
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0]


def _piece(state: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return what `narrow` does, by an operation that no mode takes for one of the user's code."""
    found: Tensor = torch.ops.aten.slice(state, dim, start, start + length)
    return found
