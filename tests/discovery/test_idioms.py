"""What modules keep beside their children, and structures that are one argument: both as their author means them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import pruning
from pruning.core.arguments import given_as
from pruning.core.hooks import record
from pruning.core.neurons import mask, select
from pruning.core.rebinding import rebind
from tests.discovery.test_forms import Made, answers, drawn
from tests.foreign import floats, tokens

IDIOMS: dict[str, tuple[Callable[[], Made], dict[str, int]]] = {}
"""Idiom → how a network of it is made with its inputs, and its layers' widths by name."""


def idiom(**layers: int) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        IDIOMS[make.__name__] = make, {name.replace("__", "."): width for name, width in layers.items()}
        return make

    return known


class Stream(nn.Module):
    """A residual stream whose inner map is a function over modules, as in minGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.inner = inner = nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})
        self.run = lambda stream, bend=torch.tanh: inner["down"](bend(inner["up"](stream)))

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.enter(inputs)
        return self.out(stream + self.run(stream))


@idiom(enter=4, inner__up=6)
def a_function_over_modules_of_its_network() -> Made:
    return Stream(), (floats(5, 3),)


class Potentials(nn.Module):
    """A spiking network as it is written plainly: its potentials begin as numbers, and stay behind as tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 6), nn.Linear(6, 2)

    def begin(self) -> None:
        self.first, self.second = 0.0, 0.0
        self.steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.begin()
        total: Any = 0.0
        for current in inputs:
            self.first = 0.9 * self.first + self.inner(current)
            self.second = 0.5 * self.second + torch.sigmoid(8 * (self.first - 0.2))
            self.steps = self.steps + torch.ones(())
            total = total + self.out(self.second)
        return total / self.steps


@idiom(inner=6)
def potentials_that_begin_as_numbers_and_that_a_call_has_left_as_tensors() -> Made:
    network = Potentials()
    with torch.no_grad():
        network(floats(4, 2, 3).float())
    return network, (floats(4, 5, 3),)


class Hooked(nn.Module):
    """Features that a hook stores in the network, which reads them later."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
        self.out, self.seen = nn.Linear(10, 2), {}
        self.body[1].register_forward_hook(lambda *call: self.seen.update(early=call[2]))

    def forward(self, inputs: Tensor) -> Tensor:
        late = self.body(inputs)
        return self.out(torch.cat([late, self.seen.pop("early")], 1))


@idiom(body__0=6, body__2=4)
def features_that_a_hook_stores_in_the_network() -> Made:
    return Hooked(), (floats(5, 3),)


class Listed(nn.Module):
    """Recurrent layers registered one by one and run from a plain list, one of them by a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [nn.LSTM(3, 6), nn.GRU(6, 5)]
        for place, module in enumerate(self.listed):
            self.add_module(f"rnn{place}", module)
        last = self.listed[1]
        self.last = functools.partial(lambda inputs, run: run(inputs)[0][-1], run=last)
        self.out = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.last(self.listed[0](inputs)[0]))


@idiom(**{"rnn0__0": 6, "rnn1__0": 5})
def recurrent_layers_in_a_plain_list() -> Made:
    return Listed(), (floats(4, 2, 3),)


class Patched(nn.Module):
    """A module whose forward was put in place by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        before = self.a.forward
        self.a.forward = lambda inputs: before(inputs).relu()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.b(self.a(inputs))


@idiom(a=6)
def a_forward_put_in_place_by_hand() -> Made:
    return Patched(), (floats(5, 3),)


class Cells(nn.Module):
    """Cells as wide as each other, their states made one by one, as in Tacotron."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.LSTMCell(3, 6), nn.LSTMCell(6, 6), nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, memory = inputs.new_zeros(len(inputs), 6), inputs.new_zeros(len(inputs), 6)
        state = inputs.new_zeros(len(inputs), 6), inputs.new_zeros(len(inputs), 6)
        for step in inputs.unbind(1):
            hidden, memory = self.one(step, (hidden, memory))
            state = self.two(hidden, state)
        return self.out(state[0])


@idiom(one=6, two=6)
def states_made_one_by_one_of_cells_that_are_as_wide_as_each_other() -> Made:
    return Cells(), (floats(5, 4, 3),)


class Bridged(nn.Module):
    """A decoder that begins with both directions' last states, mapped, and attends to what the encoder gave."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bridge = nn.GRU(3, 5, bidirectional=True), nn.Linear(10, 6)
        self.cell, self.scores, self.out = nn.GRUCell(6, 6), nn.Linear(10, 6, bias=False), nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, last = self.encoder(inputs)
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
        read, found = self.scores(outputs), torch.zeros_like(state)
        for _ in range(2):
            state = self.cell(found, state)
            shares = torch.einsum("sbh,bh->bs", read, state).softmax(1)
            found = torch.einsum("bs,sbh->bh", shares, read)
        return self.out(state + found)


@idiom(encoder__0=5, encoder__0_reverse=5, bridge=6)
def a_decoder_that_begins_with_both_directions_and_attends_by_einsum() -> Made:
    return Bridged(), (floats(4, 3, 3),)


class Messages(nn.Module):
    """Messages between nodes, added into zeros that are as many as the nodes' own neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.say, self.hear, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.GRUCell(6, 6), nn.Linear(6, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = self.enter(nodes).relu()
        heard = torch.zeros_like(hidden).index_add_(0, edges[1], self.say(hidden[edges[0]]).tanh())
        return self.out(self.hear(heard, hidden))


@idiom(enter=6)
def messages_added_into_zeros_like_what_they_are_no_part_of() -> Made:
    return Messages(), (floats(5, 3), torch.tensor([[0, 1, 2, 4], [1, 0, 3, 3]]))


class Batch(NamedTuple):
    text: Tensor
    lengths: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(11, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, batch: Batch) -> Tensor:
        there = torch.arange(batch.text.shape[1]) < batch.lengths[:, None]
        return self.out((self.rnn(self.emb(batch.text))[0] * there[..., None]).sum(1))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 6), nn.Linear(6, 3)

    def forward(self, sequences: PackedSequence) -> Tensor:
        return self.out(pad_packed_sequence(self.rnn(sequences)[0])[0].sum(0))


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, bags: list[Tensor], scale: float = 1.0) -> Tensor:
        return torch.stack([self.out(self.a(bag).relu().amax(0)) * scale for bag in bags])


class Rays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 6), nn.Linear(9, 3)

    def forward(self, rays: dict[str, Tensor]) -> Tensor:
        return self.out(torch.cat([self.a(rays["from"]).tanh(), rays["to"]], 1))


@dataclass
class Sample:
    values: Tensor
    there: Tensor


class Sampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, sample: Sample) -> Tensor:
        return self.out(self.a(sample.values).relu() * sample.there)


def packed() -> PackedSequence:
    return pack_sequence([floats(4, 3), floats(2, 3, seed=1), floats(1, 3, seed=2)])


STRUCTURES: dict[str, tuple[type[nn.Module], Any, int]] = {
    "a named tuple": (Named, Batch(tokens(3, 4), torch.tensor([4, 2, 3])), 3),
    "a packed sequence": (Packed, packed(), 3),
    "a list of bags": (Bags, [floats(size, 3) for size in (3, 5, 2)], 3),
    "a list of as many bags as forward has arguments": (Bags, [floats(size, 3) for size in (3, 5)], 2),
    "a dictionary": (Rays, {"from": floats(4, 3), "to": floats(4, 3)}, 4),
    "a dataclass": (Sampled, Sample(floats(4, 3), torch.ones(4, 1)), 4),
}
"""What is one argument → a network that reads it, such a thing, and how many examples it has."""


@pytest.mark.parametrize("name", IDIOMS)
def test_in_each_idiom_removing_the_neurons_that_are_found_equals_masking_them(name, tmp_path):
    network, inputs = drawn(IDIOMS[name][0])
    given = answers(network, inputs)
    model = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers() if layer.exact} == IDIOMS[name][1]
    keep = {name: torch.tensor([3, 1]) for name in IDIOMS[name][1]}
    smaller, masked = select(model, keep), mask(model, keep)
    torch.testing.assert_close(answers(model, inputs), given, rtol=0, atol=1e-12)
    torch.testing.assert_close(answers(smaller, inputs), answers(masked, inputs), rtol=0, atol=1e-12)
    assert (answers(masked, inputs)[0] - given[0]).abs().max() > 1e-3
    pruning.save(smaller, tmp_path)
    for restored in (pruning.deployed(smaller), pruning.restore(drawn(IDIOMS[name][0])[0], tmp_path)):
        torch.testing.assert_close(answers(restored, inputs), answers(smaller, inputs), rtol=0, atol=1e-12)
    assert torch.equal(answers(network, inputs)[0], given[0])


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_that_is_one_argument_goes_through_the_front_door(name):
    make, structure, examples = STRUCTURES[name]
    network, _ = drawn(lambda: (make(), ()))
    batches = [(structure, torch.arange(examples) % 3)] * 3
    found = pruning.discover(network, (structure,))
    importance = pruning.importance(found, batches, nn.CrossEntropyLoss(), signals=["weights", "gradients"])
    smaller = pruning.prune(found, importance, keep=0.5)
    assert smaller.widths()[-1] == 3
    assert smaller(structure).shape == (examples, 3)
    if name != "a list of as many bags as forward has arguments":  # then these are as many arguments
        assert pruning.adapt(network, structure, loss=nn.CrossEntropyLoss()).widths()[-1] == 6


@pytest.mark.parametrize("width", [3, 5])
def test_of_a_tied_decoder_what_it_reads_is_recorded_and_not_what_its_matrix_is_read_by(width):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.bias = nn.Linear(3, width), nn.Parameter(torch.ones(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(self.enter(inputs).relu(), self.enter.weight.t(), self.bias)

    network, inputs = drawn(lambda: (Tied(), (floats(7, 3),)))
    found, seen = pruning.discover(network, inputs), {}
    with torch.no_grad(), record(found, found.layers(), lambda layer, values: seen.setdefault(layer, values)):
        found(*inputs)
    torch.testing.assert_close(seen["enter"], network.enter(*inputs).relu().detach(), rtol=0, atol=1e-12)
    smaller = pruning.prune(found, pruning.importance(found, [inputs[0]] * 2, signals=["weights"]), keep=0.5)
    assert smaller.widths() == (width // 2 + width % 2,)


def test_what_forward_takes_says_how_many_arguments_a_tuple_or_dictionary_is():
    def told(forward: Callable[..., Any], inputs: Any, before: Any = None) -> Any:
        module = nn.Module()
        module.forward = forward
        return given_as(module, inputs, before)

    assert told(lambda a: a, Batch(1, 2)) == (Batch(1, 2),)
    assert told(lambda a, b: (a, b), Batch(1, 2)) == (1, 2)
    assert told(lambda a, b=None: (a, b), [1, 2]) == (1, 2)
    assert told(lambda a, b=None: (a, b), [1, 2], ([5],)) == ([1, 2],)
    assert told(lambda a: a, (1, 2), ((5, 6),)) == ((1, 2),)
    assert told(lambda a: a, ((1, 2),), ((5, 6),)) == ((1, 2),)  # as the example was given
    assert told(lambda a: a, ((1, 2),), (((5, 6), (7, 8)),)) == (((1, 2),),)
    assert told(lambda a: a, [1, 2]) == ([1, 2],)
    assert told(lambda *a: a, [1, 2]) == (1, 2)
    assert told(lambda a: a, {"a": 1}) == {"a": 1}
    assert told(lambda a: a, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert told(lambda a: a, {"c": 1}) == ({"c": 1},)
    assert told(lambda a, b: (a, b), {"c": 1}) == {"c": 1}
    assert told(lambda **a: a, {"c": 1}) == {"c": 1}
    assert told(lambda a, *, b: (a, b), {"c": 1}) == {"c": 1}


def test_functions_that_close_over_nothing_of_it_stay_the_same_ones():
    network = Stream()
    network.bend = bend = torch.tanh
    network.later = later = lambda: unbound  # noqa: F821 - a name of a cell that is bound later, if at all
    run = network.run
    rebind(network, {id(network.out): nn.Linear(4, 1)})
    assert (network.bend, network.later, network.run) == (bend, later, run)
    rebind(network, {id(network.inner): nn.ModuleDict()})
    assert network.run is not run
    assert network.run.__defaults__ == (torch.tanh,)
