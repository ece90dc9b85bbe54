"""Weights fitted to measured removal: what they recover, what they never see, and their intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pruning.fusion import learned
from pruning.fusion.learned import Candidate, bootstrapped, learn, learn_together, measured, within_layers

NAMES = ["a", "b", "noise"]
FEW = [Candidate("rank", "rank", shared, 0.001) for shared in (True, False)]


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch):
    monkeypatch.setattr(learned, "CANDIDATES", FEW)


def neurons(width=60, seed=0, error=0.1):
    """Return two layers of neurons whose removal costs a + b in one and b alone in the other."""
    random = np.random.default_rng(seed)
    keys = [(layer, neuron) for layer in ("x", "y") for neuron in range(width)]
    frame = pd.DataFrame(keys, columns=["layer", "neuron"])
    frame = frame.assign(**{name: random.random(len(frame)) for name in NAMES})
    truth = frame["a"].where(frame["layer"] == "x", 0) + frame["b"]
    oracle = frame[["layer", "neuron"]].assign(
        loss_increase=truth + error * random.normal(size=len(frame)), standard_error=error, samples=9
    )
    return frame, oracle


def test_weights_recover_what_the_removal_costs_are_made_of_in_each_layer():
    frame, oracle = neurons()
    found = learn(frame, measured(frame, oracle), NAMES, folds=4, seed=1)
    assert not found.candidate.shared
    assert found.shares["x"]["a"] == pytest.approx(0.5, abs=0.08)
    assert found.shares["y"]["b"] > 0.85
    assert all(sum(own.values()) == pytest.approx(1) for own in found.shares.values())
    assert min(weight for own in found.shares.values() for weight in own.values()) >= 0


def test_held_out_scores_never_see_the_neurons_that_they_are_compared_with():
    frame, oracle = neurons(width=40)
    chance = np.random.default_rng(5).permutation(len(oracle))
    shuffled = oracle.assign(loss_increase=oracle["loss_increase"].to_numpy()[chance])
    rows = measured(frame, shuffled)
    found = learn(frame, rows, NAMES, folds=4, seed=1)
    layers, truth = rows["layer"].to_numpy(), rows["loss_increase"].to_numpy()
    assert within_layers(layers, found.held_out, truth) < 0.2

    fold = next(learned._cuts(rows, 4, 1))[1]
    changed = rows.copy()
    changed.loc[fold, "loss_increase"] = 99.0 * np.arange(len(fold))
    again = learn(frame, changed, NAMES, folds=4, seed=1)
    np.testing.assert_array_equal(again.held_out[fold], found.held_out[fold])
    assert not np.array_equal(again.held_out, found.held_out)


def test_weights_of_several_models_are_what_they_have_in_common_and_leave_a_model_out_of_its_own_test():
    models = {name: neurons(seed=seed) for seed, name in enumerate(("one", "two", "three"))}
    candidate, weights = learn_together(models, NAMES)
    assert candidate.shared
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["b"] > weights["a"] > weights["noise"]
    frames = [frame.assign(layer=name + frame["layer"]) for name, (frame, _) in models.items()]
    oracles = [oracle.assign(layer=name + oracle["layer"]) for name, (_, oracle) in models.items()]
    frame, rows = pd.concat(frames, ignore_index=True), pd.concat(oracles, ignore_index=True)
    rows = measured(frame, rows)
    fitted = learned._fitted(rows, learned._signals(frame, rows, NAMES)["rank"], NAMES, candidate)  # as one model
    assert next(iter(fitted.values())) == pytest.approx(weights)
    with pytest.raises(ValueError, match="Expected the measured removals of at least two models, got 1"):
        learn_together({"one": models["one"]}, NAMES)


def test_a_neuron_measured_with_a_large_error_counts_for_little():
    frame, oracle = neurons(error=0.02)
    wild = oracle["neuron"] < 12
    spoilt = oracle.assign(
        loss_increase=oracle["loss_increase"].mask(wild, 30 * frame["noise"]),
        standard_error=oracle["standard_error"].mask(wild, 20.0),
    )
    trusted = spoilt.assign(standard_error=0.02)
    raw = [Candidate("scaled", "increase", True, 0.001)]
    weights = []
    for table in (spoilt, trusted):
        rows = measured(frame, table)
        signals = learned._signals(frame, rows, NAMES)["scaled"]
        weights.append(learned._fitted(rows, signals, NAMES, raw[0])["x"]["noise"])
    assert weights[0] < 0.25 < weights[1]


def test_a_fit_with_no_positive_weight_counts_all_the_same():
    signals = np.linspace(-1, 1, 10)[:, None] * np.ones((1, 2))
    assert learned._ridge(signals, -signals[:, 0], 0.01).tolist() == [0.5, 0.5]


def test_within_layers_is_the_mean_of_each_layers_spearman_by_its_size():
    random = np.random.default_rng(3)
    one, other = random.normal(size=(2, 50))
    layers = np.array(["x"] * 20 + ["y"] * 30)
    expected = 0.4 * spearmanr(one[:20], other[:20]).statistic + 0.6 * spearmanr(one[20:], other[20:]).statistic
    assert within_layers(layers, one, other) == pytest.approx(expected)


def test_the_bootstrap_draws_as_resampling_by_hand_does():
    random = np.random.default_rng(3)
    truth = random.normal(size=80)
    close, far = truth + random.normal(size=80), random.normal(size=80)
    layers = np.array(["x"] * 80)
    found = bootstrapped(layers, truth, {"close": close, "far": far}, seed=1)
    drawn = np.random.default_rng(1).integers(80, size=(1000, 80))
    by_hand = [spearmanr(close[row], truth[row]).statistic for row in drawn[:50]]
    np.testing.assert_allclose(found["close"][:50], by_hand)
    assert np.quantile(found["close"], 0.025) < spearmanr(close, truth).statistic < np.quantile(found["close"], 0.975)
    assert np.quantile(found["far"], 0.025) < 0.1


def test_removals_of_other_neurons_and_numbers_that_are_none_are_refused():
    frame, oracle = neurons(width=4)
    with pytest.raises(ValueError, match=r"Expected measured removals of the signals' neurons, got 1 others."):
        measured(frame, oracle.assign(neuron=oracle["neuron"].replace(3, 4)).iloc[:4])
    with pytest.raises(ValueError, match=r"Expected finite measured removals, got others."):
        measured(frame, oracle.assign(loss_increase=np.nan))


def test_too_few_measured_neurons_for_the_folds_are_refused():
    frame, oracle = neurons(width=7)
    with pytest.raises(ValueError, match=r"Expected at least 8 measured neurons in x for 4 folds, got 7."):
        learn(frame, measured(frame, oracle), NAMES, folds=4, seed=1)
    with pytest.raises(ValueError, match=r"Expected at least 2 folds, got 1."):
        learn(frame, measured(frame, oracle), NAMES, folds=1, seed=1)


def test_a_layer_whose_removals_cost_exactly_nothing_says_nothing_and_spoils_nothing():
    frame, oracle = neurons()
    nothing = oracle["layer"] == "y"
    oracle = oracle.assign(
        loss_increase=oracle["loss_increase"].mask(nothing, 0.0),
        standard_error=oracle["standard_error"].mask(nothing, 0.0),
    )
    found = learn(frame, measured(frame, oracle), NAMES, folds=4, seed=1)
    assert all(sum(own.values()) == pytest.approx(1) for own in found.shares.values())
    assert np.isfinite(found.held_out).all()
