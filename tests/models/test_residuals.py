"""Losses that take gradients themselves, by inputs or by outputs, as residuals of differential equations do."""

from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.ablation.oracle import Ablation, oracle
from pruning.evaluation.latency import latencies
from tests.foreign import floats


class Field(nn.Module):
    """A field u(x) that gives x back for a loss to take gradients by, or takes them itself."""

    def __init__(self, *, within: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.out = nn.Linear(2, 6), nn.Linear(6, 4), nn.Linear(4, 1)
        self.within = within

    def forward(self, places: Tensor) -> Any:
        places = places.detach().requires_grad_()
        field = self.out(torch.tanh(self.second(torch.tanh(self.first(places)))))
        return slope(field, places) if self.within else (field, places)


def slope(field: Tensor, places: Tensor) -> Tensor:
    return torch.autograd.grad(field.sum(), places, create_graph=True)[0]


def residual(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return (slope(*outputs) - targets).square().mean()


DATA = [(floats(3, 2, seed=seed), floats(3, 2, seed=seed + 9)) for seed in range(4)]


def test_a_loss_that_takes_gradients_by_inputs_is_what_a_forward_that_takes_them_has() -> None:
    rows, losses = [], []
    for within in (False, True):
        network = Field(within=within).double()
        loss: Any = nn.MSELoss() if within else residual
        before = pruning.evaluate(network, DATA, loss).mean
        assert before == pytest.approx(sum(loss(network(x), y).item() for x, y in DATA) / len(DATA), rel=1e-12)
        importance = pruning.importance(network, DATA, loss, signals=["weights", "intervention"])
        table = oracle(importance.model, DATA, Ablation(neurons="all", tokens=99, seed=1))
        rows.append(table.set_index(["layer", "neuron"])[["loss_increase", "standard_error"]])
        assert importance.table["intervention"].notna().all()
        smaller = pruning.prune(network, importance, keep=0.5, scope="layer", repair="none")
        pruning.finetune(smaller, DATA, epochs=2, learning_rate=1e-2)
        losses.append(pruning.evaluate(smaller, DATA).mean)
    pd.testing.assert_frame_equal(*rows, rtol=1e-9)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_a_loss_of_outputs_alone_that_takes_gradients_needs_no_targets() -> None:
    def flat(outputs: tuple[Tensor, Tensor], _: Any) -> Tensor:
        return slope(*outputs).square().mean()

    inputs = [places for places, _ in DATA]
    network = Field(within=False).double()
    smaller = pruning.prune(
        network, pruning.importance(network, inputs, flat, signals=["weights"]), keep=0.5, repair="imitate"
    )
    before = pruning.evaluate(smaller, inputs).mean
    pruning.finetune(smaller, inputs, epochs=3, learning_rate=1e-2)
    after = pruning.evaluate(smaller, inputs)
    assert after.mean < before


def test_a_loss_that_takes_gradients_by_outputs_is_told_where_none_are_recorded() -> None:
    def pulls(outputs: Tensor, targets: Tensor) -> Tensor:
        return (torch.autograd.grad(outputs.pow(3).sum(), outputs, create_graph=True)[0] - targets).square().mean()

    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    loss = pruning.evaluate(network, DATA, pulls).mean
    assert loss == pytest.approx(sum(pulls(network(x), y).item() for x, y in DATA) / len(DATA), rel=1e-12)


def test_a_users_loss_that_fails_for_another_reason_says_its_own() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * targets.sum() * {}["of mine"]

    with pytest.raises(KeyError, match="of mine"):
        pruning.evaluate(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double(), DATA, broken)


def test_a_network_that_takes_gradients_in_its_forward_has_a_latency() -> None:
    model = pruning.adapt(Field(within=True).double(), DATA[0][0], loss=nn.MSELoss())
    assert latencies({"one": model}, batch=2, repeats=2)["one"].seconds > 0
