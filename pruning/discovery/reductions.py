"""What takes many elements together: sums, means, pooling and normalisations, over neurons or beside them."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.elementwise import elementwise, per_channel
from pruning.discovery.moves import axes
from pruning.discovery.positions import varies
from pruning.discovery.propagation import Call
from pruning.discovery.values import Address, Value, column, flat, mapped, nobody, squeezed

_ORDERED = {"argmax", "argmin", "max", "min", "median", "any", "all"}
"""What names one of the elements by its number, or counts on all."""


def reduce(call: Call) -> Any:
    """Pass neurons on where a whole dimension is summed, averaged or normalised; what lies along it goes as one."""
    value = call.args[0]
    if isinstance(value, Address):
        return _of_parameter(call, value)
    ndim = value.places.ndim
    names = [argument.name for argument in call.target._schema.arguments]
    given = call.args[names.index("dim")] if "dim" in names else None
    if "other" in names:  # `max(x, y)`
        return elementwise(call)
    dims = range(ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = sorted(dim % ndim for dim in dims)
    across = [dim for dim in dims if varies(value.places, dim)]
    others = [dim for dim in axes(value.places) if dim not in dims]
    for dim in across:
        call.even([value])
        if call.name in _ORDERED and not (call.name in ("max", "min") and (given is None or call.alone)):
            call.positions.hold(value.places, [dim], f"{call.place} says which of them it is")
        call.blend(value.places, dim)
    kept = value.places
    for dim in dims:
        if others and dim in across:
            kept = call.positions.take(kept, dim, f"{call.place} mixes all of it")
        kept = kept.narrow(dim, 0, 1)
    if across and not others:
        kept = nobody(kept.shape)

    def like(tensor: Tensor) -> Value:
        if tensor.shape == value.places.shape:
            return call.value(value.places, padded=value.padded)
        places = kept if tensor.ndim == ndim else kept.squeeze(dims)
        return call.value(places.expand(tensor.shape), padded=value.padded)

    return mapped(call.outputs, like)


def distance(call: Call) -> Any:
    """`mse_loss(x, y, reduction)` and its like in a network's code: element by element, then the mean or the sum."""
    values, whole = [part for part in flat(call.args) if isinstance(part, (Value, Address))], call.given[0][0]
    if len(values) > 2:  # weights besides
        return call.unknown(values)
    single, call.outputs = call.outputs, whole
    found = elementwise(call)
    call.outputs = single
    if single.ndim or not isinstance(found, Value):
        return _of_parameter(call, found) if isinstance(found, Address) and not single.ndim else found
    for dim in axes(found.places):
        call.even([found])
        call.blend(found.places, dim, dim)
    return call.value(nobody(single.shape))


def ordered(call: Call) -> Any:
    """`topk(x, k, dim)`, `sort`, `cumsum`, …: along another dimension than the neurons', of each what it is given."""
    value = call.args[0]
    names = [argument.name for argument in call.target._schema.arguments]
    dim = call.args[names.index("dim")] if "dim" in names else None
    if not isinstance(value, Value) or not isinstance(dim, int) or varies(value.places, dim):
        return call.unknown([value])
    call.even([value])
    places = value.places.narrow(dim, 0, 1)
    return mapped(call.outputs, lambda tensor: call.value(places.expand(tensor.shape)))


def _of_parameter(call: Call, address: Address) -> Any:
    """Return what is summed of a parameter as a view of it; what lies along a dimension is taken together."""
    ndim, names = len(address.extent), [argument.name for argument in call.target._schema.arguments]
    given = call.args[names.index("dim")] if "dim" in names else None
    if "other" in names:
        return elementwise(call)
    dims = range(ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = sorted(dim % ndim for dim in dims)
    read = _read_along(call, address, dims)
    left = (value for value in address.scaled if not any(varies(value.places, axis) for axis in dims))
    address = replace(address, scaled=tuple(left)) if call.name == "sum" else address
    for axis in (axis for axis in dims if axis not in read):  # what a matrix reads is no statistic of it
        for dim in address.dims(axis):
            call.blend(call.into.place(address, dim), axis)

    def like(tensor: Tensor) -> Address | Value:
        if tuple(tensor.shape) == address.extent:
            return address
        kept = address
        for dim in dims:
            kept = kept.moved(lambda part, dim=dim: part.narrow(dim, 0, 1))  # type: ignore[misc]
        kept = kept if tensor.ndim == ndim else kept.moved(lambda part: part.squeeze(dims))
        return call.as_value(kept) if kept.computed and len(kept.running()) < 2 else kept

    return mapped(call.outputs, like)


def _read_along(call: Call, address: Address, dims: list[int]) -> set[int]:
    """Return along which dimensions neurons that a matrix is multiplied by are summed over, read by its columns."""
    read = set[int]()
    for axis in dims if call.name == "sum" else ():
        for value in address.scaled:
            if varies(value.places, axis) and len(address.dims(axis)) == 1:
                seen, functions = (column(part, axis) for part in (value.places, value.functions))
                dim = address.dims(axis)[0]
                at = column(address.coordinates[dim], axis)
                call.read(seen, functions, address, dim, "", at=at, padded=value.padded)
                read.add(axis)
    return read


def spatial(call: Call) -> Any:
    """Pass channels on where only what lies behind them (the places of an image) is pooled, padded or resized."""
    value = call.args[0]
    if isinstance(value, Address) and "pad" in call.name and (kernel := _padded(call, value)) is not None:
        return kernel
    if isinstance(value, Address) and "pad" not in call.name:  # an image that is learned
        behind = next(int(letter) for letter in call.name if letter.isdigit())
        value = call.as_value(value, [len(value.extent) - behind - 1])
    if not isinstance(value, Value):
        return call.unknown([value])
    shape, pads = call.shape(), call.args[1] if "pad" in call.name else None
    changed = [d for d in range(len(shape)) if shape[d] != value.places.shape[d] or d > 1]
    if pads is not None:
        changed = [len(shape) - 1 - d // 2 for d in range(len(pads)) if pads[d]]
    if any(varies(value.places, dim) for dim in changed):
        if call.name in ("pad", "constant_pad_nd"):  # as a state is padded behind its neurons
            places, functions = (call.target(part, pads) for part in (value.places, value.functions))
            return Value(squeezed(places), squeezed(functions), value.padded)
        return call.unknown([value])
    places = value.places
    for dim in changed:
        places = places.narrow(dim, 0, 1)
    return mapped(call.outputs, lambda tensor: call.value(places.expand(tensor.shape), padded=value.padded))


def _padded(call: Call, value: Address) -> Address | None:
    """Return a parameter that is padded as one whose neurons run along its other axes, as a kernel's; None if none do.

    What is around it is nobody's, and stands there as its last places do.
    """
    pads, last = call.args[1], len(value.extent) - 1
    beside = {last - place // 2 for place, pad in enumerate(pads) if pad}
    if set(value.running()) <= beside:
        return None
    for part in value.parts:
        call.fixed(part, [dim for axis in beside for dim in part.dims(axis)])
    for axis in beside:
        before, behind = pads[2 * (last - axis) : 2 * (last - axis) + 2]
        size = value.extent[axis]
        at = torch.arange(-before, size + behind).clamp(0, size - 1)
        value = value.moved(lambda part, axis=axis, at=at: part.index_select(axis, at))  # type: ignore[misc]
    return value


def unpool(call: Call) -> Any:
    """`max_unpool2d(x, indices, size)`: each channel for itself, its indices with it."""
    value, indices = call.as_value(call.args[0]), call.as_value(call.args[1])
    spatial = 2 if "2d" in call.name else 3
    if any(varies(part.places, dim) for part in (value, indices) for dim in range(-spatial, 0)):
        return call.unknown([value, indices])
    call.positions.link(value.places, indices.places)
    call.even([value])
    places = value.places
    for dim in range(-spatial, 0):
        places = places.narrow(dim, 0, 1)
    return call.value(places.expand(call.shape()))


def patches(call: Call) -> Any:
    """`im2col(x (N, C, H, W), kernel, …)` → (N, C · kernel, places), and `col2im` back: each channel for itself."""
    value, sizes = call.as_value(call.args[0]), call.args[1 if call.name == "im2col" else 2]
    channel = call.outputs.ndim - 2 if call.name == "im2col" else value.places.ndim - 2
    if any(varies(value.places, dim) for dim in range(channel + 1, value.places.ndim)):
        return call.unknown([value])
    places = column(value.places, channel)
    if call.name == "im2col":
        places = places.repeat_interleave(math.prod(sizes))
    else:
        each = places.unflatten(0, (-1, math.prod(sizes)))  # type: ignore[no-untyped-call]
        if varies(each, 1):
            call.positions.mix(each, 1, f"{call.place} adds it up")
        places = each[:, 0]
    view = [len(places) if dim == channel else 1 for dim in range(call.outputs.ndim)]
    return call.value(places.view(view).expand(call.shape()), padded=value.padded)


def sampled(call: Call) -> Any:
    """`grid_sampler_2d(x (N, C, H, W), places, …)`: each channel for itself, also of an image that is learned."""
    call.args = (call.as_value(call.args[0], [1]), *call.args[1:])
    return call.unknown([value for value in call.args if isinstance(value, (Value, Address))])


def triangle(call: Call) -> Any:
    """`tril(x)` and `triu(x)`: neurons that run along other dimensions; those along its rows and columns stay."""
    value, ordered = call.args[0], f"{call.place} counts on the order of its rows and columns"
    if isinstance(value, Address):
        if any(value.dims(dim) for dim in (-2 % len(value.extent), -1 % len(value.extent))):
            call.freeze([value], ordered)
            return call.fresh()
        value = call.as_value(value, value.running())
    if any(varies(value.places, dim) for dim in (-2, -1)):
        call.freeze([value], ordered)
        return call.fresh()
    return call.value(value.places, padded=value.padded)


def batch_norm(call: Call) -> Any:
    """`batch_norm(x, weight, bias, mean, var, …)` and `instance_norm`: each channel for itself."""
    value = call.as_value(call.args[0])
    call.even([value])
    dim = 1 if value.places.ndim > 1 else 0
    for other in range(value.places.ndim):
        if other != dim and varies(value.places, other):
            call.positions.mix(value.places, other, f"{call.place} reads all of it by the same weights")
    places = column(value.places, dim)
    for address in call.args[1:5]:
        if isinstance(address, Address):
            call.positions.link(call.into.place(address, 0), places)
            call.into.owning[address.name, 0] = None
            if not bool(places.any()):
                call.positions.freeze(call.into.place(address, 0), "it normalises what no neuron gives")
    return _first(call, call.value(value.places))


def _first(call: Call, value: Value) -> Any:
    """Return the first output's value; the others are numbers of its statistics, which nobody reads."""
    if isinstance(call.outputs, Tensor):
        return value
    return (value, *call.fresh()[1:])


def layer_norm(call: Call) -> Any:
    """`layer_norm(x, shape, weight, bias)` and `rms_norm(x, shape, weight)`: by what lies along the last dimensions."""
    value, normalized = call.as_value(call.args[0]), call.args[1]
    call.even([value])
    offset = value.places.ndim - len(normalized)
    for address in call.args[2:4]:
        if isinstance(address, Address):
            call.own(address, value.places, offset)
    for dim in range(offset, value.places.ndim):
        if varies(value.places, dim):
            call.blend(value.places, dim)
    return _first(call, call.value(value.places))


def group_norm(call: Call) -> Any:
    """`group_norm(x, groups, weight, bias)`: by the channels of a group, which go as one, or by all of them."""
    value, groups = call.as_value(call.args[0]), call.args[1]
    call.even([value])
    for address in call.args[2:4]:
        if isinstance(address, Address):
            call.own(per_channel(address, value.places.ndim), value.places, 0)
    if groups == 1:
        if varies(value.places, 1):
            call.blend(value.places, 1)
    else:
        grouped = value.places.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
        call.positions.take(grouped, 2, f"{call.place} normalises over it")
        call.blend(value.places, 1, among=grouped)
    return _first(call, call.value(value.places))


def embedding(call: Call) -> Any:
    """`embedding(weight (types, width), tokens)` and `embedding_bag`: its columns are neurons, its rows are not."""
    weight = call.args[0]
    if not isinstance(weight, Address) or len(weight.extent) != len(weight.shape):
        return call.unknown([value for value in call.args if isinstance(value, (Value, Address))])
    places = call.into.axis(weight, 1)
    call.into.owning[weight.name, 1] = None
    call.into.owning[weight.name, 0] = None
    call.positions.freeze(call.into.axis(weight, 0), f"it has a row for each type of the embedding {call.module}")
    return _first(call, call.value(places.expand(call.shape())))
