"""Numbers in settings that a network's modules share: each module gets its own where a width changes."""

import argparse
import dataclasses
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import mask, select
from tests.foreign import floats


@dataclasses.dataclass(frozen=True)
class Frozen:
    hidden: int


@dataclasses.dataclass(slots=True)
class Slotted:
    hidden: int


class Named(NamedTuple):
    hidden: int
    name: str = ""


SETTINGS = {
    "nested namespaces": lambda: types.SimpleNamespace(cell=argparse.Namespace(hidden=6)),
    "nested dictionaries": lambda: {"cell": {"hidden": 6}},
    "a frozen dataclass": lambda: {"cell": Frozen(6)},
    "slots": lambda: {"cell": Slotted(6)},
    "a list of named tuples": lambda: {"cells": [Frozen(1), Named(6)]},
}


def hidden(settings: Any) -> int:
    """Return the number, as code reads it."""
    for name in ("cell", "cells"):
        own = settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)
        settings = own or settings
    settings = settings[1] if isinstance(settings, list) else settings
    found = settings["hidden"] if isinstance(settings, dict) else settings.hidden
    assert type(found) is int
    return found


class Cell(nn.Module):
    def __init__(self, inputs: int, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.enter, self.state = nn.Linear(inputs, hidden(settings)), nn.Linear(hidden(settings), hidden(settings))

    def forward(self, steps: Tensor) -> Tensor:
        state, found = steps.new_zeros(len(steps), hidden(self.settings)), []
        for inputs in steps.unbind(1):
            new = self.enter(inputs)
            if new.shape[1] != hidden(self.settings):
                raise ValueError("another width")
            state = torch.tanh(new + self.state(state))
            found.append(state)
        return torch.stack(found, 1)


class Change:
    """What moves a state: no module, but it knows its width."""

    def __init__(self, layer: nn.Module, hidden: int) -> None:
        self.layer, self.hidden = layer, hidden

    def of(self, state: Tensor) -> Tensor:
        assert state.shape[1] == self.hidden
        return torch.tanh(self.layer(state))


def test_a_number_of_an_object_whose_method_the_network_keeps_follows():
    network = nn.Sequential(nn.Linear(3, 6), nn.Identity(), nn.Linear(6, 2)).double()
    network[1].layer = nn.Linear(6, 6).double()
    network[1].change, inputs = Change(network[1].layer, 6).of, floats(2, 3)
    network[1].forward = types.MethodType(lambda self, state: state + self.change(state), network[1])
    found = pruning.discover(network, inputs)
    (layer,) = found.layers()
    keep = {layer.name: torch.tensor([4, 1])}
    torch.testing.assert_close(select(found, keep)(inputs), mask(found, keep)(inputs), rtol=1e-10, atol=1e-10)
    assert network[1].change.__self__.hidden == 6


def network(settings: Any) -> nn.Module:
    return nn.Sequential(Cell(3, settings), Cell(6, settings), nn.Linear(6, 2))


@pytest.mark.parametrize("kind", SETTINGS)
def test_modules_that_share_settings_get_widths_of_their_own(kind, tmp_path):
    settings, inputs = SETTINGS[kind](), floats(2, 4, 3)
    made, before = network(settings).double(), repr(settings)
    found = pruning.discover(made, inputs)
    assert [(layer.name, layer.width, layer.exact) for layer in found.layers()] == [
        ("0.enter", 6, True),
        ("1.enter", 6, True),
    ]
    keep = {"0.enter": torch.tensor([4, 1]), "1.enter": torch.tensor([0, 5, 3])}
    smaller = select(found, keep)
    torch.testing.assert_close(smaller(inputs), mask(found, keep)(inputs), rtol=1e-10, atol=1e-10)
    assert [hidden(smaller.network[place].settings) for place in (0, 1)] == [2, 3]
    assert made[0].settings is made[1].settings is settings
    assert (repr(settings), "called with sizes" in str(found)) == (before, False)
    pruning.save(smaller, tmp_path)
    again = pruning.restore(network(SETTINGS[kind]()), tmp_path)
    torch.testing.assert_close(again(inputs), smaller(inputs))
