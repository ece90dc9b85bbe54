"""The proof of what was found, where a network's draws or answers are such that nothing could be compared."""

import pytest
import torch
from torch import nn

from pruning.core.neurons import mask, select
from pruning.discovery import discover
from pruning.discovery.running import close

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
