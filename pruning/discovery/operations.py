"""How each operation passes neurons on: what it computes them from, who reads them, what binds them.

What only moves elements (`view`, `cat`, `split`, …) is executed on the numbers of places as it stands; what combines
elements links them; what reads them linearly links them with its columns; what mixes a whole width is the reason why
its neurons cannot go. A new operation is a function here and its line in `RULES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.positions import varies
from pruning.discovery.propagation import Address, Call, Rule, Value, flat, mapped, nobody


def _move(call: Call) -> Any:
    """Execute on the numbers what only moves elements."""
    inputs = [value for value in flat((call.args, call.kwargs)) if isinstance(value, (Value, Address))]
    if all(isinstance(value, Address) for value in inputs):
        return _moved_address(call, [value for value in inputs if isinstance(value, Address)])
    call.args = _exchanged(call.args, lambda address: _as_value(call, address, inputs))
    values = [value for value in flat(call.args) if isinstance(value, Value)]
    padded = {value.padded for value in values if bool(value.places.any())}
    if len(padded) > 1:
        call.freeze(values, f"{call.place} puts a recurrent state beside other neurons")
    if call.name in ("flip", "roll") and any(varies(values[0].places, dim) for dim in flat(call.args[-1])):
        call.freeze(values, f"{call.place} changes the order of neurons")
    if call.name in ("cat", "concat", "concatenate", "stack") and True not in padded:
        call.args = _aligned(call, values)
    moved = _execute(call, lambda value: value.places), _execute(call, lambda value: value.functions)
    if isinstance(moved[0], Tensor):
        return Value(*moved, padded=True in padded)
    return tuple(Value(places, functions, True in padded) for places, functions in zip(*moved, strict=True))


def _execute(call: Call, part: Callable[[Any], Tensor]) -> Any:
    """Run the operation itself on a part of each value."""
    target = torch.reshape if call.name in ("view", "_unsafe_view") else call.node.target
    kwargs = {name: value for name, value in call.kwargs.items() if name not in ("memory_format", "dtype")}
    return target(*_parts(call.args, part), **_parts(kwargs, part))  # type: ignore[operator]


def _moved_address(call: Call, addresses: Sequence[Address]) -> Any:
    """Return a view of a parameter."""
    if len(addresses) > 1:
        return call.unknown(addresses)
    whole = addresses[0]
    moved = [_execute(call, lambda _, indices=indices: indices) for indices in whole.coordinates]  # type: ignore[misc]
    if isinstance(moved[0], Tensor):
        return Address(whole.name, whole.shape, tuple(moved))
    return tuple(Address(whole.name, whole.shape, tuple(part)) for part in zip(*moved, strict=True))


def _as_value(call: Call, address: Address, inputs: Sequence[Value | Address]) -> Value:
    """Return a parameter that is put beside values (a class token before the patches) as one of them."""
    along = {axis for value in inputs if isinstance(value, Value) for axis in _axes(value.places)}
    found = nobody(address.extent)
    for axis in range(len(address.extent)):
        dims = address.dims(axis)
        if axis in along and len(dims) == 1 and not found.any():
            found = call.into.place(address, dims[0])
            call.into.owning[address.name, dims[0]] = None
        else:
            call.fixed(address, dims)
    return call.value(found)


def _axes(places: Tensor) -> list[int]:
    """Return the dimensions along which neurons run."""
    return [dim for dim in range(places.ndim) if varies(places, dim)]


def _aligned(call: Call, values: Sequence[Value]) -> tuple[Any, ...]:
    """Return the arguments of what puts values beside each other, linked where one width serves all of them."""
    dim = call.args[1] if len(call.args) > 1 else 0
    dim = dim if call.name == "stack" else dim % values[0].places.ndim
    if call.name != "stack" and any(varies(value.places, dim) for value in values):
        return call.args
    whole = next((value.places for value in values if value.places.any()), values[0].places)
    common = whole if call.name == "stack" else whole.narrow(dim, 0, 1)
    for value in values:
        if not value.places.any():
            call.positions.freeze(common, f"{call.place} puts it beside values of a fixed width")
        call.positions.link(value.places, common)
    like = [Value(common.expand(value.places.shape), value.functions) for value in values]
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
    if not values:
        return addresses[0] if len(addresses) == 1 else call.unknown(addresses)
    result = _together([value.places.expand(shape) for value in values])
    for address in addresses:
        call.own(address, result, len(shape) - len(address.extent))
    for value in values:
        _combine(call, value, result)
    padded = {value.padded for value in values if bool(value.places.any())}
    if len(padded) > 1 or (True in padded and addresses):
        call.positions.freeze(result, f"{call.place} combines a recurrent state with something else")
    if "snntorch" in call.module_type:
        call.positions.mark(result, "snn")
    moved = call.name in _TRANSPARENT
    found = Value(result, values[0].functions, True in padded) if moved else call.value(result, padded=True in padded)
    return mapped(call.node.meta["val"], lambda _: found)


def _glu(call: Call) -> Any:
    """`glu(x, dim)`: one half times the sigmoid of the other."""
    value, dim = call.args[0], call.args[1] if len(call.args) > 1 else -1
    if not isinstance(value, Value):
        return call.unknown([value])
    one, other = value.places.chunk(2, dim)
    call.positions.link(one, other)
    return call.value(one, padded=value.padded)


def _together(places: Sequence[Tensor]) -> Tensor:
    """Return, for each element, the first of these places that belongs to a neuron."""
    carrying = [one for one in places if bool(one.any())]
    result = carrying[0] if carrying else places[0]
    for one in carrying[1:]:
        result = torch.where(result > 0, result, one) if bool((result == 0).any()) else result
    return result


def _combine(call: Call, value: Value, result: Tensor) -> None:
    """Link one operand with the result, unless it has a fixed width where the result's neurons run."""
    call.positions.link(value.places, result)
    offset = result.ndim - value.places.ndim
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
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if isinstance(given, (Value, Address)):  # `max(x, y)`
        return _elementwise(call)
    dims = range(ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = sorted(dim % ndim for dim in dims)
    for dim in dims:
        if varies(value.places, dim):
            call.positions.mix(value.places, dim, f"{call.place} mixes all of it")
    places = value.places
    for dim in reversed(dims):
        places = places.select(dim, 0)

    def like(tensor: Tensor) -> Value:
        if tensor.ndim == places.ndim:
            return call.value(places, padded=value.padded)
        kept = value.places
        for dim in dims:
            kept = kept.narrow(dim, 0, 1)
        return call.value(kept.expand(tensor.shape), padded=value.padded)

    return mapped(call.node.meta["val"], like)


def _spatial(call: Call) -> Any:
    """Pass channels on where only what lies behind them (the places of an image) is pooled, padded or resized."""
    value = call.args[0]
    if not isinstance(value, Value):
        return call.unknown([value])
    shape = call.shape()
    changed = [d for d in range(len(shape)) if shape[d] != value.places.shape[d] or d > 1]
    if any(varies(value.places, dim) for dim in changed):
        if call.name in ("pad", "constant_pad_nd"):
            return call.value(call.node.target(value.places, call.args[1]), padded=value.padded)  # type: ignore[operator]
        call.freeze([value], f"{call.place} mixes all of it")
        return call.fresh()
    places = value.places
    for dim in changed:
        places = places.narrow(dim, 0, 1)
    return mapped(call.node.meta["val"], lambda tensor: call.value(places.expand(tensor.shape), padded=value.padded))


def _linear(call: Call) -> Any:
    """`linear(x, W (out, in), b)`."""
    value, weight, bias = (*call.args, *[None] * 3)[:3]
    return _product(call, value, weight, 1, 0, bias)


def _addmm(call: Call) -> Any:
    """`addmm(b, x, W (in, out))`."""
    bias, value, weight = call.args[:3]
    return _product(call, value, weight, 0, 1, bias)


def _matmul(call: Call) -> Any:
    """`x @ W`, or attention's products of two values."""
    value, other = call.args[:2]
    if isinstance(other, Address) and len(other.extent) == 2 and isinstance(value, Value):
        return _product(call, value, other, 0, 1, None)
    if isinstance(value, Address) or isinstance(other, Address):
        return call.unknown([value, other])
    return _between(call, value, other)


def _between(call: Call, one: Value, other: Value) -> Value:
    """Link what a product of two values sums over; what is summed as one (a head) goes as one."""
    shape = call.shape()
    if min(one.places.ndim, other.places.ndim) < 2 or one.padded or other.padded:
        found: Value = call.unknown([one, other])
        return found
    left = one.places.expand(*shape[:-2], *one.places.shape[-2:])
    right = other.places.expand(*shape[:-2], *other.places.shape[-2:])
    call.positions.link(left.narrow(-1, 0, 1), left)
    call.positions.link(right.narrow(-2, 0, 1), right)
    for wide, dim, also in ((left, -1, right), (right, -2, left)):
        if varies(wide, dim) and bool((also == 0).any() or (wide == 0).any()):
            call.positions.freeze(wide, f"{call.place} sums over it with values of a fixed width")
    rows, columns = left.narrow(-1, 0, 1).expand(shape), right.narrow(-2, 0, 1).expand(shape)
    call.positions.link(rows, columns)
    result = torch.where(columns > 0, columns, rows)
    call.positions.mark(result, "head")
    return call.value(result)


def _attention(call: Call) -> Any:
    """`scaled_dot_product_attention(q, k, v)`: a head's queries, keys and values go as one."""
    queries, keys, values = call.args[:3]
    known = all(isinstance(value, Value) and not value.padded for value in call.args[:3])
    if call.kwargs.get("enable_gqa") or not known:
        return call.unknown(call.args[:3])
    if any(bool((value.places == 0).any()) for value in call.args[:3]):
        call.freeze(call.args[:3], f"{call.place} combines it with values of a fixed width")
    head = queries.places.narrow(-1, 0, 1).narrow(-2, 0, 1)
    for value in (queries, keys, values):
        if varies(value.places, -2):
            call.freeze([queries, keys, values], f"{call.place} mixes all of it")
        call.positions.link(head, value.places)
    mask = call.args[3] if len(call.args) > 3 else call.kwargs.get("attn_mask")
    if isinstance(mask, Value) and mask.places.ndim > 2 and mask.places.shape[-3] > 1:
        call.positions.freeze(head, f"{call.place} has a mask for each head")
    call.positions.mark(head, "head")
    return call.value(values.places.narrow(-2, 0, 1).expand(call.shape()))


def _product(
    call: Call, value: Value | Address, weight: Address | Value, inner: int, outer: int, bias: Address | None
) -> Any:
    """Note a weight's columns as readers along axis `inner` of its view, and its rows as neurons along `outer`."""
    if not isinstance(weight, Address) or not isinstance(value, Value) or len(weight.extent) != 2:
        if isinstance(weight, Value) and isinstance(value, Value) and bias is None:
            swapped = Value(weight.places.mT, weight.functions.mT, weight.padded) if inner == 1 else weight
            return _between(call, value, swapped)
        return call.unknown([v for v in (value, weight, bias) if isinstance(v, (Value, Address))])
    along, across = weight.dims(inner), weight.dims(outer)
    if len(along) > 1 or len(across) > 1 or (along and not _whole(weight, inner, along[0])):
        return call.unknown([value, weight, bias])
    crossing = [dim for dim in range(value.places.ndim - 1) if varies(value.places, dim)]
    if crossing:
        call.freeze([value], f"{call.place} runs across it")
    bias_name = bias.name if isinstance(bias, Address) else ""
    if along:
        seen, functions = (_column(part, value.places.ndim - 1) for part in (value.places, value.functions))
        call.read(seen, functions, weight, along[0], bias_name, padded=value.padded)
    if not across:
        single = next(dim for dim in (0, 1) if dim not in along)
        call.into.owning[weight.name, single] = None
        call.positions.freeze(call.into.place(weight, single), "it computes a single number")
        return call.fresh()
    rows = call.into.place(weight, across[0]).select(inner, 0)
    call.into.owning[weight.name, across[0]] = None
    if isinstance(bias, Address) and len(bias.extent) == 1:
        call.positions.link(call.into.place(bias, bias.dims(0)[0]), rows)
        call.into.owning[bias.name, bias.dims(0)[0]] = None
    result = rows.expand(call.shape())
    if "snntorch" in call.module_type:
        call.positions.mark(result, "snn")
    return call.value(nobody(call.shape()) if crossing else result)


def _whole(weight: Address, axis: int, dim: int) -> bool:
    """Return whether an axis of the view is a dimension of the whole from its beginning to its end."""
    return torch.equal(_column(weight.coordinates[dim], axis), torch.arange(weight.shape[dim]))


def _convolution(call: Call) -> Any:
    """`conv(x (N, C, …), W (out, in / groups, …), b, stride, padding, dilation, groups)`."""
    value, weight, bias, _, padding, _, groups = (*call.args, *(None, None, 1, 0, 1, 1)[len(call.args) - 1 :])[:7]
    if not isinstance(value, Value) or not isinstance(weight, Address) or len(weight.extent) != len(weight.shape):
        return call.unknown([v for v in call.args if isinstance(v, (Value, Address))])
    shape = call.shape()
    spatial = len(weight.shape) - 2
    channel = len(shape) - spatial - 1
    if any(varies(value.places, dim) for dim in range(value.places.ndim) if dim != channel):
        return call.unknown([value, weight])
    rows = _column(call.into.place(weight, 0), 0)
    call.into.owning[weight.name, 0] = None
    if isinstance(bias, Address):
        call.positions.link(call.into.place(bias, 0), rows)
        call.into.owning[bias.name, 0] = None
    seen = _column(value.places, channel)
    result = rows
    if groups == 1:
        bordered = any(size != 0 for size in flat([padding]))
        name = bias.name if isinstance(bias, Address) else ""
        call.read(seen, _column(value.functions, channel), weight, 1, name, padding=bordered, padded=value.padded)
    elif groups == len(seen):
        multiple = len(rows) // groups
        call.positions.link(rows, seen.repeat_interleave(multiple))
        if not bool(seen.any()):
            call.positions.freeze(rows, "each of its channels reads one of the model's inputs")
    else:
        call.freeze([value, weight], f"{call.module} is a grouped convolution")
    call.positions.mark(result, "conv")
    view = [len(result) if dim == channel else 1 for dim in range(len(shape))]
    return call.value(result.view(view).expand(shape))


def _transposed_convolution(call: Call) -> Any:
    """`conv_transpose(x (N, C, …), W (in, out / groups, …), b, stride, padding, output padding, groups, dilation)`."""
    value, weight, bias, *_, groups, _ = (*call.args, *(None, 1, 0, 0, 1, 1)[len(call.args) - 2 :])[:8]
    channel = 1
    known = isinstance(value, Value) and isinstance(weight, Address) and groups == 1
    if not known or any(dim != channel for dim in _axes(value.places)):
        return call.unknown([value, weight, bias])
    rows = _column(call.into.place(weight, 1), 1)
    call.into.owning[weight.name, 1] = None
    name = bias.name if isinstance(bias, Address) else ""
    if isinstance(bias, Address):
        call.positions.link(call.into.place(bias, 0), rows)
        call.into.owning[bias.name, 0] = None
    seen, read = (_column(part, channel) for part in (value.places, value.functions))
    call.read(seen, read, weight, 0, name, padding=True, padded=value.padded)
    call.positions.mark(rows, "conv")
    shape = call.shape()
    return call.value(rows.view(-1, *[1] * (len(shape) - 2)).expand(shape))


def _column(places: Tensor, dim: int) -> Tensor:
    """Return what is found along one dimension where all others are at 0."""
    for other in reversed(range(places.ndim)):
        if other != dim:
            places = places.select(other, 0)
    return places


def _batch_norm(call: Call) -> Any:
    """`batch_norm(x, weight, bias, mean, var, …)` and `instance_norm`: each channel for itself."""
    value = call.args[0]
    places = _column(value.places, 1)
    for address in call.args[1:5]:
        if isinstance(address, Address):
            call.positions.link(call.into.place(address, 0), places)
            call.into.owning[address.name, 0] = None
            if not bool(places.any()):
                call.positions.freeze(call.into.place(address, 0), "it normalises what no neuron gives")
    return mapped(call.node.meta["val"], lambda _: call.value(value.places, padded=value.padded))


def _layer_norm(call: Call) -> Any:
    """`layer_norm(x, shape, weight, bias)`: mixes what lies along its last dimensions."""
    value, normalized = call.args[:2]
    offset = value.places.ndim - len(normalized)
    for address in call.args[2:4]:
        if isinstance(address, Address):
            call.own(address, value.places, offset)
    for dim in range(offset, value.places.ndim):
        if varies(value.places, dim):
            call.positions.mix(value.places, dim, f"{call.place} mixes all of it")
    return call.value(value.places, padded=value.padded)


def _group_norm(call: Call) -> Any:
    """`group_norm(x, groups, weight, bias)`: mixes the channels of a group."""
    value = call.args[0]
    mixes = f"{call.place} mixes channels"
    call.freeze([argument for argument in call.args if isinstance(argument, (Value, Address))], mixes)
    return mapped(call.node.meta["val"], lambda _: call.value(value.places, padded=value.padded))


def _rms_norm(call: Call) -> Any:
    """`rms_norm(x, shape, weight, eps)`: mixes what lies along its last dimensions."""
    call.args = (*call.args[:3], None)
    return _layer_norm(call)


def _embedding(call: Call) -> Any:
    """`embedding(weight (types, width), tokens)`: nothing computes its width, so it holds no neurons."""
    weight = call.args[0]
    places = _column(call.into.place(weight, 1), 1)
    call.into.owning[weight.name, 1] = None
    call.positions.freeze(places, f"it has the width of the embedding {call.module}")
    call.into.owning[weight.name, 0] = None
    call.positions.freeze(call.into.place(weight, 0), f"it has a row for each type of the embedding {call.module}")
    return call.value(places.expand(call.shape()))


def _index(call: Call) -> Any:
    """`x[indices]` where the indices choose among other dimensions than the neurons'."""
    value, indices = call.args[:2]
    if not isinstance(value, Value):
        return call.unknown([value])
    chosen = [dim for dim, index in enumerate(indices) if index is not None]
    if any(varies(value.places, dim) for dim in chosen):
        return call.unknown([value])
    first = [None if index is None else torch.zeros(index.places.shape, dtype=torch.int64) for index in indices]
    places, functions = (torch.ops.aten.index.Tensor(part, first) for part in (value.places, value.functions))
    return Value(places, functions, value.padded)


_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _recurrent(call: Call) -> Any:
    """`lstm(x, (h, c), parameters, bias, layers, dropout, training, bidirectional, batch_first)` and its kin."""
    everything = [value for value in flat(call.args) if isinstance(value, (Value, Address))]
    value, state, parameters, _, layers, _, _, bidirectional = call.args[:8]
    states = [state] if isinstance(state, Value) else list(state)
    gates = _GATES[call.name]
    if isinstance(parameters, (list, tuple)) and parameters[0].shape[0] != gates * parameters[1].shape[1]:
        call.freeze(everything, f"{call.module or call.name} projects its state (proj_size)")
        return call.fresh()
    if layers != 1 or bidirectional or not isinstance(value, Value) or not isinstance(parameters, (list, tuple)):
        call.freeze(everything, f"{call.module or call.name} is a recurrent layer of a class of its own")
        return call.fresh()
    neurons, functions = _cell(call, value, states, parameters, gates)
    outputs = call.node.meta["val"]
    found = Value(neurons.expand(outputs[0].shape), functions.expand(outputs[0].shape))
    return (found, *(call.value(neurons.expand(part.shape), padded=True) for part in outputs[1:]))


def _cell(
    call: Call, value: Value, states: Sequence[Value], parameters: Sequence[Address], gates: int
) -> tuple[Tensor, Tensor]:
    """Return a recurrent layer's neurons and the number of what it computes, after noting what it reads and owns."""
    own, back, *rest = parameters
    neurons = call.positions.number((back.name, 1), back.shape[1]) + torch.arange(back.shape[1])
    for address in parameters:
        call.positions.link(_column(call.into.place(address, 0), 0), neurons.repeat(gates))
        call.into.owning[address.name, 0] = None
    names = [address.name for address in rest] or ["", ""]
    seen, read = (_column(part, value.places.ndim - 1) for part in (value.places, value.functions))
    call.read(seen, read, own, 1, names[0], padded=value.padded)
    for before in states:
        call.positions.link(before.places, neurons)
    call.positions.mark(neurons, "rnn")
    functions = call.into.function(call.node).expand(neurons.shape)
    call.read(neurons, functions, back, 1, names[1])
    return neurons, functions


def _recurrent_step(call: Call) -> Any:
    """`lstm_cell(x, (h, c), W, W, b, b)` and its kin: one step, whose state is as wide as its neurons."""
    value, state, *parameters = call.args
    states = [state] if isinstance(state, Value) else list(state)
    addresses = [address for address in parameters if isinstance(address, Address)]
    if not all(isinstance(part, Value) and not part.padded for part in (value, *states)) or len(addresses) not in (
        2,
        4,
    ):
        return call.unknown([value, *states, *addresses])
    neurons, functions = _cell(call, value, states, addresses, _GATES[call.name.removesuffix("_cell")])
    outputs = call.node.meta["val"]
    found = [Value(neurons.expand(part.shape), functions.expand(part.shape)) for part in flat(outputs)]
    return found[0] if isinstance(outputs, Tensor) else (found[0], *(call.value(part.places) for part in found[1:]))


def _nothing(call: Call) -> Any:
    return call.fresh()


_MOVES = (
    "view _unsafe_view reshape permute transpose t numpy_T unsqueeze squeeze expand expand_as cat concat concatenate "
    "stack split split_with_sizes chunk unbind slice select flatten unflatten clone contiguous alias detach narrow "
    "movedim flip roll repeat repeat_interleave swapaxes lift_fresh_copy"
)
_TRANSPARENT = {"dropout", "dropout_", "_to_copy", "to", "feature_dropout", "alpha_dropout"}
_ELEMENTWISE = (
    "add sub rsub mul div true_divide neg abs relu relu6 gelu silu elu celu selu leaky_relu prelu hardtanh hardswish "
    "hardsigmoid sigmoid tanh softplus softsign mish log_sigmoid logsigmoid exp expm1 log log1p sqrt rsqrt pow square "
    "reciprocal sin cos erf sign sgn floor ceil round trunc clamp clamp_min clamp_max threshold where masked_fill "
    "addcmul addcdiv lerp maximum minimum fmod remainder atan atan2 dropout feature_dropout alpha_dropout _to_copy to "
    "type_as zeros_like ones_like full_like gt ge lt le eq ne logical_not logical_and logical_or bitwise_not "
    "bitwise_and bitwise_or isnan isinf nan_to_num heaviside hardshrink softshrink tanhshrink fill"
)
_REDUCTIONS = (
    "mean sum amax amin max min var std norm softmax log_softmax _softmax _log_softmax cumsum logsumexp argmax argmin "
    "any all prod median"
)
_SPATIAL = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_linear1d pad constant_pad_nd reflection_pad2d "
    "replication_pad2d"
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES.split(), _move),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(_SPATIAL.split(), _spatial),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(_GATES, _recurrent),
    **dict.fromkeys((f"{name}_cell" for name in _GATES), _recurrent_step),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "_assert_tensor_metadata"), _nothing),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "glu": _glu,
    "linear": _linear,
    "addmm": _addmm,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "index": _index,
}
"""Operation → how it passes neurons on."""
