"""What a user's loss keeps from call to call is, once it was asked, what it was."""

import copy
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.holding import Holdings

ALL = pruning.Ablation(tokens=24, neurons=6, seed=1)


class Counting(nn.Module):
    """Weighs classes by how often they came, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(3))
        self.calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        self.counts += torch.bincount(targets, minlength=3)
        return F.cross_entropy(outputs, targets, weight=1 / self.counts)


class Averaging:
    """Divides squared errors by a moving average of the targets' square, another tensor after each call."""

    def __init__(self) -> None:
        self.average, self.seen = torch.ones(()), {"last": [0.0]}

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.average = 0.5 * self.average + 0.5 * targets.float().square().mean()
        self.seen["last"].append(self.average.item())
        return (outputs[:, 0] - targets).square().mean() / self.average


def closing() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    """Return a function with a count and a tensor in what it closes over, and what tells them."""
    calls, scale = 0, torch.ones(())

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        scale.mul_(1.5)
        return F.cross_entropy(outputs, targets) * scale.item()

    return loss, lambda: (calls, scale.item())


def _cases() -> dict[str, tuple[Callable[..., Tensor], Callable[[], Any]]]:
    module, keeping, held, given = Counting(), Averaging(), Counting(), Counting()
    function, told = closing()
    return {
        "module": (module, lambda: (module.counts.tolist(), module.calls)),
        "object": (keeping, lambda: (keeping.average.item(), copy.deepcopy(keeping.seen))),
        "closure": (function, told),
        "method": (held.forward, lambda: (held.counts.tolist(), held.calls)),
        "partial": (
            partial(lambda own, outputs, targets: own(outputs, targets), given),
            lambda: (given.counts.tolist(), given.calls),
        ),
    }


def _network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(6, 4, generator=generator), torch.randint(1, 3, (6,), generator=generator)) for _ in range(4)]
    return network, data


@pytest.mark.parametrize("name", _cases())
def test_what_a_loss_keeps_is_as_before_whatever_asks_it_and_asked_again_it_says_the_same(name: str) -> None:
    network, data = _network()
    loss, told = _cases()[name]
    before = told()
    signals = ["gradients"]
    ranked, again = (pruning.importance(network, data, loss, signals=signals).table for _ in range(2))
    assert ranked.equals(again)
    assert told() == before
    assert len({pruning.evaluate(network, data, loss).mean for _ in range(2)}) == 1
    model = pruning.adapt(network, data[0][0], loss=loss)
    removed, other = (pruning.oracle(model, data, ALL) for _ in range(2))
    assert removed.equals(other)
    assert told() == before


def test_each_signal_is_judged_by_the_loss_as_it_was_given() -> None:
    network, data = _network()
    alone = pruning.importance(network, data, Counting(), signals=["gradients"]).table
    after = pruning.importance(network, data, Counting(), signals=["hessian", "surgeon", "gradients"]).table
    assert alone["gradients"].equals(after["gradients"])


def test_the_loss_without_a_neuron_is_that_of_the_dense_network_where_it_does_nothing() -> None:
    network, data = _network()
    with torch.no_grad():
        network[2].weight[:, 0] = 0
    model = pruning.adapt(network, data[0][0], loss=Counting())
    measured = pruning.oracle(model, data, ALL)
    assert measured["loss_increase"][0] == 0


def test_a_network_is_evaluated_as_its_authors_loop_does() -> None:
    network, data = _network()
    own = Counting()
    wanted = sum(own(network(inputs), targets).item() for inputs, targets in data) / len(data)
    assert pruning.evaluate(network, data, Counting()).mean == pytest.approx(wanted, rel=1e-6)


def test_training_moves_what_a_loss_keeps_as_the_users_loop_does() -> None:
    network, data = _network()
    loss = Counting()
    smaller = pruning.prune(network, pruning.importance(network, data, loss, signals=["gradients"]))
    pruning.finetune(smaller, data, epochs=1)
    assert loss.calls >= len(data)


def test_containers_arrays_and_generators_are_put_back_and_data_and_other_packages_left_alone() -> None:
    class Keeping:
        def __init__(self) -> None:
            self.queue, self.names, self.array = deque([1], maxlen=2), {"a"}, np.zeros(2)
            self.drawing, self.drawn = torch.Generator().manual_seed(0), random.Random(0)  # noqa: S311 - a loss of a user's
            self.numbers, self.resized, self.itself = np.random.default_rng(0), torch.ones(2), self
            self.data = torch.utils.data.TensorDataset(torch.zeros(1))

    loss = Keeping()
    held = Holdings(loss)
    one = torch.rand(1, generator=loss.drawing), loss.drawn.random(), loss.numbers.random()
    loss.queue.extend([2, 3])
    loss.names.add("b")
    loss.array += 1
    loss.resized.resize_(3).fill_(0)
    loss.data.tensors[0].add_(1)
    loss.added = 1  # type: ignore[attr-defined]
    held.restore()
    assert list(loss.queue) == [1]
    assert (loss.names, loss.array.tolist(), loss.resized.tolist()) == ({"a"}, [0, 0], [1, 1])
    assert not hasattr(loss, "added")
    assert loss.data.tensors[0] == 1
    assert one == (torch.rand(1, generator=loss.drawing), loss.drawn.random(), loss.numbers.random())


def test_what_a_loss_did_not_write_into_can_still_be_differentiated() -> None:
    weight, loss = torch.ones(2, requires_grad=True), nn.Module()
    loss.register_buffer("scale", torch.full((2,), 3.0))
    held = Holdings(loss)
    judged = (weight * loss.scale).sum()
    held.restore()
    judged.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3, 3]
