"""Where the activations of a layer are seen: what a module reads or gives, or what a product reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor, nn

from pruning.core.neurons import UNSEEN, Slice
from pruning.discovery.findings import Propagation
from pruning.discovery.positions import Groups
from pruning.discovery.values import Reading


@dataclass(frozen=True)
class Observed:
    """Where a layer's activations are seen: see `NeuronLayer`."""

    module: str
    seen: Slice | None = None
    along: int = -1
    obstacle: str = ""
    operand: str = ""
    given: Slice | None = None


_READERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""What is known to read its first input through its own parameters; so is the `Conv1D` of `transformers`."""


def observed(
    read: Sequence[Reading], slices: Sequence[Slice], groups: Groups, found: Propagation, model: nn.Module
) -> Observed | None:
    """Return where the neurons' activations are seen; None if no module shows them.

    A recurrent layer shows its own; other neurons are seen as what their first reader reads, or else where a module
    gives them.
    """
    for reading in read:
        module = model.get_submodule(reading.module)
        recurrent = isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and "weight_hh" in reading.axis[0]
        if recurrent and reading.module in found.called:
            return Observed(reading.module)
    pieces = [next(piece for piece in slices if (piece.parameter, piece.dim) == reading.axis) for reading in read]
    entering = [_reads_its_input(reading, piece, found, model) for reading, piece in zip(read, pieces, strict=True)]
    for reading, piece, known in zip(read, pieces, entering, strict=True):
        dim, shown = 1 - attrgetter(piece.parameter)(model).ndim, found.shown.get((reading.module, True))
        if known:
            elsewhere = next((other.axis[0] for other, enters in zip(read, entering, strict=True) if not enters), "")
            within = f"{elsewhere} {UNSEEN}" if elsewhere else ""
            return Observed(reading.module, replace(piece, dim=dim), obstacle=within)
        if shown is not None and shown.dim == dim and torch.equal(shown.functions, reading.functions):
            within = f"{reading.axis[0]} {UNSEEN}" if len(read) > 1 else ""  # other readers may be in the same module
            return Observed(reading.module, replace(piece, dim=dim), obstacle=within)
    return _given(read, groups, found)


def _reads_its_input(reading: Reading, piece: Slice, found: Propagation, model: nn.Module) -> bool:
    """Return whether what a parameter reads is known to be its module's first input, as of PyTorch's own modules."""
    module = model.get_submodule(reading.module)
    known = isinstance(module, _READERS) or type(module).__name__ == "Conv1D"
    above = (
        isinstance(module, nn.RNNBase) and "weight_ih_l0" not in piece.parameter
    )  # it reads what a layer below gives
    return known and not above and reading.module in found.called and piece.dim == _reading_dim(module)


def _reading_dim(module: nn.Module) -> int:
    """Return along which dimension a module's own weight reads its input; a tied decoder reads by the other one."""
    first = isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D"
    return 0 if first else 1


def _given(read: Sequence[Reading], groups: Groups, found: Propagation) -> Observed | None:
    """Return the module that gives what is read, or the product that reads it, or a module that gives its neurons."""
    axis, members = read[0].axis, found.positions.members()
    first, width = found.positions.first[axis], len(groups)
    places = torch.from_numpy(groups.places[axis][:, 0])
    function, wanted = read[0].functions[places[0]], members[first + places]
    giving = [
        (module, shown)
        for (module, entering), shown in found.shown.items()
        if not entering and shown is not None and len(shown.places) == width
        if torch.equal(members[shown.places], wanted) and bool((shown.places > 0).all())
    ]
    for module, shown in giving:
        if bool((shown.functions == function).all()):
            return Observed(module, along=shown.dim)
    for reading in read:
        piece = _in_operand(reading, wanted, members, found)
        if piece is not None:
            return Observed(reading.module, piece, -1, f"{reading.axis[0]} {UNSEEN}", reading.axis[0])
    for module, shown in giving[-1:]:
        return Observed(module, None, shown.dim, f"{axis[0]} {UNSEEN}")
    return None


def shown_among(groups: Groups, found: Propagation) -> Observed | None:
    """Return what shows neurons that no weights read, alone or among others; None if nothing does.

    That is the last module whose output does, or else a table whose rows are looked up.
    """
    members = found.positions.members()
    axis, places = next(iter(groups.places.items()))
    wanted = members[found.positions.first[axis] + torch.from_numpy(places[:, 0])]
    giving = [(module, "", shown) for (module, entering), shown in reversed(found.shown.items()) if not entering]
    giving += [(table.rpartition(".")[0], table, shown) for table, shown in found.looked.items()]
    for module, table, shown in giving:
        if shown is not None and bool(torch.isin(members[shown.places], wanted).any()):
            piece = _laid(shown.places, wanted, members)
            if piece is not None and (piece.length, piece.blocks, piece.size) == (None, 1, 1):
                return Observed(module, along=shown.dim, operand=table)
            if piece is not None and (piece.start == 0 or _lies_as_a_parameter(piece, groups)):
                return Observed(module, along=shown.dim, operand=table, given=replace(piece, dim=shown.dim))
    for factor, seen in found.multiplied.items():
        if torch.equal(members[seen], wanted):
            return Observed(factor.rpartition(".")[0], Slice(factor, -1), operand=factor)
    return None


def _lies_as_a_parameter(piece: Slice, groups: Groups) -> bool:
    """Return whether neurons lie in an output as they do in a parameter, so that it is known where fewer would."""
    width = len(groups)
    each = piece.indices(torch.arange(width), width).view(piece.blocks, width, piece.size)
    lying = each.transpose(0, 1).reshape(width, -1).numpy()
    return any(np.array_equal(own, lying) for own in groups.places.values())


def _in_operand(reading: Reading, neurons: Tensor, members: Tensor, found: Propagation) -> Slice | None:
    """Return where what a product reads holds the neurons; None if that is no product, or they lie apart in it."""
    others = [one for one in found.readings if one.axis[0] == reading.axis[0]]
    same = all(one.axis == reading.axis and torch.equal(one.seen, reading.seen) for one in others)
    if not reading.product or not same or reading.axis[0] in found.factors:
        return None
    piece = _laid(reading.seen, neurons, members)
    return piece and replace(piece, parameter=reading.axis[0])


def _laid(seen: Tensor, neurons: Tensor, members: Tensor) -> Slice | None:
    """Return where the places of a tensor hold neurons, some of which they do; None if these lie apart in it."""
    places = (torch.isin(members[seen], neurons) & (seen > 0)).nonzero().flatten()
    start, length = int(places[0]), len(places)
    if int(places[-1]) - start + 1 != length:
        return None
    groups = members[seen][start : start + length]
    size = int((groups == groups[0]).long().cumprod(0).sum())
    blocks = len(groups) // (size * len(neurons))
    regular = torch.equal(groups, neurons.repeat_interleave(size).repeat(blocks))
    part = None if length == len(seen) else length
    return Slice("", -1, blocks, start=start, length=part, size=size) if regular else None
