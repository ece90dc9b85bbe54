"""What a model is worth and what it costs: loss over a whole split, sizes, and measured latency."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.batching import IGNORED, Window
from pruning.models.base import LanguageModel, State
from pruning.progress import Track, silently


@dataclass(frozen=True)
class Loss:
    """A model's loss over a split.

    Attributes:
        total: Summed negative log-likelihood, nat.
        tokens: How many tokens were predicted.
    """

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Cross-entropy, nat/token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy)."""
        return math.exp(min(self.mean, 700.0))


def loss_of(
    model: LanguageModel, windows: Sequence[Window], *, track: Track = silently, what: str = "evaluate"
) -> Loss:
    """Return the model's loss over all windows: state carried from window to window, every token predicted once.

    The model is evaluated without dropout and left in the mode it was in.
    """
    total, tokens, state = 0.0, 0, None
    with evaluating(model), torch.no_grad():
        for window in track(windows, what):
            loss, state = next_token_loss(model, window.tokens, window.targets, state, reduction="sum")
            total += loss.item()
            tokens += int((window.targets != IGNORED).sum())
    return Loss(total, tokens)


def next_token_loss(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: State | None, *, reduction: str = "mean"
) -> tuple[Tensor, State]:
    """Return the cross-entropy of one window, padding left out, and the state to carry on from.

    Args:
        model: A language model, in whichever mode is wanted.
        tokens: What it reads, (T, B), on any device; likewise `targets`.
        targets: What follows each token, (T, B); `IGNORED` where nothing does.
        state: What the window before left, or None.
        reduction: `mean` (nat/token) or `sum` (nat).
    """
    device = next(model.parameters()).device
    logits, state = model(tokens.to(device), state)
    wanted = targets.to(device).flatten()
    return F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=IGNORED, reduction=reduction), state


def carried(state: State | None) -> State | None:
    """Return the state cut off from the graph that computed it: back-propagation is truncated there."""
    return None if state is None else [tuple(tensor.detach() for tensor in layer) for layer in state]


class evaluating:  # noqa: N801 - a context manager reads as a verb
    """Switch a model to evaluation and each of its modules back to the mode it was in."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modes = model, {module: module.training for module in model.modules()}

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode


@dataclass(frozen=True)
class Size:
    """What a model costs to hold and to run.

    Attributes:
        neurons: Neurons of all layers.
        parameters: Stored numbers, shared ones once.
        multiply_adds: Multiply-adds for one token.
    """

    neurons: int
    parameters: int
    multiply_adds: int


def size_of(model: LanguageModel) -> Size:
    """Return what the model costs to hold and to run."""
    return Size(sum(model.widths()), sum(p.numel() for p in model.parameters()), model.multiply_adds())


@dataclass(frozen=True)
class Latency:
    """Seconds for one step of `batch` sequences.

    Attributes:
        seconds: Median.
        spread: Interquartile range.
        repeats: How often it was measured.
    """

    seconds: float
    spread: float
    repeats: int


def latencies(
    models: Mapping[str, LanguageModel], *, batch: int, repeats: int, track: Track = silently
) -> dict[str, Latency]:
    """Return how long one step (one token of each of `batch` sequences, state carried) takes in each model.

    The models take turns, so that whatever else the machine does falls on all of them alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in models}
    states: dict[str, State | None] = dict.fromkeys(models)
    with torch.inference_mode(), ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        for round_ in track(range(-repeats // 10, repeats), f"latency at batch {batch}"):
            for name, model in models.items():
                seconds, states[name] = _timed_step(model, batch, states[name])
                if round_ >= 0:  # the rounds below zero warm up
                    samples[name].append(seconds)
    return {name: _latency(np.array(times)) for name, times in samples.items()}


def _timed_step(model: LanguageModel, batch: int, state: State | None) -> tuple[float, State]:
    device = next(model.parameters()).device
    tokens = torch.zeros(1, batch, dtype=torch.long, device=device)
    start = time.perf_counter()
    _, state = model(tokens, state)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, state


def _latency(times: np.ndarray) -> Latency:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Latency(float(middle), float(high - low), len(times))
