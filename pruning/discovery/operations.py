"""How each operation passes neurons on: what it computes them from, who reads them, what binds them.

What only moves elements (`view`, `cat`, `split`, …) is executed on the numbers of places as it stands; what combines
elements links them; what reads them linearly links them with its columns; what mixes a whole width is the reason why
its neurons cannot go. A new operation is a function here and its line in `RULES`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.positions import varies
from pruning.discovery.products import addmm, attention, convolution, linear, matmul, transposed_convolution
from pruning.discovery.propagation import Address, Call, Rule, Value, carry, column, flat, mapped, nobody, squeezed
from pruning.discovery.recurrences import GATES, recurrent, recurrent_step


def _move(call: Call) -> Any:
    """Execute on the numbers what only moves elements."""
    inputs = [value for value in flat((call.args, call.kwargs)) if isinstance(value, (Value, Address))]
    if call.name == "repeat_interleave" and isinstance(call.args[1], Value):
        return call.unknown(inputs)
    if all(isinstance(value, Address) for value in inputs):
        return _moved_address(call, [value for value in inputs if isinstance(value, Address)])
    along = {axis for value in inputs if isinstance(value, Value) for axis in _axes(value.places)}
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


def _same(call: Call) -> Any:
    """Pass on what is only copied, cast or dropped."""
    value = call.args[0]
    if call.name.strip("_") in _RANDOM and isinstance(value, Value) and call.args[2] is not False:
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


def _axes(places: Tensor) -> list[int]:
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


def _elementwise(call: Call) -> Any:
    """Link what is combined element by element."""
    shape = call.shape()
    inputs = [value for value in flat((call.args, call.kwargs)) if isinstance(value, (Value, Address))]
    values = [value for value in inputs if isinstance(value, Value) and _fits(value.places, shape)]
    addresses = [value for value in inputs if isinstance(value, Address) and _fits(value.coordinates[0], shape)]
    for address in [address for address in addresses if _gives_width(address, values, len(shape))]:
        addresses.remove(address)
        values.append(call.as_value(address, _gives_width(address, values, len(shape))))
    if not values:
        return _of_parameters(call, addresses)
    if all(value.free for value in values) and all(address.coordinates[0].numel() == 1 for address in addresses):
        return call.fresh(made=True)
    result = _together([value.places.expand(shape) for value in values])
    for address in addresses:
        call.own(address, result, len(shape) - len(address.extent))
    for value in values:
        _combine(call, value, result)
    carrying = [value for value in values if bool(value.places.any())]
    padded = frozenset[str]().union(*(value.padded for value in carrying))
    if padded and (addresses or not all(value.padded for value in values if not _single(value.places))):
        call.even(values)
    if "snntorch" in call.module_type:
        call.positions.mark(result, "snn")
    if call.name.removesuffix("_") in _RANDOM:
        call.positions.mark(result, "random")
    found = call.value(result, padded=padded)
    return mapped(call.outputs, lambda _: found)


def _gives_width(address: Address, values: Sequence[Value], ndim: int) -> list[int]:
    """Return the axes of a parameter along which it is combined with nothing, or only with what the code makes."""
    fixed = [value.places for value in values if not value.free]
    if not values or (not fixed and not address.extent):
        return []

    def alone(axis: int) -> bool:
        behind = len(address.extent) - axis
        return all(places.ndim < behind or places.shape[-behind] == 1 for places in fixed)

    return [axis for axis, size in enumerate(address.extent) if size > 1 and alone(axis) and ndim]


def _single(places: Tensor) -> bool:
    """Return whether there is but one element, which combines with any width."""
    return places.numel() == 1


def _of_parameters(call: Call, addresses: Sequence[Address]) -> Any:
    """Let parameters that are combined element by element go together; the largest stands for them."""
    if not addresses:
        return call.fresh()
    whole = max(addresses, key=lambda address: torch.Size(address.extent).numel())
    if tuple(whole.extent) != call.shape():
        return call.unknown(addresses)
    for address in addresses:
        offset = len(whole.extent) - len(address.extent)
        for axis in range(len(address.extent)):
            dims, own = address.dims(axis), whole.dims(axis + offset)
            if address is whole or not dims:
                continue
            if len(dims) > 1 or len(own) > 1:
                return call.unknown(addresses)
            call.positions.link(call.into.place(address, dims[0]), call.into.place(whole, own[0]))
            call.into.owning[address.name, dims[0]] = None
            call.into.owning.setdefault((whole.name, own[0]))
    return whole


def _prelu(call: Call) -> Any:
    """`prelu(x, slopes)`: one slope for each channel, or for all."""
    value, slopes = call.as_value(call.args[0]), call.args[1]
    if isinstance(slopes, Address) and slopes.coordinates[0].numel() > 1:
        call.own(_seen_as(slopes, value.places.ndim) if value.places.ndim > 1 else slopes, value.places, 0)
    return call.value(value.places, padded=value.padded)


def _glu(call: Call) -> Any:
    """`glu(x, dim)`: one half times the sigmoid of the other."""
    value, dim = call.as_value(call.args[0]), call.args[1]
    one, other = value.places.chunk(2, dim)
    call.positions.link(one, other)
    return call.value(one, padded=value.padded)


def _together(places: Sequence[Tensor]) -> Tensor:
    """Return, for each element, the first of these places that belongs to a neuron."""
    carrying = sorted((one for one in places if bool(one.any())), key=_spread, reverse=True)
    result = carrying[0] if carrying else places[0]
    for one in carrying[1:]:
        result = torch.where(result > 0, result, one) if bool((result == 0).any()) else result
    return result


def _spread(places: Tensor) -> tuple[int, int]:
    """Return along how many dimensions neurons run, and how many they are."""
    axes = _axes(places)
    return len(axes), math.prod(places.shape[dim] for dim in axes)


def _combine(call: Call, value: Value, result: Tensor) -> None:
    """Link one operand with the result, unless it has a fixed width where the result's neurons run."""
    offset = result.ndim - value.places.ndim
    own = [dim + offset for dim in _axes(value.places)]
    others = [dim for dim in _axes(result) if dim not in own]
    if others and not own and bool(value.places.any()):
        call.positions.freeze(value.places, f"{call.place} uses its single number for all")
    elif own and others:  # neurons of several (the dimensions of heads) meet what is the same for all
        call.positions.share(value.places.expand(result.shape), result, own[0], f"{call.place} uses it for several")
    else:
        call.positions.link(value.places, result)
    if value.free:
        return
    wide = [dim for dim in _axes(result) if dim >= offset and value.places.shape[dim - offset] > 1]
    if wide and bool((value.places == 0).any()):
        alone = torch.where(value.places == 0, result, 0) if bool(value.places.any()) else result
        call.positions.hold(alone, wide, f"{call.place} combines it with values of a fixed width")


def _fits(places: Tensor, shape: Sequence[int]) -> bool:
    """Return whether a tensor broadcasts to this shape."""
    if places.ndim > len(shape):
        return False
    return all(own in (1, size) for own, size in zip(places.shape[::-1], shape[::-1], strict=False))


def _reduce(call: Call) -> Any:
    """Pass neurons on where a whole dimension is summed, averaged or normalised; what lies along it goes as one."""
    value = call.args[0]
    if not isinstance(value, Value):
        return call.unknown([value])
    ndim = value.places.ndim
    names = [argument.name for argument in call.target._schema.arguments]
    given = call.args[names.index("dim")] if "dim" in names else None
    if "other" in names:  # `max(x, y)`
        return _elementwise(call)
    dims = range(ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = sorted(dim % ndim for dim in dims)
    across = [dim for dim in dims if varies(value.places, dim)]
    others = [dim for dim in _axes(value.places) if dim not in dims]
    for dim in across:
        call.even([value])
        if call.name in _ORDERED:
            call.positions.hold(value.places, [dim], f"{call.place} says which of them it is")
        if others:  # what lies along it for each of several (the dimensions of a head) goes as one
            call.positions.mix(value.places, dim, f"{call.place} mixes all of it")
        else:
            call.blend(value.places, dim)
    kept = value.places
    for dim in dims:
        kept = kept.narrow(dim, 0, 1)
    if across and not others:
        kept = nobody(kept.shape)

    def like(tensor: Tensor) -> Value:
        if tensor.shape == value.places.shape:
            return call.value(value.places, padded=value.padded)
        places = kept if tensor.ndim == ndim else kept.squeeze(dims)
        return call.value(places.expand(tensor.shape), padded=value.padded)

    return mapped(call.outputs, like)


def _spatial(call: Call) -> Any:
    """Pass channels on where only what lies behind them (the places of an image) is pooled, padded or resized."""
    value = call.args[0]
    if not isinstance(value, Value):
        return call.unknown([value])
    shape = call.shape()
    changed = [d for d in range(len(shape)) if shape[d] != value.places.shape[d] or d > 1]
    if any(varies(value.places, dim) for dim in changed):
        if call.name in ("pad", "constant_pad_nd"):  # as a state is padded behind its neurons
            places, functions = (call.target(part, call.args[1]) for part in (value.places, value.functions))
            return Value(squeezed(places), squeezed(functions), value.padded)
        return call.unknown([value])
    places = value.places
    for dim in changed:
        places = places.narrow(dim, 0, 1)
    return mapped(call.outputs, lambda tensor: call.value(places.expand(tensor.shape), padded=value.padded))


def _batch_norm(call: Call) -> Any:
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


def _layer_norm(call: Call) -> Any:
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


def _group_norm(call: Call) -> Any:
    """`group_norm(x, groups, weight, bias)`: by the channels of a group, which go as one, or by all of them."""
    value, groups = call.as_value(call.args[0]), call.args[1]
    call.even([value])
    for address in call.args[2:4]:
        if isinstance(address, Address):
            call.own(_seen_as(address, value.places.ndim), value.places, 0)
    if groups == 1:
        if varies(value.places, 1):
            call.blend(value.places, 1)
    else:
        grouped = value.places.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
        call.positions.mix(grouped, 2, f"{call.place} normalises over it")
    return _first(call, call.value(value.places))


def _seen_as(address: Address, ndim: int) -> Address:
    """Return a vector for each channel in the shape of what it scales."""
    shape = (1, -1, *[1] * (ndim - 2))
    return Address(address.name, address.shape, tuple(part.reshape(shape) for part in address.coordinates))


def _embedding(call: Call) -> Any:
    """`embedding(weight (types, width), tokens)` and `embedding_bag`: its columns are neurons, its rows are not."""
    weight = call.args[0]
    if not isinstance(weight, Address) or len(weight.extent) != len(weight.shape):
        return call.unknown([value for value in call.args if isinstance(value, (Value, Address))])
    places = call.into.axis(weight, 1)
    call.into.owning[weight.name, 1] = None
    call.into.owning[weight.name, 0] = None
    call.positions.freeze(call.into.axis(weight, 0), f"it has a row for each type of the embedding {call.module}")
    return _first(call, call.value(places.expand(call.shape())))


def _index(call: Call) -> Any:
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


def _copy(call: Call) -> Any:
    """`x.copy_(y)`: what is written is whose `y` is."""
    target, source = call.args[:2]
    value = call.as_value(source)
    if isinstance(target, Address):
        carry(call.into, target, value)
        return target
    shape = target.places.shape
    return replace(value, places=value.places.expand(shape), functions=value.functions.expand(shape))


def _chosen(call: Call) -> Any:
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


def _nothing(call: Call) -> Any:
    return call.fresh()


def _zeroed(call: Call) -> Any:
    """`zero_`, `fill_` and `zeros_like`: numbers that the code makes."""
    return call.fresh(made=True)


_MOVES = (
    "view _unsafe_view _reshape_alias reshape permute transpose t numpy_T mT unsqueeze squeeze expand expand_as "
    "view_as cat concat concatenate stack split split_with_sizes chunk unbind slice select flatten unflatten narrow "
    "tensor_split movedim moveaxis flip roll repeat repeat_interleave swapaxes swapdims unfold diagonal pixel_shuffle "
    "pixel_unshuffle tile reshape_as hsplit vsplit dsplit hstack vstack dstack"
)
_SAME = (
    "clone contiguous alias detach lift_fresh lift_fresh_copy _to_copy to dropout feature_dropout alpha_dropout "
    "feature_alpha_dropout native_dropout type_as _conj resolve_conj resolve_neg float double half bfloat16"
)
_RANDOM = {"bernoulli", "rand_like", "randn_like"} | {name for name in _SAME.split() if name.endswith("dropout")}
_ELEMENTWISE = (
    "add sub rsub mul div true_divide divide multiply subtract neg abs relu relu6 gelu silu elu celu selu leaky_relu "
    "hardtanh hardswish hardsigmoid sigmoid tanh softplus softsign mish log_sigmoid logsigmoid exp exp2 expm1 "
    "log log1p log2 log10 sqrt rsqrt pow square float_power reciprocal sin cos tan sinh cosh asinh erf erfc sign sgn "
    "floor ceil round trunc clamp clip clamp_min clamp_max threshold where masked_fill addcmul addcdiv lerp maximum "
    "minimum fmod remainder atan atan2 ones_like full_like rand_like randn_like bernoulli gt ge lt le eq ne greater "
    "less logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or isnan isinf isfinite nan_to_num "
    "heaviside hardshrink softshrink tanhshrink xlogy logaddexp hypot positive rrelu polar complex"
)
_REDUCTIONS = (
    "mean sum amax amin max min var std norm linalg_vector_norm softmax log_softmax _softmax _log_softmax softmin "
    "logsumexp argmax argmin any all prod median nansum nanmean var_mean std_mean"
)
_ORDERED = {"argmax", "argmin", "max", "min", "median", "any", "all"}
_SPATIAL = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_linear1d pad constant_pad_nd reflection_pad1d "
    "reflection_pad2d replication_pad1d replication_pad2d"
)
_MADE = "new_zeros new_ones new_full new_empty empty_like zeros_like zero fill new_empty_strided"
_PASSING = {*_MOVES.split(), *_SAME.split(), *GATES, *(f"{name}_cell" for name in GATES)}
"""What reads an input only to pass it on, or says itself how it does."""


def follow(call: Call) -> Any:
    """Return the values of what an operation gives, by its rule or by a probe, after noting what it binds."""
    values = list(flat((call.args, call.kwargs)))
    name = call.name.removesuffix("_")
    if name not in _PASSING:
        call.uses(values)
    rule = RULES.get(call.name) or RULES.get(name)
    if rule is None:
        return call.unknown([value for value in values if isinstance(value, (Value, Address))])
    return rule(call)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES.split(), _move),
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(_SPATIAL.split(), _spatial),
    **dict.fromkeys(_MADE.split(), _zeroed),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), matmul),
    **dict.fromkeys(GATES, recurrent),
    **dict.fromkeys((f"{name}_cell" for name in GATES), recurrent_step),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("embedding", "embedding_bag"), _embedding),
    **dict.fromkeys(("index_select", "gather"), _chosen),
    "_assert_tensor_metadata": _nothing,
    "glu": _glu,
    "prelu": _prelu,
    "linear": linear,
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "group_norm": _group_norm,
    "index": _index,
    "copy": _copy,
}
"""Operation → how it passes neurons on."""
