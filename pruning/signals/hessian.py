"""The traditional importance, Hessian trace × ‖w‖² / n, with the trace of every neuron from the same probes."""

from collections.abc import Sequence
from itertools import cycle, islice

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pruning.batching import Windows
from pruning.evaluation import carried, evaluating, next_token_loss
from pruning.layers import NeuronLayer, gather, named_tensors
from pruning.models.base import LanguageModel, State
from pruning.progress import Track, silently
from pruning.signals.scaling import signal_rows
from pruning.statistics import Moments, merged
from pruning.tables import table

FEWEST_PROBES = 8
"""Probes before the ranking's stability is asked for: with fewer, two halves agree by luck."""


def hessian(
    model: LanguageModel,
    windows: Windows,
    *,
    probes: int,
    stability: float,
    seed: int,
    track: Track = silently,
) -> pd.DataFrame:
    """Return the `hessian` table.

    For each neuron with own weights w (n of them):

    - trace: E[Σ v ⊙ Hv] over its weights, v = ±1 at random (Hutchinson 1990), H the Hessian of the loss (nat/token);
      one Hessian-vector product serves all neurons, since v's other entries cancel in expectation;
    - mean_square: ‖w‖² / n;
    - importance: trace × mean_square, the HAP criterion (Yu et al. 2021).

    Each probe reads its own window with carried state, so the standard error covers both the probes and the text.
    Probing stops once the rankings of two independent halves agree, or when the budget is spent.

    Args:
        model: A language model.
        windows: Calibration text.
        probes: The budget: at most this many Hessian-vector products.
        stability: Spearman correlation between the halves' rankings, averaged over layers, that is enough.
        seed: Seed of the probes.
        track: Shows progress.
    """
    layers = model.layers()
    halves = [{layer.name: Moments.empty(layer.width) for layer in layers} for _ in range(2)]
    generator = torch.Generator().manual_seed(seed)
    state: State | None = None
    with evaluating(model):
        for index, window in enumerate(track(list(islice(cycle(windows), probes)), "hessian")):
            state = carried(state) if index % len(windows) else None
            traces, state = _probe(model, layers, window.tokens, window.targets, state, generator)
            for name, trace in traces.items():
                halves[index % 2][name].update(trace[None])
            if index + 1 >= FEWEST_PROBES and ranking_stability(halves) >= stability:
                break
    return _hessian_table(model, layers, halves)


def _probe(
    model: LanguageModel,
    layers: Sequence[NeuronLayer],
    tokens: Tensor,
    targets: Tensor,
    state: State | None,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], State]:
    """Return one unbiased estimate of every neuron's trace, and the state to carry on from."""
    parameters = owned_parameters(model, layers)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers cannot be differentiated twice
        loss, state = next_token_loss(model, tokens, targets, state)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    signs = [torch.randint(0, 2, g.shape, generator=generator).to(g) * 2 - 1 for g in gradients]
    products = torch.autograd.grad(gradients, list(parameters.values()), grad_outputs=signs)
    probed = {name: v * hv for name, v, hv in zip(parameters, signs, products, strict=True)}
    return {layer.name: gather(layer.owned, probed).sum(1) for layer in layers}, state


def owned_parameters(model: LanguageModel, layers: Sequence[NeuronLayer]) -> dict[str, Tensor]:
    """Return the parameters that hold neurons' own weights, by name."""
    owned = {piece.parameter for layer in layers for piece in layer.owned}
    return {name: parameter for name, parameter in model.named_parameters() if name in owned}


def ranking_stability(halves: Sequence[dict[str, Moments]]) -> float:
    """Return the Spearman correlation between two halves' estimates, averaged over layers."""
    return sum(float(spearmanr(one.mean, other.mean).statistic) for one, other in _pairs(halves)) / len(halves[0])


def _pairs(halves: Sequence[dict[str, Moments]]) -> list[tuple[Moments, Moments]]:
    return [(halves[0][name], halves[1][name]) for name in halves[0]]


def _hessian_table(
    model: LanguageModel, layers: Sequence[NeuronLayer], halves: Sequence[dict[str, Moments]]
) -> pd.DataFrame:
    tensors, parts = named_tensors(model), []
    for layer, pair in zip(layers, _pairs(halves), strict=True):
        estimate = merged(pair)
        mean_square = gather(layer.owned, tensors).double().cpu().square().mean(1)
        components = {
            "trace": estimate.mean,
            "trace_standard_error": estimate.standard_error,
            "mean_square": mean_square,
        }
        importance, error = estimate.mean * mean_square, estimate.standard_error * mean_square
        parts.append(signal_rows(layer.name, components, importance, error, estimate.count))
    return table("hessian", pd.concat(parts, ignore_index=True))
