"""Repair: what a pruned layer's readers lose with its removed neurons, refitted on those that are left."""

import logging
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from pruning.core.neurons import (
    Keep,
    Model,
    NeuronLayer,
    expect_finite,
    frozen_as,
    gather,
    named_buffers,
    named_tensors,
    removed_neurons,
    select,
)
from pruning.core.options import ClosedForm
from pruning.core.statistics import Covariance, merged
from pruning.signals.activations import Covariances

logger = logging.getLogger(__name__)

REPAIRS = get_args(ClosedForm)
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge strengths tried, relative to the mean variance of the kept outputs."""
HELD_OUT = 4
"""Every fourth group of text is held out while the ridge strength is chosen; of fewer groups, the last."""


@dataclass(frozen=True)
class Fit:
    """How removed outputs follow from kept ones: h_removed ≈ slopes · h_kept + intercept.

    Attributes:
        slopes: (removed, kept).
        intercept: (removed,).
    """

    slopes: Tensor
    intercept: Tensor


def reconstruct(model: Model, keep: Keep, covariances: Covariances, *, repair: str) -> Model:
    """Return the smaller model in which every reader of a pruned layer is refitted on what is left, in closed form.

    All that reads a state h (the layer's own recurrence, the next layer, the decoder) is linear in it. With S = cov(h)
    and μ = mean(h), kept K and removed P,

        B = S_PK (S_KK + λ I)⁻¹,  c = μ_P − B μ_K,

    each reader becomes W_:K + W_:P B and its bias gains W_:P c. `none` removes only, `mean` is B = 0 (FLAP's bias, An
    et al. 2024), `ridge` chooses λ for each layer on held-out groups of text by the error in what the readers read.
    The fit is the least-squares one for each reader, however its rows are weighted (cf. OBS, Hassibi & Stork 1993).
    A convolution reads the same at each of its places, a neuron of several dimensions (a head) in each of them. Where
    a reader has no bias to take anything up, c is left out and S and μ are taken about zero. A layer whose readers
    cannot be refitted so is only cut, and a warning says why (`NeuronLayer.obstacle`). A frozen reader is refitted like
    any other, for its removed columns are gone, and stays frozen.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), criterion=nn.CrossEntropyLoss())
    >>> batches = [(torch.tensor([[1.0]]), torch.tensor([0])), (torch.tensor([[3.0]]), torch.tensor([1]))]
    >>> _, covariances = pruning.activations(model, batches, activation_samples=2, bins=4)
    >>> smaller = reconstruct(model, {"0": torch.tensor([1])}, covariances, repair="ridge")
    >>> inputs = torch.tensor([[2.0]])  # what neuron 0 said is half of what neuron 1 says
    >>> torch.allclose(smaller.module(inputs), network(inputs), atol=1e-3)
    True

    Args:
        model: It is left as it was.
        keep: Kept neurons of each layer.
        covariances: Each layer's outputs on calibration text, in groups.
        repair: One of `REPAIRS`.

    Raises:
        ValueError: For an unknown repair, a choice that is not a set of neurons, or a single group of text for `ridge`.
    """
    if repair not in REPAIRS:
        raise ValueError(f"Unknown repair {repair!r}; known: {list(REPAIRS)}.")
    expect_finite(model)
    smaller = select(model, keep)  # refuses a wrong choice before any work
    keep = {name: kept.cpu() for name, kept in keep.items()}  # where the covariances are
    if repair == "none":
        return smaller
    tensors = {name: tensor.cpu().double() for name, tensor in named_tensors(model).items()}
    for layer in model.layers():
        removed = removed_neurons(layer, keep)
        if len(removed) and layer.obstacle:
            logger.warning("Cut and not repaired: layer %s, because %s.", layer.name, layer.obstacle)
        elif len(removed):
            _refit(tensors, layer, keep[layer.name], removed, covariances[layer.name], repair)
    repaired = model.resized([layer.width for layer in model.layers()])
    repaired.load_state_dict({**tensors, **named_buffers(model)})
    return select(frozen_as(model, repaired).train(model.training), keep)


def _refit(
    tensors: dict[str, Tensor], layer: NeuronLayer, kept: Tensor, removed: Tensor, groups: list[Covariance], repair: str
) -> None:
    """Let the readers' kept columns and biases in `tensors` stand in for the removed ones."""
    biased, readers = all(piece.bias for piece in layer.read), gather(layer.read, tensors)
    ridge = 0.0 if repair == "mean" else best_ridge(groups, kept, removed, readers, intercept=biased)
    fit = fit_of(merged(groups), kept, removed, ridge=ridge, slopes=repair == "ridge", intercept=biased)
    for piece in layer.read:
        columns = piece.split(tensors[piece.parameter]).clone()
        lost = columns[removed]
        columns[kept] += torch.einsum("pk,pbn->kbn", fit.slopes.to(lost), lost)
        tensors[piece.parameter] = piece.join(columns, tensors[piece.parameter])
        if biased:
            shift = torch.einsum("p,pbn->n", fit.intercept.to(lost), lost)
            bias = tensors[piece.bias]
            tensors[piece.bias] = bias + shift.view(piece.size, len(bias), -1).sum((0, 2))  # dimensions, rows, places


def best_ridge(
    groups: list[Covariance], kept: Tensor, removed: Tensor, readers: Tensor, *, intercept: bool = True
) -> float:
    """Return the relative ridge strength whose fit on most groups of text predicts the others' readings best.

    The error is E‖W_:P (h_P − B h_K − c)‖² over held-out groups, from their moments alone.

    Args:
        groups: Covariance of the layer's outputs in each group of text.
        kept: Kept neurons.
        removed: Removed neurons.
        readers: What reads each neuron, (width, n).
        intercept: Whether the fit has one.

    Raises:
        ValueError: If there is only one group, of which nothing can be held out.
    """
    if len(groups) < 2:
        raise ValueError(
            f"Expected at least two groups of text, to hold one out while the ridge strength is chosen, got "
            f"{len(groups)}; measure the covariances on more batches, or repair by 'mean'."
        )
    every = min(HELD_OUT, len(groups))
    held_out = merged(groups[every - 1 :: every])
    fitted_on = merged([group for index, group in enumerate(groups) if index % every != every - 1])
    gram = (readers[removed] @ readers[removed].T).cpu().double()
    fits = {ridge: fit_of(fitted_on, kept, removed, ridge=ridge, intercept=intercept) for ridge in RIDGES}
    errors = {ridge: (gram * error_of(fit, held_out, kept, removed)).sum().item() for ridge, fit in fits.items()}
    return min(errors, key=errors.__getitem__)


def fit_of(
    state: Covariance, kept: Tensor, removed: Tensor, *, ridge: float, slopes: bool = True, intercept: bool = True
) -> Fit:
    """Return the regression of removed outputs on kept ones; only their means where `slopes` is false."""
    mean = state.mean if intercept else torch.zeros_like(state.mean)
    if not slopes:
        return Fit(state.mean.new_zeros(len(removed), len(kept)), mean[removed])
    matrix = state.matrix if intercept else state.second_moment
    inner = matrix[kept][:, kept]
    strength = (ridge * inner.diagonal().mean()).clamp(min=torch.finfo(inner.dtype).tiny)  # also if nothing varies
    damped = inner + strength * torch.eye(len(kept), dtype=inner.dtype)
    found = torch.linalg.solve(damped, matrix[kept][:, removed]).T  # not lstsq, whose last bits differ between calls
    return Fit(found, mean[removed] - found @ mean[kept])


def error_of(fit: Fit, state: Covariance, kept: Tensor, removed: Tensor) -> Tensor:
    """Return E[e eᵀ] of e = h_removed − slopes · h_kept − intercept over the text of `state`, (removed, removed)."""
    weights = torch.zeros(len(removed), len(state.mean), dtype=state.mean.dtype)
    weights[:, removed] = torch.eye(len(removed), dtype=state.mean.dtype)
    weights[:, kept] = -fit.slopes
    mean = weights @ state.mean - fit.intercept
    spread: Tensor = weights @ (state.products / state.count) @ weights.T
    return spread + torch.outer(mean, mean)
