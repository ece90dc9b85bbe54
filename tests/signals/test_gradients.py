"""Gate gradients against gates written into the unrolled twin, and the gradients signal against loops."""

import numpy as np
import pytest
import torch

from pruning.core.modes import carried
from pruning.data.windows import Windows
from pruning.signals.gradients import gate_gradients, gradients
from pruning.signals.schemas import GRADIENTS
from tests.tiny import DECODERS, FAMILIES, WIDTHS, loss_on, text, tiny, twin_of, weighted_by_hand


def gradients_by_hand(model, windows):
    """Return each window's ∂L/∂gate for each layer, from gates that the twin really multiplies by."""
    gates = [torch.ones(width, dtype=torch.float64, requires_grad=True) for width in model.widths()]
    twin, found = twin_of(model, gates), []
    for window in windows:
        found.append([g.numpy() for g in torch.autograd.grad(loss_on(twin, window), gates)])
        twin.detach()
    return found


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("widths", WIDTHS.values())
@pytest.mark.parametrize("family", FAMILIES)
def test_gate_gradients_equal_those_of_a_gate_in_the_unrolled_twin(decoder, widths, family):
    model, windows = tiny(decoder, widths, family), Windows(text(61), first=0, batch=3, bptt=6)
    state = None
    for window, expected in zip(windows, gradients_by_hand(model, windows), strict=True):
        found, state = gate_gradients(model, model.layers(), window.tokens, window.targets, carried(state))
        for layer, values in zip(model.layers(), expected, strict=True):
            assert np.abs(values).max() > 1e-4
            assert np.abs(found[layer.name].numpy() - values).max() <= 1e-10


def components_by_hand(samples):
    found = {name: [] for name in GRADIENTS.shares}
    for values in np.transpose(samples):
        size, spread = np.mean(np.abs(values)), np.std(np.abs(values), ddof=1)
        found["magnitude"].append(size)
        found["stability"].append(1 / (1 + spread / size))
        found["signal_to_noise"].append(abs(np.mean(values)) / np.std(values, ddof=1))
        found["sign_consistency"].append(abs(np.mean(np.sign(values))))
    return found


@pytest.mark.parametrize("index", [0, 1])
def test_components_importance_and_error_equal_loops_over_batches(index):
    model, windows = tiny(), Windows(text(16 * 12), first=0, batch=3, bptt=4)
    samples = [layers[index] for layers in gradients_by_hand(model, windows)]
    table = gradients(model, windows, batches=99)
    rows = table[table["layer"] == f"lstm.{index}"]
    expected = components_by_hand(samples)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-8, err_msg=name)
    np.testing.assert_allclose(rows["importance"], weighted_by_hand(expected, GRADIENTS.shares), atol=1e-8)
    assert (rows["samples"] == 16).all()
    without = [
        weighted_by_hand(components_by_hand(samples[: 2 * g] + samples[2 * g + 2 :]), GRADIENTS.shares)
        for g in range(8)
    ]
    np.testing.assert_allclose(rows["standard_error"], np.sqrt(7 * np.var(without, axis=0)), atol=1e-8)


def test_no_more_batches_are_read_than_asked_for(windows):
    assert (gradients(tiny(), windows, batches=5)["samples"] == 5).all()


def test_one_batch_is_refused_before_it_is_read(windows):
    with pytest.raises(ValueError, match=r"Expected at least two batches for gradients.*, got 1"):
        gradients(tiny(), windows, batches=1)


def test_the_gradient_predicts_what_removing_a_little_of_a_neuron_costs():
    model, window = tiny(), Windows(text(60), first=0, batch=3, bptt=20)[0]
    found, _ = gate_gradients(model, model.layers(), window.tokens, window.targets, None)
    for index, layer in enumerate(model.layers()):
        for neuron in range(layer.width):
            gates = [torch.ones(width, dtype=torch.float64) for width in model.widths()]
            losses = []
            for gate in (1 - 1e-5, 1 + 1e-5):
                gates[index][neuron] = gate
                losses.append(loss_on(twin_of(model, gates), window).item())
            assert found[layer.name][neuron].item() == pytest.approx((losses[1] - losses[0]) / 2e-5, abs=1e-8)


def test_every_component_differs_between_neurons_of_a_trained_model(trained, windows):
    table = gradients(trained, windows, batches=20)
    assert (table.groupby("layer")[list(GRADIENTS.shares)].std() > 0).all(axis=None)
