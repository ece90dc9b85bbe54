"""What only moves elements, executed on the numbers of places: views, concatenation, choices by an index, copies."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.positions import varies
from pruning.discovery.propagation import Call, carry
from pruning.discovery.values import Address, Value, flat, squeezed

DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"}
RANDOM = {"bernoulli", "rand_like", "randn_like", *DROPOUTS}
"""What draws numbers for each element."""


def move(call: Call) -> Any:
    """Execute on the numbers what only moves elements."""
    inputs = [value for value in flat((call.args, call.kwargs)) if isinstance(value, (Value, Address))]
    if call.name == "repeat_interleave" and isinstance(call.args[1], Value):
        return call.unknown(inputs)
    if all(isinstance(value, Address) for value in inputs):
        return _moved_address(call, [value for value in inputs if isinstance(value, Address)])
    along = {axis for value in inputs if isinstance(value, Value) for axis in axes(value.places)}
    call.args = _exchanged(call.args, lambda address: call.as_value(address, along))
    values = [value for value in flat(call.args) if isinstance(value, Value)]
    carrying = [value for value in values if bool(value.places.any())]
    padded = frozenset[str]().union(*(value.padded for value in carrying))
    if padded and not all(value.padded or value.free for value in values):
        call.even(values)
    if call.name in ("flip", "roll") and any(varies(values[0].places, d) for d in flat([call.args[-1] or [*range(9)]])):
        return call.unknown(values)
    if call.name in ("cat", "concat", "concatenate", "stack") and not padded:
        call.args = _aligned(call, values)
    moved = _execute(call, lambda value: value.places), _execute(call, lambda value: value.functions)
    if isinstance(moved[0], Tensor):
        return Value(squeezed(moved[0]), squeezed(moved[1]), padded)
    return tuple(Value(squeezed(p), squeezed(f), padded) for p, f in zip(*moved, strict=True))


def same(call: Call) -> Any:
    """Pass on what is only copied, cast or dropped."""
    value = call.args[0]
    if call.name.strip("_") in RANDOM and isinstance(value, Value) and call.args[2] is not False:
        call.positions.mark(value.places, "random")
    if isinstance(call.outputs, Tensor):
        return value
    return (value, call.fresh()[1])


def _execute(call: Call, part: Callable[[Any], Tensor]) -> Any:
    """Run the operation itself on a part of each value."""
    target = torch.reshape if call.name in ("view", "_unsafe_view", "_reshape_alias") else call.target
    if call.name == "_reshape_alias":
        call.args = call.args[:2]
    kwargs = {name: value for name, value in call.kwargs.items() if name not in ("memory_format", "dtype")}
    return target(*_parts(call.args, part), **_parts(kwargs, part))


def _moved_address(call: Call, addresses: Sequence[Address]) -> Any:
    """Return a view of a parameter."""
    if len(addresses) > 1:
        return call.unknown(addresses)
    whole = addresses[0]
    moved = [_execute(call, lambda _, indices=indices: indices) for indices in whole.coordinates]  # type: ignore[misc]
    if isinstance(moved[0], Tensor):
        return Address(whole.name, whole.shape, tuple(moved))
    return tuple(Address(whole.name, whole.shape, tuple(part)) for part in zip(*moved, strict=True))


def axes(places: Tensor) -> list[int]:
    """Return the dimensions along which neurons run."""
    return [dim for dim in range(places.ndim) if varies(places, dim)]


def _aligned(call: Call, values: Sequence[Value]) -> tuple[Any, ...]:
    """Return the arguments of what puts values beside each other, linked where one width serves all of them."""
    dim = call.args[1]
    dim = dim if call.name == "stack" else dim % values[0].places.ndim
    if call.name != "stack" and any(varies(value.places, dim) for value in values):
        return call.args
    whole = next((value.places for value in values if value.places.any()), values[0].places)
    common = whole if call.name == "stack" else whole.narrow(dim, 0, 1)
    for value in values:
        if not value.places.any() and not value.free:
            call.positions.freeze(common, f"{call.place} puts it beside values of a fixed width")
        call.positions.link(value.places, common)
    like = [replace(value, places=common.expand(value.places.shape)) for value in values]
    return (like, *call.args[1:])


def _exchanged(values: Any, change: Callable[[Address], Value]) -> Any:
    if isinstance(values, (tuple, list)):
        return type(values)(_exchanged(value, change) for value in values)
    return change(values) if isinstance(values, Address) else values


def _parts(values: Any, part: Callable[[Any], Tensor]) -> Any:
    """Return the arguments with a part of each value in its place."""
    if isinstance(values, (tuple, list)):
        return type(values)(_parts(value, part) for value in values)
    if isinstance(values, dict):
        return {name: _parts(value, part) for name, value in values.items()}
    return part(values) if isinstance(values, (Value, Address)) else values


def index(call: Call) -> Any:
    """`x[indices]` where the indices choose among other dimensions than the neurons'."""
    value, indices = call.args[:2]
    chosen = [dim for dim, index in enumerate(indices) if index is not None]
    if isinstance(value, Address):
        value = call.as_value(value, [axis for axis in range(len(value.extent)) if axis not in chosen])
    if any(varies(value.places, dim) for dim in chosen):
        return call.unknown([value, *(index for index in indices if isinstance(index, (Value, Address)))])
    call.freeze(indices, f"{call.place} chooses by it")
    given = call.given[0][1]
    first = [None if index is None else torch.zeros_like(index, dtype=torch.int64, device="cpu") for index in given]
    if any(index is not None and index.dtype == torch.bool for index in given):
        first = [None if index is None else index.cpu() for index in given]
    places, functions = (torch.ops.aten.index.Tensor(part, first) for part in (value.places, value.functions))
    return Value(squeezed(places), squeezed(functions), value.padded)


def copy(call: Call) -> Any:
    """`x.copy_(y)`: what is written is whose `y` is."""
    target, source = call.args[:2]
    value = call.as_value(source)
    if isinstance(target, Address):
        carry(call.into, target, value)
        return target
    shape = target.places.shape
    return replace(value, places=value.places.expand(shape), functions=value.functions.expand(shape))


def chosen(call: Call) -> Any:
    """`index_select(x, dim, indices)` and `gather`: along another dimension than the neurons'."""
    value, dim, indices = call.args[:3]
    if isinstance(value, Address):
        value = call.as_value(value, [axis for axis in range(len(value.extent)) if axis != dim % len(value.extent)])
    if varies(value.places, dim):
        return call.unknown([value, indices])
    call.freeze([indices], f"{call.place} chooses by it")
    first = torch.zeros(indices.places.shape, dtype=torch.int64)
    places, functions = (squeezed(call.target(part, dim, first)) for part in (value.places, value.functions))
    return Value(places, functions, value.padded)
