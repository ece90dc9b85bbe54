"""What the layers will refuse later, known before: bounds without a width, budgets too small, too few neurons."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from pruning.ablation.oracle import neurons_to_measure
from pruning.core.neurons import NeuronLayer
from pruning.models import build, settings
from pruning.models.base import LanguageModel, Measurable
from pruning.selection.budgets import allowed_widths, budget_of
from pruning.selection.retention import retention
from tasks.common.parameters import Parameters, Unexpected, settings_of


def dense_shape(parameters: Parameters, vocabulary: int) -> LanguageModel:
    """Return the model that `train` will train, without memory (on the meta device)."""
    asked = parameters.train.model_dump()
    made = {name: asked[name] for name in settings(asked["family"]) if name != "vocabulary"}
    with torch.device("meta"):
        return build(asked["family"], vocabulary=vocabulary, **made)


def check_layers(parameters: Parameters, model: Measurable) -> None:
    """Refuse what `fuse`, `prune` and `path` would refuse of the model's layers, whatever their importance.

    Raises:
        Unexpected: With the layer, and where params.yaml asks for what cannot be.
    """
    section = parameters.prune.model_dump()
    if parameters.fuse.strategy == "learned" and parameters.fuse.weights is None:
        _check_measured(parameters, model.decoupled().layers())
    for name, variant in parameters.variants.items():
        _check_kept(settings_of(section, variant.model_dump()), model, f"variants.{name}")
    free = {"ceiling": None, "multiple": 1, "rate": "fixed", "budget": None, "snn_ratio": None, "quota": None}
    _check_kept({**section, **free}, model, "prune")  # as `path` reads the section


def _check_measured(parameters: Parameters, layers: Sequence[NeuronLayer]) -> None:
    """Refuse folds for which too few removals are measured."""
    folds, oracle = parameters.fuse.folds, parameters.oracle
    chosen = neurons_to_measure(layers, oracle.neurons, oracle.seed)
    for layer in layers:
        count = len(chosen[layer.name])
        if count < 2 * folds:
            way = "raise oracle.neurons or lower fuse.folds" if layer.width >= 2 * folds else "lower fuse.folds"
            raise Unexpected(
                f"Expected at least {2 * folds} measured neurons in {layer.name} for fuse.folds {folds}, got {count} "
                f"of its {layer.width}; {way} in params.yaml."
            )


def _check_kept(asked: Mapping[str, Any], model: Measurable, place: str) -> None:
    """Refuse what no choice of widths fulfils."""
    separate = model.decoupled(asked["tied"])
    layers, budget = separate.layers(), asked["budget"]
    _check_bounds(asked, layers, place)
    counted = budget is not None and budget["kind"] != "latency"  # a latency is measured when it is needed
    rows = [(layer.name, neuron, float(neuron)) for layer in layers for neuron in range(layer.width)]
    adaptive = asked["rate"] == "adaptive"  # then importance decides how many stay
    try:
        retention(
            pd.DataFrame(rows, columns=["layer", "neuron", "any"]),
            variant=place,
            by="any",
            scope="layer",
            budget=budget_of(separate, kind=budget["kind"], value=budget["value"]) if counted else None,
            kinds={layer.name: layer.kind for layer in layers},
            quota=None if adaptive else asked["quota"],
            **{name: asked[name] for name in ("retain", "floor", "ceiling", "multiple", "rate", "snn_ratio")},
        )
    except ValueError as error:
        raise Unexpected(f"{str(error).rstrip('.')} ({place} in params.yaml).") from None


def _check_bounds(asked: Mapping[str, Any], layers: Sequence[NeuronLayer], place: str) -> None:
    """Refuse bounds that leave a layer no width; bounds of a layer that there is not are left to `retention`."""
    for layer in layers:
        floor, ceiling = (
            bound.get(layer.name) if isinstance(bound, Mapping) else bound
            for bound in (asked["floor"], asked["ceiling"])
        )
        try:
            allowed_widths(layer.width, floor=floor or 1, ceiling=ceiling, multiple=asked["multiple"])
        except ValueError as error:
            raise Unexpected(
                f"{str(error).rstrip('.')} for {layer.name} of {layer.width} neurons; lower the floor or the multiple, "
                f"or raise the ceiling ({place} in params.yaml)."
            ) from None
