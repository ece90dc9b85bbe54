"""What a model is worth and what it costs: loss over a whole split, sizes, and measured latency."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.batching import Batches
from pruning.devices import RandomStates, accelerators_of, wait_for, without_cudnn
from pruning.models.base import LanguageModel, Measurable, State
from pruning.progress import Track, silently


@dataclass(frozen=True)
class Loss:
    """A model's loss over a split.

    Attributes:
        total: Summed negative log-likelihood, nat (or whatever else the model's own criterion gives).
        tokens: How many targets were predicted; tokens of a language model.
        correct: How many of them have the highest logit.
    """

    total: float
    tokens: int
    correct: int = 0

    @property
    def mean(self) -> float:
        """Cross-entropy, nat/token."""
        return self.total / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of the targets that have the highest logit, in [0, 1]."""
        return self.correct / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy)."""
        return math.exp(min(self.mean, 700.0))


def loss_of(model: Measurable, windows: Batches, *, track: Track = silently, what: str = "evaluate") -> Loss:
    """Return the model's loss over all batches: state carried from window to window, every token predicted once.

    The model is evaluated without dropout and left in the mode it was in.
    """
    total, tokens, correct, state = 0.0, 0, 0, None
    with evaluating(model), torch.no_grad():
        for _, (inputs, targets) in zip(track(range(len(windows)), what), windows, strict=False):
            logits, state = model.logits(inputs, state)
            total += model.judged(logits, targets, reduction="sum").item()
            tokens += model.count(targets)
            correct += int((logits.argmax(-1) == model.labels(targets)).sum())
    return Loss(total, tokens, correct)


def next_token_loss(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: State | None, *, reduction: str = "mean"
) -> tuple[Tensor, State]:
    """Return the cross-entropy of one window, padding left out, and the state; see `Measurable.loss`."""
    return model.loss(tokens, targets, state, reduction=reduction)


def carried(state: Any) -> Any:
    """Return the state cut off from the graph that computed it: back-propagation is truncated there.

    Raises:
        TypeError: If the state is not made of tensors, tuples, lists and dictionaries.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, list | tuple):
        return type(state)(carried(part) for part in state)
    if isinstance(state, dict):
        return {name: carried(part) for name, part in state.items()}
    raise TypeError(f"Expected a state of tensors in tuples, lists or dictionaries, got {type(state).__name__}.")


@contextmanager
def thawed(model: nn.Module) -> Iterator[None]:
    """Within the context, let derivatives by frozen parameters be asked for too; then they are frozen again.

    What is frozen does not learn, but a neuron is as important as it is whether its weights learn or not.
    """
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class evaluating:  # noqa: N801 - a context manager reads as a verb
    """Switch a model to evaluation and each of its modules back to the mode it was in.

    The global random states are left as they were, too, the CPU's and those of the devices that the model lives on: a
    `DataLoader` draws from them whenever it is read, and so does a module that draws in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modes = model, {module: module.training for module in model.modules()}

    def __enter__(self) -> None:
        self.random = RandomStates(accelerators_of(self.model))
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.random.restore()
        for module, mode in self.modes.items():
            module.training = mode


@contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """Within the context, the model is in evaluation mode and can be differentiated once, on any device.

    cuDNN differentiates recurrent layers in training mode only. One that drops nothing computes the same in either
    mode, so those on CUDA are switched to it; where one does drop something, cuDNN is left out.
    """
    with evaluating(model), ExitStack() as kernels:
        recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        fused = [module for module in recurrent if any(parameter.is_cuda for parameter in module.parameters())]
        if any(module.dropout for module in fused):
            kernels.enter_context(without_cudnn())
        else:
            for module in fused:
                module.training = True
        yield


@dataclass(frozen=True)
class Size:
    """What a model costs to hold and to run.

    Attributes:
        neurons: Neurons of all layers.
        parameters: Stored numbers, shared ones once.
        multiply_adds: Multiply-adds for one token (one example).
    """

    neurons: int
    parameters: int
    multiply_adds: int


def size_of(model: Measurable) -> Size:
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
    models: Mapping[str, Measurable], *, batch: int, repeats: int, track: Track = silently
) -> dict[str, Latency]:
    """Return how long one step (one token of each of `batch` sequences, or one example) takes in each model.

    The models take turns, so that whatever else the machine does falls on all of them alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in models}
    states: dict[str, Any] = dict.fromkeys(models)
    with torch.inference_mode(), ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        for round_ in track(range(-repeats // 10, repeats), f"latency at batch {batch}"):
            for name, model in models.items():
                seconds, states[name] = _timed_step(model, batch, states[name])
                if round_ >= 0:  # the rounds below zero warm up
                    samples[name].append(seconds)
    return {name: _latency(np.array(times)) for name, times in samples.items()}


def _timed_step(model: Measurable, batch: int, state: Any) -> tuple[float, Any]:
    device, inputs = model.device, model.example(batch)
    wait_for(device)
    start = time.perf_counter()
    _, state = model.logits(inputs, state)
    wait_for(device)
    return time.perf_counter() - start, state


def _latency(times: np.ndarray) -> Latency:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Latency(float(middle), float(high - low), len(times))
