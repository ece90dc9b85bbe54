"""Cells whose gates lie in one stack and are normalised each by itself: removed is what a narrower cell computes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Network, answers, drawn
from tests.foreign import floats


class Gated(nn.Module):
    """An LSTM by hand over some steps, its gates normalised by a function of the stack (batch, 4, width)."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        self.enter, self.again = nn.Linear(3, 4 * width), nn.Linear(width, 4 * width, bias=False)
        shape = (4 * width,) if kind == "variance" else (4, width)
        self.scales, self.shifts = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.norm = nn.GroupNorm(4, 4 * width)
        self.out = nn.Linear(width, 2)

    def normed(self, gates: Tensor) -> Tensor:
        stack = gates.view(-1, 4, self.width)
        mean = stack.mean(2, keepdim=True)
        if self.kind == "squares":
            stack = (stack - mean) * torch.rsqrt(((stack - mean) ** 2).mean(2, keepdim=True) + 1e-3)
        elif self.kind == "variance":
            stack = (stack - mean) / (stack.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        elif self.kind == "layer_norm":
            stack = F.layer_norm(stack, (self.width,))
        elif self.kind == "module":
            return self.norm(gates)
        if self.kind == "variance":
            return (stack * self.scales.view(4, self.width)).view(-1, 4 * self.width) + self.shifts
        return (stack * self.scales + self.shifts).view(-1, 4 * self.width)

    def forward(self, inputs: Tensor) -> Tensor:
        state = memory = inputs.new_zeros(len(inputs), self.width)
        for step in inputs.unbind(1):
            read, write, keep, shown = self.normed(self.enter(step) + self.again(state)).chunk(4, 1)
            memory = keep.sigmoid() * memory + read.sigmoid() * write.tanh()
            state = shown.sigmoid() * memory.tanh()
        return self.out(state)

    def narrower(self, kept: Tensor) -> "Gated":
        """Return the same cell built with fewer neurons."""
        rows = torch.cat([gate * self.width + kept for gate in range(4)])
        made = Gated(len(kept), self.kind).to(self.scales.dtype).eval()
        state = self.state_dict()
        made.load_state_dict(
            {
                "enter.weight": state["enter.weight"][rows],
                "enter.bias": state["enter.bias"][rows],
                "again.weight": state["again.weight"][rows][:, kept],
                **{name: state[name].view(4, -1)[:, kept].view_as(made.scales) for name in ("scales", "shifts")},
                "norm.weight": state["norm.weight"][rows],
                "norm.bias": state["norm.bias"][rows],
                "out.weight": state["out.weight"][:, kept],
                "out.bias": state["out.bias"],
            }
        )
        return made


@pytest.mark.parametrize("kind", ["squares", "variance", "layer_norm", "module"])
def test_a_cell_whose_gates_are_normalised_each_by_itself_is_cut_to_one_that_is_narrower(kind, tmp_path):
    network, inputs = drawn(lambda: (Gated(6, kind), (floats(2, 3, 3),)))
    found = pruning.discover(network, inputs)
    (layer,) = found.layers()
    assert (layer.name, layer.width, layer.exact) == ("enter", 6, False)
    for kept in (torch.tensor([5, 0, 3, 1]), torch.tensor([2, 4])):
        smaller = select(found, {"enter": kept})
        torch.testing.assert_close(
            answers(smaller, inputs), answers(network.narrower(kept), inputs), rtol=1e-12, atol=1e-12
        )
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(drawn(lambda: (Gated(6, kind), ()))[0], tmp_path)
    torch.testing.assert_close(answers(restored, inputs), answers(smaller, inputs), rtol=0, atol=0)


def test_heads_that_are_normalised_each_by_itself_still_go_as_one():
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (part(inputs).unflatten(-1, (3, 4)).transpose(1, 2) for part in (self.queries, self.keys, self.values))
        queries, keys, values = (part / part.norm(dim=-1, keepdim=True) for part in parts)
        return self.out(((queries * self.scales @ keys.mT).softmax(-1) @ values).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(3, 12) for name in ("queries", "keys", "values")}
    network = Network(run, **parts, scales=nn.Parameter(floats(3, 1, 4)), out=nn.Linear(12, 2))
    found = pruning.discover(network.double(), (floats(2, 5, 3),))
    assert [(layer.kind, layer.width, layer.exact) for layer in found.layers()] == [("head", 3, True)]
    assert "scales" in {piece.parameter.rpartition(".")[2] for piece in found.layers()[0].owned}


def test_what_is_taken_over_heads_leaves_them_apart():
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = (part(inputs).unflatten(-1, (3, 4)).transpose(1, 2) for part in (self.queries, self.keys, self.values))
        queries, keys, values = parts
        values = values - values.mean(1, keepdim=True)
        return self.out(((queries @ keys.mT).softmax(-1) @ values).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(3, 12) for name in ("queries", "keys", "values")}
    network = Network(run, **parts, out=nn.Linear(12, 2))
    found = pruning.discover(network.double(), (floats(2, 5, 3),))
    assert [(layer.kind, layer.width, layer.exact) for layer in found.layers()] == [("head", 3, False)]


def test_dimensions_of_heads_that_are_averaged_are_neurons_whatever_is_summed_within_a_head():
    def run(self: Any, inputs: Tensor) -> Tensor:
        parts = self.parts(inputs).unflatten(-1, (2, 6))
        shares = (parts * self.scales).sum(-1).softmax(-2)
        return self.out((parts * shares.unsqueeze(-1)).mean(-2))

    network = Network(run, parts=nn.Linear(3, 12), scales=nn.Parameter(floats(2, 6)), out=nn.Linear(6, 2)).double()
    found, inputs = pruning.discover(network, floats(2, 5, 3)), floats(2, 5, 3)
    assert [(layer.name, layer.width, layer.exact) for layer in found.layers()] == [("parts", 6, True)]
    keep = {"parts": torch.tensor([4, 1, 0])}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=1e-10, atol=1e-10)
