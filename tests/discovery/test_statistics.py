"""Widths that a network's code reads of its tensors: of means over neurons, and of what is none."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.neurons import mask, select
from pruning.discovery import discover

Norm = Callable[[Tensor], Tensor]


def normalized(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1) * (x.shape[1] ** 0.5)


def by_root(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True) * math.sqrt(x.size(1))


def by_squares(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).sum(1, keepdim=True) / x.shape[1])


def in_the_denominator(x: Tensor) -> Tensor:
    return x / (x.size(dim=-1) ** -0.5 * x.norm(dim=-1, keepdim=True) + 1e-8)


def centred(x: Tensor) -> Tensor:
    return x - x.sum(-1, keepdim=True) / x.shape[-1]


def standardized(x: Tensor) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    spread = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / spread.sqrt()


class Normed(nn.Module):
    """A layer, what its own code makes of it, and a layer that reads this."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = norm, nn.Linear(6, 12), nn.Linear(12, 3)
        self.gain = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.norm(self.enter(x).relu()) * self.gain)


def rms(x: Tensor) -> Tensor:
    return x / x.pow(2).mean(1, keepdim=True).sqrt()


def layer_normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:], eps=0.0)


@pytest.mark.parametrize(
    ("norm", "of_those_left"),
    [
        (normalized, rms),
        (by_root, rms),
        (by_squares, rms),
        (in_the_denominator, rms),
        (centred, lambda x: x - x.mean(1, keepdim=True)),
        (standardized, layer_normed),
        (lambda x: x + x.sum(1, keepdim=True) / x.shape[1], lambda x: x + x.mean(1, keepdim=True)),
    ],
)
def test_a_norm_by_hand_over_a_width_that_is_read_is_that_of_the_neurons_that_are_left(norm, of_those_left):
    torch.manual_seed(0)
    x = torch.randn(5, 6).double()
    found = discover(Normed(norm).double(), x)
    (layer,) = found.layers()
    assert (layer.width, layer.exact) == (12, False)
    own, left = found.network, torch.tensor([7, 2, 3, 10, 0])
    hidden = of_those_left(own.enter(x).relu()[:, left]) * own.gain[left]
    expected = hidden @ own.leave.weight[:, left].T + own.leave.bias
    torch.testing.assert_close(select(found, {layer.name: left})(x), expected, rtol=0, atol=1e-7)


class Image(nn.Module):
    """The norm of a diffusion model's U-Net over channels of two convolutions beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.norm, self.leave = Channels(13), nn.Conv2d(13, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.norm(torch.cat([self.one(x), self.other(x)], dim=1)))


class Channels(nn.Module):
    """A norm over channels whose gain is in the shape of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return normalized(x) * self.gain


def test_a_norm_over_channels_of_two_layers_takes_fewer_of_either():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    found = discover(Image(), x)
    assert [(layer.name, layer.width, layer.exact) for layer in found.layers()] == [
        ("one", 8, False),
        ("other", 5, False),
    ]
    keep = {"one": torch.tensor([0, 6]), "other": torch.tensor([4, 1, 2])}
    both = torch.cat([keep["one"], 8 + keep["other"]])
    own = found.network
    hidden = rms(torch.cat([own.one(x), own.other(x)], dim=1)[:, both]) * own.norm.gain[:, both]
    expected = F.conv2d(hidden, own.leave.weight[:, both], own.leave.bias)
    torch.testing.assert_close(select(found, keep)(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "factor",
    [
        lambda x: x * x.shape[1] ** 0.5,
        lambda x: x + F.normalize(x, dim=1) * x.shape[1],
        lambda x: x + (x * x.roll(1, 0)).sum(1, keepdim=True) / math.sqrt(x.size(1)),
        lambda x: (x - x.mean(1, keepdim=True)) * x.shape[1] ** 0.5,
    ],
)
def test_a_width_that_is_a_factor_and_no_part_of_a_mean_is_refused_with_that_reason(factor):
    torch.manual_seed(0)
    found = discover(Normed(factor), torch.randn(5, 6))
    assert not found.layers()
    assert "computes with its width (`shape`" in found.unprunable["enter"].replace("`size`", "`shape`")
    assert "no mean over it" in found.unprunable["enter"]


def test_a_factor_in_one_place_leaves_a_norm_in_another_to_its_neurons():
    torch.manual_seed(0)
    parts = [Normed(normalized), Normed(lambda x: x * x.shape[1] ** 0.5)]
    found = discover(nn.Sequential(parts[0], nn.Linear(3, 6), parts[1]), torch.randn(5, 6))
    assert {layer.name: layer.exact for layer in found.layers()} == {"0.enter": False, "0.leave": True, "1": True}
    assert "no mean over it" in found.unprunable["2.enter"]


class Kept(Normed):
    """Keeps the root of its width."""

    def __init__(self) -> None:
        super().__init__(lambda x: F.normalize(x, dim=1) * self.scale)
        self.scale = 12**0.5

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.normalize(self.enter(x).relu(), dim=1) * self.gain * self.scale
        return self.leave(hidden)


def test_a_root_of_the_width_that_a_module_keeps_stays_and_removing_equals_masking():
    torch.manual_seed(0)
    x = torch.randn(5, 6).double()
    found = discover(Kept().double(), x)
    (layer,) = found.layers()
    assert (layer.width, layer.exact) == (12, True)
    keep = {layer.name: torch.tensor([7, 2, 3])}
    small = select(found, keep)
    assert small.network.scale == 12**0.5
    torch.testing.assert_close(small(x), mask(found, keep)(x), rtol=0, atol=1e-10)
