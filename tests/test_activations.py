"""The activations signal against the hidden states of the unrolled twin."""

import numpy as np
import pytest
import torch

from pruning.batching import Windows
from pruning.signals.activations import activations
from pruning.tables import ACTIVATIONS
from tests.models import Unrolled, binned_by_hand, entropy_by_hand, tensors_of, text, tiny, weighted_by_hand

COUNT = 8
"""Windows of the test: one for each group of text."""


@pytest.fixture(scope="module")
def model():
    return tiny(widths=(5, 6))


@pytest.fixture(scope="module")
def calibration():
    return Windows(text(COUNT * 15), first=0, batch=3, bptt=5)


@pytest.fixture(scope="module")
def groups(model, calibration):
    """Layer → windows → outputs (samples, width) of the unrolled twin."""
    twin, found = Unrolled(tensors_of(model)), [[], []]
    for number, window in enumerate(calibration):
        twin(window.tokens)
        for index, outputs in enumerate(twin.hidden):
            found[index].append(torch.cat(outputs[number * 5 :]).numpy())
    return found


@pytest.fixture(scope="module")
def measured(model, calibration):
    return activations(model, calibration, activation_samples=99, bins=8)


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
def test_components_and_importance_equal_loops_over_the_twins_states(measured, groups, index):
    rows = measured[0][measured[0]["layer"] == f"lstm.{index}"]
    size = np.sqrt(np.mean(groups[index][0] ** 2))
    expected = components_by_hand(np.concatenate(groups[index]), size, 8)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(rows["importance"], weighted_by_hand(expected, ACTIVATIONS), atol=1e-9)
    assert (rows["samples"] == COUNT * 15).all()


@pytest.mark.parametrize("index", [0, 1])
def test_the_standard_error_equals_leaving_out_each_stretch_of_text(measured, groups, index):
    rows = measured[0][measured[0]["layer"] == f"lstm.{index}"]
    size = np.sqrt(np.mean(groups[index][0] ** 2))
    without = []
    for left_out in range(COUNT):
        rest = np.concatenate([values for number, values in enumerate(groups[index]) if number != left_out])
        without.append(weighted_by_hand(components_by_hand(rest, size, 8), ACTIVATIONS))
    expected = np.sqrt((COUNT - 1) * np.var(without, axis=0))
    np.testing.assert_allclose(rows["standard_error"], expected, atol=1e-9)


@pytest.mark.parametrize("index", [0, 1])
def test_covariances_are_those_of_each_stretch_of_text(measured, groups, index):
    states = measured[1][f"lstm.{index}"]
    assert len(states) == COUNT
    for state, values in zip(states, groups[index], strict=True):
        np.testing.assert_allclose(state.matrix, np.cov(values.T), atol=1e-12)


def test_no_more_windows_are_read_than_asked_for(model, calibration):
    table, covariances = activations(model, calibration, activation_samples=3, bins=8)
    assert (table["samples"] == 3 * 15).all()
    assert {len(states) for states in covariances.values()} == {3}


def test_one_window_of_text_is_refused_for_it_gives_no_standard_error(model, calibration):
    with pytest.raises(ValueError, match="Expected at least two groups"):
        activations(model, calibration, activation_samples=1, bins=8)


def test_every_component_differs_between_neurons_of_a_trained_model(trained, windows):
    table, _ = activations(trained, windows, activation_samples=20, bins=32)
    assert (table.groupby("layer")[list(ACTIVATIONS)].std() > 0).all(axis=None)
    assert (table["standard_error"] > 0).mean() > 0.5
