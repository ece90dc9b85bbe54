"""Scaling components and fusing signals, against loops over layers and neurons."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.fusion import learned
from pruning.fusion.fused import from_plain, fuse, fusion, learnable, to_plain
from pruning.fusion.fusing import Fusing
from pruning.fusion.taught import WEIGHTS
from pruning.fusion.weights import adaptive, agreements, relative, spearman, variance_reliability
from pruning.signals.scaling import scaled, weighted
from pruning.signals.schemas import BESIDE, CRITERIA, LEARNABLE, SIGNALS
from tests.tiny import SIGNALS as MEASURES
from tests.tiny import scaled_by_hand, tiny

LAYERS = {"lstm.0": 7, "lstm.1": 5}


def with_the_others(tables, random):
    """Return the signals' tables with those of importances that stand beside them, of random numbers."""
    keys = tables["weights"][["layer", "neuron"]]
    beside = {name: keys.assign(importance=random.normal(size=len(keys))) for name in BESIDE}
    criteria = keys.assign(**{name: random.normal(size=len(keys)) for name in CRITERIA})
    return {**tables, **beside, "criteria": criteria}


def signal_tables(seed=0):
    """Return a table for each signal with importances of very different sizes."""
    random = np.random.default_rng(seed)
    keys = [(layer, neuron) for layer, width in LAYERS.items() for neuron in range(width)]
    frame = pd.DataFrame(keys, columns=["layer", "neuron"])
    tables = {name: frame.assign(importance=random.normal(size=12) * 10.0**i) for i, name in enumerate(SIGNALS)}
    return with_the_others(tables, random)


def test_the_fusion_is_the_mean_of_each_signal_scaled_within_its_layer():
    signals = signal_tables()
    table = fuse(signals, Fusing(strategy="simple", seed=1))
    for layer, width in LAYERS.items():
        for neuron in range(width):
            total = 0.0
            for signal in (signals[name] for name in SIGNALS):
                rows = [(row.neuron, row.importance) for row in signal.itertuples() if row.layer == layer]
                values = scaled_by_hand([importance for _, importance in rows])
                total += dict(zip([number for number, _ in rows], values, strict=True))[neuron]
            found = table[(table["layer"] == layer) & (table["neuron"] == neuron)]["fused"].item()
            assert found == pytest.approx(total / 5, abs=1e-12)


def test_the_table_holds_each_signals_importance_and_shares_that_sum_to_one():
    signals = signal_tables()
    table = fuse(signals, Fusing(strategy="simple", seed=1))
    for name in (*SIGNALS, *BESIDE):
        assert table[name].equals(signals[name]["importance"].rename(name))
    assert table[list(CRITERIA)].equals(signals["criteria"][list(CRITERIA)])
    np.testing.assert_allclose(table[[f"{name}_share" for name in SIGNALS]].sum(axis=1), 1)


def test_each_signal_has_an_equal_say_whatever_its_unit():
    signals = signal_tables()
    larger = {**signals, "hessian": signals["hessian"].assign(importance=1e9 * signals["hessian"]["importance"] - 7)}
    one, other = (fuse(tables, Fusing(strategy="simple", seed=1))["fused"] for tables in (signals, larger))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_the_random_control_follows_its_seed_and_nothing_else():
    one, same = (fuse(signal_tables(seed), Fusing(strategy="simple", seed=1))["random"] for seed in (0, 5))
    other = fuse(signal_tables(), Fusing(strategy="simple", seed=2))["random"]
    assert one.equals(same)
    assert not one.equals(other)
    assert one.between(0, 1).all()
    assert one.nunique() == 12


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown fusion 'simpel'; known: \['simple'.*\]."):
        fuse(signal_tables(), Fusing(strategy="simpel", seed=1))


def test_a_missing_signal_is_refused_by_name_where_it_is_asked_for():
    signals = signal_tables()
    del signals["gradients"], signals["hessian"]
    with pytest.raises(ValueError, match=r"Expected the tables \['gradients'\], got none of \['gradients'\]."):
        fuse(signals, Fusing(strategy="simple", seed=1, signals=["gradients"]))
    with pytest.raises(ValueError, match="Expected the table 'hessian' for calibration 'hessian', got none"):
        fuse(signals, Fusing(strategy="simple", seed=1, calibration="hessian"))
    with pytest.raises(ValueError, match=r"Expected at least one of the signals .*, got none"):
        fuse({}, Fusing(strategy="simple", seed=1))


@pytest.mark.parametrize("there", [("hessian",), ("gradients", "weights"), tuple(SIGNALS)[1:]])
@pytest.mark.parametrize("strategy", ["simple", "adaptive", "learned"])
def test_signals_that_were_not_measured_count_as_little_as_if_they_were_switched_off(there, strategy):
    every = signal_tables()
    keys = every["weights"][["layer", "neuron"]]
    truth = keys.assign(loss_increase=np.random.default_rng(3).random(12), standard_error=0.1)
    few = {name: every[name] for name in there}
    found = fusion(few, Fusing(strategy=strategy, seed=1, folds=2), oracle=truth)
    off = fusion(every, Fusing(strategy=strategy, seed=1, signals=there, folds=2), oracle=truth)
    assert found.importance["fused"].equals(off.importance["fused"])
    assert found.weighing == off.weighing
    assert found.report.equals(off.report)
    gone = [name for name in SIGNALS if name not in there]
    assert found.importance[gone].isna().all(axis=None)
    assert not found.importance[[f"{name}_share" for name in gone]].any(axis=None)


def test_signals_of_other_neurons_are_refused():
    signals = signal_tables()
    signals["gradients"] = signals["gradients"].iloc[:-1]
    with pytest.raises(ValueError, match=r"Expected the same neurons in every signal, got others in 'gradients'."):
        fuse(signals, Fusing(strategy="simple", seed=1))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_scaled_values_equal_those_scaled_by_hand(values):
    np.testing.assert_allclose(scaled(torch.tensor(values, dtype=torch.float64)), scaled_by_hand(values), atol=1e-9)


@given(values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=12))
def test_scaling_keeps_the_order_and_stays_between_zero_and_one(values):
    result = scaled(torch.tensor(values))
    assert result.min() >= 0
    assert result.max() <= 1
    assert (result[np.argsort(values, kind="stable")].diff() >= 0).all()


def test_a_constant_is_scaled_to_one_half():
    assert scaled(torch.full((5,), 3.0)).tolist() == [0.5] * 5


def test_where_nearly_all_are_equal_the_exception_still_shows():
    values = torch.zeros(100)
    values[17] = 2.0
    assert scaled(values).tolist() == [float(index == 17) for index in range(100)]


def test_an_outlier_does_not_flatten_the_others():
    values = torch.arange(100.0)
    values[99] = 1e9
    others = scaled(values)[:99]
    assert others.max() - others.min() > 0.95
    assert len(others.unique()) > 85


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_component_that_is_not_a_number_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"Expected finite values of size, got 1 others."):
        weighted({"size": torch.tensor([1.0, bad])}, {"size": 1.0})


@pytest.mark.parametrize("signal", MEASURES)
def test_a_component_that_ranks_no_neuron_is_reported_once_for_each_layer(signal, windows, caplog):
    model = tiny()
    for parameter in model.lstm.parameters():
        parameter.data.zero_()
    with caplog.at_level(logging.WARNING, logger="pruning"):
        table = MEASURES[signal](model, windows)
    columns = [c for c in table.columns if c not in ("layer", "neuron", "importance", "standard_error", "samples")]
    constant = [
        (column, layer)
        for layer, rows in table.groupby("layer")
        for column in columns
        if rows[column].min() == rows[column].max()
    ]
    assert constant
    reported = [record.args[:2] for record in caplog.records if record.args[0] in columns]
    assert sorted(reported) == sorted(constant)
    assert "for every neuron and ranks none." in caplog.text
    if len(constant) == len(columns) * 2:
        np.testing.assert_allclose(table["importance"], 0.5)


def measured_tables(width=40, seed=0, good=("weights", "gradients"), noise=0.7):
    """Return signals of which some see what removal costs, and the measured removals."""
    random = np.random.default_rng(seed)
    keys = [(layer, neuron) for layer in ("lstm.0", "lstm.1") for neuron in range(width)]
    frame = pd.DataFrame(keys, columns=["layer", "neuron"])
    truth = random.normal(size=len(frame))
    tables = {
        name: frame.assign(
            importance=(name in good) * truth + noise * random.normal(size=len(frame)), standard_error=noise / 2
        )
        for name in SIGNALS
    }
    oracle = frame.assign(loss_increase=np.exp(truth) / 100, standard_error=0.001, samples=25_000)
    return with_the_others(tables, random), oracle


@pytest.fixture(name="few")
def _few(monkeypatch):
    """Fewer ways to fit, for tests that are not about choosing between them."""
    monkeypatch.setattr(learned, "CANDIDATES", [learned.Candidate("rank", "rank", True, 0.01)])


def test_adaptive_weights_are_those_of_the_rule_in_each_layer():
    tables, _ = measured_tables()
    report = fusion(tables, Fusing(strategy="adaptive", seed=1)).report
    frame = tables["weights"][["layer", "neuron"]].assign(**{name: tables[name]["importance"] for name in SIGNALS})
    for layer in ("lstm.0", "lstm.1"):
        own = frame[frame["layer"] == layer]
        ranks = relative(own, SIGNALS, "rank").to_numpy()
        error = np.full(len(own), 0.35)
        expected = adaptive(
            np.array([variance_reliability(own[name].to_numpy(), error) for name in SIGNALS]),
            agreements(ranks, np.ones(5, dtype=bool)),
        )
        rows = report[report["layer"] == layer].set_index("signal")["weight"]
        np.testing.assert_allclose(rows[list(SIGNALS)], expected)


def test_adaptive_weights_prefer_signals_that_agree_over_noise_and_constants():
    tables, oracle = measured_tables(width=200)
    tables["cooperative"] = tables["cooperative"].assign(importance=0.5, standard_error=0.0)
    found = fusion(tables, Fusing(strategy="adaptive", seed=1), oracle=oracle)
    weight = found.weighing.shares["all"]
    assert weight["weights"] + weight["gradients"] > 0.8
    assert weight["cooperative"] == 0
    simple = fusion(tables, Fusing(strategy="simple", seed=1), oracle=oracle).report
    assert found.report["held_out"].iloc[0] > simple["held_out"].iloc[0] + 0.1


def test_signals_that_are_all_constant_count_the_same():
    tables, _ = measured_tables()
    constant = {name: tables[name].assign(importance=3.0, standard_error=0.0) for name in SIGNALS}
    tables = {**tables, **constant}
    found = fuse(tables, Fusing(strategy="adaptive", seed=1))
    np.testing.assert_allclose(found[[f"{name}_share" for name in SIGNALS]], 0.2)
    np.testing.assert_allclose(found["fused"], 0.5)


@pytest.mark.parametrize("strategy", ["simple", "adaptive", "learned"])
@pytest.mark.usefixtures("few")
def test_a_signal_that_is_switched_off_has_no_say(strategy):
    tables, oracle = measured_tables()
    spoilt = {**tables, "hessian": tables["hessian"].assign(importance=np.arange(80.0))}
    on = ["weights", "activations", "gradients", "cooperative"]
    one, other = (fuse(t, Fusing(strategy=strategy, seed=1, signals=on), oracle=oracle) for t in (tables, spoilt))
    np.testing.assert_array_equal(one["fused"], other["fused"])
    assert (one["hessian_share"] == 0).all()
    np.testing.assert_allclose(one[[f"{name}_share" for name in on]].sum(axis=1), 1)


def test_learned_weights_beat_the_best_single_signal_on_neurons_that_were_not_used():
    tables, oracle = measured_tables(width=60)
    found = fusion(tables, Fusing(strategy="learned", seed=1, folds=3), oracle=oracle.iloc[::2])
    report = found.report[found.report["layer"] == "all"].set_index("signal")
    assert not found.report["fell_back"].any()
    assert report["measured"].eq(60).all()
    assert report["weight"][["weights", "gradients"]].sum() > 0.8
    assert (report["held_out"] > report["best_held_out"]).all()
    assert report["held_out_low"].iloc[0] < report["held_out"].iloc[0] < report["held_out_high"].iloc[0]
    unused = oracle.iloc[1::2]
    scores = found.importance.loc[unused.index, "fused"]
    truth = unused["loss_increase"].to_numpy()
    singles = [spearman(tables[name].loc[unused.index, "importance"].to_numpy(), truth) for name in SIGNALS]
    assert spearman(scores.to_numpy(), truth) > max(singles)


@pytest.mark.usefixtures("few")
def test_where_nothing_is_gained_learned_fusion_says_so_and_falls_back_to_the_best_signal(caplog):
    tables, oracle = measured_tables(good=("hessian",), noise=0.05)
    with caplog.at_level(logging.WARNING, logger="pruning"):
        found = fusion(tables, Fusing(strategy="learned", seed=1), oracle=oracle)
    assert "ranks unseen neurons no better" in caplog.text
    assert "hessian alone" in caplog.text
    assert found.report["fell_back"].all()
    assert found.weighing.shares["all"] == {name: float(name == "hessian") for name in SIGNALS}
    own = found.importance[found.importance["layer"] == "lstm.0"]
    assert spearman(own["fused"].to_numpy(), own["hessian"].to_numpy()) == pytest.approx(1)


@pytest.mark.usefixtures("few")
def test_criteria_are_weighed_beside_the_signals():
    tables, oracle = measured_tables(good=(), noise=1.0)
    criteria = oracle[["layer", "neuron"]].assign(
        taylor=np.log(oracle["loss_increase"]) + np.random.default_rng(3).normal(size=80)
    )
    found = fusion(tables, Fusing(strategy="learned", seed=1), oracle=oracle, criteria=criteria)
    assert found.weighing.shares["all"]["taylor"] > 0.5
    assert set(found.report["signal"]) == {*SIGNALS, "taylor"}


def test_beside_criteria_adaptive_weights_are_those_that_other_models_taught():
    tables, _ = measured_tables()
    random = np.random.default_rng(3)
    names = ["wanda", "taylor_second", "intervention"]
    criteria = tables["weights"][["layer", "neuron"]].assign(**{name: random.normal(size=80) for name in names})
    found = fusion(tables, Fusing(strategy="adaptive", seed=1), criteria=criteria).importance
    frame = tables["hessian"].rename(columns={"importance": "hessian"}).merge(criteria, on=["layer", "neuron"])
    expected, total = 0.0, 0.0
    for name in ("hessian", "taylor_second", "intervention"):  # `wanda` and the other signals have no weight
        expected, total = expected + WEIGHTS[name] * relative(frame, [name], "scaled")[name], total + WEIGHTS[name]
    np.testing.assert_allclose(found["fused"], expected / total)
    without = fusion(tables, Fusing(strategy="adaptive", seed=1), criteria=criteria.drop(columns=names[1:])).weighing
    assert without.shares["all"]["weights"] > 0  # `taught` would have none left but of `hessian`


def test_taught_weights_are_of_signals_and_criteria_that_there_are():
    assert set(WEIGHTS) <= {*SIGNALS, *LEARNABLE}
    assert min(WEIGHTS.values()) > 0
    assert sum(WEIGHTS.values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.usefixtures("few")
def test_learned_weights_may_weigh_what_intervention_says_and_know_its_error():
    tables, oracle = measured_tables(good=(), noise=1.0)
    keys = oracle[["layer", "neuron"]]
    tables["intervention"] = keys.assign(importance=np.log(oracle["loss_increase"]), standard_error=0.0)
    beside = learnable(tables, ["intervention"])
    found = fusion(tables, Fusing(strategy="learned", seed=1), oracle=oracle, criteria=beside)
    assert found.weighing.shares["all"]["intervention"] > 0.5
    assert found.importance["intervention"].equals(tables["intervention"]["importance"])
    told = found.report.set_index(["layer", "signal"])["reliability"]
    assert told["all", "intervention"] == 1
    noisy = {**tables, "intervention": tables["intervention"].assign(standard_error=0.5)}
    less = fusion(noisy, Fusing(strategy="simple", seed=1), criteria=learnable(noisy, ["intervention"])).report
    assert less.set_index(["layer", "signal"])["reliability"]["all", "intervention"] < 1


def test_a_criterions_reliability_knows_its_standard_error():
    tables, oracle = measured_tables()
    keys, noisy = oracle[["layer", "neuron"]], np.random.default_rng(3).normal(size=len(oracle))
    criteria = keys.assign(noisy=noisy, noisy_error=0.6, sure=noisy**2)
    found = fusion(tables, Fusing(strategy="simple", seed=1), criteria=criteria).report
    told = found[found["layer"] != "all"].set_index(["layer", "signal"])["reliability"]
    for layer, own in criteria.groupby("layer"):
        assert told[layer, "noisy"] == pytest.approx(1 - 0.36 / own["noisy"].var(ddof=0))
        assert told[layer, "sure"] == 1
    assert set(found["signal"]) == {*SIGNALS, "noisy", "sure"}


def test_the_criteria_tables_errors_count_where_only_a_criterion_is_given():
    tables, oracle = measured_tables()
    measured = oracle[["layer", "neuron"]].assign(
        **{**dict.fromkeys(CRITERIA, 1.0), "taylor_first": np.arange(len(oracle)) % 7.0}, taylor_first_error=1.0
    )
    given = measured[["layer", "neuron", "taylor_first"]]
    found = fusion({**tables, "criteria": measured}, Fusing(strategy="simple", seed=1), criteria=given).report
    told = found[(found["layer"] == "lstm.0") & (found["signal"] == "taylor_first")]["reliability"].item()
    own = measured[measured["layer"] == "lstm.0"]["taylor_first"]
    assert told == pytest.approx(1 - 1 / own.var(ddof=0))


@pytest.mark.parametrize("by", ["hessian", "taylor_first"])
def test_losses_that_are_estimates_are_drawn_together_by_their_errors(by):
    tables, oracle = measured_tables()
    values = np.random.default_rng(3).normal(size=len(oracle))
    tables["hessian"] = tables["hessian"].assign(importance=values, standard_error=0.5)
    criteria = oracle[["layer", "neuron"]].assign(taylor_first=values, taylor_first_error=0.5)
    found = fuse(tables, Fusing(strategy="simple", seed=1, calibration=by), criteria=criteria)
    factor = 0.5 if by == "hessian" else 1.0
    for layer, own in found.groupby("layer"):
        spread = factor**2 * (values[(oracle["layer"] == layer).to_numpy()].var() - 0.25)
        assert own["fused"].var(ddof=0) == pytest.approx(spread, rel=1e-6)


@pytest.mark.usefixtures("few")
def test_saved_weights_give_the_same_scores_again_and_are_applied_to_layers_of_other_names():
    tables, oracle = measured_tables()
    first = fusion(tables, Fusing(strategy="learned", seed=1), oracle=oracle)
    kept = json.loads(json.dumps(to_plain(first.weighing)))
    again = fusion(tables, Fusing(strategy="simple", seed=1), weights=kept)
    np.testing.assert_allclose(again.importance["fused"], first.importance["fused"])
    assert set(again.report["strategy"]) == {"saved"}
    other = {name: table.assign(layer=table["layer"].replace("lstm.1", "gru.1")) for name, table in tables.items()}
    applied = fusion(other, Fusing(strategy="simple", seed=1), weights=kept).weighing.shares
    assert applied["all"] == pytest.approx(first.weighing.shares["all"])


@pytest.mark.usefixtures("few")
def test_how_saved_weights_transfer_is_reported_on_the_new_models_removals():
    tables, oracle = measured_tables(seed=0)
    kept = to_plain(fusion(tables, Fusing(strategy="learned", seed=1), oracle=oracle).weighing)
    other, truth = measured_tables(seed=9)
    report = fusion(other, Fusing(strategy="simple", seed=1), weights=kept, oracle=truth).report
    importance = fusion(other, Fusing(strategy="simple", seed=1), weights=kept).importance
    for layer in ("lstm.0", "lstm.1"):
        chosen = importance["layer"] == layer
        expected = spearman(importance.loc[chosen, "fused"].to_numpy(), truth.loc[chosen, "loss_increase"].to_numpy())
        assert report[report["layer"] == layer]["held_out"].to_numpy() == pytest.approx(expected)
    assert report["held_out"].min() > report["best_held_out"].min()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shares": {"all": {"hesian": 1.0}}}, r"Unknown signal 'hesian' in the saved weights; known: \['weights',"),
        ({"shares": {"all": {"hessian": 1.5, "weights": -0.5}}}, r"Expected saved weights of 'all' that are not negat"),
        ({"shares": {"all": {"hessian": 0.5}}}, r"that are not negative and sum to 1, got \{'hessian': 0.5\}."),
        ({"shares": {"x": {"hessian": 1.0}}}, r"Expected saved weights with \['strategy', 'transform', 'shares'\] and"),
        ({"transform": "log"}, r"Expected saved weights with"),
    ],
)
def test_saved_weights_that_make_no_sense_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_plain({"strategy": "simple", "transform": "scaled", "shares": {"all": {"hessian": 1.0}}} | change, SIGNALS)


@pytest.mark.parametrize("calibration", ["hessian", "oracle"])
def test_a_calibrated_score_keeps_the_order_of_its_layer_and_has_the_losses_of_its_layer(calibration):
    tables, oracle = measured_tables()
    tables["hessian"] = tables["hessian"].assign(standard_error=0.0)
    plain = fuse(tables, Fusing(strategy="simple", seed=1))
    found = fuse(tables, Fusing(strategy="simple", seed=1, calibration=calibration), oracle=oracle)
    reference = 0.5 * tables["hessian"]["importance"] if calibration == "hessian" else oracle["loss_increase"]
    for layer, rows in found.groupby("layer"):
        own = plain.loc[rows.index, "fused"]
        assert spearman(rows["fused"].to_numpy(), own.to_numpy()) > 0.999
        if calibration == "hessian" and own.is_unique:
            np.testing.assert_allclose(np.sort(rows["fused"]), np.sort(reference[rows.index]))
        assert rows["fused"].sum() == pytest.approx(reference[rows.index].sum(), rel=0.05, abs=0.5), layer


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"strategy": "learned"}, r"Expected measured removals \(the table `oracle`\) for fusion 'learned', got none."),
        ({"calibration": "oracle"}, r"Expected measured removals .* for calibration 'oracle', got none."),
        ({"calibration": "removal"}, r"Expected what measures removal curves for calibration 'removal', got nothing."),
        (
            {"calibration": "fisher"},
            r"Unknown calibration 'fisher'; known: \['none', 'hessian', 'oracle', 'removal'\].",
        ),
        ({"signals": ["hesian"]}, r"Unknown signal 'hesian'; known: \['weights',"),
        ({"signals": []}, r"Expected at least one of the signals"),
    ],
)
def test_settings_without_what_they_need_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        fuse(signal_tables(), Fusing(**{"strategy": "simple", "seed": 1, **settings}))


def test_calibration_by_removal_is_handed_the_fused_scores_and_follows_the_curves():
    tables, _ = measured_tables()
    seen = []

    def curves(scores):
        seen.append(scores)
        cheap = pd.DataFrame({"layer": "lstm.0", "removed": [10, 30], "loss_increase": [0.1, 0.4]})
        return pd.concat([cheap, cheap.assign(layer="lstm.1", loss_increase=10 * cheap["loss_increase"])])

    found = fuse(tables, Fusing(strategy="simple", seed=1, calibration="removal"), curves=curves)
    plain = fuse(tables, Fusing(strategy="simple", seed=1))
    np.testing.assert_array_equal(seen[0]["fused"], plain["fused"])
    means = found.groupby("layer")["fused"].mean()
    assert means["lstm.1"] == pytest.approx(10 * means["lstm.0"], rel=1e-6)


def test_criteria_of_other_neurons_or_with_a_signals_name_are_refused():
    tables, oracle = measured_tables()
    criteria = oracle[["layer", "neuron"]].assign(taylor=1.0)
    with pytest.raises(ValueError, match=r"Expected a finite criterion for exactly the signals' neurons, got others."):
        fuse(tables, Fusing(strategy="simple", seed=1), criteria=criteria.iloc[1:])
    with pytest.raises(ValueError, match=r"Expected criteria with names of their own, got \['hessian'\]."):
        fuse(tables, Fusing(strategy="simple", seed=1), criteria=criteria.rename(columns={"taylor": "hessian"}))


def test_learned_fusion_cuts_few_measured_neurons_into_as_many_parts_as_they_suffice_for():
    tables = signal_tables()
    keys = tables["weights"][["layer", "neuron"]]
    truth = keys.assign(loss_increase=np.random.default_rng(3).random(12), standard_error=0.1)
    by_default, by_hand = (
        fusion(tables, Fusing(strategy="learned", seed=1, folds=folds), oracle=truth) for folds in (None, 2)
    )
    assert by_default.report.equals(by_hand.report)
    assert by_default.by_layer == {
        layer: rows["fused"].tolist() for layer, rows in by_default.importance.groupby("layer")
    }
