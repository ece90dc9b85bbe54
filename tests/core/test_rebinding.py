"""Copies of networks, whatever classes of a user's do about their own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.rebinding import duplicated
from pruning.discovery.running import copied
from tests.foreign import floats


class Own(nn.Module):
    """A layer that copies itself, and that lists its buffers as its states, as layers of sinabs do."""

    def __init__(self, inner: nn.Module, threshold: Tensor) -> None:
        super().__init__()
        self.inner, self.threshold, self.leak = inner, threshold, nn.Parameter(torch.rand(6))
        self.register_buffer("potential", torch.zeros(0))

    def __deepcopy__(self, memo: object) -> "Own":
        twin = type(self)(copy.deepcopy(self.inner), self.threshold)
        for name, parameter in self.named_parameters():
            getattr(twin, name).data = parameter.data.clone()  # there is none of this name: that of a child has a dot
        return twin

    def forward(self, inputs: Tensor) -> Tensor:
        current = self.inner(inputs)
        for name, _ in self.named_buffers():
            self.register_buffer(name, torch.zeros_like(current))
        self.potential = torch.sigmoid(self.leak) * self.potential + current
        return torch.relu(self.potential - self.threshold)


def test_a_layer_that_copies_itself_is_pruned_as_any_other():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), Own(nn.Linear(6, 6), torch.tensor(0.1)), nn.Linear(6, 2)).double()
    found = pruning.discover(network, (floats(4, 3),))
    torch.testing.assert_close(found(floats(4, 3)), network(floats(4, 3)))
    assert [(layer.name, layer.width) for layer in found.layers()] == [("0", 6), ("1.inner", 6)]
    keep = {layer.name: torch.tensor([4, 1, 2]) for layer in found.layers()}
    smaller = pruning.select(found, keep)
    masked = pruning.mask(found, keep)
    torch.testing.assert_close(smaller(floats(4, 3)), masked(floats(4, 3)))
    assert smaller.network[1].leak.shape == (3,)


def test_modules_that_list_their_parts_otherwise_are_refused_by_the_name_of_their_class():
    class Named(nn.Linear):
        def parameters(self) -> dict[str, Tensor]:
            return dict(self.named_parameters())

    class Listed(nn.Sequential):
        def modules(self) -> dict[str, nn.Module]:
            return dict(self.named_modules())

    for network, name in (
        (nn.Sequential(Named(3, 4)), "Named with a parameters"),
        (Listed(nn.ReLU()), "Listed with a m"),
    ):
        with pytest.raises(TypeError, match=name):
            pruning.discover(network, (floats(2, 3),))


class Stated(nn.Module):
    """A module that says what a copy of it is made of, and is told it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, ["a call"]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "seen": []}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.width = len(self.inner.weight)


def test_a_copy_is_made_of_what_its_class_says():
    network = nn.Sequential(Stated(nn.Linear(3, 6)), nn.Linear(6, 6), nn.LSTM(6, 4))
    network[1].names = {"one": ["two", (network[0], 3)]}
    twin = duplicated(network, network, {})
    assert (twin[0].seen, twin[0].width, network[0].seen) == ([], 6, ["a call"])
    assert twin[1].names["one"] == ["two", (twin[0], 3)]
    assert twin[2]._flat_weights[0] is twin[2].weight_ih_l0
    assert twin[2]._flat_weight_refs[0]() is twin[2].weight_ih_l0
    assert not {*map(id, network.modules())} & {*map(id, twin.modules())}
    assert not {*map(id, network.parameters())} & {*map(id, twin.parameters())}


def test_a_copy_of_what_holds_a_model_begins_where_the_model_began():
    class Counted(nn.Linear):
        steps = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.steps = self.steps + 1
            return super().forward(inputs) + self.steps

    model = pruning.discover(nn.Sequential(nn.Linear(3, 6), Counted(6, 6), nn.Linear(6, 2)), floats(4, 3).float())
    holder = nn.Sequential(model)
    once = holder(floats(4, 3).float())
    torch.testing.assert_close(duplicated(holder, holder, {})(floats(4, 3).float()), once)


class Parted(nn.Module):
    """Divides into heads; a copy is made of what it was given, as layers of `einops` are."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.given, self.heads, self.sizes = heads, heads, {"heads": heads}

    def __getstate__(self) -> dict[str, int]:
        return {"heads": self.given}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["heads"])


class PartedByItsNumber(Parted):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(*inputs.shape[:2], self.heads, -1).transpose(1, 2)


class PartedByItsCall(Parted):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(*inputs.shape[:2], self.sizes["heads"], -1).transpose(1, 2)


class Attending(nn.Module):
    def __init__(self, parted: type[Parted]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 16) for _ in range(3))
        self.parted, self.out = parted(4), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = (self.parted(each(inputs)) for each in (self.query, self.key, self.value))
        return self.out(((query @ key.mT).softmax(-1) @ value).transpose(1, 2).flatten(2))


COPIES: dict[str, Callable[[Any], Any]] = {
    "by Python": copy.deepcopy,
    "by the library": copied,
    "by a pickle": lambda network: pickle.loads(pickle.dumps(network)),  # noqa: S301 - our own
    "of a copy": lambda network: copy.deepcopy(copy.deepcopy(network)),
}


@pytest.mark.parametrize("copying", COPIES)
@pytest.mark.parametrize("parted", [PartedByItsNumber, PartedByItsCall])
def test_a_copy_of_a_pruned_layer_whose_class_says_what_it_is_made_of_is_pruned_too(parted, copying):
    torch.manual_seed(0)
    inputs = torch.randn(2, 7, 5, dtype=torch.float64)
    found = pruning.discover(Attending(parted).double(), inputs)
    heads = next(layer for layer in found.layers() if layer.kind == "head")
    pruned = pruning.select(found, {heads.name: torch.tensor([3, 1])})
    torch.testing.assert_close(pruned(inputs), pruning.mask(found, {heads.name: torch.tensor([3, 1])})(inputs))
    torch.testing.assert_close(COPIES[copying](pruned)(inputs), pruned(inputs), rtol=0, atol=0)
    torch.testing.assert_close(COPIES[copying](pruned.network)(inputs), pruned(inputs), rtol=0, atol=0)
