"""Repair: what a pruned layer's readers lose with its removed neurons, refitted on those that are left."""

import logging
from typing import get_args

import torch
from torch import Tensor

from pruning.core.finite import expect_finite
from pruning.core.neurons import (
    Keep,
    Model,
    NeuronLayer,
    expect_neurons,
    frozen_as,
    gather,
    named_buffers,
    named_tensors,
    narrowed,
    removed_neurons,
    select,
)
from pruning.core.options import ClosedForm, expect_known
from pruning.core.progress import Track, silently
from pruning.core.statistics import Covariance, merged
from pruning.data.windows import Batches
from pruning.repair.fitting import best_ridge, fit_of
from pruning.repair.refitting import UNREPAIRED, refitted
from pruning.signals.activations import Covariances

logger = logging.getLogger(__name__)

REPAIRS = get_args(ClosedForm)


def reconstruct(
    model: Model,
    keep: Keep,
    covariances: Covariances | None = None,
    *,
    repair: str,
    data: Batches | None = None,
    rank: int | None = None,
    track: Track = silently,
) -> Model:
    """Return the smaller model in which every reader of a pruned layer is refitted on what is left, in closed form.

    All that reads a state h (the layer's own recurrence, the next layer, the decoder) is linear in it. With S = cov(h)
    and μ = mean(h), kept K and removed P,

        B = S_PK (S_KK + λ I)⁻¹,  c = μ_P − B μ_K,

    each reader becomes W_:K + W_:P B and its bias gains W_:P c. `none` removes only, `mean` is B = 0 (FLAP's bias, An
    et al. 2024), `ridge` chooses λ for each layer on held-out groups of text by the error in what the readers read.
    The fit is the least-squares one for each reader, however its rows are weighted (cf. OBS, Hassibi & Stork 1993).
    A convolution reads the same at each of its places, a neuron of several dimensions (a head) in each of them. Where
    a reader has no bias to take anything up, c is left out and S and μ are taken about zero. A frozen reader is
    refitted like any other, for its removed columns are gone, and stays frozen.

    `covariances` serve where all readers read the same: one record of the layer's outputs. With `data` each reader is
    refitted on what it reads itself, wherever that is: the state after the last step, a mean over steps, what
    attention or a normalisation makes of the neurons, an image with zeros around it. Layers are cut one after the
    other, and x' is what the kept neurons say to the reader in the network that is cut so far, x what all said in the
    dense one, so that later readers make up for what earlier cuts changed:

        W' = W_:K + W B,  B = cov(x − x'_K in its place, x') (cov(x') + λ I)⁻¹,  b' = b + W c,

    λ by cross-validation over four parts of the data. Where a layer's own cut changes what its readers read (a
    recurrence, a normalisation over the neurons), they are refitted once more on what they then read. What an LSTM or
    an RNN reads beside its own state stands in for lost states too (x' then holds both). A reader whose
    parameter computes the neurons too (a tied embedding) keeps its weights, and only its bias changes.

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=nn.CrossEntropyLoss())
    >>> batches = [(torch.tensor([[1.0]]), torch.tensor([0])), (torch.tensor([[3.0]]), torch.tensor([1]))]
    >>> _, covariances = pruning.activations(model, batches, activation_samples=2, bins=4)
    >>> smaller = reconstruct(model, {"0": torch.tensor([1])}, covariances, repair="ridge")
    >>> inputs = torch.tensor([[2.0]])  # what neuron 0 said is half of what neuron 1 says
    >>> torch.allclose(smaller.module(inputs), network(inputs), atol=1e-3)
    True
    >>> smaller = reconstruct(model, {"0": torch.tensor([1])}, data=batches, repair="ridge")
    >>> torch.allclose(smaller.module(inputs), network(inputs), atol=1e-3)
    True

    Args:
        model: It is left as it was.
        keep: Kept neurons of each layer.
        covariances: Each layer's outputs on calibration text, in groups. A layer whose readers read different things is
            then only cut, and a warning says why (`NeuronLayer.obstacle`).
        repair: One of `REPAIRS`.
        data: Batches of (inputs, targets) instead, or of inputs alone: of the form of those that the model was adapted
            with, or that what `discover` returned is called with. They are read in order, state carried, two to four
            times for each layer, once by the dense and once by the pruned network.
        rank: With data: how many directions are kept of what a layer's readers read in both networks, where that is
            more than twice as many numbers (see `Sketch`); None for exact moments. Covariances bring their own.
        track: Shows progress.

    Raises:
        ValueError: Without data and covariances, for an unknown repair, a choice that is not a set of neurons, or a
            single group of text for `ridge`.
    """
    expect_known("repair", REPAIRS, repair)
    expect_neurons(model)
    expect_finite(model)
    if repair == "none":
        return select(model, keep)
    narrowed(model, keep)  # refuses a wrong choice before any work
    keep = {name: kept.cpu() for name, kept in keep.items()}  # where the covariances are
    if data is not None:
        return refitted(model, keep, data, repair=repair, rank=rank, track=track)
    if covariances is None:
        raise ValueError(f"Expected data or covariances to repair by {repair!r}, got neither; give `data`.")
    # Only what is solved for is cast, not embeddings and the like, which may be most of a model.
    solved = {name for layer in model.layers() for piece in layer.read for name in (piece.parameter, piece.bias)}
    tensors = {
        name: tensor.detach().cpu().double() if name in solved else tensor
        for name, tensor in named_tensors(model).items()
    }
    for layer in model.layers():
        removed = removed_neurons(layer, keep)
        if len(removed) and layer.unread:
            logger.warning(UNREPAIRED, layer.name, layer.obstacle)
        elif len(removed) and layer.obstacle:
            logger.warning("Cut and not repaired: layer %s, because %s; give `data`.", layer.name, layer.obstacle)
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
        columns[kept] += fit.moved(lost)
        tensors[piece.parameter] = piece.join(columns, tensors[piece.parameter])
        if biased:
            shift = torch.einsum("p,pbn->n", fit.intercept.to(lost), lost)
            bias = tensors[piece.bias]
            tensors[piece.bias] = bias + shift.view(piece.size, len(bias), -1).sum((0, 2))  # dimensions, rows, places
