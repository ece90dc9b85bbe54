"""Grouped convolutions: whole groups go, or one channel of each group together, whichever are more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import mask, select
from pruning.discovery import Discovered
from pruning.models.adapting import adapt
from pruning.models.apart import Apart
from pruning.models.tapping import tapping
from tests.discovery.readers import assert_each_is_seen
from tests.discovery.test_forms import Network
from tests.foreign import floats

IMAGE = floats(2, 3, 6, 6)


class Split(nn.Module):
    """Attention over the parts of a convolution, as in ResNeSt."""

    def __init__(self, width: int, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts
        self.conv = nn.Conv2d(width, parts * width, 3, padding=1, groups=parts)
        self.norm = nn.BatchNorm2d(parts * width)
        self.one, self.two = nn.Conv2d(width, 5, 1), nn.Conv2d(5, parts * width, 1)

    def forward(self, image: Tensor) -> Tensor:
        image = self.norm(self.conv(image)).relu()
        batch, channels, height, width = image.shape
        image = image.reshape(batch, self.parts, channels // self.parts, height, width)
        scores = self.two(self.one(image.sum(1).mean((2, 3), keepdim=True)).relu())
        shares = scores.view(batch, 1, self.parts, -1).transpose(1, 2).softmax(1).reshape(batch, -1, 1, 1)
        return (image * shares.reshape(batch, self.parts, channels // self.parts, 1, 1)).sum(1)


def shuffled() -> nn.Module:
    def run(self: Any, image: Tensor) -> Tensor:
        seen = self.one(self.enter(image)).relu()
        batch, channels, height, width = seen.shape
        seen = seen.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(seen.shape)
        return self.out(self.two(self.deep(seen)).relu().mean((2, 3)))

    one, two = nn.Conv2d(12, 16, 1, groups=2), nn.Conv2d(16, 6, 1, groups=2)
    parts = {"one": one, "deep": nn.Conv2d(16, 16, 3, groups=16), "two": two}
    return Network(run, enter=nn.Conv2d(3, 12, 1), **parts, out=nn.Linear(6, 2))


def filtered() -> nn.Module:
    def run(self: Any, image: Tensor) -> Tensor:
        spectra = torch.fft.rfft(self.bank, n=image.shape[-1])
        bands = torch.fft.irfft(torch.fft.rfft(image.mean(1, keepdim=True)) * spectra[:, None], n=image.shape[-1])
        return self.out(self.conv(bands).relu().mean((2, 3)))

    return Network(run, bank=torch.randn(3, 4), conv=nn.Conv2d(3, 6, 1, groups=3), out=nn.Linear(6, 2))


def sequence(*layers: nn.Module) -> nn.Module:
    between = [part for layer in layers for part in (layer, nn.ReLU())]
    return nn.Sequential(*between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2))


GROUPED: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "two groups of many channels": (
        lambda: sequence(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 5, 1)),
        {"0": 4, "2": 6, "4": 5},
    ),
    "many groups of few channels": (
        lambda: sequence(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 5, 1)),
        {"0": 4, "4": 5},
    ),
    "one after the other": (
        lambda: sequence(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 16, 1, groups=2)),
        {"0": 4, "2": 6, "4": 8},
    ),
    "few and many channels of as many groups": (
        lambda: sequence(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 1, groups=4), nn.Conv2d(24, 24, 1, groups=4)),
        {"0": 4},
    ),
    "groups of the inputs' channels": (lambda: sequence(nn.Conv2d(3, 12, 3, groups=3)), {"0": 4}),
    "split attention": (lambda: sequence(nn.Conv2d(3, 8, 1), Split(8)), {"0": 4, "2.conv": 8, "2.one": 5}),
    "bands of fixed filters": (filtered, {"conv": 2}),
    "shuffled channels": (shuffled, {"enter": 6, "one": 4, "two": 3}),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(3)
    network = GROUPED[name][0]().double().eval()
    network(IMAGE)
    return network


@pytest.mark.parametrize("name", GROUPED)
def test_of_groups_and_channels_those_go_of_which_there_are_more(name):
    found = pruning.discover(built(name), (IMAGE,))
    assert {layer.name: layer.width for layer in found.layers()} == GROUPED[name][1]


@pytest.mark.parametrize("name", GROUPED)
def test_removing_groups_or_channels_of_each_group_equals_masking_them(name):
    found = pruning.discover(built(name), (IMAGE,))
    for share in (0.3, 0.6, 0.9):
        keep = {layer.name: torch.randperm(layer.width)[: max(1, int(share * layer.width))] for layer in found.layers()}
        smaller = select(found, keep)
        torch.testing.assert_close(smaller(IMAGE), mask(found, keep)(IMAGE), rtol=0, atol=1e-12)
        again = found.resized([layer.width for layer in smaller.layers()])
        again.load_state_dict(smaller.state_dict())
        assert torch.equal(again.eval()(IMAGE), smaller(IMAGE))
        for module in (part for part in smaller.modules() if isinstance(part, nn.Conv2d)):
            wanted = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert tuple(module.weight.shape) == wanted


@pytest.mark.parametrize("name", GROUPED)
def test_each_reader_is_seen_with_as_many_numbers_as_it_has_columns(name):
    assert_each_is_seen(pruning.discover(built(name), (IMAGE,)), (IMAGE,))


def pair() -> tuple[Discovered, nn.Conv2d]:
    """A network of one layer, of which a convolution reads channels j and j + 4 by column j; and this convolution."""
    network = built("two groups of many channels")
    found = pruning.discover(network, (IMAGE,))
    return found, found.network[2]


def test_what_is_recorded_of_a_channel_are_those_of_each_group():
    found, reader = pair()
    seen: dict[str, Tensor] = {}
    given: list[Tensor] = []
    handle = reader.register_forward_hook(lambda _module, inputs, _outputs: given.append(inputs[0]))
    with record(found, found.layers(), seen.setdefault), torch.no_grad():
        found(IMAGE)
    handle.remove()
    wanted = given[0].unflatten(1, (2, 4)).movedim(2, -1).reshape(-1, 4)
    torch.testing.assert_close(seen["0"].sort(0).values, wanted.sort(0).values, rtol=0, atol=0)


def test_what_is_added_to_a_channel_is_added_to_those_of_each_group():
    found, reader = pair()
    loss = lambda outputs: outputs.square().sum()  # noqa: E731
    given: list[Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]), prepend=False)
    model = adapt(found, (IMAGE,), loss=nn.MSELoss())
    with tapping(model) as taps:
        outputs = found(IMAGE)
    (own,) = torch.autograd.grad(loss(outputs), taps.zeros["0"])
    handle.remove()
    whole = given[-1].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(found.network[3:](reader(whole))), whole)
    layout = lambda part: part.unflatten(1, (2, 4)).movedim((0, 2), (-2, -1)).reshape(-1, 2, 4)  # noqa: E731
    torch.testing.assert_close(own.sum((0, 1)), layout(wanted).sum((0, 1)))
    torch.testing.assert_close(taps.outputs["0"].square().sum(), whole.square().sum())
    (layer, *_) = found.layers()
    uses = Apart(found, [layer], len(IMAGE), 0)
    with uses, torch.no_grad():
        found(IMAGE)
    torch.testing.assert_close(uses.uses["0"].outputs().sum((0, 1)), layout(whole.detach()).sum((0, 1)))


def test_a_channel_that_follows_from_another_one_of_its_group_is_made_up_for_by_ridge():
    network = built("two groups of many channels")
    with torch.no_grad():
        for group in (0, 4):  # in both groups the third channel is twice the first one
            network[0].weight[group + 2] = 2 * network[0].weight[group]
            network[0].bias[group + 2] = 2 * network[0].bias[group]
    found = pruning.discover(network, (IMAGE,))
    data = [(floats(4, 3, 6, 6),) for _ in range(4)]
    keep = {"0": torch.tensor([0, 1, 3])}
    repaired = pruning.reconstruct(found, keep, repair="ridge", data=data)
    torch.testing.assert_close(repaired(IMAGE), network(IMAGE), rtol=0, atol=1e-4)
    assert (select(found, keep)(IMAGE) - network(IMAGE)).abs().max() > 1e-3
