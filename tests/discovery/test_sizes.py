"""Widths that stand in a user's code, or follow there from other widths: calls are told the sizes that fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from pruning.discovery.following import Size
from pruning.discovery.running import copied
from tests.discovery.test_forms import Made, Network, answers
from tests.foreign import floats, tokens

CODES: dict[str, tuple[Callable[[], Made], dict[str, int], set[str]]] = {}
"""What stands in the code → how a network is made with its inputs, its layers' widths, and which are not exact."""


def code(layers: dict[str, int], inexact: set[str] = frozenset()) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        CODES[make.__name__] = make, layers, set(inexact)
        return make

    return known


@code({"one": 6})
def states_beside_each_other_of_which_one_stays() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 9)
        for step in inputs.unbind(1):
            one, two = state.split([6, 3], 1)
            one = self.one(torch.cat([step, one], 1)).tanh()
            two = self.two(torch.cat([one, two], 1)).tanh()
            state = torch.cat([one, two], 1)
        return two

    return Network(run, one=nn.Linear(9, 6), two=nn.Linear(9, 3)), (floats(2, 4, 3),)


@code({"enter:0": 8, "enter:8": 8})
def parts_that_gates_weigh_in_a_loop() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        query, hidden, gates = self.enter(inputs).split((8, 8, 3), -1)
        found = hidden.mean(1, keepdim=True) * gates[..., 2:]
        for level, deeper in enumerate(self.deeper):
            hidden = deeper(hidden.mT).mT.relu()
            found = found + hidden * gates[..., level : level + 1]
        return self.out(query * self.mixed(found))

    deeper = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1, groups=8) for _ in range(2))
    parts = {"enter": nn.Linear(4, 19), "deeper": deeper, "mixed": nn.Linear(8, 8), "out": nn.Linear(8, 2)}
    return Network(run, **parts), (floats(3, 5, 4),)


@code({"cell": 12})
def a_state_of_a_cell() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden, memory = torch.zeros(len(inputs), 12).to(inputs), torch.zeros(size=(len(inputs), 12)).to(inputs)
        for step in inputs.unbind(1):
            hidden, memory = self.cell(step, (hidden, memory))
        return self.out(hidden)

    return Network(run, cell=nn.LSTMCell(4, 12), out=nn.Linear(12, 3)), (floats(3, 5, 4),)


@code({"enter": 3})
def a_state_as_wide_as_the_batch_is_long() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(3, 3)
        for step in inputs.unbind(1):
            state = torch.tanh(self.enter(step) + self.back(state))
        return self.out(state)

    return Network(run, enter=nn.Linear(4, 3), back=nn.Linear(3, 3), out=nn.Linear(3, 2)), (floats(3, 5, 4),)


@code({"cell": 5, "leak": 4})
def states_of_layers_that_read_each_other_with_as_many_examples_as_one_has_neurons() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden, memory, given = inputs.new_zeros(4, 5), inputs.new_zeros(4, 4), inputs.new_zeros(4, 4)
        for step in inputs.unbind(1):
            memory = memory / 2 * (1 - given) + self.leak(torch.cat([step, hidden], 1))
            hidden, given = self.cell(torch.cat([step, given], 1), hidden), memory.sigmoid()
        return self.out(torch.cat([hidden, given], 1))

    return Network(run, cell=nn.GRUCell(7, 5), leak=nn.Linear(8, 4), out=nn.Linear(9, 2)), (floats(4, 3, 3),)


@code({"query": 4})
def heads_and_their_dimensions() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        batch, steps, _ = inputs.shape
        queries, keys, values = (
            part(inputs).view(batch, steps, 4, 4).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = (queries @ keys.mT / 2).softmax(-1)
        return self.out((weights @ values).transpose(1, 2).reshape(batch, steps, 16))

    parts = {name: nn.Linear(10, 16) for name in ("query", "key", "value")}
    return Network(run, **parts, out=nn.Linear(16, 2)), (floats(2, 5, 10),)


@code({"forget": 6})
def two_states_that_begin_with_the_same_zeros() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        memory = state = torch.zeros(len(inputs), 6).to(inputs)
        for step in inputs.unbind(1):
            memory = memory * self.forget(step).sigmoid() + self.enter(step).tanh()
            state = self.turned(memory).tanh() * (self.leave(step) + self.back(state)).sigmoid()
        return self.out(state)

    parts = {name: nn.Linear(4, 6) for name in ("enter", "forget", "leave")}
    parts |= {name: nn.Linear(6, 6) for name in ("turned", "back")}
    return Network(run, **parts, out=nn.Linear(6, 3)), (floats(3, 5, 4),)


@code({"query0": 4})
def heads_of_two_blocks_with_a_mask_that_code_makes_once_for_each_of_them() -> Made:
    def run(self: Any, inputs: Tensor, padding: Tensor) -> Tensor:
        mask = torch.zeros(1, 4, 1, 5).to(inputs) + padding[:, None, None]
        for number in range(2):
            parts = (getattr(self, f"{name}{number}")(inputs) for name in ("query", "key", "value"))
            heads = F.scaled_dot_product_attention(*(p.view(-1, 5, 4, 3).transpose(1, 2) for p in parts), mask)
            inputs = inputs + getattr(self, f"out{number}")(heads.transpose(1, 2).flatten(2))
        return inputs

    parts = {f"{name}{number}": nn.Linear(4, 12) for name in ("query", "key", "value") for number in range(2)}
    return Network(run, **parts, out0=nn.Linear(12, 4), out1=nn.Linear(12, 4)), (floats(2, 5, 4), floats(2, 5))


@code({"query": 2})
def heads_that_are_left_over() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (part(inputs).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(10, 16) for name in ("query", "key", "value")}
    return Network(run, **parts, out=nn.Linear(16, 2)), (floats(2, 5, 10),)


@code({"one": 6, "two": 8})
def channels_of_an_image_that_is_flattened() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden = F.max_pool2d(self.two(self.one(image).relu()).relu(), 2)
        return self.out(hidden.view(-1, 8 * 2 * 2))

    parts = {"one": nn.Conv2d(1, 6, 3), "two": nn.Conv2d(6, 8, 3), "out": nn.Linear(32, 2)}
    return Network(run, **parts), (floats(2, 1, 8, 8),)


@code({"gates": 6}, {"gates"})
def gates_cut_out_by_numbers_and_normalised() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = inputs.new_full((len(inputs), 6), 0.5)
        for step in inputs.unbind(1):
            gates = self.gates(torch.cat([step, hidden], 1))
            new, keep = gates[:, :6].tanh(), gates.narrow(1, 6, 6).sigmoid()
            hidden = F.layer_norm(keep * hidden + (1 - keep) * new * gates[..., 12:18].sigmoid(), (6,))
        return self.out(hidden)

    return Network(run, gates=nn.Linear(9, 18), out=nn.Linear(6, 2)), (floats(3, 4, 3),)


class Windows(nn.Module):
    """Attention within windows, its heads' dimensions told by the width of what it reads, as Swin's."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(floats(9, 4))
        steps = torch.arange(4)
        self.register_buffer("where", (steps[:, None] - steps + 3).flatten())

    def forward(self, inputs: Tensor) -> Tensor:
        batch, steps, width = inputs.shape
        parts = self.qkv(inputs).reshape(batch, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = parts[0] @ parts[1].mT + self.table[self.where].view(steps, steps, -1).permute(2, 0, 1)
        return self.out((scores.softmax(-1) @ parts[2]).transpose(1, 2).reshape(batch, steps, width))


@code({"enter": 16, "attention.qkv": 4}, {"enter"})
def a_residual_stream_and_heads_told_by_its_width() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        stream = self.enter(inputs)
        return self.out((stream + self.attention(self.norm(stream))).mean(1))

    parts = {"enter": nn.Linear(3, 16), "norm": nn.LayerNorm(16), "attention": Windows(), "out": nn.Linear(16, 2)}
    return Network(run, **parts), (floats(2, 4, 3),)


@code({"text": 12, "blocks.0.qkv": 3, "blocks.1.qkv": 3})
def heads_of_several_blocks_split_by_a_number() -> Made:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.heads, self.qkv, self.out = 12, 3, nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, inputs: Tensor) -> Tensor:
            batch, steps, width = inputs.size()
            queries, keys, values = (
                part.view(batch, steps, self.heads, width // self.heads).transpose(1, 2)
                for part in self.qkv(inputs).split(self.width, dim=2)
            )
            found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            return inputs + self.out(found.transpose(1, 2).contiguous().view(batch, steps, width))

    blocks = nn.Sequential(Block(), Block())
    run = lambda self, text: self.out(self.blocks(self.text(text)))  # noqa: E731
    return Network(run, text=nn.Embedding(11, 12), blocks=blocks, out=nn.Linear(12, 11)), (tokens(2, 5),)


@code({"enter:0": 3, "enter:6": 3, "convolutions.1": 3, "enter:9": 3, "out": 4})
def parts_of_which_each_goes_through_a_convolution_with_the_one_before() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        first, *parts, last = torch.split(self.enter(inputs).relu(), 3, 1)
        given = []
        for convolution, part in zip(self.convolutions, parts, strict=True):
            first = convolution(first + part).relu()
            given.append(first)
        return self.answer(self.out(torch.cat([*given, last], 1)).relu())

    convolutions = nn.ModuleList(nn.Conv1d(3, 3, 1) for _ in range(2))
    parts = {"enter": nn.Conv1d(2, 12, 1), "convolutions": convolutions, "out": nn.Conv1d(9, 4, 1)}
    return Network(run, **parts, answer=nn.Conv1d(4, 2, 1)), (floats(2, 2, 5),)


@code({"enter:0": 4, "enter:4": 4})
def chunks_with_convolutions_of_their_own() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        one, other = self.enter(inputs).relu().chunk(2, dim=1)
        return self.first(one) * self.second(other)

    parts = {"enter": nn.Conv1d(2, 8, 1), "first": nn.Conv1d(4, 3, 1), "second": nn.Conv1d(4, 3, 1)}
    return Network(run, **parts), (floats(2, 2, 5),)


@code({"enter:0": 4, "enter:4": 4})
def halves_that_an_odd_width_gives_by_chance() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        one, other = self.enter(inputs).relu().chunk(2, -1)
        return self.first(one) * self.second(other)

    parts = {"enter": nn.Linear(2, 8), "first": nn.Linear(4, 3), "second": nn.Linear(4, 3)}
    return Network(run, **parts), (floats(2, 5, 2),)


@code({"enter.0": 4, "enter.0_reverse": 4, "cell": 5})
def what_a_decoder_read_of_both_directions_the_step_before() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        memory, _ = self.enter(inputs)
        state, read = memory.data.new(len(inputs), 5).zero_(), memory.new_zeros(len(inputs), 8)
        for step in inputs.unbind(1):
            state = self.cell(torch.cat([step, read], 1), state)
            read = memory.mul(self.score(state).softmax(1).unsqueeze(-1)).sum(1)
        return self.out(torch.cat([state, read], 1))

    parts = {"enter": nn.LSTM(3, 4, batch_first=True, bidirectional=True), "cell": nn.GRUCell(11, 5)}
    return Network(run, **parts, score=nn.Linear(5, 6), out=nn.Linear(13, 2)), (floats(2, 6, 3),)


@code({"one": 3, "two": 4, "three": 5})
def numbers_for_all_channels_that_lie_beside_each_other() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        beside = torch.cat([self.one(inputs).relu(), self.two(inputs).tanh(), self.three(inputs).sigmoid()], 1)
        return self.out(beside.flatten(1) + torch.full((len(inputs), 48), 0.3))

    parts = {name: nn.Conv2d(1, width, 1) for name, width in (("one", 3), ("two", 4), ("three", 5))}
    return Network(run, **parts, out=nn.Linear(48, 2)), (floats(2, 1, 2, 2),)


def made(name: str) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = CODES[name][0]()
    return network.double().eval(), inputs


@pytest.mark.parametrize("name", CODES)
def test_calls_that_are_told_a_width_by_the_code_are_told_the_one_that_is_left(name, tmp_path):
    network, inputs = made(name)
    model = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers()} == CODES[name][1]
    assert {layer.name for layer in model.layers() if not layer.exact} == CODES[name][2]
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    exact = {layer.name: keep[layer.name] for layer in model.layers() if layer.exact}
    for one, other in zip(answers(select(model, exact), inputs), answers(mask(model, exact), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    smaller = select(model, keep)
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(made(name)[0], tmp_path)
    for one, other in zip(answers(restored, inputs), answers(smaller, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_network_that_is_told_sizes_is_exported():
    network, inputs = made("a_residual_stream_and_heads_told_by_its_width")
    model = pruning.discover(network, inputs)
    smaller = select(model, {"enter": torch.arange(14), "attention.qkv": torch.tensor([3, 1])})
    exported = torch.export.export(smaller.network, inputs, strict=False).module()
    torch.testing.assert_close(exported(*inputs), smaller(*inputs), rtol=0, atol=1e-12)


def test_only_the_modules_in_whose_code_a_size_must_follow_are_told_sizes_and_the_summary_names_them():
    network, inputs = made("a_residual_stream_and_heads_told_by_its_width")
    model = pruning.discover(network, inputs)
    assert {number.module for number in model.numbers} == {"attention"}
    _, said = " ".join(model.summary().split()).split(" attention: ")
    assert "`reshape` in `forward`, its line 5, with 16" in said


class Nested(nn.Module):
    """Heads whose sizes its code says, around another one of its kind."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.value, self.back, self.inner = nn.Linear(5, 12), nn.Linear(12, 5), inner

    def forward(self, inputs: Tensor) -> Tensor:
        heads = self.value(inputs).view(2, 4, 3, 4)
        weights = (heads.transpose(1, 2) @ heads.permute(0, 2, 3, 1)).softmax(-1)
        mixed = (weights @ heads.transpose(1, 2)).transpose(1, 2).reshape(2, 4, 12)
        return self.inner(inputs + self.back(mixed))


def test_a_call_passes_one_mode_however_deep_the_module_stands_whose_sizes_follow():
    found: set[int] = set()

    class Counted(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            found.add(len(torch.overrides._get_current_function_mode_stack()))
            return super().forward(inputs)

    network, inputs = Nested(Nested(Nested(Counted(5, 2)))).double(), (floats(2, 4, 5),)
    model = pruning.discover(network, inputs)
    keep = {layer.name: torch.tensor([2, 0]) for layer in model.layers() if layer.width == 3}
    assert len(keep) == 3
    smaller, masked = select(model, keep), mask(model, keep)
    torch.testing.assert_close(answers(smaller, inputs), answers(masked, inputs), rtol=0, atol=1e-12)
    found.clear()
    smaller(*inputs)
    assert found == {1}


def test_a_call_in_the_loop_of_a_list_stands_in_the_function_that_the_loop_is_in():
    size = Size("", "view<<listcomp>+0:8-30<forward+4:12-60", 0, "", 1, 16)
    assert str(size) == "`view` in `forward`, its line 5, with 16"
    assert str(replace(size, attribute="view<<lambda>+0:8-30")) == "`view` with 16"


def test_heads_that_lie_along_the_batch_are_as_many_times_as_many_in_another_batch():
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (part(inputs).unflatten(-1, (3, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        queries, keys, values = (part.reshape(inputs.shape[0] * 3, -1, 4) for part in parts)
        found = (queries @ keys.mT).softmax(-1) @ values
        return self.out(found.reshape(inputs.shape[0], 3, -1, 4).transpose(1, 2).flatten(2))

    network = Network(run, **{name: nn.Linear(5, 12) for name in ("query", "key", "value")}, out=nn.Linear(12, 2))
    model, more = pruning.discover(network.double(), (floats(2, 4, 5),)), (floats(5, 3, 5),)
    assert [(layer.name, layer.width) for layer in model.layers()] == [("query", 3)]
    for left in (torch.tensor([1]), torch.tensor([2, 0])):
        smaller, masked = select(model, {"query": left}), mask(model, {"query": left})
        torch.testing.assert_close(answers(smaller, more), answers(masked, more), rtol=0, atol=1e-12)
    free = (({0: torch.export.Dim("batch", min=2)},),)
    exported = torch.export.export(smaller.network, (floats(2, 3, 5),), dynamic_shapes=free, strict=False).module()
    torch.testing.assert_close(exported(*more), answers(smaller, more)[0], rtol=0, atol=1e-12)


def test_a_copy_of_a_network_that_is_told_sizes_runs_by_itself_on_any_batch():
    network, inputs = made("heads_and_their_dimensions")
    model = pruning.discover(network, inputs)
    smaller = select(model, {"query": torch.tensor([3, 1])})
    again = copied(smaller.network)
    for parameter in smaller.parameters():
        parameter.data.zero_()
    more = torch.cat([*inputs, *inputs, *inputs])[:, :3]
    expected = answers(mask(model, {"query": torch.tensor([3, 1])}), (more,))
    torch.testing.assert_close(answers(again, (more,)), expected, rtol=0, atol=1e-12)


def test_halves_of_what_a_layer_gives_are_no_neurons_that_could_go_by_themselves():
    def run(self: Any, image: Tensor) -> Tensor:
        left, right = self.enter(image).relu().chunk(2, 1)
        return self.out(torch.cat([left, self.inner(right)], 1))

    network = Network(run, enter=nn.Conv1d(3, 8, 1), inner=nn.Conv1d(4, 4, 1), out=nn.Conv1d(8, 2, 1)).double()
    inputs = (floats(2, 3, 5),)
    model = pruning.discover(network, inputs)
    for share in (0.25, 0.5, 0.75):
        keep = {layer.name: torch.arange(max(1, int(layer.width * share))) for layer in model.layers()}
        torch.testing.assert_close(
            answers(select(model, keep), inputs), answers(mask(model, keep), inputs), rtol=0, atol=1e-12
        )


def test_parts_of_a_layer_that_a_reader_has_in_another_order_are_layers_of_their_own():
    def run(self: Any, inputs: Tensor) -> Tensor:
        one, other = self.enter(inputs).split([5, 3], dim=-1)
        joined = torch.cat([other.tanh(), one.sin()], -1)
        return self.out(joined * torch.sigmoid(self.gate(joined)))

    parts = {"enter": nn.Linear(3, 8), "gate": nn.Linear(8, 8), "out": nn.Linear(8, 2)}
    network, inputs = Network(run, **parts).double(), (floats(4, 3),)
    model = pruning.discover(network, inputs)
    assert [(layer.name, layer.width, layer.owned[0].start) for layer in model.layers()] == [
        ("enter:0", 5, 0),
        ("enter:5", 3, 5),
    ]
    for keep in ({"enter:0": [4, 0, 2], "enter:5": [1]}, {"enter:5": [0, 2]}):
        kept = {name: torch.tensor(own) for name, own in keep.items()}
        torch.testing.assert_close(answers(select(model, kept), inputs), answers(mask(model, kept), inputs))


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "like it": torch.zeros_like,
    "of its shape": lambda hidden: torch.zeros(hidden.shape, dtype=hidden.dtype),
    "of its sizes": lambda hidden: hidden.new_zeros(*hidden.size()),
    "of one of its sizes": lambda hidden: torch.full((5, 3, hidden.shape[-1]), 0.5, dtype=hidden.dtype),
}
FILLED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "by steps": lambda made, given: [made[:, step].copy_(given[:, step]) for step in range(3)],
    "by rows that are chosen": lambda made, given: made.__setitem__(torch.tensor([0, 2, 4]), given[[0, 2, 4]]),
    "by sums": lambda made, given: made.index_add_(0, torch.tensor([1, 0, 1, 4, 4]), given),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("filled", FILLED)
def test_neurons_that_are_written_into_what_is_made_as_wide_as_others_go_with_these(made, filled):
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).tanh()
        state = MADE[made](hidden)
        FILLED[filled](state, self.middle(hidden).sin())
        return self.leave(state)

    inputs = floats(5, 3, 4)
    network = Network(run, enter=nn.Linear(4, 6), middle=nn.Linear(6, 6), leave=nn.Linear(6, 2)).double()
    found = pruning.discover(network, inputs)
    assert [(layer.name, layer.width, layer.exact) for layer in found.layers()] == [("enter", 6, True)]
    keep = {"enter": torch.tensor([4, 1, 2])}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=0, atol=1e-10)
