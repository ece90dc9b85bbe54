"""What combines elements of several tensors, one by one, and so links their neurons."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.findings import carry
from pruning.discovery.moves import RANDOM, axes, fill
from pruning.discovery.positions import varies
from pruning.discovery.propagation import Call
from pruning.discovery.values import MADE, Address, Value, column, flat, mapped

_SUMS = ("add", "sub", "rsub", "subtract")
_QUOTIENTS = ("div", "divide", "true_divide")
_PRODUCTS = ("mul", "multiply", *_QUOTIENTS)


def elementwise(call: Call) -> Any:
    """Link what is combined element by element."""
    shape = call.shape()
    inputs = [value for value in flat((call.args, call.kwargs)) if isinstance(value, (Value, Address))]
    values = [value for value in inputs if isinstance(value, Value) and _fits(value.places, shape)]
    addresses = [value for value in inputs if isinstance(value, Address) and _fits(value.coordinates[0], shape)]
    if (matrix := _matrix(call, addresses, values)) is not None:
        return matrix
    for address in [address for address in addresses if _gives_width(address, values, len(shape))]:
        addresses.remove(address)
        values.append(call.as_value(address, _gives_width(address, values, len(shape))))
    if not values:
        return _of_parameters(call, addresses)
    if _made(values, shape) and all(address.coordinates[0].numel() == 1 for address in addresses):
        return call.fresh(made=True)
    values = _paired(call, values, shape)
    result = _together(call, [value.places.expand(shape) for value in values])
    for address in addresses:
        _own(call, address, result)
    for value in values:
        _combine(call, value, result)
    carrying = [value for value in values if bool(value.places.any())]
    padded = frozenset[str]().union(*(value.padded for value in carrying))
    others = (value for value in values if not value.padded)
    if padded and (addresses or not all(_is_same_for_all(value.places, result) for value in others)):
        call.even(values)
    if "snntorch" in call.module_type:
        call.positions.mark(result, "snn")
    if call.name.removesuffix("_") in RANDOM:
        call.positions.mark(result, "random")
    found = call.value(result, padded=padded)
    found = found if addresses or bool(result.any()) else _repeated(found, values)
    return mapped(call.outputs, lambda _: found)


def _repeated(found: Value, values: Sequence[Value]) -> Value:
    """Return nobody's value as one that the code repeats where it repeats all that it is computed from."""
    made = torch.stack([(value.functions == MADE).expand(found.places.shape) for value in values]).all(0)
    return replace(found, functions=torch.where(made, MADE, found.functions))


def _own(call: Call, address: Address, result: Tensor) -> None:
    """Let a parameter that is combined with neurons go with them."""
    call.own(address, result, result.ndim - len(address.extent))
    if call.name.strip("_") in _QUOTIENTS and address is call.args[1]:
        call.into.dividing |= {(address.name, dim) for axis in address.running() for dim in address.dims(axis)}


def _matrix(call: Call, addresses: Sequence[Address], values: Sequence[Value]) -> Any:
    """Return what goes on as a view of a parameter; None if nothing does."""
    shape = call.shape()
    if addresses and all(value.free for value in values) and (_widened(addresses, shape) or _whole(addresses, shape)):
        return _of_parameters(call, addresses)
    if call.into.ways.matrices and (matrix := _crossed(addresses, values, shape)):
        call.into.crossed = True
        return _met(call, matrix, addresses, values)
    return None


def _crossed(addresses: Sequence[Address], values: Sequence[Value], shape: Sequence[int]) -> Address | None:
    """Return the parameter, a matrix, that neurons meet along one of its axes, while nothing meets it along another."""
    for address in addresses:
        offset = len(shape) - len(address.extent)
        axes_of = {axis + offset: address.dims(axis) for axis in address.running()}
        places = [value.places.expand(shape) for value in values if not value.free]
        met = {dim for one in places for dim in axes(one)}
        wide = [dim for dim in axes_of if not any(value.free or value.fixed(dim - len(shape)) for value in values)]
        single = all(len(dims) == 1 for dims in axes_of.values()) and len(axes_of) > 1
        if single and met and wide and met <= set(axes_of) and all(len(axes(one)) < 2 for one in places):
            return address
    return None


def _met(call: Call, matrix: Address, addresses: Sequence[Address], values: Sequence[Value]) -> Any:
    """Link neurons with the axis of a matrix that they meet; the matrix goes on as one, its other axis as it was."""
    shape = call.shape()
    call.even(values)
    whole = _of_parameters(call, [matrix, *(address for address in addresses if address is not matrix)])
    if not isinstance(whole, Address):
        return whole
    scaled = list(whole.scaled)
    for value in values:
        places, functions = value.places.expand(shape), value.functions.expand(shape)
        for dim in whole.running():
            if bool(value.places.any()) and varies(places, dim):
                call.positions.link(column(places, dim), column(call.into.place(whole, whole.dims(dim)[0]), dim))
                call.into.owning[whole.name, whole.dims(dim)[0]] = None
            elif value.fixed(dim - len(shape)):
                call.fixed(whole, whole.dims(dim))
        if bool(value.places.any()):
            scaled.append(Value(places, functions, value.padded))
    product = call.name.strip("_") in _PRODUCTS and not (call.name.startswith("div") and call.args[0] is not matrix)
    return replace(whole, scaled=tuple(scaled) if product else (), computed=True)


def _made(values: Sequence[Value], shape: Sequence[int]) -> bool:
    """Return whether what the code made gives the width: all of it is made, or the rest is one number for each example.

    So a state that begins as zeros is set back where an episode ended: `state * mask[:, None]`.
    """
    fixed = [value.places for value in values if not value.free]
    if not fixed or len(fixed) == len(values) or any(bool(places.any()) for places in fixed):
        return not fixed
    last = [size for places in fixed for size in (1, *places.shape[-1:], *places.shape[2:])]
    return shape[-1] > 1 and set(last) == {1}


def _widened(addresses: Sequence[Address], shape: Sequence[int]) -> bool:
    """Return whether parameters of several dimensions are repeated along others, for numbers that the code makes."""
    whole = max(addresses, key=lambda address: torch.Size(address.extent).numel())
    several = sum(size > 1 for size in whole.extent) > 1
    return several and math.prod(whole.extent) < math.prod(shape) and _fits(whole.coordinates[0], shape)


def _whole(addresses: Sequence[Address], shape: Sequence[int]) -> bool:
    """Return whether one of these parameters is a matrix of this shape, combined with numbers that the code makes."""
    return any(tuple(address.extent) == tuple(shape) and len(address.running()) > 1 for address in addresses)


def _gives_width(address: Address, values: Sequence[Value], ndim: int) -> list[int]:
    """Return the axes of a parameter along which it is combined with nothing, or only with what the code makes."""
    fixed = [value for value in values if not value.free]
    if not values or (not fixed and not address.extent):
        return []

    def alone(axis: int) -> bool:
        return not any(value.fixed(axis - len(address.extent)) for value in fixed)

    def met(axis: int) -> bool:
        behind = len(address.extent) - axis
        places = (value.places for value in fixed)
        return any(one.ndim >= behind and varies(one, one.ndim - behind) for one in places)

    if any(size > 1 and met(axis) for axis, size in enumerate(address.extent)):
        return []
    return [axis for axis, size in enumerate(address.extent) if size > 1 and alone(axis) and ndim]


def _is_same_for_all(places: Tensor, result: Tensor) -> bool:
    """Return whether there is but one element for all neurons, so that it combines with any width."""
    offset = result.ndim - places.ndim
    return all(dim < offset or places.shape[dim - offset] == 1 for dim in axes(result))


def _of_parameters(call: Call, addresses: Sequence[Address]) -> Any:
    """Let parameters that are combined element by element go together; the largest stands for them."""
    if not addresses:
        return call.fresh()
    whole = max(addresses, key=_size)
    if tuple(whole.extent) != call.shape():
        if not _fits(whole.coordinates[0], call.shape()):
            return call.unknown(addresses)
        whole = whole.moved(lambda part: part.expand(call.shape()))
    beside, combined = [], any(address.combined for address in addresses)
    for address in (part for one in addresses for part in (one.parts if one is not whole else (one,))):
        offset = len(whole.extent) - len(address.extent)
        for axis in range(len(address.extent)):
            dims, own = address.dims(axis), whole.dims(axis + offset)
            if not dims or (address.name == whole.name and dims == own):
                continue
            if not own and axis + offset < len(whole.extent) - 2:  # scales by examples or members of a shared matrix
                call.fixed(address, dims)
                continue
            if len(dims) > 1 or len(own) != 1:
                return call.unknown(addresses)
            call.positions.link(call.into.place(address, dims[0]), call.into.place(whole, own[0]))
            call.into.owning[address.name, dims[0]] = None
            call.into.owning.setdefault((whole.name, own[0]))
            combined = True
        other = address.name != whole.name or not all(map(torch.equal, address.coordinates, whole.coordinates))
        if other and tuple(address.extent) == call.shape():  # its own transpose, say
            beside.append(replace(address, combined=True))
    name = call.name.strip("_")
    product = name in _PRODUCTS
    linear = product or name == "neg" or (name in _SUMS and len(addresses) > 1)
    computed = any(address.computed for address in addresses)
    scaled = whole.scaled if linear else ()
    whole = replace(whole, computed=computed, combined=combined, scaled=scaled, bent=whole.bent or not linear)
    return whole if product or not beside else replace(whole, beside=(*whole.beside, *beside))


def _size(address: Address) -> tuple[int, int, bool, int]:
    """Return along how many dimensions a view does not only repeat itself, whether it is linear, and how large it is.

    Of two parameters that are multiplied, one that is zero where the other is bent (`w * exp(d)`) says what is read,
    and a matrix rather than what scales it for each member of an ensemble.
    """
    running = address.running()
    last = sum(axis + 2 >= len(address.extent) for axis in running)
    return len(running), last, not address.bent, math.prod(address.extent)


def copy(call: Call) -> Any:
    """`x.copy_(y)`: what is written is whose `y` is."""
    target, source = call.args[:2]
    if isinstance(target, Address) and isinstance(source, Address):  # weights that follow others by momentum
        _of_parameters(call, [target, source])
        return target
    value = call.as_value(source)
    if isinstance(target, Address):
        carry(call.into, target, value)
        return target
    fill(call, target, value)
    shape = target.places.shape
    return replace(value, places=value.places.expand(shape), functions=value.functions.expand(shape))


def prelu(call: Call) -> Any:
    """`prelu(x, slopes)`: one slope for each channel, or for all."""
    value, slopes = call.as_value(call.args[0]), call.args[1]
    if isinstance(slopes, Address) and slopes.coordinates[0].numel() > 1:
        call.own(per_channel(slopes, value.places.ndim) if value.places.ndim > 1 else slopes, value.places, 0)
    return call.value(value.places, padded=value.padded)


def glu(call: Call) -> Any:
    """`glu(x, dim)`: one half times the sigmoid of the other."""
    value, dim = call.as_value(call.args[0]), call.args[1]
    one, other = value.places.chunk(2, dim)
    call.positions.link(one, other)
    return call.value(one, padded=value.padded)


def _paired(call: Call, values: list[Value], shape: Sequence[int]) -> list[Value]:
    """Return what says whose a result is: of two that meet each with each, as in an outer product, one where asked."""
    carrying = [value.places.expand(shape) for value in values if bool(value.places.any())]
    if len(carrying) != 2 or sorted(map(len, map(axes, carrying))) != [1, 1] or axes(carrying[0]) == axes(carrying[1]):
        return values
    pair = call.pairs()
    return values if pair is None else [call.value(sorted(carrying, key=axes)[pair])]


def _together(call: Call, places: Sequence[Tensor]) -> Tensor:
    """Return, for each element, the first of these places that belongs to a neuron."""
    carrying = sorted((one for one in places if bool(one.any())), key=_spread, reverse=True)
    if len(running := {tuple(axes(one)) for one in carrying} - {()}) > 1 and len({*map(len, running)}) == 1:
        call.into.clashed = True  # heads meet what biases places, say
        carrying = carrying[:: -1 if call.into.ways.turned else 1]
    result = carrying[0] if carrying else places[0]
    for one in carrying[1:]:
        result = torch.where(result > 0, result, one) if bool((result == 0).any()) else result
    return result


def _spread(places: Tensor) -> tuple[int, int]:
    """Return along how many dimensions neurons run, and how many they are."""
    running = axes(places)
    return len(running), math.prod(places.shape[dim] for dim in running)


def _combine(call: Call, value: Value, result: Tensor) -> None:
    """Link one operand with the result, unless it has a fixed width where the result's neurons run."""
    offset = result.ndim - value.places.ndim
    own = [dim + offset for dim in axes(value.places)]
    others = [dim for dim in axes(result) if dim not in own]
    if others and not own and bool(value.places.any()):
        call.positions.freeze(value.places, f"{call.place} uses its single number for all")
    elif own and others:  # neurons of several (the dimensions of heads) meet what is the same for all
        call.positions.share(value.places.expand(result.shape), result, own[:1], f"{call.place} uses it for several")
    else:
        call.positions.link(value.places, result)
    if value.free:
        for dim in axes(result) if len(axes(result)) == 1 else ():
            if dim >= offset and value.places.shape[dim - offset] > 1:
                call.serve(value, dim - offset, column(result, dim))
        return
    wide = [dim for dim in axes(result) if value.fixed(dim - result.ndim)]
    if wide and bool((value.places == 0).any()):
        alone = torch.where(value.places == 0, result, 0) if bool(value.places.any()) else result
        call.positions.hold(alone, wide, f"{call.place} combines it with values of a fixed width")


def _fits(places: Tensor, shape: Sequence[int]) -> bool:
    """Return whether a tensor broadcasts to this shape."""
    if places.ndim > len(shape):
        return False
    return all(own in (1, size) for own, size in zip(places.shape[::-1], shape[::-1], strict=False))


def per_channel(address: Address, ndim: int) -> Address:
    """Return a vector for each channel in the shape of what it scales."""
    shape = (1, -1, *[1] * (ndim - 2))
    return Address(address.name, address.shape, tuple(part.reshape(shape) for part in address.coordinates))
