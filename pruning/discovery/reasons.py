"""Why what is no layer's stays as it is: a reason for each such module and parameter."""

import traceback
from collections.abc import Mapping, Sequence

from torch import nn

from pruning.core.hearing import LIBRARIES
from pruning.core.neurons import NeuronLayer
from pruning.discovery.quantized import quantized_in
from pruning.discovery.running import canonical, is_given
from pruning.discovery.structure import ENTERING, IDLE, SINGLE, Structure, owner_of

UNREACHED = "the example inputs do not reach it"


def reasons_of(
    found: Structure, refuted: Mapping[str, str], layers: Sequence[NeuronLayer], model: nn.Module, prefix: str
) -> dict[str, str]:
    """Return a reason for every module with parameters that is no layer's, in the model's order.

    Args:
        found: What was known before the proof.
        refuted: Layer → why it cannot be cut after all; so do not all whose parameters compute its neurons.
        layers: Those that can be cut.
        model: The model that the parameters' names belong to.
        prefix: What is left out of the names.
    """
    reasons = dict(found.reasons)
    for layer in found.layers:
        if layer.name in refuted:
            reasons |= {owner_of((piece.parameter, 0), prefix): refuted[layer.name] for piece in layer.owned}
    pruned = {owner_of((piece.parameter, 0), prefix) for layer in layers for piece in layer.owned}
    names = canonical(model)
    readers = {owner_of((piece.parameter, 0), prefix): layer.name for layer in layers for piece in layer.read}
    told: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, first = owner_of((name, 0), prefix), owner_of((names[name], 0), prefix)
        goes = owner != first and first in pruned and parameter.ndim < 2  # with the neurons of what it is tied to
        if owner not in pruned and not goes and not (owner != first and _is_one_module(model, name, names[name])):
            if owner in readers and owner not in reasons:
                told.setdefault(owner, f"it only reads what {readers[owner]} computes")
            tied = f"it is tied to {first}" + (f": {reasons[first]}" if first in reasons else ", which is pruned")
            alone = _unread_because(found, name, owner, single=parameter.numel() == 1)
            told.setdefault(owner, reasons.get(owner, tied if owner != first else alone))
    quantized = quantized_in(model.get_submodule(prefix.rstrip(".")))
    told |= {owner: reason for owner, reason in quantized.items() if owner not in pruned}
    told |= _beside_layers(found, layers, model, prefix, refuted)
    return {**told, **{name: reason for name, reason in refuted.items() if name not in pruned and name not in told}}


def _beside_layers(
    found: Structure, layers: Sequence[NeuronLayer], model: nn.Module, prefix: str, refuted: Mapping[str, str]
) -> dict[str, str]:
    """Return why parameters stay that a module of a user's own has beside those of layers, by their own names."""
    held = {piece.parameter for layer in layers for piece in layer.owned}
    owners = {owner_of((name, 0), prefix) for name in held}
    because = {p.parameter: refuted[one.name] for one in found.layers if one.name in refuted for p in one.owned}
    for (name, _), reason in sorted(found.refused.items(), key=lambda told: told[1] == SINGLE):
        if not reason.startswith(ENTERING):
            because.setdefault(name, reason)
    read = {piece.parameter for layer in layers for piece in layer.read}
    for name, _ in model.named_parameters():
        if name not in found.touched and name not in read:
            because.setdefault(name, IDLE if owner_of((name, 0), prefix) in found.called else UNREACHED)
    return {
        name.removeprefix(prefix): because[name]
        for name, _ in model.named_parameters()
        if name in because and name not in held and owner_of((name, 0), prefix) in owners
        if not is_given(model.get_submodule(name.rpartition(".")[0]))
    }


def _is_one_module(model: nn.Module, *parameters: str) -> bool:
    """Return whether parameters are those of one module, which is registered by several names."""
    return len({id(model.get_submodule(name.rpartition(".")[0])) for name in parameters}) == 1


def _unread_because(found: Structure, name: str, owner: str, *, single: bool) -> str:
    """Return why nothing is known of a parameter's neurons."""
    if name in found.touched:
        return "it is a single number" if single else "no neurons run along it"
    return IDLE if owner in found.called else UNREACHED


def line_of(error: Exception) -> str:
    """Return where in the user's code an error arose, for a sentence; empty if that is nowhere to be seen."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(LIBRARIES)), None)
    return f" ({last.filename.rpartition('/')[2]}:{last.lineno}, `{last.line}`)" if last and last.line else ""
