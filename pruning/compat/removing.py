"""The truth that learned fusion is fitted to, for given parameters: the rise of the loss without one neuron's rows."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from pruning.compat.calling import Caller, Criterion, untouched
from pruning.compat.given import Given
from pruning.compat.measuring import Batch
from pruning.layers import NeuronLayer
from pruning.oracle import neurons_to_measure


def row_removals(
    model: nn.Module,
    own: Given,
    batches: Sequence[Batch],
    criterion: Criterion,
    device: torch.device,
    *,
    neurons: int,
    seed: int,
) -> pd.DataFrame:
    """Return `layer`, `neuron`, `loss_increase` and its `standard_error` over batches, of a sample of the neurons.

    One reading of the batches for each neuron, its rows set to zero meanwhile: slow, and good for any model.
    `pruning.oracle` measures the library's own models many at a time.

    Args:
        model: It is left as it was.
        own: What was handed over.
        batches: (data, targets), at least two.
        criterion: (output, targets) → loss.
        device: Where the model computes.
        neurons: How many to measure, drawn from each layer in proportion to its width.
        seed: Seed of the sample.

    Raises:
        ValueError: For fewer than two batches, which tell nothing of the error.
    """
    if len(batches) < 2:
        raise ValueError(f"Expected at least two batches to measure removals on, got {len(batches)}.")
    rows = []
    with untouched(model), torch.no_grad():
        whole = _losses(model, batches, criterion, device)
        chosen = neurons_to_measure(own.layers, neurons, seed)
        for layer in own.layers:
            for neuron in chosen[layer.name].tolist():
                rise = _without(model, own, layer, neuron, batches, criterion, device) - whole
                error = rise.std() / len(rise) ** 0.5
                rows.append((layer.name, neuron, rise.mean().item(), error.item()))
    return pd.DataFrame(rows, columns=["layer", "neuron", "loss_increase", "standard_error"])


def _without(
    model: nn.Module,
    own: Given,
    layer: NeuronLayer,
    neuron: int,
    batches: Sequence[Batch],
    criterion: Criterion,
    device: torch.device,
) -> Tensor:
    """Return each batch's loss while a neuron's rows are zero; they are put back, also after an error."""
    places = {p.parameter: p.indices(torch.tensor([neuron]), layer.width).to(device) for p in layer.owned}
    before = {name: own.parameters[name].detach()[rows].clone() for name, rows in places.items()}
    try:
        for name, rows in places.items():
            own.parameters[name].index_fill_(0, rows, 0.0)
        return _losses(model, batches, criterion, device)
    finally:
        for name, rows in places.items():
            own.parameters[name].index_copy_(0, rows, before[name])


def _losses(model: nn.Module, batches: Sequence[Batch], criterion: Criterion, device: torch.device) -> Tensor:
    """Return each batch's loss, (batches,)."""
    caller = Caller(model, device)
    return torch.stack([caller.loss(data, targets, criterion).double().cpu() for data, targets in batches])
