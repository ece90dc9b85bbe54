"""What data and neurons choose: times, tables, paths, and numbers that are repeated as often as there are neurons."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Made, Network, answers, drawn
from tests.discovery.test_kinds import grid
from tests.foreign import floats

CHOSEN: dict[str, tuple[Callable[[], Made], dict[str, int], set[str]]] = {}
"""What is chosen → how a network is made with its inputs, its layers' widths, which are not exact."""


def chosen(layers: dict[str, int], inexact: set[str] = frozenset()) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        CHOSEN[make.__name__] = make, layers, set(inexact)
        return make

    return known


@chosen({"enter": 6})
def one_number_for_each_time_repeated_as_often_as_there_are_neurons() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        shares = inputs.mean(-1).softmax(-1)[..., None].repeat(1, 1, hidden.shape[-1])
        return self.out((hidden * shares).tanh() * inputs.mean(-1, keepdim=True).tile(1, 1, hidden.shape[-1]))

    return Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(2, 5, 3),)


def delayed(choose: Callable[[Tensor, Tensor], Tensor]) -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        past = [torch.zeros(len(inputs), 6).to(inputs)] * 3
        for step in inputs.unbind(1):
            past = [*past[1:], (self.enter(step) + choose(torch.stack(past, 1), self.delays) / 2).tanh()]
        return self.out(past[-1])

    network = Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2))
    network.register_buffer("delays", torch.tensor([0, 2, 1, 1, 0, 2]))
    return network, (floats(2, 5, 3),)


@chosen({"enter": 6})
def a_delay_of_each_neuron_that_is_gathered() -> Made:
    return delayed(lambda past, delays: past.gather(1, delays.expand(len(past), 1, -1)).squeeze(1))


@chosen({"enter": 6})
def a_delay_of_each_neuron_that_is_an_index() -> Made:
    return delayed(lambda past, delays: past[:, delays, torch.arange(past.shape[-1])])


@chosen({"enter": 6}, {"enter"})
def a_number_of_all_neurons_repeated_as_often_as_there_are() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).tanh()
        return self.out(hidden * hidden.mean(-1, keepdim=True).expand(-1, -1, hidden.shape[-1]).sigmoid())

    return Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(2, 5, 3),)


def by_period(self: Any, inputs: Tensor) -> Tensor:
    """Lay times out by the period that neurons have in the mean, with zeros behind where it does not divide them."""
    hidden = self.enter(inputs)
    strength = torch.fft.rfft(hidden, dim=1).abs().mean(0).mean(-1)
    period = int(hidden.shape[1] // (1 + strength[1:].argmax().detach().numpy()))
    behind = -hidden.shape[1] % period
    if behind:
        hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), behind, hidden.shape[-1])], 1)
    laid = hidden.unflatten(1, (-1, period)).permute(0, 3, 1, 2)
    return self.out(F.layer_norm(self.middle(laid).relu().mean((2, 3)), self.middle.weight.shape[:1]))


@chosen({"enter": 6, "middle": 7}, {"middle"})
def a_period_that_python_reads_of_a_mean_over_neurons() -> Made:
    parts = {"enter": nn.Linear(3, 6), "middle": nn.Conv2d(6, 7, 3, padding=1), "out": nn.Linear(7, 2)}
    return Network(by_period, **parts), (floats(2, 12, 3),)


def strongest(self: Any, inputs: Tensor) -> Tensor:
    """Take of each neuron the times at which it is the strongest, and how late they are."""
    hidden = self.enter(inputs)
    where = hidden.abs().topk(2, dim=1).indices
    rows, columns = torch.arange(len(hidden))[:, None, None], torch.arange(hidden.shape[-1])
    late = torch.arange(hidden.shape[1], dtype=hidden.dtype)[:, None].expand(len(hidden), -1, hidden.shape[-1])
    return self.out((hidden[rows, where, columns] * late[rows, where, columns].cos()).sum(1))


@chosen({"enter": 6})
def times_that_each_neuron_chooses_for_itself() -> Made:
    return Network(strongest, enter=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(2, 5, 3),)


@chosen({"enter": 6})
def times_that_each_neuron_writes_for_itself() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        rows, columns = torch.arange(len(hidden))[:, None, None], torch.arange(hidden.shape[-1])
        again = hidden.cumsum(1)
        again[rows, inputs.mean(-1).topk(2).indices[..., None], columns] = hidden[:, :2].sin()
        return self.out(again.sort(1).values)

    return Network(run, enter=nn.Linear(3, 6), out=nn.Linear(6, 2)), (floats(2, 5, 3),)


@chosen({"enter": 6})
def neurons_scaled_by_a_diagonal() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        return self.out((torch.einsum("bd,dd->bd", hidden, self.square) + self.square.diagonal() + self.shift).relu())

    parts = {"enter": nn.Linear(3, 6), "out": nn.Linear(6, 2)}
    return Network(run, **parts, square=grid(6, 6), shift=grid(6)), (floats(4, 3),)


@chosen({"query": 3, "inner": 5})
def heads_whose_scores_a_network_shifts_at_each_place() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (layer(inputs).unflatten(-1, (3, -1)) for layer in (self.query, self.key, self.value))
        queries, keys, values = parts
        shift = self.shift(self.inner(inputs.mean(1)).relu())[:, None, None]
        scores = torch.einsum("blhe,bshe->bhls", queries, keys) + shift
        return self.out(torch.einsum("bhls,bshd->blhd", scores.softmax(-1), values).flatten(2))

    parts = {name: nn.Linear(4, 6) for name in ("query", "key", "value")}
    return Network(run, **parts, inner=nn.Linear(4, 5), shift=nn.Linear(5, 9), out=nn.Linear(6, 2)), (floats(2, 9, 4),)


@chosen({"enter": 8, "inner": 5})
def a_stream_beside_what_a_view_mixes_with_times() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        batch, times, _ = hidden.shape
        mixed = self.narrow(hidden).transpose(1, 2).contiguous().view(batch, times, -1)
        hidden = hidden + self.back(mixed)
        return self.out(hidden + self.wide(self.inner(hidden).relu()))

    parts = {"enter": nn.Linear(3, 8), "narrow": nn.Linear(8, 4), "back": nn.Linear(4, 8), "inner": nn.Linear(8, 5)}
    return Network(run, **parts, wide=nn.Linear(5, 8), out=nn.Linear(8, 2)), (floats(2, 4, 3),)


@chosen({"enter": 6})
def scores_of_all_neurons_whose_greatest_is_detached_and_taken_away() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        scores = (hidden.tanh() * self.vector.weight).sum(-1)
        shares = (scores - scores.detach().amax(1, keepdim=True)).exp()
        return self.out(hidden * shares[..., None])

    parts = {"enter": nn.Linear(3, 6), "vector": nn.Linear(6, 1, bias=False), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(2, 4, 3),)


@chosen({"table": 6})
def a_table_whose_width_is_a_factor() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.table(inputs) * self.table.embedding_dim**0.5
        return self.out(hidden.tanh())

    return Network(run, table=nn.Embedding(5, 6), out=nn.Linear(6, 2)), (torch.arange(5).view(1, 5),)


@pytest.mark.parametrize("name", CHOSEN)
def test_removing_neurons_of_which_something_is_chosen_equals_masking_them(name):
    network, inputs = drawn(CHOSEN[name][0])
    model = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers()} == CHOSEN[name][1]
    assert {layer.name for layer in model.layers() if not layer.exact} == CHOSEN[name][2]
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    assert all(part.isfinite().all() for part in answers(select(model, keep), inputs))
    keep = {layer.name: keep[layer.name] for layer in model.layers() if layer.exact}
    for one, other in zip(answers(select(model, keep), inputs), answers(mask(model, keep), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
