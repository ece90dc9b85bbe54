"""The proof of what was found, where a network's draws or answers are such that nothing could be compared."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.core.neurons import mask, select
from pruning.discovery import discover
from pruning.discovery.proving import Prover
from pruning.discovery.rounds import gone
from pruning.discovery.running import close
from tests.discovery.test_forms import Network, answers
from tests.foreign import floats

INFINITE = float("inf")


class Noisy(nn.Module):
    """Adds noise that is brought to between nought and its scale, as the pooling of a speaker encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), 1e-5

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(steps).relu()
        noise = torch.randn(hidden.shape)
        noise -= noise.min()
        noise /= noise.max()
        return self.leave(hidden + self.scale * noise)


def test_noise_that_is_divided_by_how_far_it_spreads_leaves_neurons_that_can_be_removed():
    torch.manual_seed(0)
    inputs = torch.randn(4, 6)
    found = discover(Noisy().eval(), inputs)
    (layer,) = found.layers()
    assert (layer.width, layer.exact) == (8, True)
    found.network.scale = 0.0
    keep = {layer.name: torch.tensor([6, 1, 4])}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs))


def test_a_layer_of_which_the_proof_sees_no_number_is_refused_with_that_reason():
    found = discover(Noisy().eval(), torch.randn(1, 6))
    assert not found.layers()
    assert "nothing but NaN" in found.unprunable["enter"]


@pytest.mark.parametrize("other", [INFINITE, -INFINITE, float("nan")])
def test_numbers_beside_one_that_is_not_finite_are_still_compared(other):
    assert close(torch.tensor([other, 1.0]), torch.tensor([other, 1.0]))
    assert not close(torch.tensor([other, 1.0]), torch.tensor([other, 2.0]))
    assert not close(torch.tensor([other, 1.0]), torch.tensor([3.0, 1.0]))
    assert not close(torch.tensor([3.0, 1.0]), torch.tensor([other, 1.0]))


class Rounded(nn.Module):
    """Computes with a part of its width, read of how its memory lies, that is as large with a neuron less."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(inputs)
        return self.leave(hidden * ((hidden.stride(0) + 1) // 4))


def test_a_layer_that_fits_with_a_neuron_less_and_no_more_with_several_is_refused():
    found = discover(Rounded(), torch.randn(5, 6))
    assert not found.layers()
    assert "computes something else than where nobody reads them" in found.unprunable["enter"]


class Biased(nn.Module):
    """Attention that adds biases to its scores: those that it is given, or else makes as many as it has heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.inner, self.outer = heads, nn.Linear(6, 12 * heads), nn.Linear(4 * heads, 6)

    def forward(self, steps: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self.inner(steps).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT
        bias = torch.zeros((1, self.heads, *scores.shape[-2:]), dtype=scores.dtype) if bias is None else bias
        return steps + self.outer(((scores + bias).softmax(-1) @ value).transpose(1, 2).flatten(2)), bias


class Stacked(nn.Module):
    """Two of them, of which the second gets the biases that the first made."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(2, 6), nn.Linear(6, 2)
        self.one, self.two = Biased(heads), Biased(heads)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        steps, bias = self.one(self.enter(steps).tanh(), None)
        return self.leave(self.two(steps, bias)[0])


@pytest.mark.parametrize("most", [2, 3])
def test_heads_whose_biases_code_makes_once_for_two_attentions_go_together_to_any_number(most):
    torch.manual_seed(0)
    inputs = floats(2, 5, 2)
    found = discover(Stacked(most).double().eval(), inputs)
    (heads,) = [layer for layer in found.layers() if layer.kind == "head"]
    assert {piece.parameter for piece in heads.owned} >= {"network.one.inner.weight", "network.two.inner.weight"}
    for left in range(1, most + 1):
        keep = {heads.name: torch.arange(left)}
        torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs))


@pytest.mark.parametrize("width", [2, 3, 4, 7, 16, 64])
def test_any_two_layers_of_one_width_lose_unequal_numbers_in_one_of_the_rounds(width):
    layers, rounds = range(40), range(9)
    lost = [tuple(gone(width, place, number, len(layers)) for number in rounds) for place in layers]
    assert len(set(lost)) == len(lost)
    assert width > 2 or all(
        any(a > b for a, b in zip(one, two, strict=True)) for one in lost for two in lost if one != two
    )
    assert all(count <= max(1, width * 2 // 3) for counts in lost for count in counts)
    assert width == 2 or all(width - count > 1 for counts in lost for count in counts)


class SpikingHeads(nn.Module):
    """Attention between spikes, all of which are there where biases are large, in as many heads as a number says."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(3, 8) for _ in range(3)])
        self.leave, self.h = nn.Linear(8, 2), 2

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        spikes = ((part(steps) > -8).to(steps) for part in self.parts)
        queries, keys, values = (each.view(*steps.shape[:2], self.h, -1).transpose(1, 2) for each in spikes)
        found = (queries @ keys.mT @ values > 1).to(steps)
        return self.leave(found.transpose(1, 2).flatten(2))


def test_spikes_that_are_all_there_with_some_weights_hide_no_number_of_heads():
    network, inputs = SpikingHeads().double(), floats(2, 4, 3)
    with torch.no_grad():
        for part in network.parts:
            part.bias.sub_(8)
    found = discover(network, inputs)
    assert [(number.attribute, number.layer) for number in found.numbers] == [("h", "parts.0")]
    for one in ([0], [1]):
        keep = {"parts.0": torch.tensor(one)}
        torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs))


class DropsPaths(nn.Module):
    """Drops a whole example by a number that it draws, and computes with its width where it keeps one."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.enter, self.leave, self.kept = nn.Linear(6, 8), nn.Linear(8, 3), kept

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(steps).relu()
        if self.kept == "whole":
            kept = torch.randint(0, 2, (len(steps), 1))
        else:
            drawn = torch.rand(len(steps), 1)
            kept = drawn > 0.5 if self.kept == "above" else drawn < 0.5
        return self.leave(hidden * kept.to(hidden) * hidden.shape[1])


@pytest.mark.parametrize("kept", ["above", "below", "whole"])
def test_no_number_that_is_drawn_hides_what_is_computed_with_a_width(kept):
    inputs = floats(16, 6)
    found = discover(DropsPaths(kept).double().eval(), inputs)
    (layer,) = found.layers()
    keep = {layer.name: torch.tensor([6, 1, 4])}
    given = []
    for changed in (select(found, keep), mask(found, keep)):
        torch.manual_seed(0)
        given.append(changed(inputs))
    torch.testing.assert_close(*given)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_path_that_is_taken_by_what_python_or_numpy_draw_is_proved_too(draw):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            hidden = self.enter(steps).relu()
            return self.leave(hidden * (hidden.shape[1] if draw() < 0.5 else 1))

    found = discover(Scaled().double().eval(), floats(4, 6))
    assert not found.layers()


class Cancelling(nn.Module):
    """Takes two numbers that are nearly equal from each other, which leaves much of their rounding."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.enter, self.leave, self.named = nn.Linear(6, 60), nn.Linear(60, 3), named

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.named and inputs.dtype != torch.float32:
            raise TypeError("Expected single precision.")
        hidden = self.enter(inputs).relu()
        return self.leave(hidden).float() - self.leave(hidden + hidden.tanh() / 30).float()


@pytest.mark.parametrize("named", [True, False])
def test_what_rounding_is_left_of_numbers_that_cancel_is_no_difference(named):
    torch.manual_seed(0)
    (layer,) = discover(Cancelling(named=named), torch.randn(4, 6)).layers()
    assert (layer.width, layer.exact) == (60, True)


class Swinging(nn.Module):
    """Asks for single precision, whose rounding what comes after it makes large."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 20), nn.Linear(20, 10), nn.Linear(10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.two(self.one(inputs).relu())
        return self.out((hidden.float() * 3e3).sin().type_as(hidden)).float()


def test_code_that_asks_for_single_precision_is_proved_in_double_where_rounding_hides_what_is_equal():
    torch.manual_seed(0)
    assert [layer.width for layer in discover(Swinging(), torch.randn(4, 6)).layers()] == [20, 10]


def test_a_number_of_heads_that_silent_neurons_hide_shows_with_the_weights_that_the_network_has():
    def run(self: Any, inputs: Tensor) -> Tensor:
        read = self.enter(inputs) * torch.relu(self.gain - 5)  # nothing, with weights around one
        q, k, v = (
            part(read).reshape(inputs.size(0), inputs.shape[1], 2, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.mT / 2, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(inputs.size(0), inputs.shape[1], -1))

    parts = {name: nn.Linear(8, 8) for name in ("query", "key", "value")}
    gain = nn.Parameter(torch.full((8,), 7.0))
    network = Network(run, enter=nn.Linear(4, 8), gain=gain, out=nn.Linear(8, 3), **parts).double()
    inputs = (floats(2, 5, 4),)
    model = discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers()} == {"enter": 8, "query": 2}
    keep = {"query": torch.tensor([1])}
    torch.testing.assert_close(
        answers(select(model, keep), inputs), answers(mask(model, keep), inputs), rtol=0, atol=1e-12
    )


def test_a_normalisation_that_an_answer_cut_off_hides_shows_with_the_weights_that_the_network_has():
    def run(self: Any, inputs: Tensor) -> Tensor:
        answer = self.out(self.norm(self.enter(inputs)))
        return (answer.square() * 1e6 * self.small).clamp(max=1.0)  # one everywhere, with weights around one

    small = nn.Parameter(torch.full((3,), 1e-8))
    network = Network(run, enter=nn.Linear(4, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 3), small=small).double()
    (layer,) = discover(network, (floats(2, 4),)).layers()
    assert (layer.width, layer.exact) == (6, False)


class Attending(nn.Module):
    """A block of attention in which one code shapes heads by the width of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.enter, self.leave = 2, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        batch, steps, width = stream.shape
        queries, keys, values = self.enter(stream).reshape(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return stream + self.leave(found.transpose(1, 2).reshape(batch, steps, width))


def test_a_deep_stack_of_equal_blocks_takes_hardly_more_proofs_than_a_short_one(monkeypatch):
    proofs, once = [], Prover._tried
    monkeypatch.setattr(Prover, "_tried", lambda *args, **kwargs: proofs.append(1) or once(*args, **kwargs))
    taken = {}
    for depth in (3, 9):
        network = nn.Sequential(nn.Linear(4, 8), *(Attending() for _ in range(depth)), nn.Linear(8, 2))
        proofs.clear()
        assert len(discover(network, torch.randn(2, 5, 4)).layers()) == depth + 1
        taken[depth] = len(proofs)
    assert taken[9] - taken[3] < 12


class InThirds(nn.Module):
    """Two layers, and a third one's thirds as queries, keys and values of a head: as they go may fit by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 12)
        self.thirds, self.leave = nn.Linear(12, 12), nn.Linear(4, 2)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        thirds = self.thirds(self.second(self.first(steps).tanh()).tanh()).chunk(3, -1)
        queries, keys, values = (part.reshape(len(steps), 3, 1, -1).transpose(1, 2) for part in thirds)
        weights = torch.einsum("bhid,bhjd->bhij", queries, keys).mul(0.5).softmax(-1)
        return self.leave(torch.einsum("bhij,bhjd->bhid", weights, values).transpose(1, 2).flatten(2))


def test_parts_of_what_one_layer_computes_are_also_proved_by_themselves():
    torch.manual_seed(0)
    inputs = floats(2, 3, 5)
    found = discover(InThirds().double().eval(), inputs)
    assert [layer.width for layer in found.layers()] == [12, 12, 4, 4]
    for layer in found.layers():
        for width in range(1, layer.width):
            keep = {layer.name: torch.arange(width)}
            torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("width", [2, 3])
def test_a_factor_that_silent_relus_hide_stays_what_it_is(times, width):
    def run(self: Any, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs).relu()
        for _ in range(times):
            hidden = self.again(hidden).relu()
        return self.leave(hidden * hidden.shape[1] ** -0.5)

    torch.manual_seed(0)
    parts = {"enter": nn.Linear(3, width), "again": nn.Linear(width, width, bias=False), "leave": nn.Linear(width, 3)}
    network = Network(run, **parts).double()
    with torch.no_grad():  # with which it is silent, too
        network.again.weight.copy_(-torch.eye(width))
    found = discover(network, floats(2, 3).abs())
    assert [number.number for number in found.numbers] == [width]
    with torch.no_grad():
        found.network.again.weight.copy_(torch.eye(width))
    keep = {layer.name: torch.tensor([1]) for layer in found.layers()}
    inputs = (floats(5, 3),)
    torch.testing.assert_close(answers(select(found, keep), inputs), answers(mask(found, keep), inputs))


def test_no_relu_that_is_silent_once_neurons_are_gone_hides_a_norm_over_them():
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.leave = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)
            self.last = nn.Linear(2, 3)

        def forward(self, steps: Tensor) -> Tensor:
            return self.last((self.leave(self.norm(self.enter(steps))) - 30).relu())

    torch.manual_seed(0)
    found = discover(Silent().double(), floats(4, 4))
    assert {layer.name: layer.exact for layer in found.layers()} == {"enter": False, "leave": True}


def test_a_greatest_neuron_that_may_stay_in_one_round_is_no_reason_to_call_removing_it_masking():
    class Greatest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, steps: Tensor) -> Tensor:
            hidden = self.enter(steps)
            return self.leave(hidden * (hidden == hidden.amax(1, keepdim=True)))

    torch.manual_seed(1)
    (layer,) = discover(Greatest().double(), floats(5, 4)).layers()
    assert not layer.exact


def test_a_divisor_before_a_matrix_that_code_multiplies_and_sums_over_stays_and_removing_equals_masking():
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 8), nn.Linear(5, 3)
            self.weight = nn.Parameter(torch.randn(5, 8))

        def forward(self, steps: Tensor) -> Tensor:
            hidden = self.enter(steps).tanh()
            hidden = hidden / hidden.size(1)
            return self.leave((hidden.unsqueeze(-2) * self.weight).sum(-1).tanh())

    inputs = floats(5, 4)
    found = discover(ByHand().double(), inputs)
    assert [(layer.name, layer.exact) for layer in found.layers()] == [("enter", True), ("weight", True)]
    keep = {"enter": torch.tensor([6, 1]), "weight": torch.tensor([0, 3])}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=0, atol=1e-10)


def test_what_a_network_gives_without_the_same_neurons_is_computed_once(monkeypatch):
    asked, own = [], Prover.masked

    def counted(self, keep, mode, read=None, *, lean=False):
        kept = tuple((name, *places.tolist()) for name, places in keep.items())
        asked.append((id(self), kept, mode.apart, lean, tuple(mode.instead), str(read)))
        return own(self, keep, mode, read, lean=lean)

    monkeypatch.setattr(Prover, "masked", counted)
    found = discover(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    assert [layer.name for layer in found.layers()] == ["0"]
    assert len(asked) == len(set(asked)) < 5
