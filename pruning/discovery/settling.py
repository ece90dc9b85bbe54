"""Which layers a proof lets go, alone and together, and which numbers in code and modules follow their widths."""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pruning.core.neurons import NeuronLayer
from pruning.discovery.alike import COUNTS
from pruning.discovery.following import Number
from pruning.discovery.numbers import candidates, sized

if TYPE_CHECKING:
    from pruning.discovery.proving import Prover

TOGETHER = "together with "
"""How the reason begins of a layer that can go by itself alone."""


def settled(
    prover: "Prover", layers: Sequence[NeuronLayer], rounds: Sequence[int]
) -> tuple[list[NeuronLayer], list[Number], dict[str, str]]:
    """Return the layers that can be cut, the numbers that follow their widths, and why the others cannot be cut."""
    numbers: list[Number] = []
    reasons: dict[str, str] = {}
    failing = not prover.holds(layers, [], rounds)
    if kept := _kept(prover, layers, rounds, failing=failing):
        numbers, failing = kept, False
    # three parts of `chunk` may fit together by chance
    failing = failing or any(prover.failure([part], numbers) for part in _parts(layers))
    if failing:
        numbers, reasons = _each(prover, layers, rounds)
        layers = [layer for layer in layers if layer.name not in reasons]
        if layers and prover.failure(layers, numbers):
            layers, more = _together(prover, layers, numbers)
            reasons |= more
    for each in rounds[1:] if failing else []:
        if layers and prover.failure(layers, numbers, number=each):
            alone = {layer.name: what for layer in layers if (what := prover.failure([layer], numbers, number=each))}
            layers = [layer for layer in layers if layer.name not in alone]
            layers, more = _together(prover, layers, numbers, number=each)
            reasons |= alone | more
    return list(layers), numbers, reasons


def _kept(prover: "Prover", layers: Sequence[NeuronLayer], rounds: Sequence[int], *, failing: bool) -> list[Number]:
    """Return the factors that stay what they are; none where layers cannot be cut so, or need not.

    They also stay where the proof holds without: spikes, or what a ReLU leaves, may be the same with another factor.
    But where more layers are exact without, as of a mean that is multiplied by the width, they follow.
    """
    kept = prover.kept(layers)
    if not kept or not prover.holds(layers, kept, rounds):
        return []
    exact = failing or prover.found.steps or prover.inexact(layers, kept) <= prover.inexact(layers, [])
    return [*kept] if exact else []


def _each(
    prover: "Prover", layers: Sequence[NeuronLayer], rounds: Sequence[int]
) -> tuple[list[Number], dict[str, str]]:
    """Return the numbers that must follow so that each layer can be cut by itself, and why some cannot.

    Once one is settled, those of the same name but for its numbers, as in the blocks of a Transformer, are tried all
    together with what followed its width; what two of a width could not be cut for is not tried to be mended in more.
    """
    numbers: list[Number] = []
    reasons: dict[str, str] = {}
    followed, refused = set[tuple[Any, ...]](), Counter[tuple[str, str, int]]()
    waiting, parts = list(layers), _parts(layers)
    while waiting:
        layer, *waiting = waiting
        name, following, kinds = numberless(layer.name), list[Number](), ()
        if failure := prover.failure([layer], []):
            case = name, numberless(failure), layer.width
            choice = None if refused[case] > 1 else _following(prover, layer, rounds, followed)
            if choice is None:
                reasons[layer.name] = _nearest(prover, layer, failure)
                refused[case] += 1
                continue
            following = prover.needed([layer], choice)
            kinds = _kinds(choice)
            followed.add(kinds)
        elif kept := _kept(prover, [layer], rounds, failing=False):
            following, kinds = kept, _kinds(kept)
        likewise = [other for other in waiting if numberless(other.name) == name and other not in parts]
        more = _likewise(prover, likewise, rounds, kinds)
        if more is not None:
            waiting = [other for other in waiting if other not in likewise]
        numbers += dict.fromkeys(number for number in (*following, *(more or ())) if number not in numbers)
    return numbers, reasons


def _parts(layers: Sequence[NeuronLayer]) -> list[NeuronLayer]:
    """Return the layers that share a parameter which computes them with others, as queries, keys and values may."""
    held = Counter(name for layer in layers for name in {piece.parameter for piece in layer.owned})
    return [layer for layer in layers if any(held[piece.parameter] > 1 for piece in layer.owned)]


def numberless(words: str) -> str:
    """Return words without the numbers in them, so that those of the blocks of one kind agree."""
    return re.sub(r"\d+", "#", words)


def _following(
    prover: "Prover", layer: NeuronLayer, rounds: Sequence[int], followed: Collection[tuple[Any, ...]]
) -> list[Number] | None:
    """Return the numbers that must follow so that a layer can be cut; what did for one before it is tried first.

    In one round alone some might fit by chance, as parts of a whole number that are rounded down.
    """
    choices = sorted(_choices(prover, layer), key=lambda chosen: _kinds(chosen) not in followed)
    return next((chosen for chosen in choices if prover.holds([layer], chosen, rounds)), None)


def _nearest(prover: "Prover", layer: NeuronLayer, failure: str) -> str:
    """Return why a layer cannot be cut: what still fails where its code runs once its modules' numbers follow."""
    likeliest = next(iter(candidates(prover.model.network, layer)), [])
    again = prover.failure([layer], likeliest) if likeliest and failure.startswith(COUNTS) else ""
    return again if again and not again.startswith(COUNTS) else failure


def _likewise(
    prover: "Prover", layers: Sequence[NeuronLayer], rounds: Sequence[int], kinds: tuple[Any, ...]
) -> list[Number] | None:
    """Return the numbers of these kinds that must follow so that layers can be cut together; None if they cannot."""
    if not layers or not kinds:
        alone = not layers or prover.kept(layers)  # where a factor may change nothing that is seen, each is asked
        return None if alone or prover.failure(layers, []) else []
    found = [next((one for one in _choices(prover, layer) if _kinds(one) == kinds), None) for layer in layers]
    numbers = [number for chosen in found if chosen for number in chosen]
    return prover.needed(layers, numbers) if all(found) and prover.holds(layers, numbers, rounds) else None


def _choices(prover: "Prover", layer: NeuronLayer) -> list[list[Number]]:
    """Return what numbers might have to follow a layer's width, the likeliest first."""
    network, kept = prover.model.network, prover.kept([layer])
    own = list(candidates(network, layer))
    told = list(sized(network, prover.found.sizes, layer, prover.model.layers()))
    tried = itertools.chain([[]], own, told, ([*own[0], *sizes] for sizes in told if own))
    return [beside for chosen in tried for beside in ([[*kept, *chosen], chosen] if kept else [chosen]) if beside]


def _kinds(numbers: Sequence[Number]) -> tuple[Any, ...]:
    """Return what numbers are but for the modules and the layer that they are of, so that blocks of one kind agree."""
    return tuple(sorted((type(one).__name__, one.attribute, str(one.place), one.factor) for one in numbers))


def _together(
    prover: "Prover", layers: Sequence[NeuronLayer], numbers: Sequence[Number], *, number: int = 0
) -> tuple[list[NeuronLayer], dict[str, str]]:
    """Return the layers that can be cut together, the first ones first, and why the others cannot."""
    kept: list[NeuronLayer] = []
    reasons: dict[str, str] = {}
    for layer in layers:
        if failure := prover.failure([*kept, layer], numbers, number=number):
            by = (one.name for one in kept if prover.failure([one, layer], numbers, number=number))
            reasons[layer.name] = f"{TOGETHER}{next(by, kept[-1].name)}, {failure}" if kept else failure
        else:
            kept.append(layer)
    return kept, reasons
