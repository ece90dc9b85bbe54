"""Importance from how neurons depend on each other: a graph whose edges combine weights and correlated states."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from pruning.core.finite import expect_finite
from pruning.core.neurons import NeuronLayer, PrunableModule, Slice, expect_neurons, named_tensors
from pruning.core.statistics import Covariance, jackknife_error, merged, quantile
from pruning.core.tables import table
from pruning.signals.activations import Covariances
from pruning.signals.scaling import signal_rows, weighted
from pruning.signals.schemas import COOPERATIVE

RIDGE = 1e-6
"""Added to the correlation's diagonal, so that duplicated neurons do not make it singular."""
TOGETHER = 512
"""Neurons whose shared partners are counted together."""


def cooperative(model: PrunableModule, covariances: Covariances, *, strong: float) -> pd.DataFrame:
    """Return the `cooperative` table, from a graph of each layer's neurons.

    The edge between i and j weighs e = ½ (c + |ρ|): c is the size of the recurrent weights between them in both
    directions, √Σ w² over the gates, relative to the layer's 95th percentile and at most 1; ρ is the correlation of
    their activations. Where a layer does not feed itself, e = |ρ|. Strong edges are those above the quantile `strong`.

    - connection_strength: Σ_j e_ij / (width − 1), in [0, 1];
    - uniqueness: 1 − R² of the neuron's activation regressed on all others, 1 / [ρ⁻¹]_ii, in [0, 1]; 0 if it is
      constant;
    - degree_centrality: share of the other neurons to which it has a strong edge (Freeman 1978);
    - cooperative_ability: weighted clustering coefficient of its strong edges (Barrat et al. 2004): how much its
      partners also work with each other; 0 with fewer than two partners.

    The importance is their weighted sum after scaling within the layer; its standard error is the jackknife over the
    groups of text that the covariances come from.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=nn.CrossEntropyLoss())
    >>> batches = [(torch.tensor([[1.0]]), torch.tensor([0])), (torch.tensor([[3.0]]), torch.tensor([1]))]
    >>> _, covariances = pruning.activations(model, batches, activation_samples=2, bins=4)
    >>> cooperative(model, covariances, strong=0.5)["uniqueness"].round(3).tolist()  # each is a multiple of the other
    [0.0, 0.0]

    Args:
        model: Its `layers()` say which weights connect a layer to itself.
        covariances: What `activations` returned.
        strong: Quantile of the edges above which an edge is strong.
    """
    expect_neurons(model)
    expect_finite(model)
    tensors, parts = named_tensors(model), []
    for layer in model.layers():
        coupling = recurrent_coupling(layer, tensors)
        groups = covariances[layer.name]

        def components(state: Covariance, coupling: Tensor | None = coupling) -> dict[str, Tensor]:
            return components_of(state, coupling, strong)

        whole = merged(groups)
        values = components(whole)
        error = jackknife_error(groups, lambda state: weighted(components(state), COOPERATIVE.shares))
        parts.append(signal_rows(layer.name, values, weighted(values, COOPERATIVE.shares), error, whole.count))
    return table(COOPERATIVE, pd.concat(parts, ignore_index=True))


def components_of(state: Covariance, coupling: Tensor | None, strong: float) -> dict[str, Tensor]:
    """Return the components of one layer by name, each (width,) float64."""
    correlation = state.correlation
    edges = edges_of(correlation.abs(), coupling)
    partners = _strong(edges, strong)
    others = max(len(edges) - 1, 1)
    return {
        "connection_strength": edges.sum(1) / others,
        "uniqueness": _uniqueness(state),
        "degree_centrality": partners.sum(1).double() / others,
        "cooperative_ability": _clustering(edges, partners),
    }


def recurrent_coupling(layer: NeuronLayer, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return how strongly each pair of the layer's neurons is wired, (width, width) symmetric; None if it is not.

    A layer is wired to itself by a parameter that it both owns and reads: its rows compute, its columns listen.
    """
    reading = dict.fromkeys(replace(piece, bias="") for piece in layer.read)
    directed = [
        _wires(piece, reader, tensors[piece.parameter])
        for piece in layer.owned
        for reader in reading
        if piece.parameter == reader.parameter and piece.dim != reader.dim
    ]
    if not directed:
        return None
    total = torch.stack(directed).sum(0)
    return (total + total.T).sqrt()


def _wires(owned: Slice, read: Slice, weights: Tensor) -> Tensor:
    """Return Σ w² of all by which one neuron (a row) listens to another: gates, a kernel's places, (width, width)."""
    squares = weights.cpu().double().square().movedim((owned.dim, read.dim), (0, 1))
    matrix = squares.reshape(*squares.shape[:2], -1).sum(2)
    listening = _by_neuron(replace(owned, dim=0), matrix)
    return _by_neuron(replace(read, dim=0), listening.T).T


def _by_neuron(piece: Slice, matrix: Tensor) -> Tensor:
    """Return the sums of a matrix's rows that belong to the same neuron, (width, columns)."""
    rows = piece.split(matrix)
    return rows.reshape(len(rows), -1, matrix.shape[1]).sum(1)


def edges_of(correlation: Tensor, coupling: Tensor | None) -> Tensor:
    """Return the weight of each edge, (width, width), symmetric, zero on the diagonal."""
    between = ~torch.eye(len(correlation), dtype=torch.bool)
    if coupling is None or not between.any():
        return correlation * between
    large = quantile(coupling[between], 0.95)
    relative = (coupling / large).clamp(max=1) if large > 0 else torch.zeros_like(coupling)
    return 0.5 * (relative + correlation) * between


def _strong(edges: Tensor, strong: float) -> Tensor:
    """Return whether each two neurons have an edge above the quantile `strong`, (width, width) symmetric."""
    above = torch.ones(edges.shape, dtype=torch.bool).triu(1)
    if not above.any():
        return above
    # each edge counts once, and as it stands above the diagonal: below, rounding may have left another last digit
    above &= edges > quantile(edges[above], strong)
    return above | above.T


def _clustering(edges: Tensor, partners: Tensor) -> Tensor:
    """Return Barrat's weighted clustering coefficient, Σ_jk ½ (e_ij + e_ik) a_ij a_ik a_jk / (Σ_j e_ij a_ij (k_i − 1)).

    a_ij says whether i and j are partners and k_i = Σ_j a_ij; as [A²]_ij counts the partners that i and j share, the
    numerator is Σ_j e_ij a_ij [A²]_ij. It is 0 with fewer than two partners.
    """
    shared, weights = _shared(partners), edges * partners
    pairs = weights.sum(1) * (partners.sum(1) - 1)
    return torch.where(pairs > 0, (weights * shared).sum(1) / pairs, 0)


def _shared(partners: Tensor) -> Tensor:
    """Return how many partners each two neurons share, (width, width): half of it is counted, for it is symmetric."""
    joined = partners.float()  # whose products are counts below 2²⁴, so exact
    shared = torch.empty_like(joined)
    for start in range(0, len(joined), TOGETHER):
        rows = slice(start, start + TOGETHER)
        shared[rows, start:] = joined[rows] @ joined[:, start:]
        shared[rows.stop :, rows] = shared[rows, rows.stop :].T
    return shared


def _uniqueness(state: Covariance) -> Tensor:
    """Return the share of each neuron's variance that the others do not explain linearly, (width,)."""
    return torch.where(state.varies, (1 / state.precision(RIDGE, correlation=True)).clamp(0, 1), 0)
