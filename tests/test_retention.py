"""Which neurons are kept, against sorting by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.retention import keep_of, retention

WIDTHS = {"lstm.0": 6, "lstm.1": 9, "lstm.2": 2}


def importance_of(values):
    """Return a table of importance from layer → values."""
    rows = [
        (layer, neuron, float(value))
        for layer, layer_values in values.items()
        for neuron, value in enumerate(layer_values)
    ]
    return pd.DataFrame(rows, columns=["layer", "neuron", "fused"])


def kept_of(values, **settings):
    """Return layer → kept neurons."""
    usual = {"variant": "v", "by": "fused", "retain": 0.5, "floor": 1, "scope": "layer"}
    table = retention(importance_of(values), **{**usual, **settings})
    return {layer: kept.tolist() for layer, kept in keep_of(table).items()}


def kept_by_hand(values, retain, floor, scope):
    order = {layer: sorted(range(len(v)), key=lambda n, v=v: (-v[n], n)) for layer, v in values.items()}
    if scope == "layer":
        counts = {n: max(math.floor(retain * len(v) + 0.5), min(floor, len(v))) for n, v in values.items()}
        return {layer: sorted(order[layer][: counts[layer]]) for layer in values}
    kept = {layer: order[layer][:floor] for layer in values}
    size = {layer: float(np.mean(np.abs(v))) or 1.0 for layer, v in values.items()}
    rest = [(-values[layer][n] / size[layer], layer, n) for layer in values for n in order[layer][floor:]]
    budget = math.floor(retain * sum(map(len, values.values())) + 0.5)
    for _, layer, neuron in sorted(rest)[: max(0, budget - sum(map(len, kept.values())))]:
        kept[layer] = [*kept[layer], neuron]
    return {layer: sorted(neurons) for layer, neurons in kept.items()}


importances = st.fixed_dictionaries(
    {layer: st.lists(st.integers(-4, 9), min_size=width, max_size=width) for layer, width in WIDTHS.items()}
)


@pytest.mark.parametrize("scope", ["layer", "global"])
@settings(max_examples=40)
@given(values=importances, retain=st.floats(0.01, 1), floor=st.integers(1, 4))
def test_the_choice_equals_sorting_by_hand(scope, values, retain, floor):
    expected = kept_by_hand(values, retain, floor, scope)
    assert kept_of(values, retain=retain, floor=floor, scope=scope) == expected


@settings(max_examples=30)
@given(values=importances, retain=st.floats(0.01, 1), floor=st.integers(1, 4))
def test_a_global_ranking_keeps_exactly_its_budget_unless_the_floors_need_more(values, retain, floor):
    kept = kept_of(values, retain=retain, floor=floor, scope="global")
    floors = sum(min(floor, width) for width in WIDTHS.values())
    assert sum(map(len, kept.values())) == max(math.floor(17 * retain + 0.5), floors)
    assert all(len(kept[layer]) >= min(floor, width) for layer, width in WIDTHS.items())


@pytest.mark.parametrize(("retain", "counts"), [(0.5, [3, 5, 1]), (0.25, [2, 2, 1]), (1.0, [6, 9, 2])])
def test_a_ranking_within_layers_keeps_the_rounded_share_of_each(retain, counts):
    kept = kept_of({layer: range(width) for layer, width in WIDTHS.items()}, retain=retain)
    assert [len(neurons) for neurons in kept.values()] == counts


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_smaller_than_the_floor_is_kept_whole(scope):
    values = {layer: range(width) for layer, width in WIDTHS.items()}
    assert kept_of(values, retain=0.1, floor=4, scope=scope) == {
        "lstm.0": [2, 3, 4, 5],
        "lstm.1": [5, 6, 7, 8],
        "lstm.2": [0, 1],
    }


def test_a_global_ranking_compares_layers_relative_to_their_mean():
    small, large = [1.0, 1.0, 1.0, 9.0], [100.0, 100.0, 100.0, 100.0]
    kept = kept_of({"lstm.0": small, "lstm.1": large}, retain=0.375, scope="global")
    assert kept == {"lstm.0": [3], "lstm.1": [0, 1]}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_equal_neurons_are_kept_in_the_order_of_their_numbers(scope, value):
    assert kept_of({"lstm.0": [value] * 6}, scope=scope) == {"lstm.0": [0, 1, 2]}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_order_of_rows_does_not_matter(scope):
    frame = importance_of({"lstm.0": [1, 1, 2, 1, 1, 0], "lstm.1": [3, 3, 3, 3, 3, 3, 3, 3, 3]})
    settings = {"variant": "v", "by": "fused", "retain": 0.5, "floor": 1, "scope": scope}
    assert retention(frame, **settings).equals(retention(frame.sample(frac=1, random_state=3), **settings))


def test_ranks_count_from_the_most_important_of_each_layer():
    table = retention(
        importance_of({"a": [1, 3, 2], "b": [5, 5]}), variant="v", by="fused", retain=0.5, floor=1, scope="layer"
    )
    assert table["rank"].tolist() == [3, 1, 2, 1, 2]
    assert table["variant"].unique().tolist() == ["v"]
    assert table["importance"].tolist() == [1, 3, 2, 5, 5]


def test_kept_neurons_are_ascending_indices_that_surgery_takes():
    keep = keep_of(
        retention(importance_of({"a": [9, 0, 8, 7]}), variant="v", by="fused", retain=0.75, floor=1, scope="layer")
    )
    assert keep["a"].dtype == torch.int64
    assert keep["a"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"by": "fusedd"}, r"Unknown importance 'fusedd'; known: \['fused'\]."),
        ({"scope": "model"}, r"Unknown scope 'model'; known: \['layer', 'global'.*\]."),
        ({"retain": 0.0}, r"Expected retain in \(0, 1\], got 0.0."),
        ({"retain": 1.01}, r"Expected retain in \(0, 1\], got 1.01."),
        ({"retain": math.nan}, r"Expected retain in \(0, 1\], got nan."),
        ({"floor": 0}, "Expected a floor of at least 1 neuron, got 0."),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        kept_of({"lstm.0": [1, 2]}, **settings)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_importance_that_is_not_a_number_is_refused(bad, scope):
    with pytest.raises(ValueError, match=r"Expected a finite importance for every neuron, got others in 'fused'."):
        kept_of({"lstm.0": [1, bad]}, scope=scope)
