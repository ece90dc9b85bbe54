"""Networks whose forward takes a state and gives it back: removed equals masked, call after call, at the old width."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import mask
from pruning.discovery.states import exchanged, parts
from tests.foreign import floats


class Policy(nn.Module):
    """An actor and a critic that read a GRU's cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.actor, self.critic = nn.GRUCell(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        self.hidden_size = 8

    def init_hidden(self, batch: int) -> Tensor:
        return self.actor.weight.new_zeros(batch, self.hidden_size)

    def forward(self, seen: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.cell(seen, h)
        return self.actor(h), self.critic(h), h


class Stacked(nn.Module):
    """Two LSTM cells of unequal widths, their states in a list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(4, 8), nn.LSTMCell(8, 6)])
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, states: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        after = []
        for cell, state in zip(self.cells, states, strict=True):
            x, c = cell(x, state)
            after.append((x, c))
        return self.out(x), after


class Minimal(nn.Module):
    """A cell written by hand, which makes its first state by a number in its own code if it is given none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new, self.out = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if hidden is None:
            hidden = torch.zeros(len(x), 8, dtype=x.dtype)
        both = torch.cat([x, hidden], dim=-1)
        z = self.gate(both).sigmoid()
        hidden = (1 - z) * hidden + z * self.new(both).tanh()
        return self.out(hidden), hidden


class Elman(nn.Module):
    """A cell of two linear maps."""

    def __init__(self, wide: int = 3) -> None:
        super().__init__()
        self.enter, self.back, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, wide)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.enter(x) + self.back(h)).tanh()
        return self.out(h), h


class Leak(NamedTuple):
    z: Tensor
    v: Tensor


class Spiking(nn.Module):
    """Leaky neurons that spike and hear each other, their state a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back, self.out = nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.leak = nn.Parameter(torch.linspace(0.5, 0.9, 8))

    def forward(self, x: Tensor, state: Leak) -> tuple[Tensor, Leak]:
        v = self.leak * state.v * (1 - state.z) + self.enter(x) + self.back(state.z)
        z = (v > 0.3).to(v.dtype)
        return self.out(z), Leak(z, v)


class Images(nn.Module):
    """A convolutional LSTM, its state a pair of channels (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out, self.hid = nn.Conv2d(2 + 6, 24, 3, padding=1), nn.Conv2d(6, 1, 1), 6

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, o, g = torch.split(self.gates(torch.cat([x, h], dim=1)), self.hid, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.out(h), (h, c)


class Joined(nn.Module):
    """An LSTM's step whose output and memory lie in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Linear(12, 32), nn.Linear(8, 3)

    def init_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 16)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = state.chunk(2, dim=-1)
        i, f, o, g = self.gates(torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.out(h), torch.cat([h, c], dim=-1)


class World(nn.Module):
    """A recurrent state-space model: what it remembers and what it believes, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.cell, self.belief = nn.Linear(5 + 2, 7), nn.GRUCell(7, 8), nn.Linear(8 + 4, 5)
        self.reward = nn.Linear(8 + 5, 1)

    def forward(self, action: Tensor, seen: Tensor, state: dict[str, Tensor]) -> dict[str, Any]:
        h = self.cell(self.before(torch.cat([state["z"], action], dim=-1)).relu(), state["h"])
        z = self.belief(torch.cat([h, seen], dim=-1)).tanh()
        return {"reward": self.reward(torch.cat([h, z], dim=-1)), "state": {"h": h, "z": z}}


class Episodes(nn.Module):
    """A cell whose state is set back where an episode has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, masks: Tensor, rnn_hxs: Tensor) -> tuple[Tensor, Tensor]:
        rnn_hxs = self.cell(x, rnn_hxs * masks)
        return self.out(rnn_hxs), rnn_hxs


class Matrix(nn.Module):
    """Linear attention, step by step: its state is a matrix of what keys found and values said."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(4, 7), nn.Linear(4, 7), nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        state = carry + self.key(x).relu()[:, :, None] * self.value(x)[:, None]
        return self.out((self.query(x).relu()[:, None] @ state).squeeze(1)), state


class Learned(nn.Module):
    """A cell that begins where it learnt to."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.cell, self.out = nn.Parameter(floats(1, 8).float()), nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hx = self.cell(x, self.begin.expand(len(x), -1) if hx is None else hx)
        return self.out(hx), hx


KEPT = {8: torch.tensor([6, 1, 3]), 6: torch.tensor([5, 0, 2, 4]), 5: torch.tensor([4, 1])}
"""Which neurons stay of a layer, by its width."""
Columns = dict[str, list[tuple[int, int]]]
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], Columns]] = {
    "a policy": (Policy, lambda: (floats(2, 4), floats(2, 8)), {"actor": [(0, 8)], "critic": [(0, 8)]}),
    "stacked cells": (
        Stacked,
        lambda: (floats(2, 4), [(floats(2, n), floats(2, n, seed=1)) for n in (8, 6)]),
        {"cells.1.weight_ih": [(0, 8)], "out": [(0, 6)]},
    ),
    "a cell by hand": (Minimal, lambda: (floats(2, 4), floats(2, 8)), {"out": [(0, 8)]}),
    "two linear maps": (Elman, lambda: (floats(2, 4), floats(2, 8)), {"out": [(0, 8)]}),
    "spiking neurons": (Spiking, lambda: (floats(2, 4), Leak(floats(2, 8), floats(2, 8, seed=1))), {"out": [(0, 8)]}),
    "channels": (Images, lambda: (floats(2, 2, 3, 3), (floats(2, 6, 3, 3), floats(2, 6, 3, 3))), {"out": [(0, 6)]}),
    "one tensor of two states": (Joined, lambda: (floats(2, 4), floats(2, 16)), {"out": [(0, 8)]}),
    "a world model": (
        World,
        lambda: (floats(2, 2), floats(2, 4), {"h": floats(2, 8), "z": floats(2, 5)}),
        {"belief": [(0, 8)], "reward": [(0, 8), (8, 5)]},
    ),
    "episodes": (
        Episodes,
        lambda: (floats(2, 4), torch.tensor([[1.0], [0.5]]), floats(2, 8)),
        {"out": [(0, 8)]},
    ),
    "a matrix": (Matrix, lambda: (floats(2, 4), floats(2, 7, 6)), {"out": [(0, 6)]}),
    "a learned beginning": (
        Learned,
        lambda: (floats(2, 4), floats(2, 8)),
        {"out": [(0, 8)], "begin": [(0, 8)]},
    ),
}


def _gone(width: int) -> list[int]:
    return [neuron for neuron in range(width) if neuron not in KEPT[width].tolist()]


def _own(tensor: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return a state with each layer's neurons changed: along channels, or by halves where two lie in one tensor."""
    dim = 1 if tensor.ndim == 4 else -1
    halves = tensor.split([8, 8] if tensor.shape[dim] == 16 else [tensor.shape[dim]], dim)
    return torch.cat([change(half.movedim(dim, -1), half.shape[dim]).movedim(-1, dim) for half in halves], dim)


def _without(tensor: Tensor, width: int) -> Tensor:
    return tensor.index_fill(-1, torch.tensor(_gone(width)), 0.0)


def _ordered(tensor: Tensor, width: int) -> Tensor:
    return torch.cat([tensor[..., KEPT[width]], torch.zeros_like(tensor)[..., : len(_gone(width))]], dim=-1)


def _steps(network: Any, given: tuple[Any, ...], state: Any, change: Callable[[Tensor, int], Tensor]) -> list[Any]:
    """Return the answers of four calls, the state that each gives, changed, going into the next, and all states."""
    answers, states = [], []
    for _ in range(4):
        outputs = network(*given, state) if state is not None else network(*given)
        *answer, state = outputs.values() if isinstance(outputs, dict) else outputs
        answers += answer
        tensors = parts(state)
        states += tensors
        state = exchanged(state, {place: _own(tensor, change) for place, tensor in enumerate(tensors)})
    return [answers, states]


def _masked(network: nn.Module, columns: Columns) -> nn.Module:
    """Return the network with zeros by hand where readers read neurons that go."""
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, places in columns.items():
            weight = parameters.get(name, parameters.get(f"{name}.weight"))
            for first, width in places:
                weight[:, [first + neuron for neuron in _gone(width)]] = 0
    return network


@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_removed_neurons_of_a_state_equal_masked_ones_over_calls_that_feed_it_back(name: str, kind: torch.dtype):
    make, inputs, columns = CASES[name]
    torch.manual_seed(1)
    network = make().to(kind)
    given = exchanged(inputs(), {place: tensor.to(kind) for place, tensor in enumerate(parts(inputs()))})
    *data, state = given
    found = pruning.discover(network, given)
    keep = {layer.name: KEPT[layer.width] for layer in found.layers() if layer.width in KEPT}
    smaller = pruning.select(found, keep)
    masked = _masked(network, columns)
    begins = [state] + [None] * (name in ("a cell by hand", "a learned beginning"))
    for begin in begins:
        fed, zeroed = (
            exchanged(begin, {place: _own(tensor, change) for place, tensor in enumerate(parts(begin))})
            for change in (_ordered, _without)
        )
        expected = _steps(masked, tuple(data), zeroed, _without)
        for pruned in (smaller, smaller.network, pruning.deployed(smaller)):
            answers, states = _steps(pruned, tuple(data), fed, lambda own, _: own)
            close = {"rtol": 0, "atol": 1e-13 if kind == torch.float64 else 1e-5}
            torch.testing.assert_close(answers, expected[0], **close)
            torch.testing.assert_close(states, [_own(tensor, _ordered) for tensor in expected[1]], **close)


def test_a_saved_network_takes_the_states_that_the_pruned_one_takes(tmp_path):
    found = pruning.discover(Minimal(), (floats(2, 4).float(),))
    smaller = pruning.select(found, {"gate": KEPT[8]})
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(Minimal(), tmp_path)
    for state in (floats(2, 8).float(), floats(2, 3).float(), None):
        for one, other in zip(restored(floats(2, 4).float(), state), smaller(floats(2, 4).float(), state), strict=True):
            assert torch.equal(one, other)


def test_a_state_that_is_given_no_wider_than_the_neurons_are_many_is_given_back_so():
    policy = Policy().double()
    smaller = pruning.select(pruning.discover(policy, (floats(2, 4), floats(2, 8))), {"cell": KEPT[8]}).network
    wide, narrow = floats(2, 8), floats(2, 8)[:, :3].contiguous()
    assert smaller.init_hidden(2).shape == (2, 8)
    for _ in range(2):
        (one, _, wide), (other, _, narrow) = smaller(floats(2, 4), wide), smaller(floats(2, 4), h=narrow)
        assert torch.equal(one, other)
        assert torch.equal(wide[:, :3], narrow)
        assert (wide.shape, narrow.shape, wide[:, 3:].any()) == ((2, 8), (2, 3), False)


def test_what_is_pruned_is_found_and_pruned_again():
    network, given = Joined().double(), (floats(2, 4), floats(2, 16))
    found = pruning.discover(network, given)
    once = pruning.select(found, {"gates": torch.tensor([6, 1, 3, 0])})
    again = pruning.discover(once.network, given)
    assert [layer.width for layer in again.layers()] == [4]
    twice = pruning.select(again, {"gates": torch.tensor([2, 0])})
    at_once = pruning.select(found, {"gates": torch.tensor([3, 6])})
    for one, other in zip(twice(*given), at_once(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


class Residual(nn.Module):
    """What follows in a simulated world, and the reward: the state is the world's, and the first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.change, self.reward = nn.Linear(10, 7), nn.Linear(7, 8), nn.Linear(7, 1)

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        read = self.read(torch.cat([state, action], dim=-1)).relu()
        return state + self.change(read), self.reward(read)


def test_an_answer_that_is_shaped_as_an_input_is_no_state_unless_its_author_says_so():
    network, inputs = Residual().double(), (floats(2, 8), floats(2, 2))
    found = pruning.discover(network, inputs)
    assert ([layer.name for layer in found.layers()], found.unprunable["change"]) == (["read"], "the model returns it")
    said = pruning.discover(network, inputs, carried="state")
    assert {layer.name for layer in said.layers()} == {"read", "change"}
    assert "state: change" in str(said)


def test_a_condition_that_is_shaped_as_an_output_is_no_state():
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.mean, self.spread = nn.Linear(9, 7), nn.Linear(7, 5), nn.Linear(7, 5)

        def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            read = self.read(torch.cat([x, c], dim=-1)).relu()
            return self.mean(read), self.spread(read)

    found = pruning.discover(Conditional().double(), (floats(2, 4), floats(2, 5)))
    assert [layer.name for layer in found.layers()] == ["read"]


def test_one_tensor_called_state_is_a_worlds_unless_it_begins_with_zeros_or_its_author_says_so():
    class World(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.reward, self.change = nn.Linear(7, 9), nn.Linear(9, 1), nn.Linear(9, 5)

        def forward(self, action: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            read = self.read(torch.cat([action, state], dim=-1)).relu()
            return self.reward(read), state + self.change(read)

    action, state = floats(2, 2), floats(2, 5)

    def names(state: Tensor, **said: Any) -> list[str]:
        return [layer.name for layer in pruning.discover(World().double(), (action, state), **said).layers()]

    assert names(state) == names(state, carried=[]) == names(torch.zeros(2, 5).double(), carried=[]) == ["read"]
    assert names(state, carried="state") == names(torch.zeros(2, 5).double()) == ["read", "change"]
    found = pruning.discover(World().double(), (action, state))
    assert "`discover(…, carried=argument)` says so" in " ".join(str(found).split())


def test_which_of_two_outputs_is_the_state_is_asked_where_nothing_tells():
    class Reversed(Elman):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x, h)[::-1]

    inputs = (floats(2, 4), floats(2, 8))
    for kind, place in ((Elman, 1), (Reversed, 0)):  # with an answer as wide as the state
        asked = pruning.discover(kind(8).double(), inputs)
        assert asked.layers() == []
        assert any("say where it is: `carried={'h': …}`" in reason for reason in asked.unprunable.values())
        said = pruning.discover(kind(8).double(), inputs, carried={"h": place})
        assert [(layer.name, layer.width) for layer in said.layers()] == [("enter", 8)]
    policy = Policy()
    policy.actor = nn.Linear(8, 8)  # of a cell's state and what reads it, the cell tells
    assert [layer.name for layer in pruning.discover(policy.double(), inputs).layers()] == ["cell"]


@pytest.mark.parametrize(
    ("carried", "words"),
    [
        ("hidden", "got 'hidden'; known: \\['seen', 'h'\\]"),
        ({"h": 0}, "Expected of 'h' in `carried` that the network gives a tensor of its shape"),
        ({"h": 5}, "Expected a network that takes what it gives as \\['h'\\] again, got IndexError"),
    ],
)
def test_what_is_said_to_be_a_state_and_is_none_is_refused(carried: Any, words: str):
    with pytest.raises(ValueError, match=words):
        pruning.discover(Policy().double(), (floats(2, 4), floats(2, 8)), carried=carried)


def test_a_policy_is_scored_cut_repaired_and_trained_by_its_users_own_loop():
    def unrolled(network: Any, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = torch.zeros(inputs.shape[1], 8) if state is None else state  # of the former width
        answers = []
        for seen in inputs:
            logits, _, state = network(seen, state)
            answers.append(logits)
        return torch.stack(answers), state.detach()

    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    data = [
        (torch.randn(5, 4, 4, generator=generator), torch.randint(3, (5, 4), generator=generator)) for _ in range(4)
    ]
    found = pruning.discover(Policy(), (torch.randn(4, 4), torch.zeros(4, 8)))
    loss = lambda outputs, targets: nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())  # noqa: E731
    model = pruning.adapt(found, data[0][0], loss=loss, call=unrolled, example_dim=1)
    importance = pruning.importance(model, data, signals=["activations", "gradients"])
    smaller = pruning.prune(model, importance, keep=0.5, repair="ridge", data=data)
    before = pruning.evaluate(smaller, data).mean
    pruning.finetune(smaller, data, epochs=2, learning_rate=0.02)
    assert smaller.module(torch.randn(4, 4), torch.zeros(4, 8))[2].shape == (4, 8)
    assert pruning.evaluate(smaller, data).mean < before


def test_a_state_that_init_hidden_makes_is_the_one_that_was_found_whatever_is_given_before_it():
    model = pruning.adapt(Policy(), floats(3, 4).float(), loss=nn.CrossEntropyLoss(), example_dim=0)
    smaller = pruning.select(model, {"cell": KEPT[8]})
    answer, state = smaller.predicted(floats(3, 4).float())
    assert answer.shape == (3, 3)
    assert [own.shape for own in state.values()] == [(3, 8)]
    again, _ = smaller.predicted(floats(3, 4).float(), state)
    assert not torch.equal(again, answer)


def test_a_state_may_be_a_dataclass_or_as_many_arguments_as_there_are():
    @dataclass
    class Pair:
        h: Tensor
        c: Tensor

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTMCell(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, *state: Any) -> Any:
            h, c = self.cell(x, (state[0].h, state[0].c) if len(state) == 1 else state)
            return (self.out(h), Pair(h, c)) if len(state) == 1 else (self.out(h), h, c)

    for state in ((Pair(floats(2, 8), floats(2, 8)),), (floats(2, 8), floats(2, 8))):
        found = pruning.discover(Cell().double(), (floats(2, 4), *state))
        smaller, masked = pruning.select(found, {"cell": KEPT[8]}), mask(found, {"cell": KEPT[8]})
        zeros: tuple[Any, ...] = tuple(
            exchanged(own, dict(enumerate(map(torch.zeros_like, parts(own))))) for own in state
        )
        one, other = zeros, zeros
        for _ in range(3):
            (answer, *one), (expected, *other) = smaller(floats(2, 4), *one), masked(floats(2, 4), *other)
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-13)
        assert [type(own) for own in one] == [type(own) for own in state]


def test_a_state_is_followed_on_every_path_that_calls_take():
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.heads = nn.GRUCell(4, 8), nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

        def forward(self, x: Tensor, h: Tensor | None = None, task: int = 0) -> tuple[Tensor, Tensor]:
            h = self.cell(x, h)
            return self.heads[task](h), h

    network, kept = Tasks().double(), KEPT[8]
    found = pruning.discover(network, (floats(2, 4),), also=[{"x": floats(3, 4), "task": 1}])
    smaller, masked = pruning.select(found, {"cell": kept}), mask(found, {"cell": kept})
    for task in (0, 1):
        one, other = None, None
        for _ in range(3):
            (answer, one), (expected, other) = smaller(floats(2, 4), one, task), masked(floats(2, 4), other, task=task)
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-13)


class Following(nn.Module):
    """As encoders in contrastive learning: one follows the other by momentum, in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for own, follows in zip(self.first.parameters(), self.other.parameters(), strict=True):
                follows.data = 0.5 * follows.data + 0.5 * own.data
        return self.first(one), self.other(other)


def test_weights_that_follow_others_in_each_call_are_left_as_they_were_and_go_with_them() -> None:
    torch.manual_seed(0)
    network = Following().double()
    batches = [(torch.randn(6, 4).double(), torch.randn(6, 4).double()) for _ in range(3)]

    def kept(of: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in of.state_dict().items()}

    before = kept(network)
    found = pruning.discover(network, batches[0])
    assert [(layer.name, layer.width, layer.exact) for layer in found.layers()] == [("first.0", 8, True)]
    keep = {"first.0": torch.tensor([6, 1, 3])}
    smaller, masked = pruning.select(found, keep), pruning.mask(found, keep)
    for batch in batches:
        for one, other in zip(smaller(*batch), masked(*batch), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    importance = pruning.importance(found, batches, lambda outputs, _: (outputs[0] - outputs[1]).square().mean())
    pruning.prune(found, importance)
    for whole in (network, found.network):
        after = kept(whole)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
