"""Layers, or parts of one, that one number in a network's code keeps equal: joined, one neuron of each goes together.

A stack of cells takes one `num_hidden`, a loop makes the states of all its layers by one line, a helper is told one
number of heads for whatever it is given, and code that takes `h[:, i * n : (i + 1) * n]` counts on parts of equal size.
Each such layer fails its proof by itself. What fails is tried again as fewer neurons that each have a part in several
layers, or several parts in one; the proof decides.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning.core.neurons import NeuronLayer
from pruning.discovery.findings import Propagation
from pruning.discovery.held import numbers_held
from pruning.discovery.numbers import around
from pruning.discovery.running import is_given
from pruning.discovery.settling import numberless, settled
from pruning.discovery.structure import Structure

if TYPE_CHECKING:
    from pruning.discovery.proving import Prover

Joint = Mapping[int, Tensor]
"""The number of each layer that is joined → which of the joint neurons each of its neurons is a part of."""
Restructured = Callable[[Sequence[Joint]], Structure]
"""(joints) → what is known of the network's neurons with these."""
ATTEMPTS = 8
"""How often what fails is tried joined in another way."""
NUMBERS = 2
"""So many numbers are tried as that of parts, or of the neurons in each."""


def linked(found: Propagation, structure: Structure, joints: Sequence[Joint]) -> Propagation:
    """Return what a run told, with the places of joint neurons linked.

    Args:
        found: What the run told; it is left as it was.
        structure: The layers that it told, which the joints are of.
        joints: What is joined.
    """
    positions = found.positions.copied()
    known = len(found.positions.members())  # those behind are of what runs across these
    layers, neurons = (own[:known] for own in structure.owners)
    for joint in joints:
        places = [torch.nonzero(layers == number).flatten() for number in joint]
        parts = [joint[number][neurons[own]] for number, own in zip(joint, places, strict=True)]
        where, which = torch.cat(places), torch.cat(parts)
        order = torch.argsort(which, stable=True)
        where, which = where[order], which[order]
        same = which[1:] == which[:-1]
        positions.link(where[:-1][same], where[1:][same])
    return replace(found, positions=positions)


def joinable(
    prover: "Prover", reasons: Mapping[str, str], rounds: Sequence[int], restructured: Restructured
) -> list[Joint]:
    """Return how layers that cannot be cut by themselves can be, joined.

    Of joints that are alike, as in the blocks of a Transformer, the first is tried by itself.

    Args:
        prover: What proved the layers.
        reasons: Layer → why it cannot be cut.
        rounds: Those of the proof.
        restructured: Tells what is known of the neurons once some are joined.
    """
    layers = prover.found.layers
    waiting = {number: layer for number, layer in enumerate(layers) if layer.name in reasons and layer.width > 1}
    held: list[Joint] = []
    for joints in itertools.islice(_choices(prover, waiting), ATTEMPTS):
        own = [joint for joint in joints if all(number in waiting for number in joint)]
        if own:
            more = _holding(prover, [*held, *own], len(held), rounds, restructured)
            held += more
            waiting = {number: layer for number, layer in waiting.items() if not any(number in one for one in more)}
    return held


def _holding(
    prover: "Prover", joints: Sequence[Joint], known: int, rounds: Sequence[int], restructured: Restructured
) -> list[Joint]:
    """Return those of the joints, but for the first ones, that are known, that can be cut."""
    structure = restructured(joints)
    became = [_became(prover.found, structure, joint) for joint in joints[known:]]
    own = {number: structure.layers[number] for number in became if number >= 0}
    other = prover.knowing(structure)
    cases = {(numberless(layer.name), layer.width): layer for layer in reversed(own.values())}
    tried = [
        layer for layer in cases.values() if other.holds([layer], [], rounds) or settled(other, [layer], rounds)[0]
    ]
    alike = [layer for layer in own.values() if cases[numberless(layer.name), layer.width] in tried]
    kept, _, _ = settled(other, alike, rounds) if alike else ([], [], {})
    names = {layer.name for layer in kept}
    return [
        joint
        for joint, number in zip(joints[known:], became, strict=True)
        if number >= 0 and structure.layers[number].name in names
    ]


def _became(before: Structure, after: Structure, joint: Joint) -> int:
    """Return the number of the layer that a joint has become; −1 if it is none."""
    place = int(torch.nonzero(before.owners[0] == next(iter(joint)))[0])
    return int(after.owners[0][place])


def _choices(prover: "Prover", waiting: Mapping[int, NeuronLayer]) -> Iterator[list[Joint]]:
    """Yield what might be joined: whole neurons of layers as wide, then parts of each layer, then parts of several.

    Layers that lie in one module are joined before those that lie in unlike ones.
    """
    whole = {number: torch.arange(layer.width) for number, layer in waiting.items()}
    yield from _scoped(whole, waiting)
    parts = list(_parted(prover, waiting))
    for own in parts:
        yield [{number: which} for number, which in own.items()]
    for own in parts:
        yield from _scoped(own, waiting)


def _scoped(parts: Mapping[int, Tensor], waiting: Mapping[int, NeuronLayer]) -> Iterator[list[Joint]]:
    """Yield joints of as many neurons, of layers in the same modules: from the innermost ones to the network."""
    tried: list[list[list[int]]] = []
    for depth in range(max((layer.name.count(".") for layer in waiting.values()), default=0), -1, -1):
        known: dict[tuple[str, int], list[int]] = {}
        for number, which in parts.items():
            path = ".".join(waiting[number].name.split(".")[:depth])
            known.setdefault((path, int(which.max())), []).append(number)
        groups = [group for group in known.values() if len(group) > 1]
        if groups and groups not in tried:
            tried.append(groups)
            yield [{number: parts[number] for number in group} for group in groups]


def _parted(prover: "Prover", waiting: Mapping[int, NeuronLayer]) -> Iterator[dict[int, Tensor]]:
    """Yield how layers may be in parts: so many, or of so many neurons each; whole ones go, or a neuron of each."""
    found: dict[str, dict[int, Tensor]] = {}
    for count in _numbers(prover, waiting.values()):
        for dealt, neurons in itertools.product((True, False), (True, False)):
            own = {
                number: torch.arange(layer.width) % left
                if dealt
                else torch.arange(layer.width) // (layer.width // left)
                for number, layer in waiting.items()
                if not layer.width % count and 1 < (left := count if neurons else layer.width // count) < layer.width
            }
            found.setdefault(str({number: which.tolist() for number, which in own.items()}), own)
    yield from sorted(found.values(), key=lambda own: -sum(int(which.max()) for which in own.values()))


def _numbers(prover: "Prover", layers: Iterable[NeuronLayer]) -> list[int]:
    """Return numbers in modules around layers, and in their calls, that divide the width of one, the likeliest first.

    Likeliest are those that modules or their settings hold, and those with which the number of parts and the size of
    each are numbers of the code: of what calls are told, one may be the size of a batch.
    """
    layers, network = list(layers), prover.model.network
    paths = sorted({path for layer in layers for path in around(layer)}, key=len, reverse=True)
    modules = [module for module in map(network.get_submodule, paths) if not is_given(module)]
    held = [value for module in modules for value in vars(module).values() if type(value) is int]
    held += [number for module in modules for *_, number in numbers_held(module, settings=True)]
    known = dict.fromkeys((*held, *prover.found.told))
    found = {
        (value, value in held or layer.width // value in known)
        for layer in layers
        for value in known
        if 1 < value < layer.width and not layer.width % value
    }
    order = [*known]
    likely = sorted(found, key=lambda one: (not one[1], order.index(one[0])))
    return [*dict.fromkeys(value for value, _ in likely)][:NUMBERS]
