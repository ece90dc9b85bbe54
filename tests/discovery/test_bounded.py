"""Embeddings that bound the norms of the rows that they look up: `max_norm`."""

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.neurons import mask, select

TOKENS = torch.tensor([[0, 3], [5, 1], [0, 0]])
OTHERS = torch.tensor([[7, 8], [2, 2], [4, 6]])


class Bounded(nn.Module):
    def __init__(self, table: nn.Embedding | nn.EmbeddingBag) -> None:
        super().__init__()
        self.table, self.one, self.out = table, nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.one(self.table(tokens)).relu())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_neurons_of_an_embedding_with_bounded_rows_are_removed_as_they_are_masked_whichever_rows_are_looked_up(
    kind, norm
):
    torch.manual_seed(2)
    network = Bounded(kind(9, 8, max_norm=0.7, norm_type=norm)).double().eval()
    before = network.table.weight.detach().clone()
    found = pruning.discover(network, (TOKENS,))
    assert torch.equal(network.table.weight, before)
    assert {layer.name: (layer.width, layer.exact) for layer in found.layers()} == {
        "table": (8, True),
        "one": (6, True),
    }
    assert found.network.table.max_norm == network.table.max_norm == 0.7
    keep = {"table": torch.tensor([6, 1, 2]), "one": torch.tensor([0, 4])}
    smaller, masked = select(found, keep), mask(found, keep)
    for tokens in (OTHERS, TOKENS, OTHERS):
        torch.testing.assert_close(smaller(tokens), masked(tokens), rtol=0, atol=1e-12)
        torch.testing.assert_close(found(tokens), network(tokens), rtol=0, atol=1e-6)
    assert smaller.network.table.max_norm == 0.7
    assert smaller.network.table.weight.shape == (9, 3)


def test_a_bounded_table_that_is_read_elsewhere_stays():
    network = Bounded(nn.Embedding(9, 8, max_norm=0.7))
    network.one, network.out = nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
    network.out.weight = network.table.weight
    found = pruning.discover(network.double(), (TOKENS,))
    assert "embedding_renorm" in found.unprunable["table"]
