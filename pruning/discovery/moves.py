"""What only moves elements, executed on the numbers of places: views, concatenation, choices by an index."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.positions import varies
from pruning.discovery.propagation import Call
from pruning.discovery.values import MADE, Address, Value, column, exchanged, flat, nobody, squeezed

DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"}
RANDOM = {"bernoulli", "rand_like", "randn_like", "poisson", *DROPOUTS}
"""What draws numbers for each element."""
_JOINING = ("cat", "concat", "concatenate")


def move(call: Call) -> Any:
    """Execute on the numbers what only moves elements."""
    inputs = [value for value in flat((call.args, call.kwargs)) if isinstance(value, (Value, Address))]
    if call.name == "repeat_interleave" and isinstance(call.args[1], Value):
        return call.unknown(inputs)
    addresses = [value for value in inputs if isinstance(value, Address)]
    if len(addresses) == len(inputs) and not _beside(call, addresses):
        return _moved_address(call, addresses)
    if len(addresses) == len(inputs):
        call.args = exchanged(call.args, lambda address: call.as_value(address, [len(address.extent) - 1]))
    along = {axis for value in inputs if isinstance(value, Value) for axis in axes(value.places)}
    if call.name in _JOINING and len(along) > 1:
        call.args = exchanged(call.args, lambda address: _beside_heads(call, address, inputs))
    call.args = exchanged(call.args, lambda address: call.as_value(address, along))
    values = [value for value in flat(call.args) if isinstance(value, Value)]
    carrying = [value for value in values if bool(value.places.any())]
    padded = frozenset[str]().union(*(value.padded for value in carrying))
    if padded and not all(value.padded or value.free for value in values):
        call.even(values)
    if call.name in ("flip", "roll") and any(varies(values[0].places, d) for d in flat([call.args[-1] or [*range(9)]])):
        return call.unknown(values)
    if call.name in (*_JOINING, "stack") and not padded:
        call.args = _aligned(call, values)
    if call.widens() and not values[0].places.any():
        return call.widened(values[0])
    moved = _execute(call, lambda value: value.places), _execute(call, lambda value: value.functions)
    if isinstance(moved[0], Tensor):
        return Value(squeezed(moved[0]), squeezed(moved[1]), padded)
    return tuple(Value(squeezed(p), squeezed(f), padded) for p, f in zip(*moved, strict=True))


def same(call: Call) -> Any:
    """Pass on what is only copied, cast or dropped."""
    value = call.args[0]
    drops = call.name.strip("_") in RANDOM and call.args[1] != 0 and call.args[2] is not False
    if drops and isinstance(value, Value):
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


def _beside(call: Call, addresses: Sequence[Address]) -> bool:
    """Return whether parameters lie beside each other along their last dimension: vectors, for places say."""
    several = len(addresses) > 1 and call.name in _JOINING
    dim = call.args[1] if len(call.args) > 1 else 0
    return several and all(len(address.extent) > 1 and dim in (-1, len(address.extent) - 1) for address in addresses)


def _beside_heads(call: Call, address: Address, inputs: Sequence[Value | Address]) -> Value | Address:
    """Return a parameter that is put beside what runs along several dimensions (heads and theirs) as a part of it."""
    whole = next(value.places for value in inputs if isinstance(value, Value) and value.places.any())
    dim = call.args[1] % whole.ndim
    others = [axis for axis in axes(whole) if axis != dim]
    if varies(whole, dim) or whole.ndim != len(address.extent) or len(others) < 2:
        return address
    places = whole.narrow(dim, 0, 1).expand(address.extent)
    call.own(address, places, 0)
    return call.value(places)


def _moved_address(call: Call, addresses: Sequence[Address]) -> Any:
    """Return a view of a parameter."""
    whole = addresses[0]
    if call.name in ("expand_as", "view_as", "reshape_as"):
        like = torch.broadcast_to if call.name == "expand_as" else torch.reshape
        return whole.moved(lambda part: like(part, call.shape()))
    if len(addresses) > 1:
        return call.unknown(addresses)
    if isinstance(call.outputs, Tensor):
        return whole.moved(lambda indices: _execute(call, lambda _: indices))
    return tuple(
        whole.moved(lambda indices, part=part: _execute(call, lambda _: indices)[part])  # type: ignore[misc]
        for part in range(len(call.outputs))
    )


def strided(call: Call) -> Any:
    """`x.as_strided(size, stride)`, as `fill_diagonal_` sees a diagonal: places as the tensor lies in memory."""
    value, size, stride, offset = call.args
    given = call.given[0][0]
    start = 0 if offset is None else offset - given.storage_offset()

    def change(part: Tensor) -> Tensor:
        laid = torch.empty_strided(given.shape, given.stride(), dtype=part.dtype).copy_(part)
        return laid.as_strided(size, stride, start)

    if isinstance(value, Address):
        return value.moved(change)
    return Value(squeezed(change(value.places)), squeezed(change(value.functions)), value.padded)


def paired(call: Call) -> Any:
    """`view_as_complex(x (…, 2))` and `view_as_real(z)`: numbers and their two parts."""
    value = call.args[0]
    split = call.name == "view_as_real"

    def change(part: Tensor) -> Tensor:
        return part.unsqueeze(-1).expand(call.shape()) if split else part.select(-1, 0)

    if isinstance(value, Address):
        if not split:
            call.fixed(value, value.dims(len(value.extent) - 1))
        return value.moved(change)
    if not split and varies(value.places, value.places.ndim - 1):
        return call.unknown([value])
    return Value(change(value.places), change(value.functions), value.padded)


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


def _parts(values: Any, part: Callable[[Any], Tensor]) -> Any:
    """Return the arguments with a part of each value in its place."""
    if isinstance(values, (tuple, list)):
        return type(values)(_parts(value, part) for value in values)
    if isinstance(values, dict):
        return {name: _parts(value, part) for name, value in values.items()}
    return part(values) if isinstance(values, (Value, Address)) else values


def index(call: Call) -> Any:
    """`x[indices]` where the indices choose among other dimensions than the neurons', or neurons look up a table."""
    value, indices = call.args[:2]
    if (found := _looked_up(call, value, indices)) is not None:
        return found
    chosen = [dim for dim, index in enumerate(indices) if index is not None]
    given = [None if index is None else index.cpu() for index in call.given[0][1]]
    if isinstance(value, Address):
        value = _rows_of(call, value, chosen, lambda part: torch.ops.aten.index.Tensor(part, given))
        if isinstance(value, Address):
            return value
    carrying = [index for index in indices if isinstance(index, Value) and bool(index.places.any())]
    if len(carrying) == 1 and not value.places.any():  # each neuron looks up its own in what is nobody's
        where = _behind(carrying[0].places, given, len(call.shape()))
        if len(axes(where)) == 1:
            return call.value(where.expand(call.shape()), padded=carrying[0].padded)
    along = [dim for dim in chosen if varies(value.places, dim)]
    own = _in_their_order(value.places, along, given)
    if own is None:
        return call.unknown([value, *(index for index in indices if isinstance(index, (Value, Address)))])
    first = [None if index is None else torch.zeros_like(index, dtype=torch.int64) for index in given]
    if any(index is not None and index.dtype == torch.bool for index in given):
        first = list(given)
    for dim in along:
        first[dim] = given[dim]
    places, functions = (torch.ops.aten.index.Tensor(part, first) for part in (value.places, value.functions))
    if value.free:  # before the first step it is nobody's
        indices = [index for index in indices if not isinstance(index, Address)]
    _for_themselves(call, indices, given, places, own)
    return Value(squeezed(places), squeezed(functions), value.padded)


def _rows_of(call: Call, table: Address, chosen: Sequence[int], choose: Callable[[Tensor], Tensor]) -> Value | Address:
    """Return what is chosen of a table: matrices as a view of it, else values, neurons along another dimension.

    Args:
        call: What chooses.
        table: A parameter.
        chosen: The dimensions along which it does.
        choose: Does so, of tensors of the table's shape or of one place along other dimensions.
    """
    others = [axis for axis in table.running() if axis not in chosen]
    if len(others) > 1 and call.name.startswith("index") and call.into.ways.matrices:
        call.into.crossed = True
        single = [axis for axis in range(len(table.extent)) if axis not in chosen]

        def change(part: Tensor) -> Tensor:
            for axis in (axis for axis in single if not varies(part, axis)):  # a whole table would be as large again
                part = part.narrow(axis, 0, 1)
            return choose(part).expand(call.shape())

        return table.moved(change)
    if others:
        return call.as_value(table, others)
    call.fixed(table, [dim for axis in table.running() for dim in table.dims(axis)])
    return call.value(nobody(table.extent))


def put(call: Call) -> Any:
    """`x[indices] = y` where each neuron of `x` gets its own: all are there, in their order."""
    target, indices, source = call.args[:3]
    given = [None if index is None else index.cpu() for index in call.given[0][1]]
    fill(call, target, source)
    along = [dim for dim, index in enumerate(given) if index is not None and varies(target.places, dim)]
    own = _in_their_order(target.places, along, given)
    if own is None or not along or not isinstance(source, Value):
        return call.unknown([target, *(one for one in flat((indices, source)) if isinstance(one, (Value, Address)))])
    first = [None if index is None else torch.zeros_like(index) for index in given]
    first[along[0]] = given[along[0]]
    places = torch.ops.aten.index.Tensor(target.places, first)
    _for_themselves(call, indices, given, places, own)
    if not source.free and not bool(source.places.any()) and source.places.ndim and source.places.shape[-1] > 1:
        call.positions.freeze(places, f"{call.place} combines it with values of a fixed width")
    call.positions.link(source.places, places)
    return call.value(target.places, padded=target.padded)


def _for_themselves(
    call: Call, indices: Sequence[Any], given: Sequence[Tensor | None], places: Tensor, own: int
) -> None:
    """Link indices with the neurons, along a dimension, each of which chooses for itself; others may not choose."""
    for index in indices:
        index = call.as_value(index) if isinstance(index, Address) and len(index.running()) == 1 and own >= 0 else index
        where = _behind(index.places, given, places.ndim) if isinstance(index, Value) and own >= 0 else None
        if where is not None and axes(where) == [own - places.ndim + where.ndim]:
            call.positions.link(where, places)
        else:
            call.freeze([index], f"{call.place} chooses by it")


def _in_their_order(places: Tensor, along: Sequence[int], given: Sequence[Tensor | None]) -> int | None:
    """Return along which dimension of what is chosen neurons lie, of which all are chosen in their order; −1 if none.

    So does `x[torch.arange(batch)[:, None], torch.arange(width), places]`. None of what is chosen otherwise.
    """
    if not along:
        return -1
    index = given[along[0]]
    if len(along) > 1 or index is None or index.dtype == torch.bool:
        return None
    wide = [dim for dim in range(index.ndim) if index.shape[dim] == places.shape[along[0]]]
    for dim in wide:
        numbers = torch.arange(index.shape[dim]).view(-1, *[1] * (index.ndim - dim - 1))
        if bool((index == numbers).all()):
            ndim = max(other.ndim for other in given if other is not None)
            return _begin(given) + dim + ndim - index.ndim
    return None


def _begin(given: Sequence[Tensor | None]) -> int:
    """Return at which dimension of what is chosen those of the indices begin."""
    chosen = [dim for dim, index in enumerate(given) if index is not None]
    return chosen[0] if chosen == [*range(chosen[0], chosen[-1] + 1)] else 0


def _behind(places: Tensor, given: Sequence[Tensor | None], ndim: int) -> Tensor:
    """Return an index's places in a shape that broadcasts with what is chosen."""
    whole = max(other.ndim for other in given if other is not None)
    return places.reshape(*places.shape, *[1] * (ndim - _begin(given) - whole))


def _looked_up(call: Call, value: Any, indices: Sequence[Any]) -> Value | None:
    """Return what neurons find in a table, as levels that a potential is rounded to; None if it is no such choice."""
    chosen = [index for index in indices if isinstance(index, Value)]
    table = value.places.ndim if isinstance(value, Value) else len(value.extent)
    if len(chosen) != 1 or table != 1 or not chosen[0].places.any():
        return None
    if isinstance(value, Address):
        call.fixed(value, value.dims(0))
    elif value.places.any():
        return None
    return call.value(chosen[0].places, padded=chosen[0].padded)


def fill(call: Call, target: Any, source: Any) -> None:
    """Let neurons that are written into what code made as wide as others are, and put nothing into, go with these."""
    if not isinstance(target, Value) or not isinstance(source, Value) or not bool((target.functions == MADE).all()):
        return
    own, other = ([dim - part.places.ndim for dim in axes(part.places)] for part in (target, source))
    if own == other and len(own) == 1 and target.places.shape[own[0]] == source.places.shape[own[0]]:
        places = (column(part.places, part.places.ndim + own[0]) for part in (target, source))
        call.positions.link(*places)


def chosen(call: Call) -> Any:
    """`index_select(x, dim, indices)` and `gather`: along another dimension than the neurons'."""
    value, dim, indices = call.args[:3]
    if (found := _looked_up(call, value, [indices])) is not None:
        return found
    if isinstance(value, Address):
        own = [dim % len(value.extent)]
        value = _rows_of(call, value, own, lambda part: part.index_select(dim, call.given[0][2].cpu()))
        if isinstance(value, Address):
            return value
    if varies(value.places, dim):
        return call.unknown([value, indices])
    if isinstance(indices, Address) and call.name == "gather":  # a delay for each neuron
        return _gathered(call, value, dim, indices)
    call.freeze([indices], f"{call.place} chooses by it")
    first = torch.zeros(indices.places.shape, dtype=torch.int64)
    places, functions = (squeezed(call.target(part, dim, first)) for part in (value.places, value.functions))
    return Value(places, functions, value.padded)


def _gathered(call: Call, value: Value, dim: int, indices: Address) -> Any:
    """Let a parameter by which each neuron chooses along another dimension go with the neurons."""
    places, functions = (part.narrow(dim, 0, 1) for part in (value.places, value.functions))
    alike = all(size in (1, own) for size, own in zip(places.shape, indices.extent, strict=True))
    if not alike or indices.dims(dim % places.ndim):
        return call.unknown([value, indices])
    places, functions = (part.expand(call.shape()) for part in (places, functions))
    if not value.free:
        call.own(indices, places, 0)
    return Value(places, functions, value.padded)
