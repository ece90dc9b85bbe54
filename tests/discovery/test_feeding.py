"""Which arguments are a state that is fed back, and how: by what they are called, built and begun as."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import mask
from pruning.discovery.states import exchanged, parts
from tests.discovery.test_states import KEPT
from tests.foreign import floats


class Single(nn.Module):
    """Inputs and a state in one argument, as in the first actor-critics with an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.cell, self.out = nn.Linear(4, 7), nn.LSTMCell(7, 8), nn.Linear(8, 3)

    def forward(self, inputs: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inputs, (hx, cx) = inputs
        hx, cx = self.cell(self.read(inputs).relu(), (hx, cx))
        return self.out(hx), (hx, cx)


class Alone(nn.Module):
    """A cell by hand whose input and state are one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.out = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = self.new(torch.cat(both, dim=-1)).tanh()
        return self.out(h), h


@pytest.mark.parametrize("kind", [Single, Alone])
def test_a_state_that_is_one_argument_with_the_inputs_is_fed_back(kind):
    network, said = kind().double(), {} if kind is Single else {"carried": "both"}
    state = (floats(2, 8), floats(2, 8, seed=1)) if kind is Single else floats(2, 8)
    found = pruning.discover(network, ((floats(2, 4), state),), **said)
    keep = {layer.name: KEPT[8] for layer in found.layers() if layer.width == 8}
    assert len(keep) == 1
    smaller, masked = pruning.select(found, keep), mask(found, keep)
    one = other = exchanged(state, dict(enumerate(map(torch.zeros_like, parts(state)))))
    for _ in range(3):
        (answer, one), (expected, other) = smaller((floats(2, 4), one)), masked((floats(2, 4), other))
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-13)
        assert [own.shape for own in parts(one)] == [own.shape for own in parts(state)]


def test_a_state_that_is_built_as_one_output_is_that_one_whatever_is_shaped_as_it():
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.out = nn.Linear(12, 32), nn.Linear(8, 8)  # an answer as wide as the state

        def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            i, f, o, g = self.gates(torch.cat([x, hidden[0]], dim=-1)).chunk(4, dim=-1)
            c = f.sigmoid() * hidden[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return self.out(h), (h, c)

    found = pruning.discover(Cell().double(), (floats(2, 4), (floats(2, 8), floats(2, 8))))
    assert [layer.name for layer in found.layers()] == ["gates"]


@pytest.mark.parametrize("order", ["mem, spk", "spk, mem"])
def test_spikes_beside_a_potential_are_a_state_in_whatever_order(order):
    class Neurons(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.back, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def step(self, x: Tensor, mem: Tensor, spk: Tensor) -> tuple[Tensor, Tensor]:
            mem = 0.9 * mem + self.enter(x) + self.back(spk) - spk
            return mem, (mem > 0.3).to(mem.dtype)

    class First(Neurons):
        def forward(self, x: Tensor, mem: Tensor, spk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mem, spk = self.step(x, mem, spk)
            return self.out(spk), mem, spk

    class Last(Neurons):
        def forward(self, x: Tensor, spk: Tensor, mem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mem, spk = self.step(x, mem, spk)
            return self.out(spk), spk, mem

    network = (First if order == "mem, spk" else Last)().double()
    found = pruning.discover(network, (floats(2, 4), floats(2, 8), floats(2, 8, seed=1)))
    assert [(layer.name, layer.width) for layer in found.layers()] == [("enter", 8)]


def test_a_first_state_that_is_drawn_makes_its_layer_inexact():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.cell, self.out = nn.Linear(4, 7), nn.LSTM(7, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            begin = torch.randn(2, 1, x.shape[1], 8, dtype=x.dtype)
            return self.out(self.cell(self.read(x).relu(), (begin[0], begin[1]))[0])

    found = pruning.discover(Tagger().double(), (floats(5, 2, 4),))
    assert {layer.name: layer.exact for layer in found.layers()} == {"read": True, "cell.0": False}


DRAWS = {
    "rand": lambda rows, width: torch.rand(rows, width, dtype=torch.float64) / 10,
    "uniform": lambda rows, width: torch.empty(rows, width, dtype=torch.float64).uniform_(-1, 1),
    "normal": lambda rows, width: nn.init.normal_(torch.zeros(rows, width, dtype=torch.float64)),
    "whole numbers": lambda rows, width: torch.randint(0, 2, (rows, width)).double(),
    "rates": lambda rows, width: torch.poisson(torch.ones(rows, width, dtype=torch.float64)),
    "a number a row": lambda rows, _: torch.rand(rows, 1, dtype=torch.float64),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_potentials_that_begin_as_numbers_drawn_for_each_neuron_make_its_layer_inexact(draw):
    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.out, self.width = nn.Linear(4, 6), nn.Linear(6, 3), 6

        def forward(self, x: Tensor) -> Tensor:
            potential, answer = DRAWS[draw](len(x), self.width), 0
            for step in x.unbind(1):
                potential = 0.9 * potential + self.enter(step)
                spikes = (potential > 1).to(x)  # which a small difference does not change
                potential, answer = potential - spikes, answer + self.out(spikes)
            return answer

    found = pruning.discover(Spiking().double(), (floats(2, 5, 4),))
    assert {layer.name: layer.exact for layer in found.layers()} == {"enter": draw == "a number a row"}


def test_a_single_step_is_followed_by_the_operations_that_run():
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRU(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            outputs, hidden = self.cell(x[:1])
            assert (outputs == hidden).all()  # as tutorials check
            return self.out(hidden.squeeze(0))

    found = pruning.discover(Step().double(), (floats(3, 2, 4),))
    assert [(layer.name, layer.width) for layer in found.layers()] == [("cell.0", 8)]


def test_layers_whose_states_one_matrix_reads_in_turns_keep_the_same_neurons():
    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTM(4, 8, 2), nn.Linear(16, 3)

        def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            _, (hidden, cell) = self.cell(x, (hidden, cell))
            return self.out(hidden.permute(1, 2, 0).flatten(1)), hidden, cell

    inputs = (floats(5, 2, 4), floats(2, 2, 8), floats(2, 2, 8, seed=1))
    found = pruning.discover(Forecast().double(), inputs)
    (layer,) = found.layers()
    assert layer.width == 8
    kept = {layer.name: KEPT[8]}
    zeros = (torch.zeros_like(inputs[1]), torch.zeros_like(inputs[1]))
    one, other = pruning.select(found, kept)(inputs[0], *zeros), mask(found, kept)(inputs[0], *zeros)
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-13)
