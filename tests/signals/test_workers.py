"""Text shared out to workers in stretches: each signal's bytes are those of one that reads it alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import pruning
from pruning.ablation.intervention import label_terms
from pruning.core.progress import silently
from pruning.core.workers import Map, Spread, in_turn
from pruning.data.windows import IGNORED, Window, Windows
from pruning.models.base import Measurable
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.sensitivity import sensitivities
from tests.tiny import text, tiny


def _hessian(model: Measurable, batches: Any, map: Map, method: Any) -> pd.DataFrame:
    return hessian(model, batches, probes=13, stability=2.0, seed=1, method=method, map=map)


def _criteria(model: Measurable, batches: Any, map: Map) -> pd.DataFrame:
    return criteria(model, batches, batches=11, bins=4, classes=3, ridge=1e-4, seed=1, map=map)


SIGNALS: dict[str, Callable[..., Any]] = {
    "activations": lambda model, batches, map: activations(model, batches, activation_samples=11, bins=4, map=map),
    "gradients": lambda model, batches, map: gradients(model, batches, batches=11, map=map),
    "hessian": partial(_hessian, method="exact"),
    "hessian by differences": partial(_hessian, method="differences"),
    "hessian, Gauss-Newton": partial(_hessian, method="gauss_newton"),
    "criteria": _criteria,
    "sensitivities": lambda model, batches, map: sensitivities(model, batches, batches=11, seed=1, map=map),
    "label terms": lambda model, batches, map: label_terms(model, batches, 99, silently, map),
}
"""Each signal that reads text, of eleven batches and some more."""


def numbers(told: Any) -> list[Any]:
    """Return all that a signal told, as what compares to the bit."""
    if isinstance(told, pd.DataFrame):
        return [told.to_numpy().tolist()]
    if isinstance(told, torch.Tensor):
        return [told.tolist()]
    if isinstance(told, dict):
        return [[name, *numbers(value)] for name, value in told.items()]
    if isinstance(told, tuple | list):
        return [numbers(each) for each in told]
    return [numbers(vars(told))] if hasattr(told, "__dict__") else [told]


def windows() -> list[Window]:
    """Return text in which a window, and a part of another, count for nothing."""
    read = [*Windows(text(300), first=0, batch=3, bptt=7)]
    read[4].targets[:] = IGNORED
    read[6].targets[2:, 1] = IGNORED
    return read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("family", ["lstm", "gru", "relu + feed-forward snn"])
def test_a_signal_is_the_same_bytes_whoever_reads_the_text(family: str, signal: str) -> None:
    model, read = tiny(family=family, dtype=torch.float32), windows()
    alone = numbers(SIGNALS[signal](model, read, in_turn))
    assert str(numbers(SIGNALS[signal](model, read, Spread(workers=3)))) == str(alone)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signal", SIGNALS)
def test_so_it_is_of_a_network_of_others_that_carries_no_state(signal: str) -> None:
    draw = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=draw)
    batches = [(torch.randn(5, 3, generator=draw), torch.randint(4, (5,), generator=draw)) for _ in range(13)]
    model = pruning.adapt(network, batches[0][0], loss=nn.CrossEntropyLoss())
    alone = numbers(SIGNALS[signal](model, batches, in_turn))
    assert str(numbers(SIGNALS[signal](model, batches, Spread(workers=2)))) == str(alone)


def test_probes_end_where_the_ranking_is_stable_whoever_makes_them() -> None:
    model, read = tiny(dtype=torch.float32), windows()
    alone, shared = (hessian(model, read, probes=18, stability=-1.0, seed=1, map=map) for map in (in_turn, Spread()))
    assert alone["samples"].max() == 16
    assert shared.equals(alone)
