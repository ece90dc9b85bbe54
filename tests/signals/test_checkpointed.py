"""Modules that code calls through `torch.utils.checkpoint`: they are measured as if it called them itself."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint as of_pytorch
from torch.utils.checkpoint import checkpoint

import pruning
from pruning.core.modes import evaluating
from pruning.core.recomputing import calling_once

SIGNALS = ["weights", "hessian", "activations", "gradients", "cooperative", "surgeon", "intervention", "criteria"]
LOSS = nn.CrossEntropyLoss()


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


CALLS: dict[str, Callable[..., Any]] = {
    "itself": _called,
    "again": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
}


class Looped(nn.Module):
    """A cell and a block in a loop."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.cell = nn.Linear(4, 5), nn.GRUCell(5, 6)
        self.block = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, h = self.first(x).tanh(), x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            h = CALLS[self.how](self.cell, step, h)
            h = h + CALLS[self.how](self.block, h)
        answer: Tensor = self.out(h)
        return answer


def _data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(4, 2, 4), torch.arange(4) % 3) for _ in range(2)]


@cache
def _found(how: str) -> Any:
    torch.manual_seed(0)
    return pruning.discover(Looped(how), _data()[0][0])


@cache
def _measured(how: str) -> pruning.Importance:
    return pruning.importance(_found(how), _data(), LOSS, signals=SIGNALS, by="fused")


@cache
def _shortened(how: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    smaller = pruning.prune(_found(how), _measured("itself"), 0.5, repair="imitate", scope="layer")
    repaired = {name: values.clone() for name, values in smaller.state_dict().items()}
    return repaired, pruning.finetune(smaller, _data(), LOSS, epochs=1).state_dict()


@pytest.mark.parametrize("how", ["again", "reentrant"])
def test_every_signal_is_that_of_the_code_without_checkpoints(how: str) -> None:
    pd.testing.assert_frame_equal(_measured(how).table, _measured("itself").table)


@pytest.mark.parametrize("how", ["again", "reentrant"])
def test_repairs_and_fine_tuning_are_those_of_the_code_without_checkpoints(how: str) -> None:
    for own, other in zip(_shortened("itself"), _shortened(how), strict=True):
        torch.testing.assert_close(other, own)


def test_pytorch_checkpoints_again_once_the_last_measurement_ended_also_after_an_error() -> None:
    def runs() -> int:
        x, calls = torch.ones(2, requires_grad=True), []

        def function(x: Tensor) -> Tensor:
            calls.append(1)
            return x.sin().sin()

        checkpoint(function, x, use_reentrant=False).sum().backward()
        return len(calls)

    before = {**vars(of_pytorch)}
    outer, inner = evaluating(nn.Linear(1, 1)), evaluating(nn.Linear(1, 1))
    outer.__enter__()
    inner.__enter__()
    assert runs() == 1
    outer.__exit__()
    assert runs() == 1
    inner.__exit__()
    assert runs() == 2
    with pytest.raises(ZeroDivisionError), calling_once:
        checkpoint(lambda: 1 / 0, use_reentrant=False)
    assert runs() == 2
    assert vars(of_pytorch) == before
