"""Attention whose heads share a table of relative positions, in the ways in which people write it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.core.neurons import mask, select
from tests.discovery.readers import assert_each_is_seen
from tests.foreign import floats

STEPS, HEADS, WIDTH = 5, 4, 8


class Relative(nn.Module):
    def __init__(self, told: Any) -> None:
        super().__init__()
        self.told, self.heads = told, HEADS
        self.enter, self.join, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.table = nn.Embedding(2 * STEPS - 1, WIDTH // HEADS)

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.enter(inputs)
        batch, steps, _ = stream.shape
        parts = (
            part(stream).view(batch, steps, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        query, key, value = parts
        scores = (query @ key.mT + self.told(self, query)).div(1.4).softmax(-1)
        return self.out(stream + self.join((scores @ value).transpose(1, 2).reshape(batch, steps, -1)))


def distances(network: Relative) -> Tensor:
    places = torch.arange(STEPS)
    return network.table(places[:, None] - places + STEPS - 1)


def summed(network: Relative, query: Tensor) -> Tensor:
    return torch.einsum("bhtd,trd->bhtr", query, distances(network))


def merged(network: Relative, query: Tensor) -> Tensor:
    batch, heads, steps, _ = query.shape
    rows = query.permute(2, 0, 1, 3).reshape(steps, batch * heads, -1)
    return (rows @ distances(network).mT).transpose(0, 1).reshape(batch, heads, steps, steps)


def turned(network: Relative, query: Tensor) -> Tensor:
    batch, heads, steps, _ = query.shape
    columns = query.permute(2, 3, 0, 1).reshape(steps, -1, batch * heads)
    return (distances(network) @ columns).permute(2, 0, 1).reshape(batch, heads, steps, steps)


def skewed(network: Relative, query: Tensor) -> Tensor:
    scores = query @ network.table.weight[:STEPS].T
    return F.pad(scores, (1, 0)).reshape(*scores.shape[:2], STEPS + 1, STEPS)[:, :, 1:]


@pytest.mark.parametrize("told", [summed, merged, turned, skewed])
def test_heads_that_share_a_table_of_relative_positions_are_removed_as_they_are_masked(told):
    torch.manual_seed(1)
    network, inputs = Relative(told).double().eval(), floats(2, STEPS, 3)
    found = pruning.discover(network, (inputs,))
    assert {layer.name: (layer.kind, layer.width) for layer in found.layers()} == {
        "enter": ("dense", WIDTH),
        "query": ("head", HEADS),
    }
    assert "table" in found.unprunable
    for kept in ([2, 0], [3], [1, 2, 3]):
        keep = {"enter": torch.tensor([0, 5, 6, 2, 1]), "query": torch.tensor(kept)}
        smaller, masked = select(found, keep), mask(found, keep)
        torch.testing.assert_close(smaller(inputs), masked(inputs), rtol=0, atol=1e-12)
        assert smaller.network.query.out_features == len(kept) * WIDTH // HEADS
    assert_each_is_seen(found, (inputs,))
