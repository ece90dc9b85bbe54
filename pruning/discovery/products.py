"""What reads neurons linearly and computes others: linear maps, products of tensors, attention."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor

from pruning.core.operands import storage_of
from pruning.discovery.elementwise import elementwise
from pruning.discovery.kernels import mixed
from pruning.discovery.pairs import between, of_matrices, of_parameters, over_heads, summed_over
from pruning.discovery.positions import varies
from pruning.discovery.propagation import Call
from pruning.discovery.values import Address, Value, column, flat, nobody


def bias_added(product: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """Let a bias that is computed in the call, `op(x, W, b)`, be what is added to the product."""

    @wraps(product)
    def noted(call: Call) -> Any:
        value, weight, bias = call.args[:3]
        if not isinstance(bias, Value):
            return product(call)
        call.args = (value, weight, None, *call.args[3:])
        ndim = len(weight.extent) if isinstance(weight, Address) else weight.places.ndim
        return _added(call, product(call), bias, behind=ndim - 2)

    return noted


def _added(call: Call, product: Any, bias: Any, behind: int = 0) -> Any:
    """Note what is added to a product: a bias that is computed, before so many dimensions of places, or a tensor."""
    if not isinstance(product, Value):
        return product
    if behind:
        bias = replace(bias, **{name: getattr(bias, name)[(..., *[None] * behind)] for name in ("places", "functions")})
    call.args, call.kwargs = (product, bias), {}
    return elementwise(call)


@bias_added
def linear(call: Call) -> Any:
    """`linear(x, W (out, in), b)`."""
    value, weight, bias = call.args[:3]
    return _product(call, value, weight, -1, -2, bias)


def addmm(call: Call) -> Any:
    """`addmm(b, x, W (in, out))` and `baddbmm(y, one, other)`: a product with something added."""
    bias, value, weight = call.args[:3]
    if isinstance(bias, Address) and isinstance(weight, Address) and len(bias.extent) < 2:
        return _product(call, value, weight, -2, -1, bias)
    call.args = (value, weight)
    return _added(call, matmul(call), bias)


def matmul(call: Call) -> Any:
    """`x @ W`, `W @ x`, or attention's products of two values."""
    value, other = (call.as_value(part) if _in_heads(part) else part for part in call.args[:2])
    value, other = (_flattened(part) if isinstance(part, Address) else part for part in (value, other))
    if isinstance(value, Address) and isinstance(other, Address) and len(value.extent) == len(other.extent) == 3:
        return of_parameters(call, value, other)
    if isinstance(value, Address) and isinstance(other, Address) and len(value.extent) == len(other.extent) == 2:
        return of_matrices(call, value, other)
    if isinstance(other, Address) and len(other.extent) > 1 and isinstance(value, Value):
        return _product(call, value, other, -2, -1, None)
    if isinstance(other, Address) and len(other.extent) == 1 and isinstance(value, Value):
        return _scored(call, value, other)
    if isinstance(value, Address) and len(value.extent) > 1 and isinstance(other, Value):
        return _from_the_left(call, value, other)
    return between(call, call.as_value(value), call.as_value(other))


def _in_heads(operand: Any) -> bool:
    """Return whether a parameter's dimension runs along several axes, as that of learned queries along their heads."""
    laid = [dim for axis in operand.running() for dim in operand.dims(axis)] if isinstance(operand, Address) else []
    return len(laid) > len(set(laid))


def _from_the_left(call: Call, weight: Address, value: Value) -> Any:
    """Note what `W @ x` reads: the columns of `W`, by what lies along the last dimension but one of `x`."""
    if value.places.ndim == 1:
        return _product(call, value, weight, -1, -2, None)
    turned = Value(value.places.mT, value.functions.mT, value.padded)
    shape = call.shape()
    product = _product(call, turned, weight, -1, -2, None, shape=(*shape[:-2], shape[-1], shape[-2]))
    return replace(product, places=product.places.mT, functions=product.functions.mT)


def grouped(call: Call) -> Any:
    """`grouped_mm(x (T, in), W (experts, in, out), ends)`: each expert's rows of `x` by its own matrix."""
    value, weight = call.args[:2]
    if not isinstance(weight, Address) or len(weight.extent) != 3 or not isinstance(value, Value):
        return call.unknown([v for v in flat(call.args) if isinstance(v, (Value, Address))])
    return _product(call, value, weight, -2, -1, call.args[3])


def bilinear(call: Call) -> Any:
    """`bilinear(x, y, W (out, in of x, in of y), b)`: linear in both."""
    one, other, weight, bias = call.args[:4]
    if not isinstance(weight, Address) or len(weight.extent) != len(weight.shape) or isinstance(bias, Value):
        return call.unknown([v for v in call.args if isinstance(v, (Value, Address))])
    for dim, value in ((1, call.as_value(one)), (2, call.as_value(other))):
        for crossing in range(value.places.ndim - 1):
            if varies(value.places, crossing):
                call.positions.mix(value.places, crossing, f"{call.place} reads all of it by the same weights")
        if not value.free:
            seen, functions = (column(part, value.places.ndim - 1) for part in (value.places, value.functions))
            call.read(seen, functions, weight, dim, bias.name if bias else "", padded=value.padded)
    rows = call.into.axis(weight, 0)
    call.into.owning[weight.name, 0] = None
    if isinstance(bias, Address):
        call.positions.link(call.into.axis(bias, 0), rows)
        call.into.owning[bias.name, 0] = None
    return call.value(rows.expand(call.shape()))


def _scored(call: Call, value: Value, vector: Address) -> Value:
    """Note a vector that weighs neurons and sums them up as their reader."""
    for dim in range(value.places.ndim - 1):
        if varies(value.places, dim):
            call.positions.mix(value.places, dim, f"{call.place} reads all of it by the same weights")
    if len(vector.dims(0)) != 1:
        return call.unknown([value, vector])  # type: ignore[no-any-return]
    if not value.free:
        seen, functions = (column(part, value.places.ndim - 1) for part in (value.places, value.functions))
        call.read(seen, functions, vector, vector.dims(0)[0], "", padded=value.padded, product=True)
    return Value(nobody(call.shape()), call.function.expand(call.shape()))


def _flattened(address: Address) -> Address:
    """Return a matrix that is the same for a whole batch as one matrix."""
    while len(address.extent) > 2 and not any(part.dims(0) for part in address.parts):
        address = address.moved(lambda part: part.select(0, 0))
    return address


def attention(call: Call) -> Any:
    """`scaled_dot_product_attention(q, k, v)`: a head's queries, keys and values go as one."""
    queries, keys, values = (call.as_value(value) for value in call.args[:3])
    call.even([queries, keys, values])
    if any(varies(value.places, -2) for value in (queries, keys, values)):
        call.freeze([queries, keys, values], f"{call.place} mixes all of it")
    if not any(varies(value.places, dim) for value in (queries, keys, values) for dim in range(value.places.ndim - 2)):
        summed_over(call, queries.places, keys.places, -1)
        return call.value(values.places.narrow(-2, 0, 1).expand(call.shape()))
    if any(bool((value.places == 0).any()) for value in (queries, keys, values)):
        call.freeze([queries, keys, values], f"{call.place} combines it with values of a fixed width")
    if not any(over_heads(value.places) for value in (keys, values)):
        call.freeze([keys, values], f"all heads of {call.place} share it")
        call.positions.link(queries.places.narrow(-1, 0, 1).narrow(-2, 0, 1), queries.places)
        call.positions.mark(queries.places, "head")
        return call.value(queries.places.narrow(-1, 0, 1).expand(call.shape()))
    parts = [queries.places, keys.places, values.places]
    if call.kwargs.get("enable_gqa"):
        heads = parts[0].shape[-3]
        parts = [part.repeat_interleave(heads // part.shape[-3], dim=-3) for part in parts]
    head = parts[0].narrow(-1, 0, 1).narrow(-2, 0, 1)
    for part in parts:
        call.positions.link(head, part)
    _masked(call, head)
    call.positions.mark(head, "head")
    return call.value(parts[2].narrow(-2, 0, 1).expand(call.shape()))


def _masked(call: Call, head: Tensor) -> None:
    """Let heads go with the columns of a table that a mask is made of, or with others that the same mask serves."""
    mask = call.as_value(call.args[3], [len(call.args[3].extent) - 3] if isinstance(call.args[3], Address) else ())
    if not isinstance(mask, Value) or mask.places.ndim < 3 or mask.places.shape[-3] < 2:
        return
    call.positions.link(mask.places.narrow(-1, 0, 1), head)
    given: Tensor = call.given[1]["attn_mask"] if "attn_mask" in call.given[1] else call.given[0][3]
    if bool((mask.places == 0).any()) and bool((given != given.narrow(-3, 0, 1)).any()):
        call.positions.freeze(head, f"{call.place} has a mask of a fixed width for the heads")
    elif not bool(mask.places.any()):  # code may have made it as wide as there are heads, which the proof tells
        _, first = call.into.masks.setdefault(storage_of(given), (given, head))
        call.positions.link(first, head)


def _product(
    call: Call,
    given: Value | Address,
    weight: Address | Value,
    inner: int,
    outer: int,
    bias: Address | None,
    *,
    shape: Sequence[int] | None = None,
) -> Any:
    """Note a weight's columns as readers along axis `inner` of its view, and its rows as neurons along `outer`.

    Where an axis of the view runs along several dimensions of the whole (heads and their dimensions), see
    `_neurons_of`. Where the view has a batch of matrices, neurons run along the batch if the value's do, and else
    each of them is a neuron of all.
    """
    value, shape = call.as_value(given), call.shape() if shape is None else shape
    if isinstance(weight, Value) and bias is None:
        turned = Value(weight.places.mT, weight.functions.mT, weight.padded) if inner == -1 else weight
        return between(call, value, turned)
    each = [weight.dims(axis) for axis in range(len(weight.extent))] if isinstance(weight, Address) else []
    laid = list(itertools.chain(*each))
    if not isinstance(weight, Address) or len(laid) != len(set(laid)):
        return call.unknown([v for v in (value, weight, bias) if isinstance(v, (Value, Address))])
    ndim, along, across = len(each), each[inner], each[outer]
    heads = [axis for axis in range(ndim - 2) if each[axis] and _runs(value.places, axis - ndim)]
    if heads or _begins(call, value, each, shape):
        return _of_each_head(call, value, weight, heads, bias, shape) if heads else call.fresh(made=True)
    several = len(along) == 1 and bias is None and ndim == 2
    if several and call.into.ways.matrices and len(across) > 2 and varies(value.places, -1):
        return mixed(call, value, weight, inner % ndim, shape)
    across = _neurons_of(call, across)
    call.fixed(weight, [*itertools.chain(*each[: ndim - 2]), *along[1:], *across[1:]])
    for other in weight.beside:
        call.fixed(other, [dim for axis in range(ndim - 2) for dim in other.dims(axis)])
    crossing = [dim for dim in range(value.places.ndim - 1) if varies(value.places, dim)]
    if crossing and (whole := _crossed(call, value)) is not None:
        return applied(call, whole, weight, bias, shape)
    for dim in crossing:
        call.positions.mix(value.places, dim, f"{call.place} reads all of it by the same weights")
        call.even([value])
    if not value.free:
        _read(call, value, weight, inner % ndim, bias)
    elif len(along) == 1:
        call.serve(value, value.places.ndim - 1, column(call.into.place(weight, along[0]), inner % ndim))
    rows = _rows(call, weight, outer % ndim, bias, across)
    return call.fresh() if rows is None else call.value(rows.expand(shape))


def _crossed(call: Call, value: Value) -> Value | None:
    """Return neurons along other dimensions than the last, to each of which the same weights are applied.

    Where they lie along the last one, too, these are heads. None where the weights mix them.
    """
    if not varies(value.places, value.places.ndim - 1):
        call.into.clashed = True
        return None if call.into.ways.turned else value
    call.into.shared = True
    if not call.into.ways.heads:
        return None
    first = value.places.narrow(-1, 0, 1)
    call.positions.link(first, value.places)
    call.positions.mark(first, "head")
    return replace(value, places=first.expand(value.places.shape))


def _read(call: Call, value: Value, weight: Address, axis: int, bias: Address | None) -> None:
    """Note what a weight, and what goes with it, reads along an axis of its view."""
    seen, functions = (column(part, value.places.ndim - 1) for part in (value.places, value.functions))
    for part in weight.parts:
        for dim in part.dims(axis)[:1]:
            at, name = column(part.coordinates[dim], axis), bias.name if bias and part is weight else ""
            call.read(seen, functions, part, dim, name, at=at, padded=value.padded, product=True)


def _runs(places: Tensor, dim: int) -> bool:
    """Return whether neurons run along a dimension, counted from the last, that the tensor has."""
    return places.ndim >= -dim and varies(places, dim % places.ndim)


def _begins(call: Call, value: Value, each: Sequence[Sequence[int]], shape: Sequence[int]) -> bool:
    """Return whether a batch of matrices may meet a first state of zeros, so that later steps tell whose these are."""
    if not (value.free and any(each[: len(each) - 2]) and tuple(shape) == call.shape() and call.into.ways.matrices):
        return False
    call.into.crossed = True
    return True


def _neurons_of(call: Call, across: list[int]) -> list[int]:
    """Return dimensions along which a product gives what it does, that of its neurons first.

    Of heads and their dimensions these are the first; of the members of an ensemble and their neurons the last.
    """
    if len(across) != 2 or not call.into.ways.matrices:
        return across
    call.into.crossed = True
    return across[::-1]


def _rows(call: Call, weight: Address, outer: int, bias: Address | None, across: Sequence[int]) -> Tensor | None:
    """Return the neurons that a weight's rows compute, its bias with them; None if it computes a single number."""
    if not across:  # of a product of two matrices the first one has the rows
        weight = next((part for part in weight.beside if part.dims(outer)), weight)
        across = weight.dims(outer)
        call.fixed(weight, across[1:])
    if not across:
        for dim in range(len(weight.shape)):
            if not any(dim in weight.dims(axis) for axis in range(len(weight.extent))):
                call.into.owning[weight.name, dim] = None
                call.positions.freeze(call.into.axis(weight, dim), "it computes a single number")
        return None
    rows = column(call.into.place(weight, across[0]), outer)
    call.into.owning[weight.name, across[0]] = None
    if bias is not None:
        last = len(bias.extent) - 1
        for dim in bias.dims(last)[:1]:
            call.positions.link(column(call.into.place(bias, dim), last), rows)
            call.into.owning[bias.name, dim] = None
    if "snntorch" in call.module_type:
        call.positions.mark(rows, "snn")
    return rows


def _of_each_head(
    call: Call,
    value: Value,
    weight: Address,
    heads: Sequence[int],
    bias: Address | None,
    shape: Sequence[int],
) -> Value:
    """Let the matrices of a batch go with the neurons (heads) to which they are applied, one matrix to each."""
    call.even([value])
    ndim = len(weight.extent)
    for axis in range(ndim):
        dims = weight.dims(axis)
        if axis not in heads or len(dims) != 1:
            call.fixed(weight, dims)
            continue
        call.positions.link(call.into.place(weight, dims[0]).narrow(-1, 0, 1).narrow(-2, 0, 1), value.places)
        call.into.owning[weight.name, dims[0]] = None
    call.freeze([bias], f"{call.place} adds it to each of them alike")
    places = value.places.narrow(-1, 0, 1)
    call.positions.link(places, value.places)
    call.positions.mark(places, "head")
    return call.value(places.expand(shape))


def applied(call: Call, value: Value, weight: Address, bias: Address | None, shape: Sequence[int]) -> Value:
    """Pass neurons on to each of which the same weights are applied, along other dimensions than theirs."""
    call.even([value])
    call.freeze([weight, bias], f"{call.place} applies it to each neuron alike")
    places = value.places
    for dim in (dim for dim in range(places.ndim) if not varies(places, dim)):
        places = places.narrow(dim, 0, 1)
    return call.value(places.expand(shape))
