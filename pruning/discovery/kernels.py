"""Kernels that are a view of a parameter, or that are made of it for each example, mixed or scaled."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from pruning.discovery.positions import varies
from pruning.discovery.propagation import Call
from pruning.discovery.values import Address, Value, column, nobody

SAME = "reads all of it by the same weights"


def is_view(weight: Address) -> bool:
    """Return whether kernels are not a parameter as it stands."""
    return len(weight.extent) != len(weight.shape) or weight.computed


def is_kernel(weight: Any) -> TypeGuard[Address]:
    """Return whether the rows and the columns of what a convolution is given run along one dimension each."""
    if not isinstance(weight, Address) or not is_view(weight):
        return isinstance(weight, Address)
    rows, columns = weight.dims(0), weight.dims(1)
    return len(rows) < 2 and len(columns) < 2 and len({*rows, *columns}) == len(rows) + len(columns) > 0


def by_kernels(call: Call, value: Value, weight: Address, channel: int) -> Value:
    """Note what kernels read and compute that are a view of a parameter, or that are made of it for each example.

    Those of the examples of a batch are then the groups of one convolution, each of them with all neurons.
    """
    bias, groups, shape = call.args[2], call.args[8 if call.name == "convolution" else 6], call.shape()
    as_channels(call, value, channel)
    seen, functions = (column(part, channel) for part in (value.places, value.functions))
    rows = nobody((shape[channel],))
    for dim in weight.dims(0):
        rows = column(call.into.place(weight, dim), 0)
        call.into.owning[weight.name, dim] = None
    own, read = rows.view(groups, -1), seen.view(groups, -1)
    if any(bool((part != part[:1]).any()) for part in (own, read, functions.view(groups, -1))):
        return call.unknown([value, weight, bias])  # type: ignore[no-any-return]
    for dim in weight.dims(1):
        at = column(weight.coordinates[dim], 1)
        if not value.free:
            call.read(read[0], functions.view(groups, -1)[0], weight, dim, "", at=at, padding=True, padded=value.padded)
    if not weight.dims(1):
        call.freeze([value], f"{call.place} reads it by one number")
    if isinstance(bias, (Address, Value)):
        call.positions.link(call.as_value(bias).places, rows)
    call.positions.mark(rows, "conv")
    view = [len(rows) if dim == channel else 1 for dim in range(len(shape))]
    return call.value(rows.view(view).expand(shape))


def mixed(call: Call, value: Value, weight: Address, inner: int, shape: Sequence[int]) -> Any:
    """Note that neurons mix several kernels, of which one is made for each example."""
    for dim in (dim for dim in range(value.places.ndim - 1) if varies(value.places, dim)):
        call.positions.mix(value.places, dim, f"{call.place} {SAME}")
    seen, functions = (column(part, value.places.ndim - 1) for part in (value.places, value.functions))
    (dim,) = weight.dims(inner)
    at = column(weight.coordinates[dim], inner)
    call.read(seen, functions, weight, dim, "", at=at, padded=value.padded, product=True)
    call.into.crossed = True
    one = weight.moved(lambda part: part.select(inner, 0).expand(shape))
    return replace(one, computed=True)


def as_channels(call: Call, value: Value, channel: int, kernel: Sequence[int] = ()) -> None:
    """Let what lies in one channel go as one; a kernel of some size, (behind channels,), reads neighbours there."""
    for dim in range(value.places.ndim):
        if dim != channel and varies(value.places, dim):
            ordered = dim > channel and math.prod(kernel[dim - channel - 1 : dim - channel]) > 1
            how = "takes neighbours in it together, and so counts on its order" if ordered else SAME
            call.positions.mix(value.places, dim, f"{call.place} {how}")
