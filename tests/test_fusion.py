"""Scaling components and fusing signals, against loops over layers and neurons."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.fusion import fuse
from pruning.signals.scaling import scaled, weighted
from pruning.tables import BESIDE, CRITERIA, SIGNALS
from tests.models import SIGNALS as MEASURES
from tests.models import scaled_by_hand, tiny

LAYERS = {"lstm.0": 7, "lstm.1": 5}


def keys():
    pairs = [(layer, neuron) for layer, width in LAYERS.items() for neuron in range(width)]
    return pd.DataFrame(pairs, columns=["layer", "neuron"])


def criteria_table():
    """Return a table with other numbers for each criterion."""
    random = np.random.default_rng(9)
    return keys().assign(**{name: random.normal(size=12) for name in CRITERIA})


def signal_tables(seed=0):
    """Return a table for each signal with importances of very different sizes."""
    random = np.random.default_rng(seed)
    return {
        name: keys().assign(importance=random.normal(size=12) * 10.0**i) for i, name in enumerate((*SIGNALS, *BESIDE))
    }


def test_the_fusion_is_the_mean_of_each_signal_scaled_within_its_layer():
    signals = signal_tables()
    table = fuse(signals, criteria_table(), strategy="simple", seed=1)
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
    table = fuse(signals, criteria_table(), strategy="simple", seed=1)
    for name, signal in signals.items():
        assert table[name].equals(signal["importance"].rename(name))
    np.testing.assert_allclose(table[[f"{name}_share" for name in SIGNALS]].sum(axis=1), 1)


def test_each_signal_has_an_equal_say_whatever_its_unit():
    signals = signal_tables()
    larger = {**signals, "hessian": signals["hessian"].assign(importance=1e9 * signals["hessian"]["importance"] - 7)}
    one, other = (fuse(tables, criteria_table(), strategy="simple", seed=1)["fused"] for tables in (signals, larger))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_the_random_control_follows_its_seed_and_nothing_else():
    one, same = (fuse(signal_tables(seed), criteria_table(), strategy="simple", seed=1)["random"] for seed in (0, 5))
    other = fuse(signal_tables(), criteria_table(), strategy="simple", seed=2)["random"]
    assert one.equals(same)
    assert not one.equals(other)
    assert one.between(0, 1).all()
    assert one.nunique() == 12


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown fusion 'simpel'; known: \['simple'.*\]."):
        fuse(signal_tables(), criteria_table(), strategy="simpel", seed=1)


def test_a_missing_signal_is_refused_by_name():
    signals = signal_tables()
    del signals["gradients"]
    with pytest.raises(ValueError, match=r"got none of \['gradients'\]."):
        fuse(signals, criteria_table(), strategy="simple", seed=1)


def test_signals_of_other_neurons_are_refused():
    signals = signal_tables()
    signals["gradients"] = signals["gradients"].iloc[:-1]
    with pytest.raises(ValueError, match=r"Expected the same neurons in every signal, got others in 'gradients'."):
        fuse(signals, criteria_table(), strategy="simple", seed=1)


def test_the_criteria_are_passed_on_as_they_are():
    table = fuse(signal_tables(), criteria_table(), strategy="simple", seed=1)
    for name in CRITERIA:
        assert table[name].equals(criteria_table()[name])


def test_criteria_of_other_neurons_are_refused():
    with pytest.raises(ValueError, match=r"Expected the same neurons in every table, got others in 'criteria'."):
        fuse(signal_tables(), criteria_table().iloc[1:], strategy="simple", seed=1)


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
