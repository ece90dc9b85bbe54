"""Layers, and parts of one, that one number in a network's code keeps equal: a neuron of each goes together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Made, Network
from tests.foreign import floats

CODES: dict[str, tuple[Callable[[], Made], dict[str, int]]] = {}
"""What one number keeps equal → how a network is made with its inputs, and its layers' widths."""


def code(layers: dict[str, int]) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        CODES[make.__name__] = make, layers
        return make

    return known


class Cell(nn.Module):
    """A cell of a spatiotemporal LSTM: each layer has a memory of its own and hands on the one that all share."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_inputs, self.of_state = nn.Linear(inputs, 5 * hidden), nn.Linear(hidden, 3 * hidden)
        self.of_memory = nn.Linear(hidden, 2 * hidden)
        self.last = nn.Linear(2 * hidden, hidden)

    def forward(self, inputs: Tensor, state: Tensor, own: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        i, g, p, q, o = self.of_inputs(inputs).split(self.hidden, 1)
        a, b, c = self.of_state(state).split(self.hidden, 1)
        d, e = self.of_memory(memory).split(self.hidden, 1)
        own = own * torch.sigmoid(i + a) + torch.tanh(g + b)
        memory = memory * torch.sigmoid(p + d) + torch.tanh(q + e)
        return torch.sigmoid(o + c) * torch.tanh(self.last(torch.cat([own, memory], 1))), own, memory


@code({"cells.0.of_inputs:0": 6, "cells.0.of_inputs:12": 6})
def cells_whose_states_one_line_makes() -> Made:
    def run(self: Any, steps: Tensor) -> Tensor:
        states, owns = [], []
        for _ in self.cells:
            zeros = steps.new_zeros(len(steps), 6)
            states.append(zeros)
            owns.append(zeros)
        memory = steps.new_zeros(len(steps), 6)
        for inputs in steps.unbind(1):
            for number, cell in enumerate(self.cells):
                states[number], owns[number], memory = cell(inputs, states[number], owns[number], memory)
                inputs = states[number]
        return self.out(states[-1])

    return Network(run, cells=nn.ModuleList([Cell(3, 6), Cell(6, 6)]), out=nn.Linear(6, 2)), (floats(2, 2, 3),)


def clocked(size: int) -> Made:
    def run(self: Any, steps: Tensor) -> Tensor:
        hidden, size = self.settings["hidden"], self.settings["size"]
        state = steps.new_zeros(len(steps), hidden)
        for step, inputs in enumerate(steps.unbind(1)):
            new = torch.tanh(self.enter(inputs) + self.state(state))
            parts = [slice(i * size, (i + 1) * size) for i in range(hidden // size)]
            state = torch.cat([(new if step % 2**i == 0 else state)[:, part] for i, part in enumerate(parts)], 1)
        return self.out(state)

    network = Network(run, enter=nn.Linear(3, 12), state=nn.Linear(12, 12), out=nn.Linear(12, 2))
    network.settings = {"hidden": 12, "size": size}
    return network, (floats(2, 9, 3),)


@code({"enter": 4})
def parts_of_a_state_that_run_at_clocks_of_their_own() -> Made:
    return clocked(4)


@code({"enter": 3})
def parts_as_many_and_as_large_as_examples_and_slices_do_not_say() -> Made:
    return clocked(3)


@code({"one": 4})
def heads_of_unlike_layers_that_one_function_makes() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        for layer in (self.one, self.two):
            heads = layer(inputs).view(len(inputs), self.heads, -1)
            inputs = (heads * heads.softmax(-1)).flatten(1)
        return self.out(inputs)

    network = Network(run, one=nn.Linear(5, 8), two=nn.Linear(8, 12), out=nn.Linear(12, 2))
    network.heads = 4
    return network, (floats(3, 5),)


@code({"one": 2, "two": 3})
def groups_of_unlike_layers_as_many_in_each() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        scale = torch.arange(1, 5)[:, None]
        for layer in (self.one, self.two):
            hidden = layer(inputs)
            inputs = (hidden.view(len(inputs), 4, hidden.shape[1] // 4) * scale).relu().reshape(hidden.shape)
        return self.out(inputs)

    return Network(run, one=nn.Linear(5, 8), two=nn.Linear(8, 12), out=nn.Linear(12, 2)), (floats(3, 5),)


@pytest.mark.parametrize("name", CODES)
def test_what_one_number_keeps_equal_is_removed_as_it_is_masked_at_any_width(name):
    make, widths = CODES[name]
    network, inputs = make()
    (given,) = inputs
    found = pruning.discover(network.double().eval(), (given.double(),))
    assert {layer.name: layer.width for layer in found.layers()} == widths
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        keep = {
            layer.name: torch.randperm(layer.width, generator=generator)[: 1 + (number + place) % layer.width]
            for place, layer in enumerate(found.layers())
        }
        for kind, near in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            model, data = found.to(kind), given.to(kind)
            torch.testing.assert_close(select(model, keep)(data), mask(model, keep)(data), rtol=near, atol=near)


def test_joined_layers_are_measured_cut_repaired_and_saved(tmp_path):
    network, (inputs,) = heads_of_unlike_layers_that_one_function_makes()
    inputs = inputs.float()
    batches = [(inputs, torch.tensor([0, 1, 1])), (inputs + 1, torch.tensor([1, 0, 0]))]
    found = pruning.discover(network.eval(), inputs)
    importance = pruning.importance(found, batches, nn.CrossEntropyLoss())
    smaller = pruning.prune(found, importance, keep=0.5, repair="ridge", data=batches)
    assert (smaller.module.one.weight.shape, smaller.module.two.weight.shape) == ((4, 5), (6, 4))
    pruning.save(smaller, tmp_path)
    again = pruning.restore(heads_of_unlike_layers_that_one_function_makes()[0], tmp_path)
    torch.testing.assert_close(again(inputs), smaller(inputs))


def test_a_layer_that_no_number_explains_keeps_its_own_reason():
    def run(self: Any, inputs: Tensor) -> Tensor:
        return self.out(self.enter(inputs) * torch.linspace(0, 1, 12))

    network = Network(run, enter=nn.Linear(5, 12), out=nn.Linear(12, 2))
    found = pruning.discover(network.eval(), floats(3, 5).float())
    assert not found.layers()
    assert "torch.linspace(0, 1, 12)" in found.unprunable["enter"]
