"""Every signal that can be known of given parameters: from weights and traces, and from batches if there are any."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from pruning.compat.calling import Batch, Caller, Criterion, untouched
from pruning.compat.given import Given
from pruning.compat.seeing import Site, site_of, watching
from pruning.core.neurons import NeuronLayer, gather
from pruning.core.statistics import Covariance, jackknife_error, merged
from pruning.data.windows import IGNORED
from pruning.signals import cooperative
from pruning.signals import weights as weights_signal
from pruning.signals.activations import Activity
from pruning.signals.gradients import Flow, gate_sums
from pruning.signals.jackknife import Measured, empty_groups, group_of
from pruning.signals.scaling import weighted
from pruning.signals.schemas import COOPERATIVE, SIGNALS, WEIGHTS

logger = logging.getLogger(__name__)

THRESHOLD, BINS, STRONG = 0.1, 32, 0.75
"""Settings of the signals that the older interface has no arguments for: those of the default run."""
WIDEST = 2048
"""Neurons of a layer up to which activations are kept: their covariance takes width² numbers."""

Group = TypeVar("Group", bound=Measured)
Tables = dict[str, pd.DataFrame]
"""Signal → `layer`, `neuron`, `importance`, `standard_error`."""


@dataclass(frozen=True)
class Switches:
    """Which signals are measured beside the traces' `hessian`.

    Attributes:
        activation: `activations`.
        gradient: `gradients`.
        structural: `weights`, how a neuron is built, and `cooperative`, how it is wired to the others.
    """

    activation: bool
    gradient: bool
    structural: bool


def measure(
    model: nn.Module,
    own: Given,
    batches: Sequence[Batch],
    criterion: Criterion | None,
    device: torch.device,
    switches: Switches,
) -> Tables:
    """Return what is known of every neuron, by signal.

    - hessian: trace × ‖w‖² / n over the neuron's own weights, from the traces as they are;
    - weights: see `pruning.weights`;
    - activations: see `pruning.activations`, of what the parameter's module says;
    - gradients: see `pruning.gradients`, with the gate on the neuron's own rows: g = ∂L/∂m = Σ w · ∂L/∂w over them;
    - cooperative: see `pruning.cooperative`.

    A layer that a signal cannot see has 0 for all its neurons, which ranks none of them.

    Args:
        model: It is left as it was.
        own: What was handed over.
        batches: (data, targets), read once and in order; without any, weights and traces are all that is known.
        criterion: (output, targets) → loss; without it, no gradient is known.
        device: Where the model computes.
        switches: Which signals are wanted.
    """
    watched = bool(batches) and (switches.activation or switches.structural)
    flowing = bool(batches) and switches.gradient and criterion is not None
    if switches.gradient and batches and criterion is None:
        logger.warning("Without a criterion no gradient is known; the other signals decide.")
    found = {"hessian": [_traced(layer, own) for layer in own.layers]}
    if switches.structural:
        found["weights"] = [_built(layer, own.tensors) for layer in own.layers]
    if watched or flowing:
        activities, flows = _read(model, own, batches, criterion if flowing else None, device, watched=watched)
        if switches.activation:
            found["activations"] = [_estimate(layer, activities.get(layer.name)) for layer in own.layers]
        if switches.structural:
            found["cooperative"] = [_wired(layer, own.tensors, activities.get(layer.name)) for layer in own.layers]
        if flowing:
            found["gradients"] = [_estimate(layer, flows[layer.name] or None) for layer in own.layers]
    return {name: _table(own.layers, found[name]) for name in SIGNALS if name in found}


Estimate = tuple[Tensor, Tensor]
"""Importance and its standard error, both (width,)."""


def _traced(layer: NeuronLayer, own: Given) -> Estimate:
    squares = gather(layer.owned, own.tensors).cpu().double().square().mean(1)
    return own.traces[layer.name] * squares, torch.zeros(layer.width)


def _built(layer: NeuronLayer, tensors: Mapping[str, Tensor]) -> Estimate:
    components = weights_signal.components_of(layer, tensors, threshold=THRESHOLD, bins=BINS)
    return weighted(components, WEIGHTS.shares), torch.zeros(layer.width)


def _wired(layer: NeuronLayer, tensors: Mapping[str, Tensor], groups: Sequence[Activity] | None) -> Estimate:
    if groups is None:
        return torch.zeros(layer.width), torch.zeros(layer.width)
    coupling = cooperative.recurrent_coupling(layer, tensors)

    def importance(state: Covariance) -> Tensor:
        return weighted(cooperative.components_of(state, coupling, STRONG), COOPERATIVE.shares)

    states = [group.values for group in groups]
    return importance(merged(states)), jackknife_error(states, importance) if len(states) > 1 else torch.zeros(1)


def _estimate(layer: NeuronLayer, groups: Sequence[Measured] | None) -> Estimate:
    if groups is None:
        return torch.zeros(layer.width), torch.zeros(layer.width)
    error = jackknife_error(groups, lambda state: state.importance) if len(groups) > 1 else torch.zeros(1)
    return merged(groups).importance, error


def _table(layers: Sequence[NeuronLayer], estimates: Sequence[Estimate]) -> pd.DataFrame:
    parts = []
    for layer, (importance, error) in zip(layers, estimates, strict=True):
        columns = {"importance": importance.cpu().double(), "standard_error": error.double().expand(layer.width)}
        parts.append(pd.DataFrame({"layer": layer.name, "neuron": range(layer.width), **columns}))
    return pd.concat(parts).sort_values(["layer", "neuron"], kind="stable", ignore_index=True)


def _read(
    model: nn.Module,
    own: Given,
    batches: Sequence[Batch],
    criterion: Criterion | None,
    device: torch.device,
    *,
    watched: bool,
) -> tuple[dict[str, list[Activity]], dict[str, list[Flow]]]:
    """Read the batches once; return each layer's activations, where they are seen, and gate gradients, in groups."""
    sites = {layer.name: site_of(model, layer) for layer in own.layers} if watched else {}
    wanted = {site for site in sites.values() if site is not None and site.width <= WIDEST}
    seen: dict[Site, list[Activity]] = {}
    flows = {layer.name: empty_groups(partial(Flow.empty, layer.width), len(batches)) for layer in own.layers}
    place, counted = 0, torch.empty(0, dtype=torch.bool)

    def observe(site: Site, batch: Tensor) -> None:
        if len(batch) == len(counted) and not counted.all():  # a place for each target
            batch = batch[counted.to(batch.device)]
        if not len(batch):
            return
        if site not in seen:
            scale = batch.square().mean().sqrt().cpu()
            seen[site] = empty_groups(partial(Activity.empty, site.width, BINS, scale), len(batches))
        group_of(seen[site], place, len(batches)).update(batch)

    caller, parameters = Caller(model, device), list(own.parameters.values())
    with untouched(model, parameters if criterion else ()), watching(model, sorted(wanted), observe):
        for place, (data, targets) in enumerate(batches):
            counted = _counted(targets, criterion)
            if criterion is None or (len(counted) and not counted.any()):
                with torch.no_grad():
                    caller(data)
                continue
            with torch.enable_grad():
                found = _gate_gradients(caller.loss(data, targets, criterion), own.parameters, own.gated)
            for name, values in found.items():
                group_of(flows[name], place, len(batches)).update(values[None])
    flows = {name: _filled(groups) for name, groups in flows.items()}
    activities = {name: _filled(seen[site]) for name, site in sites.items() if site in seen}
    for name in sites.keys() - activities.keys():
        logger.warning("What the neurons of %s say is not seen; other signals rank them.", name)
    return activities, flows


def _filled(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.samples]


def _counted(targets: Any, criterion: Criterion | None) -> Tensor:
    """Return which class numbers the criterion does not ignore, (n,); none where the targets are something else."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return torch.empty(0, dtype=torch.bool)
    return targets.flatten() != getattr(criterion, "ignore_index", IGNORED)


def _gate_gradients(
    loss: Tensor, parameters: Mapping[str, nn.Parameter], gates: Sequence[NeuronLayer]
) -> dict[str, Tensor]:
    """Return ∂L/∂m of every neuron, m multiplying its own rows; 0 where the loss does not depend on them."""
    if not loss.requires_grad:
        raise ValueError("Expected a loss that depends on the modules' parameters, got one that depends on none.")
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    products = {
        name: (parameter.detach() * gradient).reshape(len(parameter), -1)
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }
    return gate_sums(gates, products)
