"""A traced model run once more, on numbers of places instead of activations.

Each element of an intermediate tensor carries the number of the place in a parameter that computes it, 0 where it
belongs to no neuron. An operation for which there is no rule is a reason, by its name, why the neurons it reads stay.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from pruning.discovery.positions import Axis, Positions, varies


@dataclass(frozen=True)
class Value:
    """To whom the elements of an intermediate tensor belong.

    Attributes:
        places: Numbers of places, shaped like the tensor; 0 belongs to nobody.
        functions: The operation that computed each element, by a number, whatever moved it since: two readers of one
            neuron may read different functions of it.
        padded: Whether it is a recurrent state, which keeps its width and has zeros behind the neurons that are left.
    """

    places: Tensor
    functions: Tensor
    padded: bool = False


@dataclass(frozen=True)
class Address:
    """A parameter or buffer, or a view of one.

    Attributes:
        name: Its name in the model.
        shape: The shape of the whole.
        coordinates: For each dimension of the whole, the index of each element along it, shaped like the view.
    """

    name: str
    shape: tuple[int, ...]
    coordinates: tuple[Tensor, ...]

    @classmethod
    def whole(cls, name: str, shape: tuple[int, ...]) -> "Address":
        """Return the address of a whole parameter."""
        indices = [torch.arange(size).view(-1, *[1] * (len(shape) - dim - 1)) for dim, size in enumerate(shape)]
        return cls(name, shape, tuple(index.expand(shape) for index in indices) or (nobody(()),))

    @property
    def extent(self) -> tuple[int, ...]:
        """The shape of the view."""
        return tuple(self.coordinates[0].shape)

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
        functions: The operations that computed what each place along the axis reads, by their numbers.
        padding: Whether zeros are put around it first.
        padded: Whether it is read from a padded state.
    """

    axis: Axis
    bias: str
    module: str
    functions: Tensor
    padding: bool = False
    padded: bool = False


@dataclass
class Propagation:
    """What is learnt about a model's neurons while its graph is gone through.

    Attributes:
        positions: Which places belong together.
        readings: Who reads neurons, in the order in which they do.
        owning: Axes that compute neurons or go along with them.
        states: Which of the model's outputs, counted as they lie flat, are padded states.
    """

    positions: Positions = field(default_factory=Positions)
    readings: list[Reading] = field(default_factory=list)
    owning: dict[Axis, None] = field(default_factory=dict)
    states: set[int] = field(default_factory=set)
    _functions: dict[tuple[str, str, int], int] = field(default_factory=dict)
    _calls: dict[tuple[str, str], int] = field(default_factory=dict)

    def run(self, graph: fx.Graph, inputs: Mapping[str, Value | Address], rules: Mapping[str, "Rule"]) -> None:
        """Go through the graph, whose placeholders have these values, by a rule for each operation."""
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = inputs[node.name]
            elif node.op == "output":
                self._outputs(fx.node.map_arg(node.args, lambda argument: values.get(argument)))
            elif node.op == "call_function":
                values[node] = Call(self, node, values).result(rules)
            else:
                values[node] = None

    def _outputs(self, outputs: object) -> None:
        for index, value in enumerate(flat(outputs)):
            if not isinstance(value, Value):
                continue
            if value.padded:
                self.states.add(index)
            else:
                self.positions.freeze(value.places, "the model returns it")

    def place(self, address: Address, dim: int) -> Tensor:
        """Return the numbers of an address's places along one dimension of the whole."""
        return self.positions.number((address.name, dim), address.shape[dim]) + address.coordinates[dim]

    def function(self, node: fx.Node) -> Tensor:
        """Return the number of an operation: the same each time that its module is called."""
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        call, kind = next(reversed(stack)), str(node.target)
        self._calls[call, kind] = self._calls.get((call, kind), 0) + 1
        key = stack[call][0], kind, self._calls[call, kind]
        return torch.tensor(self._functions.setdefault(key, len(self._functions) + 1))


class Call:
    """One operation of the graph, with its arguments' values at hand."""

    def __init__(self, into: Propagation, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        self.into, self.positions, self.node = into, into.positions, node
        self.args: tuple[Any, ...] = fx.node.map_arg(node.args, values.get)
        self.kwargs: dict[str, Any] = fx.node.map_arg(node.kwargs, values.get)
        stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
        self.module, self.module_type = next(reversed([(path, str(kind)) for path, kind in stack.values()]), ("", ""))

    @property
    def name(self) -> str:
        """The operation's name without its overload."""
        packet = getattr(self.node.target, "overloadpacket", None)
        return str(packet or getattr(self.node.target, "__name__", self.node.target)).removeprefix("aten.")

    @property
    def place(self) -> str:
        """The operation and its module, for a sentence."""
        return f"{self.name.strip('_')} in {self.module}" if self.module else self.name.strip("_")

    def result(self, rules: Mapping[str, "Rule"]) -> Any:
        """Return the operation's outputs' values, after noting what it binds."""
        if self.node.target is operator.getitem:
            found, index = self.args
            return found[index] if isinstance(found, (tuple, list)) else self.unknown([found])
        tensors = [value for value in flat((self.args, self.kwargs)) if isinstance(value, (Value, Address))]
        if not tensors:
            return self.fresh()
        rule = rules.get(self.name) or rules.get(self.name.removesuffix("_"))
        try:
            return self.unknown(tensors) if rule is None else rule(self)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return self.unknown(tensors)  # a form of the operation that its rule does not foresee

    def value(self, places: Tensor, *, padded: bool = False) -> Value:
        """Return what this operation computes for neurons."""
        return Value(places, self.into.function(self.node).expand(places.shape), padded)

    def fresh(self) -> Any:
        """Return outputs that belong to nobody."""
        return mapped(self.node.meta.get("val"), lambda tensor: self.value(nobody(tensor.shape)))

    def unknown(self, tensors: Iterable[Value | Address | None]) -> Any:
        """Return outputs that belong to nobody, for nothing is known of what the operation does with these."""
        self.freeze(tensors, f"it is read by {self.place}, which is not known to keep neurons apart")
        return self.fresh()

    def freeze(self, tensors: Iterable[Value | Address | None], reason: str) -> None:
        """Say why nobody can go to whom these belong."""
        for tensor in tensors:
            if isinstance(tensor, Value):
                self.positions.freeze(tensor.places, reason)
            if not isinstance(tensor, Address):
                continue
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    self.positions.freeze(self.into.place(tensor, dim), reason)
                    self.into.owning[tensor.name, dim] = None

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the first output."""
        value = self.node.meta["val"]
        return tuple((value if isinstance(value, Tensor) else value[0]).shape)

    def own(self, address: Address, places: Tensor, offset: int) -> None:
        """Link a parameter that is combined element by element with neurons.

        Args:
            address: The parameter, seen in a shape that broadcasts with the neurons' tensor.
            places: Those of the neurons' tensor.
            offset: How many dimensions more that tensor has.
        """
        found = nobody(address.extent)
        for axis in range(len(address.extent)):
            if address.extent[axis] < 2:
                continue
            dims = address.dims(axis)
            if not varies(places, axis + offset):
                self.fixed(address, dims)
            elif len(dims) != 1 or found.any():
                layout = f"{self.place} lays out its parameter in a way of its own"
                self.freeze([address], layout)
                self.positions.freeze(places, layout)
            else:
                found = self.into.place(address, dims[0])
                self.into.owning[address.name, dims[0]] = None
                if any(varies(places, dim) for dim in range(places.ndim) if dim != axis + offset):
                    shared = f"all neurons share it where {self.place} uses it"
                    self.positions.share(found, places, axis + offset, shared)
                    return
        self.positions.link(found, places)

    def fixed(self, address: Address, dims: Iterable[int]) -> None:
        """Note dimensions of a parameter along which no neurons run."""
        for dim in dims:
            axis = self.into.place(address, dim)
            self.into.owning[address.name, dim] = None
            self.positions.freeze(axis, f"no neurons run along it where {self.place} uses it")

    def read(self, seen: Tensor, functions: Tensor, weight: Address, dim: int, bias: str, **extra: bool) -> None:
        """Note that the neurons in `seen`, one for each place along a dimension of a weight, are read by it."""
        columns = self.positions.number((weight.name, dim), weight.shape[dim]) + torch.arange(len(seen))
        if not bool(seen.any()):
            self.positions.freeze(columns, "it reads the model's inputs, or what no neuron gives")
            return
        self.positions.link(seen, columns)
        self.positions.freeze(columns[seen == 0], "it reads what no neuron gives")
        module = weight.name.rpartition(".")[0]
        self.into.readings.append(Reading((weight.name, dim), bias, module, functions, **extra))


def flat(values: object) -> Iterator[Any]:
    """Yield what lies in nested tuples, lists and dictionaries."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from flat(value)
    elif isinstance(values, dict):
        yield from flat(list(values.values()))
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


Rule = Callable[[Call], Any]
"""(operation) → the values of its outputs, after noting what it binds."""
