"""Layers of neurons from the groups of places that go together, and why a group is none."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from pruning.core.neurons import NO_READER, TIED, NeuronLayer, Slice
from pruning.discovery.comparing import HIDDEN, WORDS, paths_of, turns_of
from pruning.discovery.findings import Propagation
from pruning.discovery.following import Carried, Kept, Number, Size
from pruning.discovery.numbers import told_sizes
from pruning.discovery.observing import observed, shown_among
from pruning.discovery.positions import Axis, Groups, Indices, varies
from pruning.discovery.values import COMBINED, UNREAD, Blend, Reading


@dataclass(frozen=True)
class Structure:
    """What is known of a network's neurons before it is proved.

    Attributes:
        layers: The layers, from input to output.
        reasons: Why each module that computes something else cannot be pruned.
        owners: Place → the number of the layer that it belongs to, and of the neuron; −1 for none.
        blends: The operations that take neurons of these layers together.
        called: The modules that are called.
        touched: The parameters that what the network returns is computed from.
        sizes: The numbers that calls in the network's code are told and that count neurons, or what it makes.
        widths: Those that it reads of tensors, such as `x.shape[1]`, and that count neurons.
        refused: Where places that something computes stay → why.
        carried: Where states that go from call to call hold their neurons, and groups that are as many with fewer.
        steps: Whether something is computed of neurons that is the same for many values, as a spike is.
        paths: Layer → the path that the network's code is seen to take for each width, from 1 on; see `paths_of`.
        turns: Two layers → with which widths of both it goes another way; see `turns_of`.
        hidden: Layer → the path that it may take for each width where nobody sees what that is compared with; and the
            same of what goes on as words or a key alone, where a factor by that width stays what it was.
        told: The numbers that calls in the network's code are told.
    """

    layers: list[NeuronLayer]
    reasons: dict[str, str]
    owners: tuple[Tensor, Tensor]
    blends: list[Blend]
    called: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()
    sizes: tuple[Size, ...] = ()
    widths: tuple[Size, ...] = ()
    refused: Mapping[Axis, str] = field(default_factory=dict)
    carried: tuple[Number, ...] = ()
    steps: bool = False
    paths: Mapping[str, np.ndarray] = field(default_factory=dict)
    turns: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    hidden: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    told: tuple[int, ...] = ()


IDLE = "what the model returns does not depend on it"
COMPILED = "is in what TorchScript compiled, which takes no other weights"
NOBODY = "no neurons run along it"
ENTERING = ("it reads ", NOBODY)
"""How reasons begin that speak of what a module reads; where there is another, that is why its own neurons stay."""


SINGLE = "all of it goes together, so it is a single neuron"
"""The reason of what is no neurons: where there is another, that is why the neurons of the same module stay."""


def structure_of(found: Propagation, model: nn.Module, prefix: str) -> Structure:
    """Return the layers of neurons and why others are none; `reasons_of` completes these.

    Args:
        found: What is known of the places in the model's parameters.
        model: The model that the parameters' names belong to.
        prefix: What is left out of the names of layers.
    """
    readings: dict[Axis, list[Reading]] = {}
    for reading in found.readings:
        readings.setdefault(reading.axis, []).append(reading)
    members, blends = _blended(found)
    taken = [(int(group), blend.extreme) for blend in blends for group in torch.unique(members[blend.places])]
    blended, chosen = {group for group, _ in taken}, {group for group, extreme in taken if extreme}
    made: list[tuple[NeuronLayer, Groups]] = []
    reasons: dict[str, str] = {}
    others: dict[str, str] = {}
    refused: dict[Axis, str] = {}
    for groups in (part for alike in found.positions.groups() for part in _regular(alike)):
        layer = _layer(groups, found, readings, model, prefix)
        if isinstance(layer, NeuronLayer):
            group = int(members[_first_place(found, groups)])
            if group in blended:
                exact = layer.exact and not (layer.unread and group in chosen)
                layer = replace(layer, silenced=_zeroable(layer, found), exact=exact)
            made.append((layer, groups))
            continue
        for axis in (axis for axis in groups.places if axis in found.owning):
            refused.setdefault(axis, layer)
            (others if layer.startswith((*ENTERING, SINGLE)) else reasons).setdefault(owner_of(axis, prefix), layer)
    order = list(found.owning)
    made.sort(key=lambda pair: min(order.index((piece.parameter, piece.dim)) for piece in pair[0].owned))
    layers = apart([layer for layer, _ in made], prefix)
    owners = _owners(found, [groups for _, groups in made], len(members))
    called = frozenset(module.removeprefix(prefix) for module in found.called)
    numbers = tuple(told_sizes(found, layers, owners))
    sizes = tuple(number for number in numbers if not number.read)
    widths = tuple(number for number in numbers if number.read and number.counts)
    carried: tuple[Number, ...] = tuple(
        one
        for layer, (_, groups) in zip(layers, made, strict=True)
        for axis in (axis for axis in groups.places if axis in found.carried)
        for piece in _slices(axis, groups.places[axis])
        for one in Carried.of(found.carried[axis], layer, piece)
    )
    carried += tuple(
        Kept(owner_of((piece.parameter, 0), prefix), "num_groups", None, layer.name, 1, piece.blocks)
        for layer in layers
        for piece in layer.owned
        if getattr(model.get_submodule(owner_of((piece.parameter, 0), "")), "num_groups", 1) == piece.blocks > 1
    )
    carried += tuple(
        Kept(owner_of((name, 0), prefix), "groups", None, layer.name, 1, found.parted[name])
        for layer in layers
        for name in dict.fromkeys(piece.parameter for piece in (*layer.owned, *layer.read))
        if name in found.parted
    )
    touched = frozenset(found.touched)
    seen = found.compared, found.reads, {layer.name: layer.width for layer in layers}, owners
    hidden = paths_of(*seen, how=(HIDDEN, WORDS)), paths_of(*seen, how=(WORDS,))
    ways = paths_of(*seen), turns_of(*seen), hidden
    told = tuple(dict.fromkeys(one.number for each in found.counted.values() for one in each))
    known = (called, touched, sizes, widths, refused, carried, found.steps, *ways, told)
    return Structure(layers, others | reasons, owners, blends, *known)


def _blended(found: Propagation) -> tuple[Tensor, list[Blend]]:
    """Return the groups of all places, and the operations that take several together; what else they do freezes."""
    members = found.positions.members()
    blends = []
    for blend in found.blends:
        groups = torch.where(blend.places > 0, members[blend.places], -1)
        apart = blend.among is not None and varies(torch.where(blend.among > 0, members[blend.among], -1), 1)
        if apart or not varies(groups, blend.dim):
            continue
        if any(varies(groups, dim) for dim in range(groups.ndim) if dim != blend.dim):
            found.positions.freeze(blend.places, f"{blend.what} mixes all of it")
        else:
            blends.append(blend)
    return members, blends


def _first_place(found: Propagation, groups: Groups) -> int:
    axis, places = next(iter(groups.places.items()))
    return found.positions.first[axis] + int(places[0, 0])


def _owners(found: Propagation, made: Sequence[Groups], size: int) -> tuple[Tensor, Tensor]:
    """Return for each place the layer and the neuron that it belongs to."""
    layers, neurons = torch.full((size,), -1), torch.full((size,), -1)
    for number, groups in enumerate(made):
        for axis, places in groups.places.items():
            where = found.positions.first[axis] + torch.from_numpy(places)
            layers[where], neurons[where] = number, torch.arange(len(groups))[:, None]
    return layers, neurons


def _zeroable(layer: NeuronLayer, found: Propagation) -> tuple[Slice, ...]:
    """Return the slices that compute neurons, do not read them, and may be zero."""
    axes = found.dividing.union((piece.parameter, piece.dim) for piece in layer.read)
    return tuple(piece for piece in layer.owned if (piece.parameter, piece.dim) not in axes)


def _regular(groups: Groups) -> list[Groups]:
    """Return the groups, or as few as possible of them taken together so that all their places lie in regular order.

    Where channels are shuffled, those that lie beside each other at the reader belong to one neuron: as many can go.
    Where a reader has parts of them in another order (`cat([second, first])`), each part is a layer of its own.
    """
    if groups.reason or len(groups) < 2:
        return [groups]
    width = len(groups)
    for count in (count for count in range(width, 1, -1) if width % count == 0):
        for beside in (False, True):
            coarser = groups.in_blocks(count, beside=beside) if count < width else groups
            if all(map(_slices, coarser.places, coarser.places.values())):
                return [coarser]
    breaks = np.zeros(width - 1, dtype=bool)
    for places in groups.places.values():
        breaks |= (np.diff(places, axis=0) != _sizes(places[0].tolist())).any(1)
    parts = np.split(np.arange(width), breaks.nonzero()[0] + 1)
    alone = [part for part in parts if len(part) < 2]
    some = [part for part in parts if len(part) > 1] + ([np.concatenate(alone)] if alone else [])
    return [replace(groups, places={axis: own[part] for axis, own in groups.places.items()}) for part in some]


def _layer(
    groups: Groups, found: Propagation, readings: Mapping[Axis, list[Reading]], model: nn.Module, prefix: str
) -> NeuronLayer | str:
    """Return the layer that these groups are the neurons of, or why they are none."""
    axes = groups.places
    all_own = [axis for axis in found.owning if axis in axes]
    read = [
        reading
        for axis, places in axes.items()
        for reading in readings.get(axis, [])
        if bool((reading.functions[places[0]] != UNREAD).any())
    ]
    if reason := groups.reason or _compiled(axes, model, prefix):
        return reason
    parameters = dict(model.named_parameters())
    own = sorted((axis for axis in all_own if axis not in readings), key=lambda axis: axis[0] not in parameters)
    if not all_own:
        return "nothing computes it"
    if not read and not any(axis[0] in found.touched for axis in all_own):
        return IDLE
    if not own:
        return "it is tied: one matrix computes its neurons and reads them"
    if own[0][0] not in parameters:
        return f"no parameter computes it, only the buffer {own[0][0].removeprefix(prefix)}"
    if len(groups) < 2:
        return groups.mixed or SINGLE
    slices = {axis: _slices(axis, places) for axis, places in axes.items()}
    irregular = next((axis for axis, pieces in slices.items() if not pieces), None)
    if irregular is not None:
        return f"its places in {irregular[0].removeprefix(prefix)} follow no regular order"
    readers = {reading.axis: reading for reading in read}
    reading_slices = tuple(replace(piece, bias=readers[axis].bias) for axis in readers for piece in slices[axis])
    tied = [axis for axis in all_own if any(not reading.combined for reading in readings.get(axis, ()))]
    owned = tuple(piece for axis in own if axis[0] in parameters for piece in slices[axis])
    serving = [reading for reading in read if not reading.idle and not reading.training]
    if read and not serving:
        return IDLE
    seen = observed(serving, reading_slices, groups, found, model) if read else shown_among(groups, found)
    if seen is None:
        reader = f"{read[0].axis[0].removeprefix(prefix)} reads it" if read else f"{NO_READER}, and it is computed"
        return f"{reader} outside of any module, so it cannot be seen"
    return NeuronLayer(
        name=owner_of(own[0], prefix),
        kind=_kind(groups.marks),
        width=len(groups),
        owned=owned,
        read=reading_slices or tuple(p for p in owned if (p.parameter, p.dim) not in found.dividing) or owned,
        output=seen.module,
        buffers=tuple(piece for axis in own if axis[0] not in parameters for piece in slices[axis]),
        seen=seen.seen,
        along=seen.along,
        operand=seen.operand,
        obstacle=_obstacle(serving, groups, prefix, tied, seen.obstacle.removeprefix(prefix)),
        exact="random" not in groups.marks,
        tied=tuple(piece for piece in reading_slices if (piece.parameter, piece.dim) in tied),
        given=seen.given,
    )


def _compiled(axes: Iterable[Axis], model: nn.Module, prefix: str) -> str:
    """Return why a parameter of these is in a module that TorchScript compiled; empty if none is."""
    scripted = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    inside = next((name for name, _ in axes for path in scripted if name.startswith(f"{path}.")), None)
    return f"{inside.removeprefix(prefix)} {COMPILED}" if inside else ""


def _blocks(first: list[int]) -> list[tuple[int, int]]:
    """Return where each run of a neuron's places begins, and how long it is."""
    begins = [run for run in range(len(first)) if not run or first[run] != first[run - 1] + 1]
    return [(first[run], after - run) for run, after in itertools.pairwise([*begins, len(first)])]


def _sizes(first: list[int]) -> Indices:
    """Return for each of a neuron's places how long the run is that it lies in: as far on lies the next neuron's."""
    return np.concatenate([np.full(size, size) for _, size in _blocks(first)])


def _slices(axis: Axis, places: Indices) -> tuple[Slice, ...]:
    """Return the slices that hold these neurons along an axis; none if they lie in no regular order.

    Each neuron has some consecutive places in each block, and a block holds the neurons one after the other.
    """
    width, first = len(places), places[0].tolist()
    blocks = _blocks(first)
    if not np.array_equal(places, places[0] + np.arange(width)[:, None] * _sizes(first)):
        return ()
    pieces: list[Slice] = []
    for start, size in blocks:
        last = pieces[-1] if pieces else None
        if last is not None and last.size == size and start == last.start + (last.length or 0):
            pieces[-1] = replace(last, blocks=last.blocks + 1, length=(last.length or 0) + width * size)
        else:
            pieces.append(Slice(axis[0], axis[1], start=start, length=width * size, size=size))
    return tuple(pieces)


def _obstacle(read: Sequence[Reading], groups: Groups, prefix: str, tied: Sequence[Axis], unseen: str) -> str:
    """Return why refitting the readers on the recorded activations would not be exact; empty if it would."""
    if not read:
        return unseen or NO_READER
    if all(reading.combined for reading in read):
        return f"{read[0].axis[0].removeprefix(prefix)} {COMBINED}"
    if unseen:
        return unseen
    if tied:
        return f"{tied[0][0].removeprefix(prefix)} {TIED}"
    functions = [set(reading.functions[groups.places[reading.axis][0]].tolist()) for reading in read]
    other = next((reading for reading, own in zip(read, functions, strict=True) if own != functions[0]), None)
    if other is not None:
        names = dict.fromkeys(reading.axis[0].removeprefix(prefix) for reading in (read[0], other))
        return f"{' and '.join(names)} {'reads' if len(names) == 1 else 'read'} different functions of its neurons"
    bordered = next((reading for reading in read if reading.padding), None)
    return f"{bordered.module.removeprefix(prefix)} puts zeros around what it reads" if bordered else ""


def _kind(marks: frozenset[str]) -> str:
    return next((kind for kind in ("rnn", "head", "snn", "conv") if kind in marks), "dense")


def owner_of(axis: Axis, prefix: str) -> str:
    """Return the module whose parameter or buffer the axis belongs to."""
    return axis[0].removeprefix(prefix).rpartition(".")[0] or axis[0].removeprefix(prefix)


def apart(layers: Sequence[NeuronLayer], prefix: str) -> list[NeuronLayer]:
    """Return the layers with names of their own, where two lie in one module or in one parameter."""
    for name_of in (
        lambda layer: f"{layer.name}:{layer.owned[0].start}",
        lambda layer: layer.owned[0].parameter.removeprefix(prefix),
        lambda layer: f"{layer.owned[0].parameter.removeprefix(prefix)}:{layer.owned[0].dim}",
    ):
        names = [layer.name for layer in layers]
        again = [layer if names.count(layer.name) == 1 else replace(layer, name=name_of(layer)) for layer in layers]
        if len({layer.name for layer in again}) == len(layers):
            return again
    return [replace(layer, name=f"{layer.name}:{number}") for number, layer in enumerate(layers)]
