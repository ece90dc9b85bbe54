"""The layers of a network that can be cut, by proof: alone, together, joined; and which widths they must not have."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from pruning.core.neurons import NeuronLayer, named_buffers, named_tensors
from pruning.discovery.alike import Seen, apart, same_path
from pruning.discovery.discovered import PREFIX, Discovered
from pruning.discovery.following import Size, concerning
from pruning.discovery.general import own, positions
from pruning.discovery.joining import Restructured, joinable
from pruning.discovery.proving import UNSHOWN, Prover
from pruning.discovery.rounds import rounds_of
from pruning.discovery.running import DRAWN, Inputs
from pruning.discovery.settling import TOGETHER, settled
from pruning.discovery.states import Feeding
from pruning.discovery.structure import Structure


def proved(
    model: Discovered,
    found: Structure,
    inputs: Inputs,
    states: set[int],
    cached: Sequence[str] = (),
    feeding: Feeding | None = None,
    restructured: Restructured | None = None,
) -> tuple[Discovered, Structure, dict[str, str]]:
    """Return the model with the layers that can be cut, what is known of it, and why others cannot be cut after all.

    Args:
        model: It is left as it was.
        found: What is known of its neurons.
        inputs: What it is called with.
        states: Which of its outputs, counted as they lie flat, are recurrent states.
        cached: The modules whose configuration asks for a cache, which is switched off now.
        feeding: If its state goes from call to call: how.
        restructured: Tells what is known of its neurons once some are joined; None if they are to stay as they are.
    """
    every = layers = model.layers()
    first, *others = itertools.islice(positions(model, inputs), None if found.steps else 1)
    prover = Prover(*first, found, inputs, states, cached, feeding)
    prover.leak()
    prover.others = [Prover(*fixed, found, inputs, states, (), feeding) for fixed in others]
    if prover.drawing():
        prover.others += [Prover(*first, found, inputs, states, (), feeding, seed) for seed in range(1, len(DRAWN))]
    rounds = rounds_of(layers)
    layers, numbers, reasons = settled(prover, every, rounds)
    beside = prover.others
    if not found.steps:  # weights by which some neurons are silent, or an answer is cut off, hide what others show
        other = Prover(*own(model, inputs), found, inputs, states, (), feeding)
        failure = other.failure(layers, numbers)
        if failure != UNSHOWN:
            beside = [*beside, other]
            if failure or any(reason.startswith(TOGETHER) for reason in reasons.values()):
                prover.others = beside
                layers, numbers, reasons = settled(prover, every, rounds)
    if restructured and reasons and (joints := joinable(prover, reasons, rounds, restructured)):
        found = restructured(joints)
        known = Discovered(model.network, found.layers, {}, folded=model.folded)
        return proved(known, found, inputs, states, cached, feeding)
    stepping = [layer for layer in layers if same_path(layer, found.paths)]  # which may all have lost as many
    alone = {layer.name: what for layer in stepping if (what := prover.failure([layer], numbers))}
    reasons, layers = reasons | alone, [layer for layer in layers if layer.name not in alone]
    stopping = prover.untrained(layers, numbers)
    reasons, layers = reasons | stopping, [layer for layer in layers if layer.name not in stopping]
    tensors = {**named_tensors(prover.model), **named_buffers(prover.model)}
    kept = [number for number in numbers if isinstance(number, Size) and number.read]  # what code reads there stays
    scaled = {layer.name for layer in layers if any(number.concerns([layer.name]) for number in kept)}
    hidden = found.hidden[1] | {name: path for name, path in found.hidden[0].items() if name not in scaled}
    seen = Seen(found.paths, prover.proved(layers, rounds), found.turns, hidden)
    avoided, equal = apart(layers, tensors, lambda keep: prover._failure(keep, numbers), seen)
    reasons, layers = reasons | equal, [layer for layer in layers if layer.name not in equal]
    layers = [replace(layer, avoided=tuple(sorted(avoided.get(layer.name, ())))) for layer in layers]
    numbers = concerning((*found.carried, *numbers), {layer.name for layer in layers})
    inexact = set[str]().union(*(each.inexact(layers, numbers) for each in (prover, *beside)))
    layers = [_said(layer, exact=layer.exact and layer.name not in inexact) for layer in layers]
    places = [(path[len(PREFIX) :], name) for path, name in prover.remembers]
    proof = Discovered(model.network, layers, {}, numbers, model.folded, remembered=places)
    proof.written = model.written
    return proof, found, reasons


def _said(layer: NeuronLayer, *, exact: bool) -> NeuronLayer:
    """Return the layer with whether it is exact; if not, its readers read something else once some are gone."""
    what = layer.obstacle or ("" if exact else "its readers read other numbers once some of its neurons are gone")
    return replace(layer, exact=exact, obstacle=what)
