"""A network without some neurons runs once with weights that are cut only while they are needed."""

import pytest
import torch
from torch import nn

import pruning
from pruning.core.neurons import mask, select
from pruning.discovery import thinning
from tests.discovery.test_forms import FORMS, made


@pytest.mark.parametrize("name", FORMS)
def test_what_is_cut_late_gives_what_a_smaller_network_gives(name, monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)
    network, inputs = made(name)
    model = pruning.discover(network, inputs)
    assert {layer.name: layer.width for layer in model.layers()} == FORMS[name][1]


def test_large_weights_are_held_only_while_their_modules_run(monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    model = pruning.discover(network, torch.ones(4, 3))
    keep = {"0": torch.tensor([4, 1])}
    smaller, lean = thinning.thinned(model, keep, lean=True)
    assert lean
    assert smaller.network[0].weight.shape == (2, 3)
    assert smaller.network[0].weight.untyped_storage().nbytes() == 4
    with torch.no_grad():
        assert torch.equal(smaller(torch.ones(4, 3)), select(model, keep)(torch.ones(4, 3)))
    assert not smaller.network[0].weight.any()


def test_code_that_reads_a_weight_without_calling_its_module_is_proved_all_the_same(monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.one(inputs).relu() @ self.two.weight.T))

    model = pruning.discover(Tied(), torch.ones(4, 3))
    assert {layer.name for layer in model.layers()} == {"one", "two"}


def test_the_users_weights_are_neither_written_into_nor_shared():
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = pruning.discover(network, torch.ones(4, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert not own & {parameter.data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize("lean", [True, False])
def test_nobody_reads_what_is_silenced_whether_weights_are_written_into_for_long_or_not(lean, monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    model, keep = pruning.discover(network, torch.ones(4, 3)), {"0": torch.tensor([4, 1])}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad(), thinning.silenced(model, keep, lean=lean):
        assert bool(model.network[2].weight[:, [0, 2, 3, 5]].any()) is lean  # and while it does not run
        answer = model(torch.ones(4, 3))
    with torch.no_grad():
        assert torch.equal(answer, mask(model, keep)(torch.ones(4, 3)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_module_that_writes_into_its_weight_while_it_runs_writes_into_no_other_models(monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)

    class Clipped(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(inputs)

    model = pruning.discover(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), torch.ones(4, 3))
    model.network[2].__class__ = Clipped
    before = model.network[2].weight.detach().clone()
    smaller, lean = thinning.thinned(model, {"0": torch.arange(6)}, lean=True)
    assert lean
    smaller(torch.ones(4, 3))
    assert torch.equal(model.network[2].weight, before)


def silent(model: thinning.Discovered, keep: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what a model gives where nobody reads some neurons, its weights written into while they are needed."""
    with torch.no_grad(), thinning.silenced(model, keep, lean=True):
        found: torch.Tensor = model(torch.ones(4, 3))
    return found


def test_a_weight_that_only_multiplies_an_input_is_not_written_into(monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)
    parts = (nn.Linear(3, 6), nn.Tanh(), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 2, 1))
    model, keep = pruning.discover(nn.Sequential(*parts), torch.ones(4, 3)), {"0": torch.tensor([4, 1])}
    weight = model.network[3].weight
    before = weight._version
    assert torch.equal(silent(model, keep), mask(model, keep)(torch.ones(4, 3)))
    assert weight._version == before


def test_an_input_that_a_hook_sees_keeps_the_neurons_that_nobody_reads(monkeypatch):
    monkeypatch.setattr(thinning, "LARGE", 1)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    model, keep, seen = pruning.discover(network, torch.ones(4, 3)), {"0": torch.tensor([4, 1])}, []
    model.network[2].register_forward_hook(lambda *told: seen.append(told[1][0]))
    assert torch.equal(silent(model, keep), mask(model, keep)(torch.ones(4, 3)))
    assert bool(seen[0].all())
