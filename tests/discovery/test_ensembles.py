"""Members of an ensemble that share a matrix, each with scales of its own before and behind it."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import answers
from tests.foreign import floats

PRODUCTS: dict[str, Any] = {
    "matmul": lambda m, x: (x * m.r) @ m.weight.T * m.s,
    "linear": lambda m, x: F.linear(x * m.r, m.weight) * m.s,
    "einsum": lambda m, x: torch.einsum("bki,oi->bko", x * m.r, m.weight) * m.s,
    "each member's matrix": lambda m, x: torch.einsum("bki,koi->bko", x, m.weight * m.r[:, None] * m.s[:, :, None]),
}
"""How a layer's members share its matrix."""

ENTRIES: dict[str, Any] = {
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1),
    "repeat": lambda x: x.unsqueeze(1).repeat(1, 3, 1),
    "broadcast": lambda x: x.unsqueeze(1),
    "stack": lambda x: torch.stack([x] * 3, 1),
}
"""How an example comes to each member."""


class Shared(nn.Module):
    """A layer of an ensemble."""

    def __init__(self, inputs: int, outputs: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight, self.r = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(3, inputs))
        self.s, self.bias = nn.Parameter(torch.randn(3, outputs)), nn.Parameter(torch.randn(3, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return PRODUCTS[self.how](self, inputs) + self.bias


class Ensemble(nn.Module):
    """Three layers whose members' answers are averaged."""

    def __init__(self, how: str, entry: str) -> None:
        super().__init__()
        self.entry = entry
        self.first, self.second, self.last = Shared(5, 8, how), Shared(8, 6, how), Shared(6, 2, how)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.second(self.first(ENTRIES[self.entry](inputs)).relu()).relu()).mean(1)


def ensemble(how: str, entry: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Ensemble(how, entry).double(), floats(4, 5).double()


@pytest.mark.parametrize(
    ("how", "entry"), [*((how, "expand") for how in PRODUCTS), *(("matmul", entry) for entry in list(ENTRIES)[1:])]
)
def test_removing_neurons_of_a_matrix_that_members_share_equals_masking_them(how, entry):
    network, inputs = ensemble(how, entry)
    found = pruning.discover(network, inputs)
    layers = {layer.width: layer for layer in found.layers() if layer.exact}
    assert set(layers) == {8, 6}
    keep = {layers[8].name: torch.tensor([7, 0, 3]), layers[6].name: torch.tensor([1, 5])}
    smaller = select(found, keep)
    assert smaller.network.first.s.shape == (3, 3)
    assert smaller.network.second.r.shape == (3, 3)
    for one, other in zip(answers(smaller, (inputs,)), answers(mask(found, keep), (inputs,)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_importance_of_neurons_that_members_share_is_measured_and_their_readers_refitted():
    network, inputs = ensemble("matmul", "expand")
    found = pruning.discover(network.float(), inputs.float())
    batches = [(torch.randn(16, 5), torch.randn(16, 2)) for _ in range(2)]
    importance = pruning.importance(found, batches, nn.MSELoss(), signals=["activations", "surgeon"])
    cut, refitted = pruning.prune(found, importance, repair="none"), pruning.prune(found, importance, data=batches)
    for name in ("second", "last"):
        one, other = (getattr(each.module, name).weight for each in (cut, refitted))
        assert one.shape == other.shape
        assert not torch.equal(one, other)


def test_what_is_given_to_each_member_is_as_wide_as_it_was():
    network, inputs = ensemble("matmul", "expand")
    found = pruning.discover(network, inputs)
    assert all(piece.parameter != "network.first.r" for layer in found.layers() for piece in layer.owned)


def test_a_matrix_that_is_made_of_several_parameters_in_each_call_is_only_cut_for_what_it_reads_is_not_seen(caplog):
    network, inputs = ensemble("each member's matrix", "expand")
    found = pruning.discover(network.float(), inputs.float())
    told = " ".join(str(found).split())
    why = "second.weight goes into a matrix that is made in each call, of which it is not seen what it reads"
    assert f"of first, nothing is repaired: {why}" in told
    assert "computes its neurons" not in told
    batches = [(torch.randn(16, 5), torch.randn(16, 2)) for _ in range(2)]
    importance = pruning.importance(found, batches, nn.MSELoss(), signals=["activations"])
    with caplog.at_level(logging.WARNING):
        smaller = pruning.prune(found, importance, repair="ridge", data=batches)
    assert "second.weight, which reads layer first, because it is used by mul" in caplog.text
    kept = importance.keep(0.5)["first"]
    torch.testing.assert_close(
        smaller.module.second.weight, network.second.weight[importance.keep(0.5)["second"]][:, kept]
    )


def test_a_matrix_that_reads_by_itself_beside_a_product_of_it_is_still_known_to_be_held_by_its_neurons():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(6, 2)
            self.weight, self.gain = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.rand(8))

        def forward(self, inputs: Tensor) -> Any:
            hidden = self.first(inputs).relu()
            return self.last(F.linear(hidden, self.weight * self.gain) + F.linear(hidden, self.weight))

    found = pruning.discover(Twice(), floats(4, 5).float())
    assert [piece.parameter for layer in found.layers() for piece in layer.tied] == ["network.weight"]


class Filtered(nn.Module):
    """Neurons that a kernel made in each call, the same on both sides, filters along."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.side = nn.Linear(5, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(1, 1, 2))

    def forward(self, inputs: Tensor) -> Any:
        kernel = torch.cat([self.side, self.side[..., :1]], -1)
        return self.last(F.conv1d(self.first(inputs).relu()[:, None], kernel, padding=1)[:, 0])


def test_neurons_that_a_kernel_filters_along_are_not_said_to_stay_because_the_kernel_is_computed():
    told = " ".join(str(pruning.discover(Filtered(), floats(4, 5).float())).split())
    assert "mixes all of it" in told
    assert "kernels that are" not in told
