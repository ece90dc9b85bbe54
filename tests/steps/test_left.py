"""What a network's own code changes in a call is as it was after it was discovered, measured and evaluated."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pruning import discover, evaluate, importance, prune
from pruning.core.memory import attributes
from pruning.core.neurons import mask, select
from pruning.core.rebinding import duplicated

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
DATA = [(INPUTS + number, torch.arange(4) % 3) for number in range(2)]


class Following(nn.Module):
    """Has an encoder that follows another one by momentum, its numbers written into where they stand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.leave = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.other.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for led, own in zip(self.one.parameters(), self.other.parameters(), strict=True):
            own.data.mul_(0.9).add_(led.data, alpha=0.1)
        return self.leave(self.one(inputs).relu() + self.other(inputs).relu())


class Queued(Following):
    """Compares what it computes with what it did in the last calls, which it keeps in a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Linear(8, 4)
        self.register_buffer("queue", torch.randn(4, 12))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = super().forward(inputs)
        scores = found @ self.queue.clone().detach()
        place = int(self.place)
        with torch.no_grad():
            self.queue[:, place : place + len(found)] = found.T
        self.place[0] = (place + len(found)) % 12
        return scores[:, :3]


class Counting(nn.Module):
    """Counts and averages in buffers, attributes and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.ones(1))
        self.calls, self.past, self.known = 0, [0], {"mean": torch.zeros(1)}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.mean.mul_(0.9).add_(inputs.mean(), alpha=0.1)
        self.known["mean"].add_(inputs.mean())
        self.calls += 1
        self.past.append(self.calls)
        return self.leave(self.one(inputs).relu() * self.mean)


class Slotted(nn.Module):
    """Keeps what it averages in slots of its class, of which PyTorch's copies know nothing."""

    __slots__ = ("calls", "mean")

    def __init__(self) -> None:
        super().__init__()
        self.one, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)
        self.mean, self.calls = torch.ones(1), 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean = self.mean * 0.9 + inputs.mean() * 0.1
        return self.leave(self.one(inputs).relu() * self.mean)


class Copying(Counting):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Copying":
        twin = memo[id(self)] = Copying.__new__(Copying)
        nn.Module.__init__(twin)
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


def told(value: Any) -> Any:
    """Return plain values that tell what is in an object."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: told(part) for name, part in value.items()}
    return [told(part) for part in value] if isinstance(value, (list, tuple)) else repr(value)


def held(network: nn.Module) -> dict[str, Any]:
    """Return what all modules of a network have by name."""
    return {
        f"{path} {name}": told(value)
        for path, module in network.named_modules()
        for name, value in attributes(module).items()
        if name != "_modules"
    }


@pytest.mark.parametrize("kind", [Following, Queued, Counting, Slotted, Copying])
def test_what_code_changes_in_a_call_is_as_it_was_once_it_was_discovered_measured_and_evaluated(kind):
    torch.manual_seed(0)
    network = kind()
    before = held(network)
    found = discover(network, INPUTS)
    assert held(network) == before
    before = held(found.network)
    measured = importance(found, DATA, nn.CrossEntropyLoss(), signals=["weights", "activations", "gradients"])
    assert held(found.network) == before
    smaller = prune(found, measured, 0.5)
    assert held(found.network) == before
    before = held(smaller.module)
    evaluate(smaller, DATA)
    assert held(smaller.module) == before


@pytest.mark.parametrize("kind", [Following, Counting, Slotted])
def test_what_is_removed_equals_what_is_masked_where_code_changes_something_in_a_call(kind):
    found = discover(kind().double(), INPUTS.double())
    keep = {layer.name: torch.tensor([5, 0, 2]) for layer in found.layers()}
    assert keep
    given = [made(found, keep) for made in (select, mask)]
    for _ in range(3):
        torch.testing.assert_close(*(model(INPUTS.double()) for model in given), rtol=0, atol=1e-10)


def test_slots_of_a_module_are_copied_with_it():
    network = Slotted()
    network.calls = 3
    twin = duplicated(network, network, {})
    assert (twin.calls, twin.mean) == (3, torch.ones(1))
    assert twin.mean is not network.mean
