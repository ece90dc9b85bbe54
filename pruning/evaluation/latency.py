"""How long one step takes in each of several models, measured in turns, and how much faster than in one of them."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pruning.core.devices import wait_for
from pruning.core.modes import evaluating
from pruning.core.progress import Track, silently
from pruning.discovery.beginning import differentiates
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
    models: Mapping[str, Measurable],
    *,
    batch: int,
    repeats: int,
    track: Track = silently,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Return how long one step (one token of each of `batch` sequences, or one example) takes in each model.

    The models take turns, in an order that is drawn anew for each turn, so that whatever else the machine does falls on
    all of them alike. In its turn a model takes a run of steps, as a network that is used does, and the last is timed.
    Those before bring back to the processor's caches what other models' turns put out of them: the first took up to
    twice as long as the last, the second up to 1.6 times.

    Args:
        models: Name → model; they stay as they are.
        batch: Sequences (examples) side by side.
        repeats: Turns.
        track: Shows progress.
        clock: Tells seconds. `time.process_time` tells those of the processor, of all threads: on a machine that others
            use, too, they say what a step on one thread takes where the wall's say how long it waited.
    """
    turns = track(range(-repeats // 10, repeats), f"latency at batch {batch}, turns")
    samples = _samples(models, batch, turns, np.random.default_rng(0), clock)
    return {name: _latency(times) for name, times in samples.items()}


RUN = 5
"""Steps that a model takes in its turn; from the fifth on they were all as long as in a loop of that model alone."""
BLOCKS = 10
"""Parts that a comparison is measured in, each with copies of the models of its own."""


@dataclass(frozen=True)
class Compared(Latency):
    """A latency beside that of another model, measured in the same turns.

    Attributes:
        speed_up: How many times as fast as the other model: the mean over blocks of the median over turns of the ratio
            of the two models' seconds.
        error: Standard error of that, by how much the blocks differ.
    """

    speed_up: float
    error: float


def compared_latencies(
    models: Mapping[str, Measurable], *, to: str, batch: int, repeats: int, track: Track = silently
) -> dict[str, Compared]:
    """Return how long one step takes in each model, and how many times as fast that is as in the model named `to`.

    As in `latencies`, models take turns in an order that is drawn anew each time: in a fixed one, whoever shares the
    machine's cores for slices of time falls on the same model again and again, and equal models were seen to differ by
    a tenth of their time with an error of a hundredth. In each of ten blocks every model is a copy of its own, so that
    the error also knows what it matters where in memory a model lies.

    >>> import pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> found = compared_latencies({"one": model, "other": model}, to="one", batch=1, repeats=20)
    >>> found["one"].speed_up, found["one"].error
    (1.0, 0.0)

    Args:
        models: Name → model; they stay as they are.
        to: The name of the one that all are compared with.
        batch: Sequences (examples) side by side.
        repeats: Turns in all; rounded up to the same number for each block.
        track: Shows progress.
    """
    order, blocks = np.random.default_rng(0), min(BLOCKS, repeats)
    each = -(-repeats // blocks)
    turns = range(-1 - each // 10, each)
    parts = [
        _samples({name: copy.deepcopy(model) for name, model in models.items()}, batch, turns, order)
        for _ in track(range(blocks), f"latency at batch {batch}, blocks of turns")
    ]
    return {name: _compared([part[name] for part in parts], [part[to] for part in parts]) for name in models}


def _samples(
    models: Mapping[str, Measurable],
    batch: int,
    turns: Iterable[int],
    order: np.random.Generator,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Return the seconds of each model's turns; those below zero warm up and are left out."""
    samples: dict[str, list[float]] = {name: [] for name in models}
    states: dict[str, Any] = dict.fromkeys(models)
    followed = any(map(differentiates, models.values()))
    with torch.no_grad() if followed else torch.inference_mode(), ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        for turn in turns:
            for name in order.permutation(list(models)):
                for _ in range(RUN):
                    seconds, states[name] = _timed_step(models[name], batch, states[name], clock)
                if turn >= 0:
                    samples[name].append(seconds)
    return {name: np.array(times) for name, times in samples.items()}


def _compared(own: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Compared:
    ratios = np.array([np.median(theirs / mine) for mine, theirs in zip(own, other, strict=True)])
    error = ratios.std(ddof=1) / len(ratios) ** 0.5 if len(ratios) > 1 else math.nan
    whole = _latency(np.concatenate(own))
    return Compared(whole.seconds, whole.spread, whole.repeats, float(ratios.mean()), float(error))


def _timed_step(model: Measurable, batch: int, state: Any, clock: Callable[[], float]) -> tuple[float, Any]:
    device, inputs = model.device, model.example(batch)
    wait_for(device)
    start = clock()
    _, state = model.predicted(inputs, state)
    wait_for(device)
    return clock() - start, state


def _latency(times: np.ndarray) -> Latency:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Latency(float(middle), float(high - low), len(times))
