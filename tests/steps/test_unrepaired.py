"""A repair that leaves a network further from the dense one than the cut alone did is not what is returned."""

import pytest
import torch
from torch import nn

import pruning
from pruning.steps import removing
from tests.foreign import floats


@pytest.mark.parametrize("repair", ["ridge", "imitate"])
def test_what_is_repaired_is_no_further_from_the_dense_network_than_what_is_cut(repair, monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data = [floats(6, 3, seed=seed) for seed in range(3)]
    found = pruning.discover(network, data[0])
    importance = pruning.importance(found, data)
    cut = pruning.prune(found, importance, keep=0.5, repair="none")
    honest = removing.reconstruct

    def misled(model, keep, *, repair, **how):
        smaller = honest(model, keep, repair=repair, **how)
        if repair != "none":
            smaller.module[2].weight.data.mul_(-9)
        return smaller

    monkeypatch.setattr(removing, "reconstruct", misled)
    smaller = pruning.prune(found, importance, keep=0.5, repair=repair)
    assert smaller.report.apart["unrepaired"] == cut.report.apart["layer"] < smaller.report.apart["layer"]
    if repair == "ridge":
        assert smaller.report.repair == "none"
        assert torch.equal(smaller(data[0]), cut(data[0]))
    else:
        assert smaller.report.apart["imitated"] <= smaller.report.apart["unrepaired"]
