"""Seeing activations, and what measuring leaves behind: nothing."""

import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn

from pruning.core.hooks import record, recorded, shown
from pruning.core.modes import evaluating, untouched
from pruning.core.neurons import NeuronLayer
from pruning.discovery import discover
from tests.tiny import FAMILIES, SIGNALS, VOCABULARY, bytes_of, tensors_of, tiny, twin_of


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_activations_are_those_of_the_unrolled_twin(windows, family):
    model, seen = tiny(family=family), []
    with record(model, model.layers(), lambda name, values: seen.append((name, values))):
        model(windows[0].tokens)
    twin = twin_of(model)
    twin(windows[0].tokens)
    assert [name for name, _ in seen] == [layer.name for layer in model.layers()]
    for (_, values), outputs in zip(seen, twin.hidden, strict=True):
        assert not values.requires_grad
        torch.testing.assert_close(values, torch.cat(outputs), rtol=0, atol=1e-12)


def test_nothing_is_recorded_outside_the_context(windows):
    model, seen = tiny(), []
    with record(model, model.layers(), lambda name, _: seen.append(name)):
        pass
    model(windows[0].tokens)
    assert seen == []


def test_no_hook_is_left_after_an_error_inside(windows):
    model, met = tiny(), []

    def fail(*_):
        met.extend(hooks_of(model))
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), record(model, model.layers(), fail):
        model(windows[0].tokens)
    assert len(met) == 2
    assert hooks_of(model) == []


def test_no_hook_is_left_when_a_layer_names_a_module_that_is_not_there():
    model = tiny()
    first, last = model.layers()
    with (
        pytest.raises(AttributeError),
        record(model, [first, dataclasses.replace(last, output="nowhere")], print),
    ):
        pass
    assert hooks_of(model) == []


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("family", ["lstm", "relu + feed-forward snn"])
def test_measuring_leaves_the_model_and_the_random_state_as_they_were(signal, training, windows, family):
    model = tiny(family=family, dropout=0.3).train(training)
    model.encoder.weight.requires_grad_(False)
    model.decoder.bias.grad = torch.ones_like(model.decoder.bias)
    before = bytes_of(tensors_of(model)), torch.get_rng_state()
    SIGNALS[signal](model, windows)
    assert [module.training for module in model.modules()] == [training] * len(list(model.modules()))
    assert hooks_of(model) == []
    assert bytes_of(tensors_of(model)) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (name != "encoder.weight")
        assert (parameter.grad is not None) is (name == "decoder.bias")
    assert torch.equal(model.decoder.bias.grad, torch.ones_like(model.decoder.bias))


@pytest.mark.parametrize("signal", SIGNALS)
def test_measuring_twice_gives_the_same_table(signal, windows):
    model = tiny(dropout=0.3).train()
    assert SIGNALS[signal](model, windows).equals(SIGNALS[signal](model, windows))


def test_the_mode_is_restored_after_an_error():
    model = tiny().train()
    with pytest.raises(IndexError), evaluating(model):
        model(torch.tensor([[VOCABULARY]]))
    assert all(module.training for module in model.modules())


def test_a_part_that_was_frozen_in_evaluation_mode_stays_so():
    model = tiny().train()
    model.lstm[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.lstm] == [False, True]


def test_the_layers_that_show_their_neurons_are_found_and_read_along_the_dimension_of_channels():
    parts = {"conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "flat": nn.Flatten(1), "line": nn.Linear(64, 3)}
    model, inputs = nn.Sequential(OrderedDict(parts)).eval(), torch.randn(2, 1, 6, 6)
    widths = {"conv": 4, "norm": 4, "line": 3, "flat": 2, "": 3}
    layers = [NeuronLayer(f"{name} layer", "given", width, (), (), name) for name, width in widths.items()]
    found = shown(model, layers, lambda: model(inputs))
    assert {layer.output: layer.along for layer in found} == {"conv": 1, "norm": 1, "line": -1}
    every = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        seen, _ = recorded(model, found, lambda: model(inputs), wanted=every, example_dim=0)
        first, _ = recorded(model, found, lambda: model(inputs), wanted=torch.tensor([True, False]), example_dim=0)
        outputs = model.conv(inputs)
    assert torch.equal(seen["conv layer"], outputs.permute(0, 2, 3, 1).reshape(-1, 4))
    assert torch.equal(first["conv layer"], outputs[:1].permute(0, 2, 3, 1).reshape(-1, 4))
    assert not hooks_of(model)


def test_a_model_that_counts_and_draws_as_it_runs_is_left_untouched():
    model, random = nn.BatchNorm1d(3), torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with untouched(model):
            drawn.append(torch.rand(4))
            model(drawn[-1][:, None].expand(4, 3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.num_batches_tracked, model.running_mean.abs().sum()) == (0, 0)


def test_each_of_several_layers_that_one_parameter_reads_by_itself_is_recorded():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(6, 1)
            self.joined = nn.Parameter(torch.randn(6, 5))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            both = torch.cat([self.one(inputs).tanh(), self.other(inputs).sin()], 1)
            return self.last(nn.functional.linear(both, self.joined).relu())

    network, inputs, seen = Joined(), torch.randn(7, 4), {}
    found = discover(network, inputs)
    assert [layer.operand for layer in found.layers()][:2] == ["network.joined"] * 2
    with record(found, found.layers(), seen.__setitem__):
        found(inputs)
    torch.testing.assert_close(seen["one"], network.one(inputs).tanh())
    torch.testing.assert_close(seen["other"], network.other(inputs).sin())
