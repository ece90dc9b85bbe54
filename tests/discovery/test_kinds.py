"""Kinds of networks that are found by what their operations do: products, shuffles, tables, cells of their own."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import mask, select
from pruning.discovery import Discovered
from pruning.discovery.running import copied
from tests.discovery.readers import assert_each_is_seen
from tests.discovery.test_forms import Made, Network, answers
from tests.foreign import floats

KINDS: dict[str, tuple[Callable[[], Made], dict[str, int]]] = {}
"""Kind → how a network of it is made with its inputs, and the widths of its layers, by name."""


def kind(layers: dict[str, int]) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        KINDS[make.__name__] = make, layers
        return make

    return known


def grid(*shape: int) -> nn.Parameter:
    return nn.Parameter(floats(*shape))


@kind({"one": 5, "other": 6, "both": 7})
def bilinear_map_of_two_layers() -> Made:
    run = lambda self, x: self.out(self.both(self.one(x).tanh(), self.other(x)).relu())  # noqa: E731
    parts = {"one": nn.Linear(3, 5), "other": nn.Linear(3, 6), "both": nn.Bilinear(5, 6, 7), "out": nn.Linear(7, 2)}
    return Network(run, **parts), (floats(4, 3),)


@kind({"down": 6})
def pooling_undone_by_its_indices() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden, indices = F.max_pool2d(self.down(image).relu(), 2, return_indices=True)
        return self.up(F.max_unpool2d(hidden + self.middle(hidden), indices, 2))

    parts = {"down": nn.Conv2d(3, 6, 3), "middle": nn.Conv2d(6, 6, 3, padding=1), "up": nn.Conv2d(6, 2, 3)}
    return Network(run, **parts), (floats(2, 3, 10, 10),)


@kind({"one": 4, "two": 12})
def channels_shuffled_by_reshaping() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden = self.one(image).relu()
        batch, channels, height, width = hidden.shape
        hidden = hidden.view(batch, 3, channels // 3, height, width).transpose(1, 2).flatten(1, 2)
        return self.out(self.two(hidden).relu().mean((2, 3)))

    parts = {"one": nn.Conv2d(3, 12, 3), "two": nn.Conv2d(12, 12, 1), "out": nn.Linear(12, 2)}
    return Network(run, **parts), (floats(2, 3, 6, 6),)


@kind({"enter": 8, "choose": 3})
def selective_scan_by_hand() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden, gate = self.enter(inputs).split([self.width, self.width], -1)
        steps, keys, queries = self.choose(F.silu(hidden)).split([self.rank, 2, 2], -1)
        steps, decay = F.softplus(self.step.weight @ steps.transpose(1, 2)).transpose(1, 2), -torch.exp(self.log)
        state, outputs = hidden.new_zeros(len(inputs), *decay.shape), []
        for time in range(inputs.shape[1]):
            state = torch.exp(steps[:, time, :, None] * decay) * state
            state = state + steps[:, time, :, None] * keys[:, time, None] * hidden[:, time, :, None]
            outputs.append(torch.einsum("bdn,bn->bd", state, queries[:, time]))
        return self.out((torch.stack(outputs, 1) + hidden * self.skip) * F.silu(gate))

    parts = {"enter": nn.Linear(3, 16), "choose": nn.Linear(8, 7), "step": nn.Linear(3, 8, bias=False)}
    network = Network(run, **parts, log=grid(8, 2), skip=grid(8), out=nn.Linear(8, 2))
    network.width, network.rank = 8, 3
    return network, (floats(2, 5, 3),)


class Heads(nn.Module):
    """Attention whose numbers of heads and of their dimensions are the same: which of them follows is to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.heads, self.size, self.inner = 4, 4, 16

    def forward(self, inputs: Tensor, biases: Tensor) -> Tensor:
        batch, steps, _ = inputs.shape
        parts = (self.query(inputs), self.key(inputs), self.value(inputs))
        queries, keys, values = (part.view(batch, steps, self.heads, self.size).transpose(1, 2) for part in parts)
        found = (queries @ keys.mT + biases).softmax(-1) @ values
        return self.out(found.transpose(1, 2).reshape(batch, steps, self.inner))


@kind({"table": 4})
def heads_of_two_blocks_that_share_a_table_of_biases() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        steps = torch.arange(inputs.shape[1])
        biases = self.table((steps[None] - steps[:, None]).clamp(-3, 3) + 3).permute(2, 0, 1)[None]
        return self.second(inputs + self.first(inputs, biases), biases)

    return Network(run, first=Heads(), second=Heads(), table=nn.Embedding(7, 4)), (floats(2, 5, 16),)


class Mapped(nn.Module):
    """A linear map that somebody wrote by hand."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix, self.shift = grid(inputs, outputs), grid(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.matrix + self.shift


@kind({"one": 6, "two": 5})
def modules_that_read_by_matrices_of_their_own() -> Made:
    run = lambda self, x: self.out(self.two(self.one(x).relu()).tanh())  # noqa: E731
    return Network(run, one=Mapped(3, 6), two=Mapped(6, 5), out=Mapped(5, 2)), (floats(4, 3),)


@kind({"queries": 4})
def heads_with_a_matrix_each_by_einsum() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        queries = torch.einsum("btd,hdk->bhtk", inputs, self.queries)
        keys = torch.einsum("btd,hdk->bhtk", inputs, self.keys)
        values = torch.einsum("btd,dhk->bhtk", inputs, self.values)
        weights = torch.einsum("bhtk,bhsk->bhts", queries, keys).softmax(-1)
        return torch.einsum("bhtk,hkd->btd", torch.einsum("bhts,bhsk->bhtk", weights, values), self.out)

    parts = {"queries": grid(4, 6, 3), "keys": grid(4, 6, 3), "values": grid(6, 4, 5), "out": grid(4, 5, 2)}
    return Network(run, **parts), (floats(2, 5, 6),)


@kind({"enter": 7, "leave": 4})
def experts_in_one_tensor() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = torch.bmm(inputs.expand(3, -1, -1), self.enter).relu()
        shares = self.gate(inputs).softmax(-1)
        return self.out(torch.einsum("ebd,be->bd", torch.bmm(hidden, self.leave), shares))

    parts = {"gate": nn.Linear(5, 3), "enter": grid(3, 5, 7), "leave": grid(3, 7, 4), "out": nn.Linear(4, 2)}
    return Network(run, **parts), (floats(6, 5),)


@kind({"enter": 6, "skip.0": 4, "gate.0": 5, "gate.1": 5})
def residual_blocks_of_which_the_last_is_read_by_nobody() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden, total = self.enter(inputs), 0
        for gate, skip, back in zip(self.gate, self.skip, self.back, strict=True):
            inner = gate(hidden).tanh()
            total, hidden = total + skip(inner), hidden + back(inner)
        return self.out(total.relu())

    parts = {"gate": (6, 5), "skip": (5, 4), "back": (5, 6)}
    lists = {name: nn.ModuleList([nn.Conv1d(*sizes, 1), nn.Conv1d(*sizes, 1)]) for name, sizes in parts.items()}
    return Network(run, enter=nn.Conv1d(3, 6, 1), **lists, out=nn.Conv1d(4, 2, 1)), (floats(2, 3, 7),)


@kind({"queries": 4})
def heads_that_share_one_key() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        queries = self.queries(inputs).unflatten(-1, (-1, 3)).transpose(1, 2)
        keys, values = self.keys(inputs)[:, None].chunk(2, -1)
        found = F.scaled_dot_product_attention(queries, keys, values)
        scores = (queries @ keys.mT).softmax(-1)
        return self.out((found + scores @ values).transpose(1, 2).flatten(2))

    parts = {"queries": nn.Linear(5, 12), "keys": nn.Linear(5, 6), "out": nn.Linear(12, 2)}
    return Network(run, **parts), (floats(2, 7, 5),)


@kind({"enter": 4})
def channels_filtered_in_their_frequencies() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = torch.fft.rfft(self.enter(inputs).unflatten(-1, (-1, 8)), dim=-1)
        return self.out(torch.fft.irfft(hidden * self.filter, n=8, dim=-1).flatten(1))

    return Network(run, enter=nn.Linear(3, 32), filter=grid(4, 5), out=nn.Linear(32, 2)), (floats(4, 3),)


@kind({"enter": 6, "message": 4})
def messages_between_nodes_some_of_which_get_none() -> Made:
    def run(self: Any, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = self.enter(nodes).relu()
        messages = self.message(torch.cat([hidden[edges[0]], hidden[edges[1]]], -1)).relu()
        return self.out(torch.zeros(len(nodes), messages.shape[1]).to(messages).index_add(0, edges[1], messages))

    parts = {"enter": nn.Linear(3, 6), "message": nn.Linear(12, 4), "out": nn.Linear(4, 2)}
    return Network(run, **parts), (floats(4, 3), torch.tensor([[0, 1, 2], [1, 2, 1]]))


@kind({"enter": 6})
def convolutions_by_functions() -> Made:
    run = lambda self, x: F.conv2d(F.conv2d(x, self.enter, padding=1).relu(), self.leave)  # noqa: E731
    return Network(run, enter=grid(6, 3, 3, 3), leave=grid(2, 6, 1, 1)), (floats(2, 3, 5, 5),)


@kind({"enter": 6})
def a_width_that_is_kept_as_a_tensor() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), self.width)
        for step in range(inputs.shape[1]):
            state = torch.tanh(self.enter(inputs[:, step]) + self.back(state))
        return self.out(state)

    network = Network(run, enter=nn.Linear(3, 6), back=nn.Linear(6, 6), out=nn.Linear(6, 2))
    object.__setattr__(network, "width", torch.tensor(6))
    return network, (floats(2, 4, 3),)


@kind({"enter": 3, "reduce": 4})
def involution_of_patches_by_kernels_for_each_place() -> Made:
    def run(self: Any, image: Tensor) -> Tensor:
        hidden = self.enter(image).relu()
        batch, channels, height, width = hidden.shape
        kernels = self.span(self.reduce(hidden).relu()).view(batch, -1, 9, height, width)
        patches = F.unfold(hidden, 3, padding=1).view(batch, kernels.shape[1], -1, 9, height, width)
        return self.out((kernels[:, :, None] * patches).sum(3).view(batch, channels, height, width).relu())

    parts = {"enter": nn.Conv2d(2, 6, 1), "reduce": nn.Conv2d(6, 4, 1), "span": nn.Conv2d(4, 27, 1)}
    return Network(run, **parts, out=nn.Conv2d(6, 2, 1)), (floats(2, 2, 4, 5),)


@kind({"bottom": 5, "top": 4})
def fields_of_a_table_beside_each_other() -> Made:
    def run(self: Any, numbers: Tensor, words: Tensor) -> Tensor:
        fields = torch.stack([self.bottom(numbers).relu(), self.user(words[:, 0]), self.item(words[:, 1])], 1)
        return self.out(self.top(torch.cat([fields[:, 0], (fields @ fields.mT).flatten(1)], 1)).relu())

    parts = {"bottom": nn.Linear(3, 5), "user": nn.Embedding(7, 5), "item": nn.Embedding(7, 5)}
    inputs = floats(4, 3), torch.tensor([[0, 1], [2, 2], [6, 3], [4, 5]])
    return Network(run, **parts, top=nn.Linear(14, 4), out=nn.Linear(4, 2)), inputs


@kind({"planes": 5})
def features_taken_of_learned_planes() -> Made:
    def run(self: Any, points: Tensor) -> Tensor:
        return self.out(F.grid_sample(self.planes, points[None, None], align_corners=True)[0, :, 0].mT)

    return Network(run, planes=grid(1, 5, 4, 4), out=nn.Linear(5, 2)), (floats(6, 2),)


@kind({"queries": 3})
def decays_of_each_head_below_a_diagonal() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        split = lambda part: part.unflatten(-1, (self.decays.shape[0], -1)).transpose(1, 2)  # noqa: E731
        steps = torch.arange(inputs.shape[1])
        decays = self.decays.view(-1, 1, 1) ** (steps[:, None] - steps).clamp(min=0).to(inputs)
        scores = split(self.queries(inputs)) @ split(self.keys(inputs)).mT * decays.tril()
        return self.out((scores @ split(self.values(inputs))).transpose(1, 2).flatten(2))

    network = Network(run, **{name: nn.Linear(4, 6) for name in ("queries", "keys", "values")}, out=nn.Linear(6, 2))
    network.register_buffer("decays", torch.tensor([0.9, 0.8, 0.7]))
    return network, (floats(2, 4, 4),)


def heads_with_memory(kept: nn.Parameter) -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (part(inputs).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        queries, keys, values = parts
        keys = torch.cat([self.kept[0].expand(len(inputs), *keys.shape[1:2], 3, 4), keys], dim=-2)
        values = torch.cat([self.kept[1].expand(len(inputs), *values.shape[1:2], 3, 4), values], dim=-2)
        found = (queries @ keys.mT * queries.size(-1) ** -0.5).softmax(-1) @ values
        return self.out(found.transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(5, 8) for name in ("query", "key", "value")}
    return Network(run, **parts, kept=kept, out=nn.Linear(8, 2)), (floats(2, 4, 5),)


@kind({"query": 2})
def heads_each_with_a_memory_of_its_own() -> Made:
    return heads_with_memory(grid(2, 2, 3, 4))


@kind({"query": 2})
def heads_with_one_memory_for_all() -> Made:
    return heads_with_memory(grid(2, 3, 4))


@kind({"enter": 6})
def neurons_rounded_to_levels_in_a_table() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        nearest = (hidden.unsqueeze(-1) - self.levels).abs().argmin(-1)
        chosen = self.levels[nearest] + self.learned.index_select(0, nearest.flatten()).view_as(hidden)
        return self.out(hidden + (chosen - hidden).detach())

    network = Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2), learned=nn.Parameter(floats(9)))
    network.register_buffer("levels", torch.linspace(-1, 1, 9))
    return network, (floats(4, 3),)


@kind({"enter": 6})
def a_tensor_that_is_copied_as_pythons_objects_are() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        return self.out(copy.copy(hidden) + hidden)

    return Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(4, 3),)


def made(name: str) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = KINDS[name][0]()
    return network.double().eval(), inputs


@cache
def discovered(name: str) -> tuple[Discovered, nn.Module, Any]:
    """Return a network in which neurons were looked for, as its user has it, and its inputs; to be left."""
    network, inputs = made(name)
    return pruning.discover(network, inputs), network, inputs


@pytest.mark.parametrize("name", KINDS)
def test_in_each_kind_removing_the_neurons_that_are_found_equals_masking_them(name):
    model, network, inputs = discovered(name)
    for one, other in zip(answers(model, inputs), answers(network, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert {layer.name: layer.width for layer in model.layers()} == KINDS[name][1]
    assert all(layer.exact for layer in model.layers())
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    for one, other in zip(answers(select(model, keep), inputs), answers(mask(model, keep), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    seen: dict[str, Tensor] = {}
    with record(model, model.layers(), seen.__setitem__), torch.no_grad():
        model(*inputs)
    assert {name: values.shape[1] for name, values in seen.items()} == KINDS[name][1]


@pytest.mark.parametrize("name", KINDS)
def test_each_reader_of_each_kind_is_seen_with_as_many_numbers_as_it_has_columns(name):
    model, _, inputs = discovered(name)
    assert_each_is_seen(copied(model), inputs)
