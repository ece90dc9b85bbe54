"""One operation of a network as it runs: what it is called with, whose its results are, and what it binds.

An operation for which there is no rule is probed: see `probing`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.discovery.findings import Propagation
from pruning.discovery.positions import varies
from pruning.discovery.probing import Told, owners
from pruning.discovery.values import (
    GIVEN,
    MADE,
    UNREAD,
    Address,
    Blend,
    Reading,
    Value,
    exchanged,
    flat,
    mapped,
    nobody,
    squeezed,
)

_WIDENING = {"expand", "expand_as", "repeat", "tile"}


class Call:
    """One operation, with its arguments' values at hand.

    Attributes:
        args: Its positional arguments, all of them, with values in the place of tensors.
        kwargs: Its other arguments, likewise.
        given: The arguments that it was called with, tensors in them.
        outputs: What it gave.
        module: The path of the module that called it.
        module_type: That module's class.
        alone: Whether nothing needs the last of several things that it gave.
        means: By what it mixes neurons, where it does, for a sentence.
    """

    alone = False
    means = ""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __init__(
        self,
        into: Propagation,
        target: Any,
        when: tuple[str, int],
        outputs: Any,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        stack: Sequence[tuple[str, nn.Module, int]],
    ) -> None:
        self.into, self.positions, self.target, self.when = into, into.positions, target, when
        self.outputs, self.given = outputs, given
        self.module, module, self._entered = stack[-1] if stack else ("", None, 0)
        self.module_type = str(type(module))
        self._function: Tensor | None = None

    @property
    def name(self) -> str:
        """The operation's name without its overload."""
        return str(self.target.overloadpacket).removeprefix("aten.")

    @property
    def place(self) -> str:
        """The operation and its module, for a sentence."""
        return f"{self.name.strip('_')} in {self.module}" if self.module else self.name.strip("_")

    @property
    def function(self) -> Tensor:
        """The number of this operation."""
        if self._function is None:
            self._function = self.into.function(self.module, self._entered, str(self.target))
        return self._function

    def another(self, name: str) -> Tensor:
        """Return the number of something else that this operation gives."""
        return self.into.function(self.module, self._entered, f"{self.target} {name}")

    def result(self, rule: "Rule") -> Any:
        """Return the operation's outputs' values, after noting what it binds."""
        tensors = [value for value in flat((self.args, self.kwargs)) if isinstance(value, (Value, Address))]
        if all(isinstance(value, Value) and not value.places.any() for value in tensors):
            parts = [(value.functions == MADE) for value in tensors if isinstance(value, Value)]
            number = self.name.startswith("lift_fresh") and self.outputs.numel() == 1  # `torch.tensor(0.0)`
            if self.widens():
                return self.widened(self.args[0])
            made = number or self.name.startswith("new_") or all(bool(part.all()) for part in parts)
            given = any(bool((value.functions <= GIVEN).any()) for value in tensors if isinstance(value, Value))
            if made or not (given or any(bool(part.any()) for part in parts)):
                return self.fresh(made=made)
        try:
            return self._beginning(rule(self), tensors)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return self.unknown(tensors)  # a form of the operation that its rule does not foresee

    def _beginning(self, found: Any, tensors: Sequence["Value | Address"]) -> Any:
        """Return nobody's value as made by the code in those of the last dimension's places where it made zeros.

        These are left by whatever takes them to zeros again: a state that begins beside the inputs still does once a
        graph has mixed its rows.
        """
        known = isinstance(found, Value) and isinstance(self.outputs, Tensor) and found.places.ndim > 1
        if not known or bool(found.places.any()):
            return found
        like = [v for v in tensors if isinstance(v, Value) and v.places.ndim > 1]
        each = [
            (v.functions == MADE).flatten(0, -2).all(0) for v in like if v.places.shape[-1] == found.places.shape[-1]
        ]
        if not any(bool(made.any()) for made in each):
            return found
        made = torch.stack(each).any(0) & (self.outputs == 0).flatten(0, -2).all(0)
        return replace(found, functions=torch.where(made, MADE, found.functions))

    def widens(self) -> bool:
        """Return whether what has one place along some dimensions is repeated there, as often as neurons are, say."""
        if self.name not in _WIDENING:
            return False
        own, whole = self.given[0][0].shape, self.shape()
        grown = {before for before, now in zip(own[::-1], whole[::-1], strict=False) if before != now}
        return grown <= {1} and own != whole

    def widened(self, value: Value) -> Value:
        """Return what nobody's value is once repeated: made by the code beyond the first place, or in all of them.

        In all where there is one number for each example or place of what is repeated last (channels, by `images`).
        """
        whole = self.shape()
        own = (*[1] * (len(whole) - value.places.ndim), *value.places.shape)
        if own[-1] == 1 or value.free:
            return self.fresh(made=True)  # type: ignore[no-any-return]
        functions = value.functions.reshape(own).expand(whole)
        for dim in (dim for dim, size in enumerate(own) if size != whole[dim]):
            first = torch.arange(whole[dim]).view(-1, *[1] * (len(whole) - dim - 1)) == 0
            functions = torch.where(first, functions, MADE)
        return Value(nobody(whole), functions)

    def value(self, places: Tensor, *, padded: frozenset[str] = frozenset()) -> Value:
        """Return what this operation computes for neurons."""
        return Value(places, self.function.expand(places.shape), padded)

    def fresh(self, *, made: bool = False) -> Any:
        """Return outputs that belong to nobody."""
        function = torch.tensor(MADE if made else 0)
        return mapped(self.outputs, lambda tensor: Value(nobody(tensor.shape), function.expand(tensor.shape)))

    def unknown(self, tensors: Iterable[Value | Address | None]) -> Any:
        """Return outputs' values as a probe tells them, or nobody's where nothing is known of the operation."""
        tensors = list(tensors)
        if self.positions.quiet:
            return self.fresh()
        if any(isinstance(leaf, torch.ScriptObject) for leaf in flat(self.given)):
            self.freeze(tensors, f"{self.place} reads it by weights that are packed")
            return self.fresh()
        alone = {id(value): value.running() for value in tensors if isinstance(value, Address)}
        if any(len(axes) == 1 for axes in alone.values()):
            change = lambda part: self.as_value(part, alone[id(part)]) if len(alone.get(id(part), ())) == 1 else part  # noqa: E731
            self.args, self.kwargs = exchanged(self.args, change), exchanged(self.kwargs, change)
            tensors = [value for value in flat((self.args, self.kwargs)) if isinstance(value, (Value, Address))]
        if all(isinstance(value, Value) or value.coordinates[0].numel() == 1 for value in tensors if value is not None):
            self.even([value for value in tensors if isinstance(value, Value)])
            found = self._probed()
            if found is not None:
                return found
        self.freeze(tensors, f"it is read by {self.place}, which is not known to keep neurons apart")
        return self.fresh()

    def _probed(self) -> Any:
        """Return outputs' values by what changes in them when neurons do; None if the operation cannot be probed."""
        places = [v.places if isinstance(v, Value) else None for v in flat((self.args, self.kwargs))]
        arguments = normalised(self.target, *self.given)
        told = owners(self.target, arguments, places, self.outputs)
        told = told and self._told_apart(told, arguments, places)
        if told is None:
            return None
        into_made = any(isinstance(value, Value) and value.free for value in flat(self.args))
        found: list[Tensor | None] = []
        for owner in told.owners:
            result = owner[0] if owner else None
            for one in owner[1:]:
                result = torch.where(result > 0, result, one) if result is not None else one
            for one in owner:
                self.positions.link(one, one if result is None else result)
            found.append(result if result is None or not into_made else _filled(result))
        for blended in told.mixed:
            self.positions.freeze(blended, f"{self.place} mixes all of it{self.means}")
        each = iter(found)
        return mapped(self.outputs, lambda tensor: self.value(_or_nobody(next(each), tensor)))

    def _told_apart(self, told: Told, arguments: Any, places: list[Tensor | None]) -> Told:
        """Return what a probe tells once what lies along one dimension is taken as one, where that is all it mixes.

        What only says where others' results are taken from (`grid_sample`'s coordinates) stays, and binds none of them.
        """
        if all(any(bool((one > 0).all()) for one in own) for own in told.owners):
            return told
        for blended in told.mixed[:1] if len(told.mixed) == 1 else ():
            for dim in (dim for dim in range(blended.ndim) if varies(blended, dim)):
                one = blended.narrow(dim, 0, 1).expand(blended.shape)
                again = owners(self.target, arguments, [one if p is blended else p for p in places], self.outputs)
                if again is not None and not again.mixed:
                    self.positions.mix(blended, dim, f"{self.place} mixes all of it{self.means}")
                    return again
        return told

    def as_value(self, value: Any, along: Iterable[int] = ()) -> Value:
        """Return a parameter that stands where values are expected as one of them: its neurons run along one axis.

        Args:
            value: A parameter, or what is a value already.
            along: The axes along which neurons may run; by default the last that has several places.
        """
        if not isinstance(value, Address):
            return value  # type: ignore[no-any-return]
        whole = range(len(value.extent))
        wide = [axis for axis in whole if value.extent[axis] > 1 and any(len(p.dims(axis)) == 1 for p in value.parts)]
        chosen = ([axis for axis in wide if axis in set(along)] or wide[-1:])[-1:]
        found: list[Tensor] = []
        for part in value.parts:
            own = [dim for axis in chosen for dim in part.dims(axis)]
            self.fixed(part, [dim for axis in whole for dim in part.dims(axis) if dim not in own])
            if own:
                self.into.owning[part.name, own[0]] = None
                found.append(self.into.place(part, own[0]))
                self.positions.link(found[0], found[-1])
        return self.value(found[0] if found else nobody(value.extent))

    def uses(self, values: Iterable[Any]) -> None:
        """Note that something reads inputs of the model as they were given."""
        if not self.positions.quiet:
            self.into.used |= _given(values)

    def begins(self, values: Iterable[Any]) -> None:
        """Note that a recurrence begins with inputs of the model."""
        if not self.positions.quiet:
            self.into.begun |= _given(values)

    def even(self, values: Iterable[Value]) -> None:
        """Note that recurrent states are read as wide as their neurons are many."""
        for value in values if not self.positions.quiet else ():
            self.into.even |= value.padded

    def serve(self, made: Value, dim: int, places: Tensor) -> None:
        """Let all neurons go together that meet what the code made once, along a dimension: it has one width."""
        _, first = self.into.served.setdefault((id(made), dim), (made, places))
        if first.shape == places.shape:
            self.positions.link(first, places)

    def pairs(self) -> int | None:
        """Note that neurons are paired, each with each; return which of both sides alone says whose a pair is."""
        self.into.paired = True
        return self.into.ways.pairs

    def blend(self, places: Tensor, dim: int, other: int | None = None, *, among: Tensor | None = None) -> None:
        """Note that neurons along a dimension are taken together, also where Python alone reads what that gives."""
        known = (self.place, self.module, other, among)
        self.into.blends.append(Blend(self.when, places, dim % places.ndim, *known))

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
        return tuple((self.outputs if isinstance(self.outputs, Tensor) else self.outputs[0]).shape)

    def own(self, address: Address, places: Tensor, offset: int) -> None:
        """Link a parameter that is combined element by element with neurons.

        Args:
            address: The parameter, seen in a shape that broadcasts with the neurons' tensor.
            places: Those of the neurons' tensor.
            offset: How many dimensions more that tensor has.
        """
        found = nobody(address.extent)
        for axis in range(len(address.extent)):
            dims = address.dims(axis)
            if not dims:  # one for all
                continue
            if not varies(places, axis + offset):
                self.fixed(address, dims)
            elif found.any() or not all(
                torch.equal(address.coordinates[dims[0]], address.coordinates[d]) for d in dims
            ):
                layout = f"{self.place} lays out its parameter in a way of its own"
                self.freeze([address], layout)
                self.positions.freeze(places, layout)
            else:
                own = self.into.place(address, dims[0])
                for dim in dims:  # several on a diagonal
                    self.positions.link(self.into.place(address, dim), own)
                    self.into.owning[address.name, dim] = None
                along = [other + offset for other in range(len(address.extent)) if address.dims(other) == dims]
                if any(varies(places, dim) for dim in range(places.ndim) if dim != axis + offset):
                    shared = f"all neurons share it where {self.place} uses it"
                    self.positions.share(own, places, along, shared)
                else:
                    found = own
        self.positions.link(found, places)

    def fixed(self, address: Address, dims: Iterable[int]) -> None:
        """Note dimensions of a parameter along which no neurons run."""
        for dim in dims:
            axis = self.into.place(address, dim)
            self.into.owning[address.name, dim] = None
            self.positions.freeze(axis, f"no neurons run along it where {self.place} uses it")

    def read(
        self,
        seen: Tensor,
        functions: Tensor,
        weight: Address,
        dim: int,
        bias: str,
        *,
        at: Tensor | None = None,
        **extra: Any,
    ) -> None:
        """Note that the neurons in `seen` are read by places along a dimension of a weight, all or those `at` which."""
        size = weight.shape[dim]
        at = torch.arange(size) if at is None else at
        columns = self.positions.number((weight.name, dim), size) + at
        columns = columns.masked_fill((seen == 0) & (functions == MADE), 0)  # what the code made may go
        if not bool(seen.any()):
            self.positions.freeze(columns, "it reads the model's inputs, or what no neuron gives")
            return
        self.positions.link(seen, columns)
        self.positions.freeze(columns[seen == 0], "it reads what no neuron gives")
        module = weight.name.rpartition(".")[0]
        each = torch.full((size,), UNREAD).index_copy(0, at, functions.clone())
        extra |= {"idle": self.positions.quiet, "combined": weight.combined}
        self.into.readings.append(Reading((weight.name, dim), bias, module, each, seen, **extra))


def _given(values: Iterable[Any]) -> set[int]:
    """Return the numbers of the model's inputs that are among these values."""
    parts = [value.functions for value in values if isinstance(value, Value)]
    return {int(number) for part in parts for number in torch.unique(part[part <= GIVEN])}


def normalised(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with what PyTorch leaves out because it is the default."""
    whole: list[Any] = list(args)
    named = dict(kwargs)
    for argument in operation._schema.arguments[len(args) :]:
        default = argument.default_value if argument.has_default_value() else None
        if argument.kwarg_only:
            named.setdefault(argument.name, default)
        else:
            whole.append(named.pop(argument.name, default))
    return tuple(whole), named


def _filled(places: Tensor) -> Tensor:
    """Return places with what nothing was put into as what was put beside it, as where nodes get sums of messages."""
    for dim in range(places.ndim if places.numel() else 0):
        whole = places.amax(dim, keepdim=True)
        if bool((whole > 0).all()) and bool(((places == 0) | (places == whole)).all()):
            return squeezed(whole.expand(places.shape))
    return places


def _or_nobody(places: Tensor | None, tensor: Tensor) -> Tensor:
    return nobody(tensor.shape) if places is None else places


Rule = Callable[[Call], Any]
"""(operation) → the values of its outputs, after noting what it binds."""
