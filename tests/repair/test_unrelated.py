"""What a refit can make up for, and what it cannot: neurons that nothing else tells of."""

import pytest
import torch
from torch import Tensor, nn

import pruning


class Pooled(nn.Module):
    """The mean of a text's embeddings, and a linear map of it."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table, freeze=False)
        self.out = nn.Linear(table.shape[1], 4)

    def forward(self, text: Tensor) -> Tensor:
        return self.out(self.table(text).mean(1))


def distances(table: Tensor) -> dict[str, float]:
    """Return how far the halved network's outputs are from the dense one's on texts that nothing was fitted on."""
    dense = Pooled(table).eval()
    texts = [torch.randint(0, len(table), (8, 7)) for _ in range(40)]
    found = pruning.discover(dense, texts[0])
    keep = {"table": torch.arange(0, table.shape[1], 2)}
    smaller = {how: pruning.reconstruct(found, keep, data=texts[:30], repair=how) for how in ("none", "ridge")}
    imitation = pruning.Imitation(tokens=8 * 1500, learning_rate=0.02, warmup=0.1, clip=1.0)
    smaller["imitate"] = pruning.imitate(smaller["ridge"], found, texts[:30], imitation=imitation)
    held_out = torch.cat(texts[30:])
    with torch.no_grad():
        wanted = dense(held_out)
        return {how: (each(held_out) - wanted).square().mean().item() for how, each in smaller.items()}


def test_columns_of_a_table_that_follow_from_others_are_made_up_for() -> None:
    torch.manual_seed(0)
    apart = distances(torch.randn(60, 6) @ torch.randn(6, 16))
    assert apart["ridge"] < 1e-3 * apart["none"]


def test_columns_that_nothing_else_tells_of_stay_cut_and_only_a_table_that_learns_makes_up_for_them() -> None:
    torch.manual_seed(0)
    apart = distances(torch.randn(500, 16))
    assert apart["ridge"] == pytest.approx(apart["none"], rel=0.15)
    assert apart["imitate"] < 0.75 * apart["ridge"]
