"""Products of two tensors neither of which is a weight: attention's, and those of parameters with each other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.discovery.positions import compact, varies
from pruning.discovery.propagation import Call
from pruning.discovery.values import MADE, Address, Value, column, nobody

ALONE = "sums over it with values of a fixed width"
COMPUTED = "multiplies it by a matrix that is computed in each call"


def between(call: Call, one: Value, other: Value) -> Value:
    """Link what a product of two values sums over; with heads in it, what is summed is one head."""
    call.even([one, other])
    shape = call.shape()
    vectors = one.places.ndim == 1, other.places.ndim == 1
    left = one.places.unsqueeze(0) if vectors[0] else one.places
    right = other.places.unsqueeze(1) if vectors[1] else other.places
    whole = (*shape, *([1] if vectors[1] else []))
    whole = (*whole[:-1], 1, whole[-1]) if vectors[0] else whole
    left = left.expand(*whole[:-2], *left.shape[-2:])
    right = right.expand(*whole[:-2], *right.shape[-2:])
    for made, part, dim in ((one, right, -2), (other, left, -1)):
        if made.free:
            return _with_made(call, part, dim, whole).shaped(shape)
    heads = any(varies(part, dim) for part in (left, right) for dim in range(part.ndim - 2))
    if heads:
        return _of_heads(call, left, right, whole).shaped(shape)
    if varies(left, -1) and varies(right, -2):
        left, right = _as_one(call, left, -2), _as_one(call, right, -1)
    return (_of_laid_heads(call, left, right, whole) or _of_matrices(call, left, right, whole)).shaped(shape)


def _with_made(call: Call, part: Tensor, dim: int, shape: Sequence[int]) -> Value:
    """Pass on neurons that are not summed over in a product with what the code made, as a state begins with zeros.

    What it made is as wide as there are neurons, whether these are summed over or meet what comes of it. Where others
    (heads) run across these, they are parts of each of the others: a kernel of distances knows how many.
    """
    rest = part.narrow(dim, 0, 1)
    if any(varies(rest, other) for other in range(rest.ndim)):
        if varies(part, dim):
            call.positions.mix(part, dim, f"{call.place} {ALONE}")
        return call.value(rest.expand(shape))
    return Value(nobody(shape), torch.tensor(MADE).expand(tuple(shape)))


def _of_heads(call: Call, left: Tensor, right: Tensor, shape: Sequence[int]) -> Value:
    """Link what belongs to a head: what is summed over, and what comes of it."""
    for shared, part, dim in ((left, right, -2), (right, left, -1)):
        if bool((shared > 0).all()) and not over_heads(shared):
            return _shared(call, part, shared, dim, shape)
    call.positions.link(left.narrow(-1, 0, 1), left)
    call.positions.link(right.narrow(-2, 0, 1), right)
    for wide, dim, also in ((left, -1, right), (right, -2, left)):
        if varies(wide, dim) and bool((also == 0).any() or (wide == 0).any()):
            call.positions.freeze(wide, f"{call.place} {ALONE}")
    rows, columns = left.narrow(-1, 0, 1).expand(shape), right.narrow(-2, 0, 1).expand(shape)
    call.positions.link(rows, columns)
    result = torch.where(columns > 0, columns, rows)
    call.positions.mark(result, "head")
    return call.value(result)


def _of_laid_heads(call: Call, left: Tensor, right: Tensor, shape: Sequence[int]) -> Value | None:
    """Link what belongs to a head where heads and examples lie in one dimension of matrices, as `einsum` lays them.

    None where no heads meet what is neurons' along the dimension alone that is summed over.
    """
    known = varies(left, -1) and varies(right, -2) and bool((left > 0).all() and (right > 0).all())
    if not known or varies(left, -2) == varies(right, -1):
        return None
    call.into.laid = True
    if call.into.ways.columns:
        return None
    part, shared, dim = (left, right, -1) if varies(left, -2) else (right, left, -2)
    call.positions.freeze(shared, f"{call.place} {COMPUTED}")
    return _shared(call, part, shared, dim, shape)


def _shared(call: Call, part: Tensor, shared: Tensor, dim: int, shape: Sequence[int]) -> Value:
    """Let all go as one head that is summed over along a dimension, with what all heads share."""
    call.positions.freeze(shared, f"all heads of {call.place} share it")
    call.positions.link(part.narrow(dim, 0, 1), part)
    call.positions.mark(part, "head")
    return call.value(part.narrow(dim, 0, 1).expand(shape))


def over_heads(places: Tensor) -> bool:
    """Return whether neurons run along a dimension before the matrices."""
    return any(varies(places, dim) for dim in range(places.ndim - 2))


def _of_matrices(call: Call, left: Tensor, right: Tensor, shape: Sequence[int]) -> Value:
    """Link neurons that are summed over one by one, and pass on those that are not summed over."""
    summed, outer = (varies(left, -1), varies(right, -2)), (varies(left, -2), varies(right, -1))
    if all(summed) and not any(outer):
        return _contracted(call, left, right, shape)
    if (made := _of_computed(call, left, right, shape)) is not None:
        return made
    what = COMPUTED if all(summed) else ALONE
    for part, within in zip((left, right), summed, strict=True):
        if within:
            call.positions.freeze(part, f"{call.place} {what}")
    if all(outer) and not any(summed):
        outer = _paired(call, left, right)
    elif all(outer):
        for part in (left, right):
            call.positions.freeze(part, f"{call.place} pairs each of it with each")
    if outer[1] and not summed[1]:
        return call.value(right.narrow(-2, 0, 1).expand(shape))
    return call.value(left.narrow(-1, 0, 1).expand(shape) if outer[0] and not summed[0] else nobody(shape))


def _paired(call: Call, left: Tensor, right: Tensor) -> tuple[bool, bool]:
    """Return whether the rows, and the columns, of a product that pairs neurons go on: what meets fewer, as they are.

    Neurons that meet themselves stay, but where one side alone is asked for.
    """
    if (pair := call.pairs()) is not None:
        return pair == 0, pair == 1
    counts = [set(torch.unique(part).tolist()) for part in (left, right)]
    less = [left, right] if counts[0] & counts[1] - {0} else [left if len(counts[0]) < len(counts[1]) else right]
    for part in less:
        call.positions.freeze(part, f"{call.place} pairs each of it with each")
    return not any(left is part for part in less), not any(right is part for part in less)


def _of_computed(call: Call, left: Tensor, right: Tensor, shape: Sequence[int]) -> Value | None:
    """Follow neurons of weights that are computed, of which those of another layer run along both dimensions.

    A column of them reads a neuron, and goes with it; where they read none, a row is one. None if there are none.
    """
    summed, outer = (varies(left, -1), varies(right, -2)), (varies(left, -2), varies(right, -1))
    if all(summed) and outer[0] != outer[1]:
        call.positions.link(*((left, left.narrow(-2, 0, 1)) if outer[0] else (right, right.narrow(-1, 0, 1))))
        return _contracted(call, left, right, shape)
    for part, other, dim in ((left, right, -1), (right, left, -2)):
        if varies(part, -1) and varies(part, -2) and not bool(other.any()):
            call.positions.mix(part, dim, f"{call.place} {ALONE}")
            return call.value(part.narrow(dim, 0, 1).expand(shape))
    return None


def _as_one(call: Call, places: Tensor, dim: int) -> Tensor:
    """Let several layers that lie beside each other (fields of a table) go together, as a product sums over them all.

    Places of one parameter along that dimension are not several layers, but a matrix that is computed.
    """
    (small,) = compact(places)
    axes = call.positions.axis_of(small)
    if not varies(axes, dim) or varies(axes, -3 - dim):
        return places
    if torch.unique(small, dim=dim).shape[dim] > len(torch.unique(axes)):
        return places
    first = places.narrow(dim, 0, 1)
    call.positions.link(places, first)
    return first.expand(places.shape)


def _contracted(call: Call, left: Tensor, right: Tensor, shape: Sequence[int]) -> Value:
    """Link what is summed over one by one: each neuron adds its own part."""
    summed_over(call, left, right, -2)
    return call.value(nobody(shape))


def distances(call: Call) -> Any:
    """`cdist(x (…, m, width), y (…, n, width), p)`: neurons that say the same on both sides add nothing."""
    one, other = (call.as_value(value) for value in call.args[:2])
    if any(varies(part.places, dim) for part in (one, other) for dim in range(part.places.ndim - 1)):
        return call.unknown([one, other])
    call.even([one, other])
    summed_over(call, one.places, other.places, -1)
    return call.value(nobody(call.shape()))


def summed_over(call: Call, left: Tensor, right: Tensor, dim: int) -> None:
    """Link what a product sums over, along the last dimension of one tensor and along `dim` of the other."""
    if not (varies(left, -1) or varies(right, dim)):
        return
    along = left.transpose(-1, -2).narrow(-1, 0, 1)
    across = (right if dim == -2 else right.transpose(-1, -2)).narrow(-1, 0, 1)
    along, across = along + 0 * across, across + 0 * along
    call.positions.link(along, across)
    for part, other in ((along, across), (across, along)):
        call.positions.freeze(part[other == 0], f"{call.place} {ALONE}")
    call.blend(left, -1, -1 if call.name == "linear" else dim)  # which is given its second matrix turned


def of_matrices(call: Call, left: Address, right: Address) -> Address | Value:
    """Return the product of two matrices of parameters as a view of the second, with one of the first beside it.

    What it sums over (the rank of a weight `A @ B`, the factors of all users and items) goes together.
    """
    dims = left.dims(1), right.dims(0)
    call.into.factors |= {part.name for part in (*left.parts, *right.parts)}
    if len(dims[0]) == len(dims[1]) == 1:
        own, other = call.into.place(left, dims[0][0]), call.into.place(right, dims[1][0])
        call.into.owning[left.name, dims[0][0]] = call.into.owning[right.name, dims[1][0]] = None
        call.into.multiplied[left.name] = column(other, 0)
        before = (None,) * (len(call.shape()) - 2)  # the one batch that `einsum` makes of a matrix
        summed_over(call, own[before], other[before], -2)
    else:
        call.fixed(left, dims[0])
        call.fixed(right, dims[1])
    if left.name == right.name and left.dims(0) == right.dims(1):  # each of them with each
        call.fixed(left, left.dims(0))
        return call.value(nobody(call.shape()))
    rows = left.moved(lambda part: part.narrow(1, 0, 1).expand(call.shape()))
    columns = right.moved(lambda part: part.narrow(0, 0, 1).expand(call.shape()))
    computed, bent = left.computed or right.computed, left.bent or right.bent
    return replace(columns, beside=(*columns.beside, *rows.parts), computed=computed, bent=bent)


def of_parameters(call: Call, left: Address, right: Address) -> Address:
    """Return the products of matrices of parameters, a pair for each neuron, as a view of the first."""
    call.fixed(left, [*left.dims(1), *left.dims(2)])
    call.fixed(right, [*right.dims(1), *right.dims(2)])
    for one in left.dims(0)[:1]:
        for other in right.dims(0)[:1]:
            call.positions.link(call.into.place(left, one)[:, :1, :1], call.into.place(right, other)[:, :1, :1])
            call.into.owning[left.name, one] = call.into.owning[right.name, other] = None
    return left.moved(lambda part: part.narrow(1, 0, 1).narrow(2, 0, 1).expand(call.shape()))
