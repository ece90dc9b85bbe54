"""How much the loss depends on what the readers of each neuron read: the Gram matrix of its readers, per layer."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.batching import IGNORED, Window, Windows
from pruning.evaluation import carried, evaluating
from pruning.layers import NeuronLayer
from pruning.models.base import LanguageModel, State
from pruning.progress import Track, silently
from pruning.signals.grouped import empty_groups, group_of
from pruning.statistics import Covariance


def sensitivities(
    model: LanguageModel, windows: Windows, *, batches: int, seed: int, track: Track = silently
) -> dict[str, list[Covariance]]:
    """Return the moments of γ = ∂L/∂h of each layer, in groups of consecutive windows.

    h (width,) are a layer's outputs at one token and γ their derivative through every reader: the layer's own
    recurrence, the next layer, the decoder. L is the summed loss of the window with labels sampled from the model, so
    that M = E[γ γᵀ] is the Fisher information of h, and an error e in what is read costs ½ eᵀ M e nat/token to second
    order. With readers' weights W and pre-activation gradients g, γ = Wᵀ g: M is the sum over pairs of readers of
    Wᵀ E[g gᵀ] W, which is how K-FAC weighs their rows (Martens & Grosse 2015), without its matrices ever being made.

    Args:
        model: A language model.
        windows: Calibration text, read in order with carried state; what flows back is cut at a window's end.
        batches: At most this many windows are read.
        seed: Seed of the sampled labels.
        track: Shows progress.
    """
    layers = model.layers()
    count = min(batches, len(windows))
    groups = {layer.name: empty_groups(partial(Covariance.empty, layer.width), count) for layer in layers}
    generator = torch.Generator().manual_seed(seed)
    state: State | None = None
    with evaluating(model):
        for index in track(range(count), "sensitivities"):
            found, state = _of_window(model, layers, windows[index], carried(state), generator)
            for name, gradients in found.items():
                group_of(groups[name], index, count).update(gradients.flatten(0, 1))
    return groups


def _of_window(
    model: LanguageModel,
    layers: Sequence[NeuronLayer],
    window: Window,
    state: State | None,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], State]:
    """Return ∂L/∂h of each layer, (T, B, width), and the state to carry on from."""
    weight = model.encoder.weight
    tokens = window.tokens.to(weight.device)
    offsets = {layer.name: weight.new_zeros(*tokens.shape, layer.width, requires_grad=True) for layer in layers}
    features, state = model.features(tokens, state, offsets)
    logits = model.decode(features).flatten(0, 1)
    labels = _sampled(logits, generator).masked_fill(window.targets.flatten().to(tokens.device) == IGNORED, IGNORED)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return dict(zip(offsets, torch.autograd.grad(loss, list(offsets.values())), strict=True)), state


def _sampled(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return one label of each row's distribution, (samples,), the same for the same generator on any device."""
    shares = logits.detach().softmax(-1).cumsum(-1)
    draws = torch.rand(len(shares), 1, generator=generator).to(shares) * shares[:, -1:]
    return torch.searchsorted(shares, draws).squeeze(1).clamp(max=shares.shape[1] - 1)
