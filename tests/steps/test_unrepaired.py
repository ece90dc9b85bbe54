"""A repair that leaves a network further from the dense one than the cut alone did is not what is returned."""

import copy

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
        assert smaller.report.repair == "imitate"


@pytest.mark.parametrize(("helps", "told"), [(True, "ridge"), (False, "none")])
def test_the_report_names_the_repair_of_what_is_returned_where_imitation_was_not(helps, told, monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data = [floats(6, 3, seed=seed) for seed in range(3)]
    found = pruning.discover(network, data[0])
    importance = pruning.importance(found, data)
    honest = removing.reconstruct

    def misled(model, keep, *, repair, **how):
        smaller = honest(model, keep, repair=repair, **how)
        if repair != "none" and not helps:
            smaller.module[2].weight.data.mul_(-9)
        return smaller

    def astray(student, *_, **__):
        taught = copy.deepcopy(student)
        taught.module[2].weight.data.mul_(-9)
        return taught

    monkeypatch.setattr(removing, "reconstruct", misled)
    monkeypatch.setattr(removing, "imitate", astray)
    smaller = pruning.prune(found, importance, keep=0.5, repair="imitate")
    assert smaller.report.repair == told
    assert torch.equal(smaller(data[0]), pruning.prune(found, importance, keep=0.5, repair=told)(data[0]))


class Tied(nn.Module):
    """One matrix computes neurons and reads them, before others that are read by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.after, self.out = nn.Linear(3, 8), nn.Linear(3, 7), nn.Linear(7, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.after(torch.tanh(self.enter(inputs)) @ self.enter.weight)))


def test_what_is_only_cut_is_said_once_however_many_networks_are_compared(caplog):
    torch.manual_seed(0)
    data = [floats(6, 3, seed=seed) for seed in range(3)]
    found = pruning.discover(Tied().double(), data[0])
    importance = pruning.importance(found, data, signals=["weights"])
    caplog.clear()
    smaller = pruning.prune(found, importance, keep=0.5)
    assert len(smaller.report.apart) > 1
    said = [record.getMessage() for record in caplog.records if "Cut and not refitted" in record.getMessage()]
    assert said[0].startswith("Cut and not refitted: enter.weight, which reads layer enter, because it computes")
    assert len(said) == len(set(said))
