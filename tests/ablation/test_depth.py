"""What residual blocks are worth, beside the slow and obvious: each block skipped by hand, all pairs tried."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.discovery.absent import Absent, skipping


class Residual(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        with torch.no_grad():
            for parameter in self.inner.parameters():
                parameter.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x.tanh())


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        blocks = [Residual(size) for size in (2.0, 0.01, 1.0, 0.5)]
        found = nn.Sequential(nn.Linear(4, 6), *blocks, nn.Linear(6, 3))
        twin = found[4].inner
        with torch.no_grad():
            found[3].inner.weight.copy_(-twin.weight)  # what the third adds, the fourth takes away
            found[3].inner.bias.copy_(-twin.bias)
    return found


def batches(*, labelled: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(8, 4, generator=generator) for _ in range(5)]
    return [(x, x.argmax(1) % 3) if labelled else x for x in inputs]


def test_each_block_is_worth_what_outputs_and_loss_are_without_it() -> None:
    net, data = network(), batches()
    found = pruning.discover(net, data[0][0])
    rows = pruning.depth(found, data, nn.CrossEntropyLoss()).table
    assert list(rows["block"]) == ["1", "2", "3", "4"]
    for place, row in enumerate(rows.to_dict("records"), start=1):
        divergences, increases, cosines = [], [], []
        with torch.no_grad():
            for x, y in data:
                before = net[:place](x)
                dense, less = net(x), net[place + 1 :](before)
                divergences.append(
                    F.kl_div(less.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
                )
                increases.append(F.cross_entropy(less, y) - F.cross_entropy(dense, y))
                cosines.append(F.cosine_similarity(before, net[place](before), dim=1))
        assert row["divergence"] == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4, abs=1e-7)
        assert row["loss_increase"] == pytest.approx(torch.stack(increases).mean().item(), rel=1e-4, abs=1e-6)
        error = torch.stack(increases).std().item() / 5**0.5
        assert row["standard_error"] == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert row["influence"] == pytest.approx(1 - torch.cat(cosines).mean().item(), abs=1e-6)
        assert (row["parameters"], row["samples"]) == (42, 40)


def test_blocks_go_in_turn_by_what_outputs_are_without_all_of_them() -> None:
    net, data = network(), batches()
    found = pruning.discover(net, data[0][0])
    worth = pruning.depth(found, data, nn.CrossEntropyLoss())
    first = worth.gone(0.75)

    def apart(names: tuple[str, ...]) -> float:
        with torch.no_grad(), skipping(net, [(name, 0) for name in names]):
            less = [net(x).log_softmax(1) for x, _ in data]
        with torch.no_grad():
            dense = [net(x).log_softmax(1) for x, _ in data]
        return sum(F.kl_div(a, b, log_target=True, reduction="sum").item() for a, b in zip(less, dense, strict=True))

    assert first == [min("1234", key=lambda name: apart((name,)))]
    second = worth.gone(0.5)
    assert second == [*first, min({*"1234"} - {*first}, key=lambda name: apart((*first, name)))]
    three = worth.gone(0.25)
    alone = worth.gone(0.25, by="divergence")
    assert apart(tuple(three)) <= apart(tuple(alone)) + 1e-9
    assert apart(tuple(three)) == pytest.approx(min(map(apart, itertools.combinations("1234", 3))), rel=1e-6)
    assert len(worth.gone(0.01)) == 3  # one stays


def test_without_labels_the_loss_is_not_measured_and_outputs_count() -> None:
    data = batches(labelled=False)
    worth = pruning.depth(network(), data, nn.CrossEntropyLoss())
    assert worth.table["loss_increase"].isna().all()
    assert worth.gone(0.75, by="influence") == ["2"]
    with pytest.raises(
        ValueError, match=r"^Expected numbers in the column 'loss_increase', got none for 1, 2, 3, 4; ch"
    ):
        worth.gone(0.75, by="loss_increase")
    assert "4 residual blocks" in str(worth)


def test_what_cannot_be_done_is_refused_in_a_sentence() -> None:
    worth = pruning.depth(network(), batches(), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"^Expected a share of the blocks to keep, above 0 and at most 1, got 0\.$"):
        worth.gone(0)
    with pytest.raises(
        ValueError, match=r"^Unknown order 'size'; known: \['turns', 'divergence', 'influence', 'loss_inc"
    ):
        worth.gone(0.5, by="size")
    flat = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(
        ValueError, match=r"^Expected a network with residual blocks, h \+ f\(h\), that can go as a whole"
    ):
        pruning.depth(flat, batches(), nn.CrossEntropyLoss())


def test_blocks_and_then_neurons_go_in_one_line() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
            self.norm, self.blocks = (
                nn.LayerNorm(6),
                nn.ModuleList(nn.Sequential(nn.Linear(6, 8 + n), nn.ReLU(), nn.Linear(8 + n, 6)) for n in range(4)),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = x + block(x)
            return self.out(self.norm(x))

    torch.manual_seed(0)
    net, data = Deep(), batches()
    found = pruning.discover(net, data[0][0])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss(), signals=["weights"])
    smaller = pruning.prune(found, importance, keep=0.5, depth=["blocks.0", "blocks.2"], scope="layer", repair="none")
    assert [len(block[0].weight) for block in smaller.module.blocks] == [5, 6]
    kept = importance.keep(0.5)
    for block, old in zip(smaller.module.blocks, (1, 3), strict=True):
        rows = kept[f"blocks.{old}.0"]
        assert torch.equal(block[0].weight, net.blocks[old][0].weight[rows])
    assert "blocks that are gone: blocks.0, blocks.2" in str(smaller)
    half = pruning.prune(found, importance, keep=1.0, depth=0.5)
    assert len(half.module.blocks) == 2
    assert list(half.report.gone) == pruning.depth(found, data, nn.CrossEntropyLoss()).gone(0.5)
    with pytest.raises(ValueError, match=r"^Unknown block 'blocks.9'; known: "):
        pruning.prune(found, importance, depth=["blocks.9"])


def test_sublayers_are_chosen_from_on_demand() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True, dropout=0.0)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.encoder(x)).mean(1)

    data = [(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(n)), torch.arange(3)) for n in range(3)]
    found = pruning.discover(Tagger(), data[0][0])
    worth = pruning.depth(found, data, nn.CrossEntropyLoss())
    gone = worth.gone(0.75, inner=True)
    smaller = pruning.shorten(found, gone)
    assert len(gone) == 1
    assert any(isinstance(module, Absent) for module in smaller.modules()) == (
        "." in gone[0].removeprefix("encoder.layers.")
    )
