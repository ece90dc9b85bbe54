"""Kernels and matrices that are made in each call, of a parameter and of what the network computes for an example."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.test_forms import Made, Network, answers
from tests.discovery.test_kinds import grid
from tests.foreign import floats

KERNELS: dict[str, tuple[Callable[[], Made], dict[str, int], set[str]]] = {}
"""Way in which kernels are made → how a network is made with its inputs, its layers' widths, which are not exact."""


def kernels(layers: dict[str, int], inexact: set[str] = frozenset()) -> Callable[..., Any]:
    def known(make: Callable[[], Made]) -> Callable[[], Made]:
        KERNELS[make.__name__] = make, layers, set(inexact)
        return make

    return known


def by_example(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each example (B, C, H, W) by kernels of its own, (B, out, C, k, k), as the groups of one convolution."""
    batch, out, channels, *size = weight.shape
    whole = inputs.reshape(1, batch * channels, *inputs.shape[2:])
    bias = None if bias is None else bias.reshape(-1)
    found = F.conv2d(whole, weight.reshape(batch * out, channels, *size), bias, padding=1, groups=batch)
    return found.view(batch, out, *found.shape[2:])


@kernels({"code": 6, "enter": 7})
def given_by_another_network() -> Made:
    def run(self: Any, inputs: Tensor, task: Tensor) -> Tensor:
        code = self.code(task).relu()
        weight, back = self.enter(code).view(-1, 7, 4), self.leave(code).view(-1, 2, 7)
        hidden = torch.einsum("bhi,bti->bth", weight, inputs) + self.shift(code).unsqueeze(1)
        return torch.bmm(back, hidden.sigmoid().mT)

    sizes = {"code": (3, 6), "enter": (6, 28), "shift": (6, 7), "leave": (6, 14)}
    return Network(run, **{name: nn.Linear(*size) for name, size in sizes.items()}), (floats(3, 5, 4), floats(3, 3))


@kernels({"narrow": 5})
def sums_of_which_one_is_padded() -> Made:
    def run(self: Any, images: Tensor) -> Tensor:
        weight = self.wide.weight + F.pad(self.narrow.weight, (1, 1, 1, 1))
        return self.out(F.conv2d(images, weight, self.wide.bias + self.narrow.bias, padding=1).relu().mean((2, 3)))

    parts = {"wide": nn.Conv2d(3, 5, 3), "narrow": nn.Conv2d(3, 5, 1), "out": nn.Linear(5, 2)}
    return Network(run, **parts), (floats(2, 3, 4, 4),)


@kernels({"enter": 5, "route": 3, "biases": 7}, {"route"})
def mixed_of_experts_for_each_example() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        seen = self.enter(inputs).relu()
        shares = self.route(seen.mean((2, 3))).softmax(1)
        weight = torch.einsum("be,eoikl->boikl", shares, self.experts)
        return self.out(by_example(seen, weight, shares @ self.biases).relu().mean((2, 3)))

    parts = {"enter": nn.Conv2d(3, 5, 3), "route": nn.Linear(5, 3), "out": nn.Linear(7, 2)}
    return Network(run, **parts, experts=nn.Parameter(grid(3, 7, 5, 3, 3)), biases=nn.Parameter(grid(3, 7))), (
        floats(2, 3, 6, 6),
    )


@kernels({"enter": 5, "route": 3, "experts": 7})
def mixed_of_experts_in_a_loop() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        seen = self.enter(inputs).relu()
        each = zip(seen, self.route(seen.mean((2, 3))).sigmoid(), strict=True)
        found = [F.conv2d(one[None], (share.view(-1, 1, 1, 1, 1) * self.experts).sum(0)) for one, share in each]
        return self.out(torch.cat(found).relu().mean((2, 3)))

    parts = {"enter": nn.Conv2d(3, 5, 3), "route": nn.Linear(5, 3), "out": nn.Linear(7, 2)}
    return Network(run, **parts, experts=nn.Parameter(grid(3, 7, 5, 3, 3))), (floats(2, 3, 6, 6),)


@kernels({"style": 4, "modulation": 5, "kernels": 7})
def modulated_and_demodulated_by_a_style() -> Made:
    def run(self: Any, drawn: Tensor) -> Tensor:
        scales = self.modulation(self.style(drawn).relu()).view(len(drawn), 1, -1, 1, 1)
        weight = self.kernels * scales
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        seen = by_example(self.constant.expand(len(drawn), -1, -1, -1), weight)
        return self.out((seen + self.bias.view(1, -1, 1, 1)).relu())

    parts = {"style": nn.Linear(3, 4), "modulation": nn.Linear(4, 5), "out": nn.Conv2d(7, 3, 1)}
    more = {"constant": grid(1, 5, 4, 4), "kernels": grid(1, 7, 5, 3, 3), "bias": grid(7)}
    return Network(run, **parts, **{name: nn.Parameter(more[name]) for name in more}), (floats(2, 3),)


@kernels({"one.weight": 6, "two.weight": 5})
def placed_by_learned_delays() -> Made:
    class Delayed(nn.Module):
        def __init__(self, entering: int, leaving: int) -> None:
            super().__init__()
            self.weight, self.delay = nn.Parameter(grid(leaving, entering)), nn.Parameter(grid(leaving, entering) + 2)

        def forward(self, spikes: Tensor) -> Tensor:
            near = torch.exp(-((torch.arange(5).to(spikes) - self.delay[..., None]) ** 2))
            return F.conv1d(F.pad(spikes, (4, 0)), self.weight[..., None] * near)

    def run(self: Any, inputs: Tensor) -> Tensor:
        return self.out(self.two(self.one(inputs).relu()).relu().mean(-1))

    return Network(run, one=Delayed(3, 6), two=Delayed(6, 5), out=nn.Linear(5, 2)), (floats(2, 3, 6),)


@kernels({"one": 6})
def sums_of_waves_with_a_coefficient_for_each_pair() -> Made:
    class Waves(nn.Module):
        def __init__(self, entering: int, leaving: int) -> None:
            super().__init__()
            self.coefficients = nn.Parameter(grid(leaving, entering, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            angles = torch.arange(1, 4) * inputs[:, None, :, None]
            return (torch.cos(angles) * self.coefficients).sum((-2, -1))

    return Network(lambda s, x: s.two(s.one(x)), one=Waves(4, 6), two=Waves(6, 2)), (floats(3, 4),)


@kernels({"one": 6, "two": 5})
def of_the_members_of_an_ensemble() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        seen = (torch.einsum("bi,mio->mbo", inputs, self.one) + self.first[:, None]).relu()
        return torch.einsum("mbo,mok->mbk", torch.einsum("mbi,mio->mbo", seen, self.two).relu(), self.three).mean(0)

    shapes = {"one": (3, 4, 6), "first": (3, 6), "two": (3, 6, 5), "three": (3, 5, 2)}
    return Network(run, **{name: nn.Parameter(grid(*shape)) for name, shape in shapes.items()}), (floats(5, 4),)


@kernels({"one": 6})
def of_inputs_that_are_sparse() -> Made:
    def run(self: Any, inputs: Tensor) -> Tensor:
        return self.out((torch.sparse.mm(inputs, self.one.T) + self.bias).relu())

    parts = {"one": nn.Parameter(grid(6, 4)), "bias": nn.Parameter(grid(6)), "out": nn.Linear(6, 2)}
    return Network(run, **parts), (floats(5, 4).relu().to_sparse(),)


def made(name: str) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, inputs = KERNELS[name][0]()
    return network.double().eval(), inputs


@pytest.mark.parametrize("name", KERNELS)
def test_removing_neurons_of_kernels_made_in_a_call_equals_masking_them(name):
    network, inputs = made(name)
    model = pruning.discover(network, inputs)
    widths = {layer.name.removesuffix(".weight"): layer.width for layer in model.layers()}
    assert widths == {layer.removesuffix(".weight"): width for layer, width in KERNELS[name][1].items()}
    assert {layer.name for layer in model.layers() if not layer.exact} == KERNELS[name][2]
    keep = {layer.name: torch.arange(layer.width - 1, layer.width // 3, -1) for layer in model.layers()}
    assert all(part.isfinite().all() for part in answers(select(model, keep), inputs))
    keep = {layer.name: keep[layer.name] for layer in model.layers() if layer.exact}
    for one, other in zip(answers(select(model, keep), inputs), answers(mask(model, keep), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_two_parameters_that_are_multiplied_are_masked_by_the_one_that_is_zero_where_it_is():
    model = pruning.discover(*made("placed_by_learned_delays"))
    read = {piece.parameter for layer in model.layers() for piece in layer.read}
    assert read == {"network.two.weight", "network.out.weight"}


def test_a_network_that_copies_modules_in_a_call_is_refused_for_what_it_does_with_them():
    def run(self: Any, inputs: Tensor) -> Tensor:
        kept, _ = torch.func.stack_module_state([*self.members])
        base = copy.deepcopy(self.members[0]).to("meta")
        return torch.func.vmap(lambda own: torch.func.functional_call(base, own, inputs))(kept).mean(0)

    members = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)) for _ in range(2)])
    with pytest.raises(ValueError, match=r"called within torch\.vmap"):
        pruning.discover(Network(run, members=members), torch.ones(3, 4))
