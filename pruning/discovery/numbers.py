"""Numbers in a user's modules, such as `num_heads` or `hidden_size`, that may follow a layer's width."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.neurons import NeuronLayer
from pruning.discovery.discovered import HEADS, PREFIX
from pruning.discovery.findings import Propagation
from pruning.discovery.following import Kept, Number, Size
from pruning.discovery.held import numbers_held

_FOLLOWING = ("torch.nn.modules", "torch.nn.utils", "pruning.discovery")
_SAYING = (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)
_TOLD = ("embedding_dim", "in_features", "out_features", "in_channels", "out_channels")
"""Widths that these tell and do not compute with, so that a factor that a user's code makes of them may stay."""
Counts = tuple[tuple[str, int, int], ...]
"""The layers whose neurons a number counts, see `Size.counts`."""
BACKWARDS = "_reverse"
"""How the name of a recurrent layer ends that reads backwards."""
ATTEMPTS = 16
"""How many choices of numbers are tried for a layer."""


def candidates(network: nn.Module, layer: NeuronLayer) -> Iterator[list[Number]]:
    """Yield choices of numbers that might be to follow the layer's width, the likeliest first.

    A number may if it is the width times the places that a neuron has in some parameter. Of those in the modules
    around the layer all are tried at first, then those of one name, of all names but one, and of two or three names (a
    number of heads may also be that of a head's dimensions), then each alone; the proof decides. What settings say is
    tried last, beside the modules' own attributes.
    """
    pieces = (*layer.owned, *layer.read)
    factors = {1} | {piece.size for piece in pieces} | {piece.size * piece.blocks for piece in pieces}
    above = sorted(around(layer), key=len, reverse=True)
    tried: set[frozenset[Number]] = set()
    known: list[Number] = []
    for most, settings in ((ATTEMPTS, False), (2 * ATTEMPTS, True)):
        known += [
            number
            for path, module in network.named_modules()
            for number in _numbers(path, module, layer, factors, settings=settings)
        ]
        scopes = [[n for n in known if f"{n.module}.".startswith(f"{path}.") or not path] for path in above]
        near = [number for number in known if number.module in above]
        alone = ([number] for number in (*near, *known))
        for chosen in itertools.chain([near], _named(near, most=settings), scopes, alone):
            key = frozenset(chosen)
            if chosen and key not in tried and len(tried) < most:
                tried.add(key)
                yield list(chosen)


def sized(
    network: nn.Module, sizes: Sequence[Size], layer: NeuronLayer, layers: Sequence[NeuronLayer] = ()
) -> Iterator[list[Number]]:
    """Yield choices of numbers that calls in the network's code are told and that are to follow the layer's width.

    Those that count its neurons do; others may have to be told what they count all the same, where the code takes them
    from the layer's width. What the code makes of numbers (`zeros(B, 12)`) counts nobody's: each size that might be
    the width, or that of what lies beside it, is tried, all at once, the last or the first of each
    call, then those of one place in their calls (as many examples as neurons are counted before them), each alone, and
    with the next one.
    """
    counting = [size.of(layer) for size in sizes if size.counts is not None]
    own = [size for size in counting if not size.counts or any(name == layer.name for name, *_ in size.counts)]
    for chosen in (own, counting) if counting else ():
        yield [*chosen]
    kept = [
        Kept(path, name, None, layer.name, 1, layer.width)
        for path, module in network.named_modules()
        for name in HEADS
        if layer.kind == "head" and getattr(module, name, None) == layer.width and path in around(layer)
    ]
    if kept:
        yield [*kept, *counting]
    for name in _TOLD:  # `x * self.table.embedding_dim ** 0.5`
        modules = ((path, network.get_submodule(path)) for path in sorted(around(layer)))
        told = {path: getattr(module, name, None) for path, module in modules if isinstance(module, _SAYING)}
        staying = [Kept(path, name, None, layer.name, 1, number) for path, number in told.items() if number]
        if staying:
            yield [*staying, *counting]
    factors = {1, *(piece.size for piece in (*layer.owned, *layer.read))}
    made = [
        size.of(layer) for size in sizes if size.counts is None and size.number in {f * layer.width for f in factors}
    ]
    for whole, counts in dict.fromkeys(_beside(network, sizes, layer, layers)):
        taken = {size.number for size in made}
        beside = [size for size in sizes if size.counts is None and size.number == whole and whole not in taken]
        made += [replace(size, layer=layer.name, counts=counts) for size in beside if whole != layer.width]
    last = {size.attribute + size.module: size for size in made}
    first = {size.attribute + size.module: size for size in reversed(made)}
    places = ([size for size in made if size.place == place] for place in dict.fromkeys(size.place for size in made))
    pairs = ([one, other] for one, other in itertools.pairwise(made))  # the two states of a cell are made one by one
    tried = [list(last.values()), list(first.values()), *places, *([size] for size in made), *pairs]
    for place, chosen in enumerate(tried[:ATTEMPTS]):
        if chosen and chosen not in tried[:place]:
            yield [*counting, *chosen]


def _beside(
    network: nn.Module, sizes: Sequence[Size], layer: NeuronLayer, layers: Sequence[NeuronLayer]
) -> Iterator[tuple[int, Counts]]:
    """Yield how many lie beside each other with a layer's neurons, and which of them these are, as `Size.counts` says.

    So do directions, what lies along one dimension of a parameter, and what a call takes apart.
    """
    both = [each for each in layers if each.name.removesuffix(BACKWARDS) == layer.name.removesuffix(BACKWARDS)]
    if len(both) > 1:
        yield sum(each.width for each in both), tuple((each.name, 1, each.width) for each in both)
    for axis in dict.fromkeys((piece.parameter, piece.dim) for piece in (*layer.read, *layer.owned)):
        pieces = [
            (each, piece)
            for each in layers
            for piece in (*each.read, *each.owned)
            if (piece.parameter, piece.dim) == axis
        ]
        whole = network.get_parameter(axis[0].removeprefix(PREFIX)).shape[axis[1]]
        if whole != layer.width:
            yield whole, tuple((each.name, piece.blocks * piece.size, each.width) for each, piece in pieces)
    calls = {
        (size.module, size.attribute) for size in sizes if any(name == layer.name for name, *_ in size.counts or ())
    }
    for call in sorted(calls):
        parts = [size for size in sizes if (size.module, size.attribute) == call]
        yield sum(size.number for size in parts), tuple(count for size in parts for count in size.counts or ())


def around(layer: NeuronLayer) -> set[str]:
    """Return the modules around the layer's parameters, by their paths."""
    paths = {piece.parameter.removeprefix(PREFIX).rpartition(".")[0] for piece in (*layer.owned, *layer.read)}
    return {above for path in paths for above in _above(path)}


def _named(near: list[Number], *, most: bool) -> Iterator[list[Number]]:
    """Yield the numbers of some names: of one, of all but one (the first if `most`), of two, of three.

    In settings within settings those of one name are one.
    """
    known = [(number.attribute.rpartition(".")[2], number.factor) for number in near]
    names = list(dict.fromkeys(known))
    for count in dict.fromkeys((len(names) - 1, 1, 2, 3) if most else (1, len(names) - 1, 2, 3)):
        for chosen in itertools.combinations(names, count) if 0 < count < len(names) else ():
            yield [number for number, name in zip(near, known, strict=True) if name in chosen]


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


def _numbers(
    path: str, module: nn.Module, layer: NeuronLayer, factors: set[int], *, settings: bool
) -> Iterator[Number]:
    """Yield a module's own numbers, or those of its settings, that are the layer's width times one of these factors.

    Those of PyTorch's modules with parameters follow these already.
    """
    if next(module.parameters(recurse=False), None) is not None and type(module).__module__.startswith(_FOLLOWING):
        return
    for attribute, place, number in numbers_held(module, settings=settings):
        for factor in factors if number > 1 else ():
            if number == factor * layer.width:
                yield Number(path, attribute, place, layer.name, factor)


def told_sizes(found: Propagation, layers: Sequence[NeuronLayer], owners: tuple[Tensor, Tensor]) -> Iterator[Size]:
    """Yield the numbers that calls are told, each with how often it counts the neurons of which layers.

    A width that code reads is as it was whichever layer's it is, so that one place in it may read several in turn; of
    unlike ones each is known by what is left of it, so that they must count the neurons of one layer each, one by one.
    """
    for (module, call, place), each in found.counted.items():
        known: dict[int, dict[tuple[Any, ...] | None, None]] = {}
        for one in each:
            counts = None if one.places is None else _counts(one.places, layers, owners)
            known.setdefault(one.number, {})[counts] = None
        apart = all(own and own[0] != -1 and own[0][1] == len(own) == 1 for counts in known.values() for own in counts)
        for number, told in known.items():
            size = Size(module, call, place=place, layer="", factor=1, number=number)
            if len(told) > 1:  # before the first step a state is nobody's
                told = dict.fromkeys(own for own in told if own) or {(): None}
            same = number > 1 and (len(known) == 1 or (size.read and apart))  # in a loop, it may be 1 at first
            if same and (len(told) == 1 or size.read):
                yield from (replace(size, counts=own) for own in told if own is None or -1 not in own)


def _counts(places: Tensor, layers: Sequence[NeuronLayer], owners: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    """Return the layers all of whose neurons are among these places: (name, how often each of them, width).

    What belongs to one neuron is as many however many neurons there are; −1 stands for some of a layer's neurons.
    """
    found = []
    own = owners[0][places]
    for number in (number for number in torch.unique(own).tolist() if number >= 0):
        layer = layers[number]
        counts = torch.bincount(owners[1][places[own == number]], minlength=layer.width)
        if bool((counts == counts[0]).all()):
            found.append((layer.name, int(counts[0]), layer.width))
        elif int(counts.count_nonzero()) > 1:
            return (-1,)
    return tuple(found)
