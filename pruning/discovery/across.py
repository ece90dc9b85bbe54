"""Neurons that run across others: a mixer of tokens is applied to each channel alike, and has neurons of its own."""

from dataclasses import replace

import torch

from pruning.core.neurons import NeuronLayer, Slice
from pruning.discovery.positions import Axis
from pruning.discovery.structure import NOBODY, Structure, apart


def _pieces(layer: NeuronLayer) -> tuple[Slice, ...]:
    return (*layer.owned, *layer.read, *layer.buffers)


def _meet(one: Slice, other: Slice) -> bool:
    """Return whether two slices have places of a parameter in common along the same dimension."""
    same = (one.parameter, one.dim) == (other.parameter, other.dim)
    apart = any(a.length is not None and a.start + a.length <= b.start for a, b in ((one, other), (other, one)))
    return same and not apart


CROSSED = ("each neuron alike", "each with each", "uses it for several", "uses its single number for all")
"""In the reasons of what would have neurons if those of others did not run across it."""


def crossing(found: Structure) -> set[Axis]:
    """Return where neurons lie, and places that stay, across which others may run; none if nothing crosses them.

    A mixer of tokens is applied to each channel alike: its own neurons run along another dimension than the channels.
    And a fast weight is a product of keys, of which none can go, and of values, of which some can. What no neurons ran
    along may be theirs: the scales of a shared matrix by members of an ensemble are members', and its own neurons'.
    """
    if not any(part in reason for reason in found.reasons.values() for part in CROSSED):
        return set()
    made = {(piece.parameter, piece.dim) for layer in found.layers for piece in layer.owned}
    others = (*CROSSED, NOBODY)
    return made | {axis for axis, reason in found.refused.items() if not any(part in reason for part in others)}


def joined(one: Structure, other: Structure, prefix: str) -> Structure:
    """Return what is known with the layers whose neurons run across the others', none of which cuts what these cut."""
    reasons = {
        module: other.reasons.get(module, reason) if any(part in reason for part in CROSSED) else reason
        for module, reason in one.reasons.items()
    }
    one = replace(one, reasons=reasons)
    taken, shift = [piece for layer in one.layers for piece in _pieces(layer)], len(one.owners[0])
    chosen = [
        number
        for number, layer in enumerate(other.layers)
        if not any(_meet(piece, another) for piece in _pieces(layer) for another in taken)
    ]
    if not chosen:
        return one
    numbers = torch.full((len(other.layers) + 1,), -1)  # the last for those of no layer
    numbers[chosen] = len(one.layers) + torch.arange(len(chosen))
    owners = torch.cat([one.owners[0], numbers[other.owners[0]]]), torch.cat([one.owners[1], other.owners[1]])
    blends = [replace(b, places=torch.where(b.places > 0, b.places + shift, 0)) for b in other.blends]
    layers = [*one.layers, *(other.layers[number] for number in chosen)]
    names = {layer.name for layer in layers}
    sizes, widths = (
        [size for size in known if size.counts and all(name in names for name, *_ in size.counts)]
        for known in (other.sizes, other.widths)
    )
    carried = (*one.carried, *(state for state in other.carried if state.layer in names))
    return replace(
        one,
        layers=apart(layers, prefix),
        owners=owners,
        blends=[*one.blends, *blends],
        sizes=(*one.sizes, *sizes),
        widths=(*one.widths, *widths),
        paths={**other.paths, **one.paths},
        turns={**other.turns, **one.turns},
        hidden=({**other.hidden[0], **one.hidden[0]}, {**other.hidden[1], **one.hidden[1]}),
        carried=carried,
    )
