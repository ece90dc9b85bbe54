"""What the layers will refuse later, known before: bounds without a width, budgets too small, too few neurons."""

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from pruning.ablation.oracle import neurons_to_measure
from pruning.core.avoiding import avoided_in
from pruning.core.devices import without_values
from pruning.core.neurons import NeuronLayer
from pruning.core.options import FIRING, too_few
from pruning.fusion.schemas import CHOICES
from pruning.models import build, settings
from pruning.models.base import LanguageModel, Measurable
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import allowed_widths, budget_of
from pruning.selection.energy import spiking_of
from pruning.selection.retention import retention
from pruning.signals.schemas import CRITERIA, INTERVENTION, SIGNALS, SURGEON
from tasks.common.parameters import Unexpected, settings_of
from tasks.settings.parameters import Parameters

_AS_ASKED = ("retain", "floor", "ceiling", "multiple", "rate", "snn_ratio", "otherwise")
Without = Mapping[str, Collection[str]]
"""Layer → what there will be no numbers of."""
NOTHING: Mapping[str, str] = MappingProxyType({})


def dense_shape(parameters: Parameters, vocabulary: int) -> LanguageModel:
    """Return the model that `train` will train, without memory (on the meta device)."""
    asked = parameters.train.model_dump()
    made = {name: asked[name] for name in settings(asked["family"]) if name != "vocabulary"}
    with without_values():
        return build(asked["family"], vocabulary=vocabulary, **made)


def check_layers(parameters: Parameters, model: Measurable, untapped: Mapping[str, str] = NOTHING) -> None:
    """Refuse what `fuse`, `prune` and `path` would refuse of the model's layers, whatever their importance.

    Args:
        parameters: What params.yaml says.
        model: The dense model, or one of its shape.
        untapped: Layer → why the surgeon and the criteria will have no numbers of it.

    Raises:
        Unexpected: With the layer, and where params.yaml asks for what cannot be.
    """
    section, layers = parameters.prune.model_dump(), model.decoupled().layers()
    without = {layer.name: {SURGEON.name, *CRITERIA} for layer in layers if layer.name in untapped}
    most, count = parameters.intervention.most, sum(layer.width for layer in layers)
    if most is not None and count > most and not isinstance(model, LanguageModel):
        without = {layer.name: without.get(layer.name, set()) | {INTERVENTION.name} for layer in layers}
    if parameters.fuse.strategy == "learned" and parameters.fuse.weights is None:
        _check_measured(parameters, model.decoupled().layers())
    for layer, reason in untapped.items():
        if criteria := [name for name in parameters.fuse.signals if name in CRITERIA]:
            raise Unexpected(
                f"Expected fuse.signals among {list(SIGNALS)} for this model, got {criteria[0]!r}, which has no "
                f"numbers of layer {layer}, because {reason} (params.yaml)."
            )
    for name, variant in parameters.variants.items():
        asked = settings_of(section, variant.model_dump())
        _check_kept(asked, model, f"variants.{name}", by=variant.by, without=without)
    free = {"ceiling": None, "multiple": 1, "rate": "fixed", "budget": None, "snn_ratio": None, "quota": None}
    _check_kept({**section, **free}, model, "prune", by="fused", without={})  # as `path` reads the section


def _check_measured(parameters: Parameters, layers: Sequence[NeuronLayer]) -> None:
    """Refuse folds for which too few removals are measured."""
    folds, oracle = parameters.fuse.folds, parameters.oracle
    chosen, widths = neurons_to_measure(layers, oracle.neurons, oracle.seed), {one.name: one.width for one in layers}
    for layer, count, needed in too_few({name: len(neurons) for name, neurons in chosen.items()}, folds):
        way = "raise oracle.neurons or lower fuse.folds" if widths[layer] >= needed else "lower fuse.folds"
        raise Unexpected(
            f"Expected at least {needed} measured neurons in {layer} for fuse.folds {folds}, got {count} "
            f"of its {widths[layer]}; {way} in params.yaml."
        )


def _check_kept(asked: Mapping[str, Any], model: Measurable, place: str, *, by: str, without: Without) -> None:
    """Refuse what no choice of widths fulfils."""
    separate = model.decoupled(asked["tied"])
    layers, budget = separate.layers(), asked["budget"]
    _check_bounds(asked, layers, place)
    counted = None
    if budget is not None and budget["kind"] not in ("latency", *FIRING):  # these are measured when they are needed
        counted = {"kind": budget["kind"], "value": budget["value"], "target": budget["target"] or "float32"}
    adaptive = asked["rate"] == "adaptive"  # then importance decides how many stay
    try:
        if budget is not None and budget["kind"] in FIRING:
            spiking_of(layers, budget["kind"])
        allocation = Allocation(
            scope="layer",
            budget=budget_of(separate, **counted) if counted else None,
            quota=None if adaptive else asked["quota"],
            **{name: asked[name] for name in _AS_ASKED},
        )
        kinds = {layer.name: layer.kind for layer in layers}
        how: dict[str, Any] = {"kinds": kinds, "avoided": avoided_in(separate)}
        retention(_any_importance(layers, without), allocation, variant=place, by=by, **how)
    except ValueError as error:
        raise Unexpected(f"{str(error).rstrip('.')} ({place} in params.yaml).") from None


def _any_importance(layers: Sequence[NeuronLayer], without: Without) -> pd.DataFrame:
    """Return a table of importance, whatever its numbers, but where there will be none."""
    parts = []
    for layer in layers:
        some = dict.fromkeys(CHOICES, np.arange(float(layer.width)))
        none = dict.fromkeys(without.get(layer.name, ()), math.nan)
        parts.append(pd.DataFrame({"layer": layer.name, "neuron": range(layer.width), **some, **none}))
    return pd.concat(parts, ignore_index=True)


def _check_bounds(asked: Mapping[str, Any], layers: Sequence[NeuronLayer], place: str) -> None:
    """Refuse bounds that leave a layer no width; bounds of a layer that there is not are left to `retention`."""
    for layer in layers:
        floor, ceiling = (
            bound.get(layer.name) if isinstance(bound, Mapping) else bound
            for bound in (asked["floor"], asked["ceiling"])
        )
        try:
            allowed_widths(
                layer.width, floor=floor or 1, ceiling=ceiling, multiple=asked["multiple"], avoided=layer.avoided
            )
        except ValueError as error:
            raise Unexpected(
                f"{str(error).rstrip('.')} for {layer.name} of {layer.width} neurons; lower the floor or the multiple, "
                f"or raise the ceiling ({place} in params.yaml)."
            ) from None
