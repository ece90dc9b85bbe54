"""Forms that networks of published packages take, reduced to a few lines each."""

import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import mask, select
from tests.foreign import floats


def agree(network: nn.Module, inputs: Tensor, *names: str) -> None:
    """Expect these layers to be found, and half of all neurons removed to give what half of them masked gives."""
    found = pruning.discover(network.double().eval(), inputs)
    layers = found.layers()
    owners = {piece.parameter for layer in layers for piece in layer.owned}
    assert not [name for name in names if not any(f".{name}." in f".{owner}." for owner in owners)], found.unprunable
    keep = {layer.name: torch.arange(1, layer.width, 2) for layer in layers}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs))


def test_a_module_that_asks_for_the_version_of_its_state_is_cut():
    class Versioned(nn.Module):
        _version = 2

        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.out(self.first(inputs).relu())

        def _load_from_state_dict(self, state, prefix, versions, *others):
            if versions.get("version") not in (1, 2):
                raise ValueError(f"version should be set to 1 or 2 instead of {versions.get('version')}")
            super()._load_from_state_dict(state, prefix, versions, *others)

    agree(Versioned(), floats(4, 5), "first")
