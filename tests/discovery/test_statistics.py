"""Widths that a network's code reads of its tensors: of means over neurons, and factors, which stay what they were."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from pruning.discovery import discover
from pruning.discovery.running import copied

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


def standardized_by_one_number(x: Tensor) -> Tensor:
    """Divides by the width for the mean, and by one less for the variance."""
    width = x.shape[-1]
    centred = x - x.sum(-1, keepdim=True) / width
    return centred / (centred.square().sum(-1, keepdim=True) / (width - 1)).sqrt()


def unbiased(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (((x - mean) ** 2).sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()


def shaped_by_what_it_divides_by(x: Tensor) -> Tensor:
    batch, channels = x.shape
    image = x.view(batch, channels, 1)
    return (image / (image.pow(2).sum(1, keepdim=True) / channels).sqrt()).view(batch, channels)


def of_all_elements(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True) / x.numel() * len(x)).sqrt()


def of_the_elements_of_one(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True) / x[0].nelement()).sqrt()


def of_sizes_multiplied(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True) / math.prod(x.shape[1:])).sqrt()


def of_sizes_multiplied_by_numpy(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True) / np.prod(x.shape[1:])).sqrt()


def spread(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


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
        (lambda x: x - 1.0 / x.shape[1] * x.sum(-1, keepdim=True), lambda x: x - x.mean(1, keepdim=True)),
        (standardized, layer_normed),
        (lambda x: x + x.sum(1, keepdim=True) / x.shape[1], lambda x: x + x.mean(1, keepdim=True)),
        (unbiased, spread),
        (standardized_by_one_number, spread),
        (shaped_by_what_it_divides_by, rms),
        (of_all_elements, rms),
        (of_the_elements_of_one, rms),
        (of_sizes_multiplied, rms),
        (of_sizes_multiplied_by_numpy, rms),
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


@pytest.mark.parametrize(("reduction", "exact"), [("mean", False), ("sum", True)])
def test_a_distance_between_neurons_that_a_network_gives_is_that_of_those_that_are_left(reduction, exact):
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.out = nn.Linear(4, 7), nn.Linear(4, 7), nn.Linear(7, 2)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            one, other = self.one(inputs).tanh(), self.other(inputs)
            return self.out(one), F.smooth_l1_loss(one, other.detach(), reduction=reduction)

    torch.manual_seed(0)
    network, inputs, kept = Coded(), torch.randn(5, 4), torch.tensor([6, 1, 3])
    found = discover(network, inputs)
    assert [(layer.width, layer.exact) for layer in found.layers()] == [(7, exact)]
    one, other = network.one(inputs).tanh()[:, kept], network.other(inputs)[:, kept]
    smaller = select(found, {found.layers()[0].name: kept})
    torch.testing.assert_close(smaller(inputs)[1], F.smooth_l1_loss(one, other, reduction=reduction))


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


FACTORS: dict[str, Norm] = {
    "a root": lambda x: x * x.shape[1] ** 0.5,
    "a whole number": lambda x: x + F.normalize(x, dim=1) * x.shape[1],
    "the root of a product": lambda x: x + (x * x.roll(1, 0)).sum(1, keepdim=True) / math.sqrt(x.size(1)),
    "made whole": lambda x: x * int(x.size(1)) ** -0.5,
    "NumPy's root": lambda x: x / np.sqrt(x.shape[-1]),
    "a tensor of it": lambda x: x / torch.sqrt(torch.tensor(x.size(-1), dtype=x.dtype)),
    "one divided by it": lambda x: x * (1.0 / x.shape[1]) + 0.5 * x.shape[1],
    "its logarithm": lambda x: x / math.log(x.shape[1]),
    "a part": lambda x: x * (x.shape[-1] // 3) ** -0.5,
    "a tensor of all sizes": lambda x: x / torch.tensor(x.shape[1:]).prod().sqrt(),
    "elements": lambda x: x * x.numel() ** -0.5 * len(x) ** 0.5,
    "elements of one": lambda x: x * x[0].nelement() ** -0.5,
    "sizes multiplied": lambda x: x * math.prod(x.shape[1:]) ** -0.5,
    "the number in place": lambda x: x.mul_(x.shape[1]),
    "under a fraction": lambda x: x.size(1) / (x.abs() + 1),
    "two factors": lambda x: x * x.shape[1] ** -0.5 + 2.0 * x / (3 + x.shape[1]) - (x.shape[1] - 1) * 0.1,
    "a factor, and a size": lambda x: (
        x.view(x.shape[0], x.shape[1], 1).expand(*x.size(), 2).mean(2) * x.size(1) ** -0.5
    ),
    "one number for both": lambda x: (lambda c: x.new_ones(len(x), c) * x.reshape(-1, c, 1)[..., 0] / c**0.5)(
        x.shape[1]
    ),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_width_that_is_a_factor_and_no_part_of_a_mean_stays_and_removing_equals_masking(name):
    for dtype, rounding in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        torch.manual_seed(0)
        x = torch.randn(5, 6).to(dtype)
        made = lambda: Normed(FACTORS[name]).to(dtype)  # noqa: E731, B023
        found = discover(made(), x)
        assert [(layer.width, layer.exact) for layer in found.layers()] == [(12, True)]
        keep = {"enter": torch.tensor([7, 2, 3, 10, 0])}
        smaller, more = select(found, keep), torch.randn(3, 6).to(dtype)
        torch.testing.assert_close(smaller(more), mask(found, keep)(more), rtol=0, atol=rounding)
        torch.testing.assert_close(copied(smaller.network)(more), smaller(more), rtol=0, atol=0)


class InTurn(nn.Module):
    """One line reads the widths of layers that are unlike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 6)]), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = scaled(layer(x)).tanh()
        return self.out(x)


def scaled(x: Tensor) -> Tensor:
    return x * x.shape[-1] ** -0.5


def test_each_of_unlike_widths_that_one_line_reads_in_turn_stays_what_it_was(tmp_path):
    network, x = InTurn().double(), torch.randn(3, 5, dtype=torch.float64)
    found = discover(network, x)
    one, two = found.layers()
    assert (one.width, two.width, one.avoided, two.avoided) == (4, 6, (), (1, 2, 3, 4))
    for most in itertools.product(range(1, 5), (5, 6)):
        keep = {layer.name: torch.arange(layer.width)[-size:] for layer, size in zip((one, two), most, strict=True)}
        smaller = select(found, keep)
        torch.testing.assert_close(smaller(x), mask(found, keep)(x), rtol=1e-10, atol=1e-10)
    pruning.save(smaller, tmp_path)
    torch.testing.assert_close(pruning.restore(InTurn().double(), tmp_path)(x), smaller(x), rtol=0, atol=0)
    again = select(select(found, {one.name: torch.arange(3)}), {one.name: torch.tensor([1])})
    torch.testing.assert_close(again(x), mask(found, {one.name: torch.tensor([1])})(x), rtol=1e-10, atol=1e-10)


def test_a_mean_that_is_multiplied_by_the_width_is_a_sum_and_removing_equals_masking():
    torch.manual_seed(0)
    x = torch.randn(5, 6).double()
    found = discover(Normed(lambda x: x + x.mean(1, keepdim=True) * x.shape[1]).double(), x)
    assert [(layer.width, layer.exact) for layer in found.layers()] == [(12, True)]
    assert not found.numbers
    keep = {"enter": torch.tensor([7, 2, 3])}
    torch.testing.assert_close(select(found, keep)(x), mask(found, keep)(x), rtol=0, atol=1e-10)


class Grouped(nn.Module):
    """A group norm by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.enter, self.leave = 4, nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        batch, channels = x.shape
        x = x.view(batch, self.groups, channels // self.groups)
        x = x / (x.pow(2).sum(2, keepdim=True) / (channels // self.groups) + 0.1).sqrt()
        return self.leave(x.reshape(batch, channels))


def test_numbers_that_fit_in_one_round_by_chance_are_not_taken_for_those_that_do():
    torch.manual_seed(0)
    x = torch.randn(5, 6).double()
    found = discover(Grouped().double(), x)
    assert [(layer.width, layer.exact) for layer in found.layers()] == [(4, True)]
    assert [number.attribute for number in found.numbers] == ["groups"]
    for left in range(1, 4):
        keep = {"enter": torch.arange(left)}
        torch.testing.assert_close(select(found, keep)(x), mask(found, keep)(x), rtol=0, atol=1e-10)


def for_both(x: Tensor) -> Tensor:
    batch, channels = x.shape
    image = x.reshape(batch * channels, 1).view(batch, channels) * x.new_ones(batch, channels)
    return image * (batch * channels) ** -0.5 + x / x.numel() + 1.0 / (2 * channels) - image / math.sqrt(channels)


def test_a_factor_stays_where_a_network_is_restored_pruned_or_discovered_again(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(5, 6).double()
    found = discover(Normed(for_both).double(), x)
    left = torch.tensor([7, 2, 3, 10, 0])
    smaller = select(found, {"enter": left})
    expected = mask(found, {"enter": left[:3]})(x)
    pruning.save(smaller, tmp_path)
    restored = pruning.restore(Normed(for_both).double(), tmp_path)
    torch.testing.assert_close(restored(x), smaller(x), rtol=0, atol=0)
    for again in (smaller, discover(smaller.network, x)):
        assert [(layer.width, layer.exact) for layer in again.layers()] == [(5, True)]
        least = select(again, {"enter": torch.arange(3)})
        torch.testing.assert_close(least(x), expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python integer:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_factor_stays_in_what_is_exported_traced_or_compiled():
    torch.manual_seed(0)
    x, more = torch.randn(5, 6), torch.randn(9, 6)
    smaller = select(discover(Normed(for_both), x), {"enter": torch.tensor([7, 2, 3])})
    free = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(smaller.network, (x,), dynamic_shapes=free, strict=False).module()
    torch.testing.assert_close(exported(more), smaller(more))
    traced = torch.jit.trace(smaller.network, (x,), check_trace=False)
    torch.testing.assert_close(traced(x), smaller(x))
    torch.testing.assert_close(torch.compile(smaller.network, backend="eager")(more), smaller(more))


def test_the_summary_names_what_is_computed_with_as_it_was():
    found = discover(Normed(FACTORS["a root"]), torch.randn(5, 6))
    assert "the network: `shape` in `forward`, its line 2, as 12" in found.summary()


def test_a_factor_in_one_place_leaves_a_norm_in_another_to_its_neurons():
    torch.manual_seed(0)
    parts = [Normed(normalized), Normed(lambda x: x * x.shape[1] ** 0.5)]
    found = discover(nn.Sequential(parts[0], nn.Linear(3, 6), parts[1]), torch.randn(5, 6))
    exact = {layer.name: layer.exact for layer in found.layers()}
    assert exact == {"0.enter": False, "0.leave": True, "1": True, "2.enter": True}


class Telling(nn.Module):
    """Gives the width of what it gives, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, x.shape[1]


class Told(Normed):
    """Computes with a width that another module read, and counts to it."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.telling = Telling()

    def forward(self, x: Tensor) -> Tensor:
        x, width = self.telling(self.enter(x))
        return self.leave(x[:, torch.arange(width)] / width)


def test_a_width_that_one_module_reads_and_another_counts_to_and_divides_by_is_refused_with_that_reason():
    torch.manual_seed(0)
    found = discover(Told(), torch.randn(5, 6))
    assert not found.layers()
    assert "computes with its width (`shape` in `forward`, its line 2, as 12)" in found.unprunable["enter"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_factor_stays_that_is_handed_to_what_torchscript_compiled():
    @torch.jit.script
    def divided(x: Tensor, width: int) -> Tensor:
        return x * width**-0.5

    torch.manual_seed(0)
    x = torch.randn(5, 6)
    found = discover(Normed(lambda x: divided(x, x.shape[1])), x)
    keep = {"enter": torch.tensor([7, 2, 3])}
    torch.testing.assert_close(select(found, keep)(x), mask(found, keep)(x))


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


def test_a_number_that_neurons_are_divided_by_stays_where_they_are_masked_for_a_normalisation_over_them():
    class Divided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.inner, self.out = (
                nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3),
            )  # fmt: skip
            self.gain = nn.Parameter(torch.rand(6) + 0.5)
            self.register_buffer("shift", torch.rand(6))

        def forward(self, inputs: Tensor) -> Tensor:
            stream = (self.enter(inputs) - self.shift) / self.gain
            return self.out(stream + self.inner(self.norm(stream)))

    model = discover(Divided().double(), torch.randn(3, 4, dtype=torch.float64))
    (layer,) = model.layers()
    assert (layer.width, layer.exact, "network.gain" in {piece.parameter for piece in layer.silenced}) == (
        6,
        False,
        False,
    )
    assert bool(
        mask(model, {layer.name: torch.tensor([0, 4])})(torch.randn(3, 4, dtype=torch.float64)).isfinite().all()
    )


@pytest.mark.parametrize("own", [False, True])
def test_no_spike_that_is_always_there_hides_that_a_norm_takes_neurons_together(own):
    class Firing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm, self.leave = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)
            self.middle = nn.Identity() if own else nn.Linear(8, 8)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            return self.leave((self.middle(self.norm(self.enter(steps))) > -9).to(steps))

    found = discover(Firing().double(), torch.randn(2, 3, dtype=torch.float64))
    exact = {layer.name: layer.exact for layer in found.layers()}
    assert exact == ({"enter": False} if own else {"enter": False, "middle": True})
