"""Layers of neurons from the groups of places that go together, and the reasons why the rest does not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from pruning.core.neurons import NeuronLayer, Slice
from pruning.discovery.positions import Axis, Group
from pruning.discovery.propagation import Propagation, Reading
from pruning.discovery.recurrent import Narrowed
from pruning.discovery.tracing import canonical


def layers_of(found: Propagation, model: nn.Module, prefix: str) -> tuple[list[NeuronLayer], dict[str, str]]:
    """Return the layers of neurons, from input to output, and a reason for each module that computes something else.

    Args:
        found: What is known of the places in the model's parameters.
        model: The model that the parameters' names belong to.
        prefix: What is left out of the names of layers.
    """
    readings: dict[Axis, list[Reading]] = {}
    for reading in found.readings:
        readings.setdefault(reading.axis, []).append(reading)
    layers: list[NeuronLayer] = []
    reasons: dict[str, str] = {}
    for groups in _alike(found.positions.groups()):
        made = _layer(groups, found, readings, model, prefix)
        if isinstance(made, NeuronLayer):
            layers.append(made)
            continue
        for axis in groups[0].places:
            if axis in found.owning:
                reasons.setdefault(_owner(axis, prefix), made)
    order = list(found.owning)
    layers.sort(key=lambda layer: min(order.index((piece.parameter, piece.dim)) for piece in layer.owned))
    return _apart(layers), _completed(reasons, layers, model, prefix)


def _alike(groups: Iterable[Group]) -> list[list[Group]]:
    """Return the groups in lists of those that have as many places in the same dimensions, for the same reason."""
    lists: dict[object, list[Group]] = {}
    for group in groups:
        counts = frozenset((axis, len(places)) for axis, places in group.places.items())
        lists.setdefault((counts, group.reason), []).append(group)
    return list(lists.values())


def _layer(
    groups: Sequence[Group], found: Propagation, readings: Mapping[Axis, list[Reading]], model: nn.Module, prefix: str
) -> NeuronLayer | str:
    """Return the layer that these groups are the neurons of, or why they are none."""
    axes = groups[0].places
    own = [axis for axis in found.owning if axis in axes]
    read = [reading for axis in axes for reading in readings.get(axis, [])]
    if groups[0].reason:
        tied = not groups[0].mixed and any(axis in readings for axis in own)
        return groups[0].reason + ("; it is tied to a reader, which needs a weight of its own first" if tied else "")
    if not own:
        return "nothing computes it"
    if not read:
        return "nothing reads it"
    if any(axis in readings for axis in own):
        return "it is tied: one matrix computes its neurons and reads them"
    if len(groups) < 2:
        return groups[0].mixed or "all of it goes together, so it is a single neuron"
    alone = next((reading for reading in read if reading.padded and not _can_narrow(model, reading)), None)
    if alone is not None:
        return f"{alone.module.removeprefix(prefix)} reads its state, which keeps its width"
    slices = {axis: _slices(axis, groups) for axis in axes}
    irregular = next((axis for axis, pieces in slices.items() if not pieces), None)
    if irregular is not None:
        return f"its places in {irregular[0].removeprefix(prefix)} follow no regular order"
    buffers = dict(model.named_buffers())
    readers = {reading.axis: reading for reading in read}
    reading_slices = tuple(replace(piece, bias=readers[axis].bias) for axis in readers for piece in slices[axis])
    output, seen = _observed(read, reading_slices, model)
    if not output:
        return f"{read[0].axis[0].removeprefix(prefix)} reads it outside of any module, so it cannot be seen"
    return NeuronLayer(
        name=_owner(own[0], prefix),
        kind=_kind(groups[0].marks),
        width=len(groups),
        owned=tuple(piece for axis in own if axis[0] not in buffers for piece in slices[axis]),
        read=reading_slices,
        output=output,
        buffers=tuple(piece for axis in own if axis[0] in buffers for piece in slices[axis]),
        seen=seen,
        obstacle=_obstacle(read, groups, prefix),
    )


def _slices(axis: Axis, groups: Sequence[Group]) -> tuple[Slice, ...]:
    """Return the slices that hold these neurons along an axis; none if they lie in no regular order.

    Each neuron has `size` consecutive places in each block, and a block holds the neurons one after the other.
    """
    width, first = len(groups), groups[0].places[axis]
    size = next((run for run in range(1, len(first)) if first[run] != first[0] + run), len(first))
    starts = first[::size]
    for neuron, group in enumerate(groups):
        expected = tuple(start + neuron * size + place for start in starts for place in range(size))
        if group.places[axis] != expected:
            return ()
    pieces = [Slice(axis[0], axis[1], start=starts[0], length=width * size, size=size)]
    for start in starts[1:]:
        last = pieces[-1]
        if start == last.start + (last.length or 0):
            pieces[-1] = replace(last, blocks=last.blocks + 1, length=(last.length or 0) + width * size)
        else:
            pieces.append(replace(last, start=start, length=width * size, blocks=1))
    return tuple(pieces)


_READERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""What reads its first input through its own parameters; so does the `Conv1D` of `transformers`."""


def _observed(read: Sequence[Reading], slices: Sequence[Slice], model: nn.Module) -> tuple[str, Slice | None]:
    """Return the module that shows the neurons' activations, and where its input does; ("", None) if there is none.

    A recurrent layer shows its own; other neurons are seen as what their first reader reads.
    """
    for reading in read:
        module = model.get_submodule(reading.module)
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and "weight_hh" in reading.axis[0]:
            return reading.module, None
    for reading in read:
        module = model.get_submodule(reading.module)
        if isinstance(module, _READERS) or type(module).__name__ == "Conv1D":
            piece = next(piece for piece in slices if (piece.parameter, piece.dim) == reading.axis)
            dim = 1 - model.get_parameter(piece.parameter).ndim
            return reading.module, replace(piece, dim=dim)
    return "", None


def _obstacle(read: Sequence[Reading], groups: Sequence[Group], prefix: str) -> str:
    """Return why refitting the readers on the recorded activations would not be exact; empty if it would."""
    functions = [set(reading.functions[list(groups[0].places[reading.axis])].tolist()) for reading in read]
    other = next((reading for reading, own in zip(read, functions, strict=True) if own != functions[0]), None)
    if other is not None:
        names = (reading.axis[0].removeprefix(prefix) for reading in (read[0], other))
        return "{} and {} read different functions of its neurons".format(*names)
    bordered = next((reading for reading in read if reading.padding), None)
    return f"{bordered.module.removeprefix(prefix)} puts zeros around what it reads" if bordered else ""


def _kind(marks: frozenset[str]) -> str:
    return next((kind for kind in ("rnn", "head", "snn", "conv") if kind in marks), "dense")


def _can_narrow(model: nn.Module, reading: Reading) -> bool:
    """Return whether a reader of a padded state can be told to read a part of it."""
    return type(model.get_submodule(reading.module)) in (nn.Linear, Narrowed) and reading.axis[1] == 1


def _owner(axis: Axis, prefix: str) -> str:
    """Return the module whose parameter or buffer the axis belongs to."""
    return axis[0].removeprefix(prefix).rpartition(".")[0] or axis[0].removeprefix(prefix)


def _apart(layers: Sequence[NeuronLayer]) -> list[NeuronLayer]:
    """Return the layers with names of their own, where two lie in one module."""
    names = [layer.name for layer in layers]
    return [
        layer if names.count(layer.name) == 1 else replace(layer, name=f"{layer.name}:{layer.owned[0].start}")
        for layer in layers
    ]


def _completed(
    reasons: Mapping[str, str], layers: Sequence[NeuronLayer], model: nn.Module, prefix: str
) -> dict[str, str]:
    """Return a reason for every module with parameters that is no layer's, in the model's order."""
    pruned = {_owner((piece.parameter, 0), prefix) for layer in layers for piece in layer.owned}
    names = canonical(model)
    told: dict[str, str] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        owner, first = _owner((name, 0), prefix), _owner((names[name], 0), prefix)
        if owner in reasons or owner not in pruned:
            tied = f"it is tied to {first}: {reasons.get(first, 'which is pruned')}"
            told.setdefault(owner, reasons.get(owner, tied if owner != first else "the example inputs do not reach it"))
    return told
