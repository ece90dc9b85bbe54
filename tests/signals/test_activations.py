"""The activations signal against the hidden states of the unrolled twin."""

import numpy as np
import pytest
import torch

from pruning.core.neurons import NeuronLayer
from pruning.core.statistics import Covariance
from pruning.data.windows import Windows
from pruning.signals.activations import activations
from pruning.signals.jackknife import GROUPS, LARGEST, groups_that_fit
from pruning.signals.schemas import ACTIVATIONS
from tests.tiny import binned_by_hand, entropy_by_hand, text, tiny, twin_of, weighted_by_hand

COUNT = 8
"""Windows of the test: one for each group of text."""
BINS = 16
"""Narrow enough for a spike and no spike to fall in different ones."""


@pytest.fixture(scope="module", params=["lstm", "gru", "snn", "lstm + snn"])
def model(request):
    return tiny(widths=(5, 6), family=request.param)


@pytest.fixture(scope="module")
def calibration():
    return Windows(text(COUNT * 15), first=0, batch=3, bptt=5)


@pytest.fixture(scope="module")
def groups(model, calibration):
    """Layer → windows → outputs (samples, width) of the unrolled twin."""
    twin = twin_of(model)
    found = [[] for _ in twin.hidden]
    for number, window in enumerate(calibration):
        twin(window.tokens)
        for index, outputs in enumerate(twin.hidden):
            found[index].append(torch.cat(outputs[number * 5 :]).numpy())
    return found


@pytest.fixture(scope="module")
def measured(model, calibration):
    return activations(model, calibration, activation_samples=99, bins=BINS)


def components_by_hand(values, size, bins):
    edges = np.linspace(-4, 4, bins - 1) * size
    return {
        "frequency": [np.mean(np.abs(h) > size) for h in values.T],
        "magnitude": [np.mean(np.abs(h)) for h in values.T],
        "variance": [np.var(h, ddof=1) for h in values.T],
        "entropy": [entropy_by_hand(binned_by_hand(h, edges)) for h in values.T],
        "range": [max(h) - min(h) for h in values.T],
    }


@pytest.mark.parametrize("index", [0, 1])
def test_components_and_importance_equal_loops_over_the_twins_states(model, measured, groups, index):
    rows = measured[0][measured[0]["layer"] == model.layers()[index].name]
    size = np.sqrt(np.mean(groups[index][0] ** 2))
    expected = components_by_hand(np.concatenate(groups[index]), size, BINS)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(rows["importance"], weighted_by_hand(expected, ACTIVATIONS.shares), atol=1e-9)
    assert (rows["samples"] == COUNT * 15).all()


@pytest.mark.parametrize("index", [0, 1])
def test_the_standard_error_equals_leaving_out_each_stretch_of_text(model, measured, groups, index):
    rows = measured[0][measured[0]["layer"] == model.layers()[index].name]
    size = np.sqrt(np.mean(groups[index][0] ** 2))
    without = []
    for left_out in range(COUNT):
        rest = np.concatenate([values for number, values in enumerate(groups[index]) if number != left_out])
        without.append(weighted_by_hand(components_by_hand(rest, size, BINS), ACTIVATIONS.shares))
    expected = np.sqrt((COUNT - 1) * np.var(without, axis=0))
    np.testing.assert_allclose(rows["standard_error"], expected, atol=1e-9)


@pytest.mark.parametrize("index", [0, 1])
def test_covariances_are_those_of_each_stretch_of_text(model, measured, groups, index):
    states = measured[1][model.layers()[index].name]
    assert len(states) == COUNT
    for state, values in zip(states, groups[index], strict=True):
        np.testing.assert_allclose(state.matrix, np.cov(values.T), atol=1e-12)


def test_no_more_windows_are_read_than_asked_for(model, calibration):
    table, covariances = activations(model, calibration, activation_samples=3, bins=BINS)
    assert (table["samples"] == 3 * 15).all()
    assert {len(states) for states in covariances.values()} == {3}


def test_one_window_of_text_is_refused_before_it_is_read_for_it_gives_no_standard_error(
    model, calibration, monkeypatch
):
    monkeypatch.setattr(type(model), "read", None)
    with pytest.raises(ValueError, match=r"Expected at least two batches for activations.*, got 1"):
        activations(model, calibration, activation_samples=1, bins=BINS)


def test_the_frequency_of_a_spiking_neuron_is_its_firing_rate(calibration):
    model = tiny(widths=(5, 6), family="snn")
    twin, (table, _) = twin_of(model), activations(model, calibration, activation_samples=99, bins=BINS)
    for window in calibration:
        twin(window.tokens)
    rates = np.concatenate([torch.cat(outputs).mean(0).numpy() for outputs in twin.hidden])
    assert 0.1 < rates.mean() < 0.9
    np.testing.assert_allclose(table["frequency"], rates, atol=1e-12)


@pytest.mark.parametrize(("threshold", "rate"), [(-100.0, 1.0), (100.0, 0.0)])
def test_neurons_that_always_or_never_fire_have_that_frequency(calibration, threshold, rate):
    model = tiny(widths=(5, 6), family="snn")
    torch.nn.init.constant_(model.snn[1].threshold, threshold)
    table, _ = activations(model, calibration, activation_samples=99, bins=BINS)
    assert (table.loc[table["layer"] == "snn.1", "frequency"] == rate).all()


def test_every_component_differs_between_neurons_of_a_trained_model(trained, windows):
    table, _ = activations(trained, windows, activation_samples=20, bins=32)
    assert (table.groupby("layer")[list(ACTIVATIONS.shares)].std() > 0).all(axis=None)
    assert (table["standard_error"] > 0).mean() > 0.5


def test_wide_layers_are_split_into_fewer_groups_so_that_their_covariances_stay_small():
    def layers(*widths):
        return [NeuronLayer(f"l{i}", "dense", width, (), (), "l") for i, width in enumerate(widths)]

    assert groups_that_fit(layers(1024, 1024)) == groups_that_fit(layers(650, 650, 650)) == GROUPS
    assert groups_that_fit(layers(4096)) == 4
    assert groups_that_fit(layers(20_000, 20_000)) == 2
    assert 8 * 4096**2 * groups_that_fit(layers(4096)) <= LARGEST


def test_groups_fewer_than_usual_change_the_error_alone(monkeypatch):
    model, windows = tiny(widths=(5, 4)), Windows(text(600), first=0, batch=4, bptt=15)
    usual, _ = activations(model, windows, activation_samples=99, bins=8)
    monkeypatch.setattr("pruning.signals.jackknife.LARGEST", 8 * (25 + 16) * 3)
    fewer, covariances = activations(model, windows, activation_samples=99, bins=8)
    assert {len(groups) for groups in covariances.values()} == {3}
    np.testing.assert_allclose(usual["importance"], fewer["importance"], atol=1e-12)
    assert not np.allclose(usual["standard_error"], fewer["standard_error"])


def test_covariances_are_merged_for_each_window_alone_and_not_for_the_error_of_each_group(windows, monkeypatch):
    calls, merge = [], Covariance.merge
    monkeypatch.setattr(Covariance, "merge", lambda self, other: calls.append(1) or merge(self, other))
    model = tiny()
    activations(model, windows, activation_samples=len(windows), bins=8)
    assert len(calls) == len(windows) * len(model.layers())
