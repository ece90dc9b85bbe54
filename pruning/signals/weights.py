"""Importance from the weights alone: size, spread and structure of what computes each neuron."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from pruning.core.finite import expect_finite
from pruning.core.neurons import NeuronLayer, PrunableModule, expect_neurons, gather, named_tensors, real_pairs
from pruning.core.statistics import Histogram, entropy
from pruning.core.tables import table
from pruning.signals.scaling import signal_rows, weighted
from pruning.signals.schemas import WEIGHTS


def weights(model: PrunableModule, *, threshold: float, bins: int) -> pd.DataFrame:
    """Return the `weights` table.

    For each neuron, over its own weights w (n of them):

    - norm: ‖w‖₂;
    - variance: Σ (w − w̄)² / n;
    - nonzero_ratio: share of |w| > `threshold` × the layer's root mean square weight, so that it can differ between
      neurons of a dense layer;
    - entropy: −Σ p log p of the histogram of w in `bins` bins, whose inner edges lie evenly from −4 to 4 RMS of the
      layer and whose outer bins are open (nat, at most log bins);
    - effective_rank: exp of the entropy of the normalised singular values of its gate × input matrix (Roy &
      Vetterli 2007), between 1 and its number of gates. Matrices with as many gates compute the same gates and stand
      side by side; others, a skip connection beside a GRU, say, are blocks on the diagonal, so that all their
      singular values count together.

    The importance is their weighted sum after scaling within the layer; it is exact, so its standard error is 0.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=nn.CrossEntropyLoss())
    >>> weights(model, threshold=0.1, bins=4)["norm"].tolist()
    [1.0, 2.0]

    Args:
        model: Its `layers()` say what each neuron owns.
        threshold: Relative size below which a weight counts as zero.
        bins: Bins of the histogram.
    """
    expect_neurons(model)
    expect_finite(model)
    tensors = named_tensors(model)
    parts = []
    for layer in model.layers():
        components = components_of(layer, tensors, threshold=threshold, bins=bins)
        importance = weighted(components, WEIGHTS.shares)
        owned = gather(layer.owned, tensors).shape[1]
        rows = signal_rows(
            layer.name, components, importance, torch.zeros(layer.width), owned, alike=_alike(layer, tensors)
        )
        parts.append(rows)
    return table(WEIGHTS, pd.concat(parts, ignore_index=True))


def components_of(
    layer: NeuronLayer, tensors: Mapping[str, Tensor], *, threshold: float, bins: int
) -> dict[str, Tensor]:
    """Return the components of one layer by name, each (width,) float64."""
    rows = gather(layer.owned, tensors).cpu().double()
    root_mean_square = rows.square().mean().sqrt()
    histogram = Histogram.empty(layer.width, torch.linspace(-4, 4, bins - 1, dtype=rows.dtype) * root_mean_square)
    histogram.update(rows.T)
    return {
        "norm": rows.norm(dim=1),
        "variance": rows.var(dim=1, correction=0),
        "nonzero_ratio": (rows.abs() > threshold * root_mean_square).double().mean(1),
        "entropy": histogram.entropy,
        "effective_rank": effective_rank(*_gate_matrices(layer, tensors)),
    }


def effective_rank(*blocks: Tensor) -> Tensor:
    """Return exp(entropy of the normalised singular values) of each matrix (Roy & Vetterli 2007).

    >>> effective_rank(torch.eye(3)[None]).round(decimals=4)
    tensor([3.])
    >>> effective_rank(torch.eye(2)[None], torch.ones(1, 1, 1)).round(decimals=4)
    tensor([3.])

    Args:
        blocks: What stands on each matrix's diagonal, (matrices, rows, columns) each, zeros around them.
    """
    return entropy(torch.cat([torch.linalg.svdvals(block) for block in blocks], dim=1)).exp()


def _alike(layer: NeuronLayer, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return what is the same for every neuron because each has one vector of weights, whose rank is 1."""
    matrices = _gate_matrices(layer, tensors)
    return ("effective_rank",) if len(matrices) == 1 and min(matrices[0].shape[1:]) == 1 else ()


def _gate_matrices(layer: NeuronLayer, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return each neuron's gate × input matrices, (width, gates, inputs): its rows of weights with as many gates.

    Biases are no inputs, unless there is nothing else.
    """
    found: dict[int, list[Tensor]] = {}
    for piece in [piece for piece in layer.owned if tensors[piece.parameter].ndim > 1] or layer.owned:
        found.setdefault(piece.blocks, []).append(piece.split(real_pairs(tensors[piece.parameter])))
    return [torch.cat(matrices, dim=2).cpu().double() for matrices in found.values()]
