"""Neurons that run across others: a mixer of tokens is applied to each channel alike, and has neurons of its own."""

from dataclasses import replace

import torch

from pruning.discovery.structure import Structure, apart


def crossing(found: Structure) -> list[str]:
    """Return the parameters that compute neurons where others may run across these; none if nothing crosses them.

    A mixer of tokens is applied to each channel alike: its own neurons run along another dimension than the channels.
    """
    crossed = any(
        part in reason for reason in found.reasons.values() for part in ("each neuron alike", "each with each")
    )
    return [piece.parameter for layer in found.layers for piece in layer.owned] if crossed else []


def joined(one: Structure, other: Structure, prefix: str) -> Structure:
    """Return what is known with the layers whose neurons run across the others', none of which cuts what these cut."""
    pieces = ((p.parameter, p.dim) for layer in one.layers for p in (*layer.owned, *layer.read, *layer.buffers))
    taken, shift = set(pieces), len(one.owners[0])
    chosen = [
        number
        for number, layer in enumerate(other.layers)
        if taken.isdisjoint((p.parameter, p.dim) for p in (*layer.owned, *layer.read, *layer.buffers))
    ]
    if not chosen:
        return one
    numbers = torch.full((len(other.layers) + 1,), -1)  # the last for those of no layer
    numbers[chosen] = len(one.layers) + torch.arange(len(chosen))
    owners = torch.cat([one.owners[0], numbers[other.owners[0]]]), torch.cat([one.owners[1], other.owners[1]])
    blends = [replace(b, places=torch.where(b.places > 0, b.places + shift, 0)) for b in other.blends]
    layers = [*one.layers, *(other.layers[number] for number in chosen)]
    names = {layer.name for layer in layers}
    sizes = [size for size in other.sizes if size.counts and all(name in names for name, *_ in size.counts)]
    return replace(
        one, layers=apart(layers, prefix), owners=owners, blends=[*one.blends, *blends], sizes=(*one.sizes, *sizes)
    )
