"""Scores made comparable across layers: exact cases, a raw ranking that starves a layer, and real removals."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from pruning.core.neurons import mask
from pruning.evaluation.measures import loss_of
from pruning.fusion.calibration import by_curves, by_quantiles, removal_curves
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.gradients import gradients
from tests.tiny import bytes_of, tensors_of, tiny


def table_of(name, values):
    rows = [(layer, neuron, float(v)) for layer, own in values.items() for neuron, v in enumerate(own)]
    return pd.DataFrame(rows, columns=["layer", "neuron", name])


def losses_of(values, error=0.0):
    return table_of("loss_increase", values).assign(standard_error=error)


def test_each_place_gets_the_loss_at_that_place_of_its_layer():
    scores = table_of("fused", {"a": [0.1, 0.9, 0.5], "b": [3.0, 2.0, 1.0]})
    losses = losses_of({"a": [30.0, 10.0, 20.0], "b": [0.3, 0.1, 0.2]})
    np.testing.assert_allclose(by_quantiles(scores, "fused", losses), [10, 30, 20, 0.3, 0.2, 0.1])


def test_a_sample_of_measured_neurons_serves_and_equals_get_equal_losses():
    scores = table_of("fused", {"a": [0.0, 1.0, 1.0, 2.0, 3.0]})
    found = by_quantiles(scores, "fused", losses_of({"a": [1.0, 3.0]}))
    assert found[1] == found[2]
    assert (np.diff(found) >= 0).all()
    assert found.min() == 1
    assert found.max() == 3


def test_errors_do_not_widen_the_spread_of_losses():
    random = np.random.default_rng(0)
    truth = random.normal(size=4000)
    scores = table_of("fused", {"a": truth})
    found = by_quantiles(scores, "fused", losses_of({"a": truth + 2 * random.normal(size=4000)}, error=2.0))
    assert found.std() == pytest.approx(truth.std(), rel=0.1)


def test_losses_that_are_all_noise_become_their_mean():
    scores = table_of("fused", {"a": [1, 2, 3]})
    assert by_quantiles(scores, "fused", losses_of({"a": [1.0, 2.0, 3.0]}, error=9.0)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("change", [by_quantiles, by_curves])
def test_a_layer_without_losses_is_refused(change):
    empty = pd.DataFrame({"layer": ["b"], "removed": [1], "loss_increase": [1.0], "standard_error": [0.0]})
    with pytest.raises(ValueError, match=r"of every layer.*, got none of 'a'."):
        change(table_of("fused", {"a": [1, 2]}), "fused", empty)


def test_the_importance_of_the_least_important_adds_up_to_the_curve():
    scores = table_of("fused", {"a": range(100)})
    removed = np.arange(10, 100, 10)
    curves = pd.DataFrame({"layer": "a", "removed": removed, "loss_increase": (removed / 50) ** 2})
    found = np.cumsum(np.sort(by_curves(scores, "fused", curves)))
    np.testing.assert_allclose(found[removed - 1], (removed / 50) ** 2, rtol=0.02, atol=0.02)


def test_a_curve_that_dips_still_ranks_every_neuron_in_its_order():
    scores = table_of("fused", {"a": np.random.default_rng(0).random(40)})
    curves = pd.DataFrame({"layer": "a", "removed": [10, 20, 30], "loss_increase": [0.5, 0.4, 0.1]})
    found = by_curves(scores, "fused", curves)
    assert spearmanr(found, scores["fused"]).statistic == pytest.approx(1)
    assert (found >= 0).all()


def test_a_removal_curve_is_the_loss_of_masked_models_and_leaves_the_model_as_it_was(trained, windows):
    scores = gradients(trained, windows, batches=16)
    before = bytes_of(tensors_of(trained))
    curves = removal_curves(trained, windows, scores, by="importance", shares=[0.3, 0.7])
    assert bytes_of(tensors_of(trained)) == before
    for row in curves.itertuples():
        own = scores[scores["layer"] == row.layer].sort_values("importance", kind="stable")
        keep = {row.layer: torch.tensor(own["neuron"].to_list()[row.removed :])}
        expected = loss_of(mask(trained, keep), windows).mean - loss_of(trained, windows).mean
        assert row.loss_increase == pytest.approx(expected, abs=1e-9)
    assert curves["removed"].tolist() == [2, 5, 2, 4]


def test_calibration_keeps_a_layer_alive_that_a_ranking_on_another_scale_starves():
    random = np.random.default_rng(0)
    loss = {"lstm.0": random.lognormal(size=64), "lstm.1": random.lognormal(size=64)}
    raw = {"lstm.0": 0.01 * loss["lstm.0"], "lstm.1": loss["lstm.1"]}
    scores = table_of("fused", raw)
    calibrated = scores.assign(fused=by_quantiles(scores, "fused", losses_of(loss)))

    def outcome(frame, scope="absolute"):
        keep = keep_of(retention(frame, Allocation(retain=0.5, floor=1, scope=scope), variant="v", by="fused"))
        lost = sum(np.delete(loss[layer], kept.numpy()).sum() for layer, kept in keep.items())
        return {layer: len(kept) for layer, kept in keep.items()}, lost

    (starved, lost_raw), (widths, lost), (_, lost_uniform) = (
        outcome(scores), outcome(calibrated), outcome(scores, scope="layer"),
    )  # fmt: skip
    assert starved["lstm.0"] < 8
    assert 24 <= widths["lstm.0"] <= 40
    assert lost <= lost_uniform < lost_raw


def test_on_a_trained_model_the_global_choice_by_curves_loses_no_more_than_the_uniform_one(trained, windows):
    scores = gradients(trained, windows, batches=16)
    curves = removal_curves(trained, windows, scores, by="importance", shares=[0.2, 0.4, 0.6, 0.8])
    calibrated = scores.assign(importance=by_curves(scores, "importance", curves))
    loss = {}
    for scope, frame in (("layer", scores), ("absolute", calibrated)):
        kept = retention(frame, Allocation(retain=0.5, floor=1, scope=scope), variant="v", by="importance")
        loss[scope] = loss_of(mask(trained, keep_of(kept)), windows).mean
    assert loss["absolute"] <= loss["layer"] + 1e-9


@pytest.mark.parametrize("widths", [(4, 6), (2, 3), (1, 4)])
def test_narrow_layers_have_a_loss_for_every_neuron(widths, windows):
    """Several shares of few neurons are the same number of them, and one neuron is all of its layer."""
    model = tiny(widths=widths)
    rows = [(layer.name, neuron, neuron % 3) for layer in model.layers() for neuron in range(layer.width)]
    scores = pd.DataFrame(rows, columns=["layer", "neuron", "score"])
    curves = removal_curves(model, windows, scores, by="score", shares=[0.1, 0.25, 0.4, 0.55, 0.7, 0.85])
    assert not curves.duplicated(["layer", "removed"]).any()
    found = by_curves(scores, "score", curves)
    assert np.isfinite(found).all()
    for places in scores.groupby("layer").indices.values():
        assert (np.diff(found[places][np.argsort(scores["score"].to_numpy()[places], kind="stable")]) >= 0).all()
