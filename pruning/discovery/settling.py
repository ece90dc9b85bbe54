"""Which layers a proof lets go, alone and together, and which numbers in code and modules follow their widths."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pruning.core.neurons import NeuronLayer
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
    if (failing or prover.found.steps) and (kept := prover.kept(layers)) and prover.holds(layers, kept, rounds):
        numbers, failing = [*kept], False  # also where the spikes happen to be the same with another factor
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


def _each(
    prover: "Prover", layers: Sequence[NeuronLayer], rounds: Sequence[int]
) -> tuple[list[Number], dict[str, str]]:
    """Return the numbers that must follow so that each layer can be cut by itself, and why some cannot.

    In one round alone some might fit by chance, as parts of a whole number that are rounded down.
    """
    numbers: list[Number] = []
    reasons: dict[str, str] = {}
    followed = set[tuple[Any, ...]]()
    network = prover.model.network
    for layer in layers:
        failure = prover.failure([layer], [])
        kept = prover.kept([layer]) if failure or prover.found.steps else []
        if failure:
            own = list(candidates(network, layer))
            told = list(sized(network, prover.found.sizes, layer, prover.model.layers()))
            tried = itertools.chain([[]], own, told, ([*own[0], *sizes] for sizes in told if own))
            both = [
                beside for chosen in tried for beside in ([[*kept, *chosen], chosen] if kept else [chosen]) if beside
            ]
            both.sort(key=lambda chosen: _kinds(chosen) not in followed)  # as in a layer before, of the same code
            following = next((chosen for chosen in both if prover.holds([layer], chosen, rounds)), None)
            if following is None:
                reasons[layer.name] = failure
            else:
                followed.add(_kinds(following))
                numbers += (number for number in prover.needed([layer], following) if number not in numbers)
        elif kept and prover.holds([layer], kept, rounds):
            numbers += (number for number in kept if number not in numbers)
    return numbers, reasons


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
