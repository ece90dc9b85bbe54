"""Networks that keep their state in attributes or buffers begin each batch as they once began, or go on if told so."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.memory import kept


class Kept(nn.Module):
    """A GRU whose state lies in an attribute; nothing before the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.state = 8, None
        self.rnn, self.out = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, self.state = self.rnn(inputs, self.state)
        return self.out(outputs[:, -1])


class Made(Kept):
    """One whose author calls `init_hidden` before each batch and puts what it gives into the attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.state = self.init_hidden(4)

    def init_hidden(self, batch: int) -> Tensor:
        return torch.full((1, batch, self.hidden_size), 0.5)


class Buffered(nn.Module):
    """A cell written by hand whose state is a buffer that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.register_buffer("state", torch.zeros(4, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.state.clone()
        for step in inputs.unbind(1):
            state = torch.tanh(self.enter(step) + self.back(state))
        self.state.copy_(state.detach())
        return self.out(state)


class Listed(Buffered):
    """One that keeps the states of its steps in a list and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.steps = [torch.zeros(1, 8)], 0

    def forward(self, inputs: Tensor) -> Tensor:
        for step in inputs.unbind(1):
            self.states.append(torch.tanh(self.enter(step) + self.back(self.states[-1])))
            self.steps += 1
        return self.out(self.states[-1]) / (1 + self.steps)


class Memory(nn.Module):
    """What `spikingjelly` keeps potentials in: a dictionary of its own, reset by `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, Any] = {"v": 0.0}

    def reset(self) -> None:
        self._memories = {"v": 0.0}

    def forward(self, inputs: Tensor) -> Tensor:
        self._memories["v"] = 0.5 * self._memories["v"] + inputs
        return torch.tanh(self._memories["v"])


def leaky() -> nn.Module:
    snntorch = pytest.importorskip("snntorch")
    cell = snntorch.Leaky(beta=0.9, init_hidden=True, spike_grad=snntorch.surrogate.fast_sigmoid())
    return nn.Sequential(nn.Flatten(), nn.Linear(15, 8), cell, nn.Linear(8, 2))


def remembering() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(15, 8), Memory(), nn.Linear(8, 2))


NETWORKS = {"kept": Kept, "made": Made, "buffered": Buffered, "listed": Listed, "leaky": leaky, "memory": remembering}
UNEQUAL = ("kept", "made", "listed")


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """One of the forms in which people keep a state."""
    return str(request.param)


def batches(name: str, count: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Return batches, not all of one size where the network allows it."""
    draw = torch.Generator().manual_seed(1)
    sizes = [4 - (place % 2) * (name in UNEQUAL) for place in range(count)]
    return [(torch.randn(n, 5, 3, generator=draw), torch.randn(n, 2, generator=draw)) for n in sizes]


def made(name: str) -> nn.Module:
    """Return the network as it begins."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def by_hand(name: str, data: Sequence[tuple[Tensor, Tensor]], *, stream: bool) -> float:
    """Return the mean loss by a plain loop over a network that begins anew at each batch, or only once."""
    network, total, count = made(name), 0.0, 0
    for inputs, targets in data:
        network = network if stream else made(name)
        if name == "made" and not stream:
            network.state = network.init_hidden(len(inputs))  # type: ignore[operator]
        with torch.no_grad():
            total += nn.functional.mse_loss(network(inputs), targets).item() * len(inputs)
        count += len(inputs)
    return total / count


def loss_of(model: Any, data: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the mean loss as the library measures it."""
    return pruning.loss_of(model, data).mean


def test_the_loss_is_that_of_a_network_which_begins_anew_at_each_batch(name: str) -> None:
    data = batches(name)
    model = pruning.adapt(made(name), data[0][0], loss=nn.MSELoss())
    assert loss_of(model, data) == pytest.approx(by_hand(name, data, stream=False), rel=1e-5)
    assert loss_of(model, data[::-1]) == pytest.approx(by_hand(name, data, stream=False), rel=1e-5)


def test_the_loss_of_a_stream_is_that_of_a_network_which_goes_on(name: str) -> None:
    data = [batches(name)[place] for place in (0, 2, 4)]  # of one size
    model = pruning.adapt(made(name), data[0][0], loss=nn.MSELoss(), stream=True)
    wanted = by_hand(name, data, stream=True)
    assert loss_of(model, data) == pytest.approx(wanted, rel=1e-5)
    assert loss_of(model, data) == pytest.approx(wanted, rel=1e-5), "a second reading begins anew"
    assert wanted != pytest.approx(by_hand(name, data, stream=False), rel=1e-5)


def test_every_step_of_the_front_door_takes_the_network_and_leaves_its_state(name: str) -> None:
    data = batches(name)
    found = pruning.discover(made(name), data[0][0])
    found(data[0][0])
    before = kept(found.network, found.remembered)
    assert before
    importance = pruning.importance(found, data, nn.MSELoss())
    smaller = pruning.prune(found, importance, 0.5, repair="imitate")
    loss = loss_of(smaller, data)
    pruning.finetune(smaller, data, epochs=2, learning_rate=1e-3)
    assert loss_of(smaller, data) < loss
    after = kept(found.network, found.remembered)
    assert after.keys() == before.keys()
    assert all(after[place] is before[place] for place in before)


def test_a_found_network_alone_begins_anew_where_it_is_repaired_and_imitates(name: str) -> None:
    data = [inputs for inputs, _ in batches(name)]
    found = pruning.discover(made(name), data[0])
    keep = {layer.name: torch.arange(layer.width // 2) for layer in found.layers()}
    imitation = pruning.Imitation(tokens=8, learning_rate=1e-3, warmup=0.1, clip=1.0)

    def weights(order: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
        smaller = pruning.reconstruct(found, keep, data=data[:1] * 3 + order(data), repair="mean")
        return list(pruning.imitate(smaller, found, data, imitation=imitation).parameters())

    same = zip(weights(lambda some: some), weights(lambda some: some[::-1]), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in same)
