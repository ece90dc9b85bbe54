"""How long one step takes in each of several models, measured in turns."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pruning.core.devices import wait_for
from pruning.core.modes import evaluating
from pruning.core.progress import Track, silently
from pruning.models.base import Measurable


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
    _, state = model.predicted(inputs, state)
    wait_for(device)
    return time.perf_counter() - start, state


def _latency(times: np.ndarray) -> Latency:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Latency(float(middle), float(high - low), len(times))
