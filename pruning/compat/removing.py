"""The truth that learned fusion is fitted to, for any model: the rise of the loss without one neuron."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from pruning.ablation.oracle import neurons_to_measure
from pruning.compat.calling import untouched
from pruning.core.neurons import NeuronLayer

Losses = Callable[[], Tensor]
"""() → the loss of each batch by the model as it is at that moment, (batches,)."""


def removal_rises(
    model: nn.Module, layers: Sequence[NeuronLayer], losses: Losses, *, neurons: int, seed: int
) -> pd.DataFrame:
    """Return `layer`, `neuron`, `loss_increase` and its `standard_error` over batches, of a sample of the neurons.

    One reading of the batches for each neuron, what reads it set to zero meanwhile: slow, and good for any model.
    `pruning.ablation.oracle` measures the library's own models many at a time.

    Args:
        model: It is left as it was.
        layers: Layers of neurons; their `read` slices are what is set to zero.
        losses: Reads at least two batches.
        neurons: How many to measure, drawn from each layer in proportion to its width.
        seed: Seed of the sample.

    Raises:
        ValueError: For fewer than two batches, which tell nothing of the error.
    """
    rows = []
    with untouched(model), torch.no_grad():
        whole = losses()
        if len(whole) < 2:
            raise ValueError(f"Expected at least two batches to measure removals on, got {len(whole)}.")
        chosen = neurons_to_measure(layers, neurons, seed)
        for layer in layers:
            for neuron in chosen[layer.name].tolist():
                rise = _without(model, layer, neuron, losses) - whole
                rows.append((layer.name, neuron, rise.mean().item(), rise.std().item() / len(rise) ** 0.5))
    return pd.DataFrame(rows, columns=["layer", "neuron", "loss_increase", "standard_error"])


def _without(model: nn.Module, layer: NeuronLayer, neuron: int, losses: Losses) -> Tensor:
    """Return each batch's loss while what reads a neuron is zero; it is put back, also after an error."""
    one = torch.tensor([neuron])
    pieces = [(piece, model.get_parameter(piece.parameter)) for piece in layer.read]
    before = {parameter: parameter.detach().clone() for _, parameter in pieces}
    try:
        for piece, parameter in pieces:
            parameter.index_fill_(piece.dim, piece.indices(one, layer.width).to(parameter.device), 0.0)
        return losses()
    finally:
        for parameter, values in before.items():
            parameter.copy_(values)
