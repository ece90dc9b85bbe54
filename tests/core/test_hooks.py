"""Seeing activations, and what measuring leaves behind: nothing."""

import dataclasses

import pytest
import torch

from pruning.core.hooks import record
from pruning.core.modes import evaluating
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
