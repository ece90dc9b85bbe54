"""Which neurons are kept, against sorting by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.core.neurons import select
from pruning.evaluation.measures import size_of
from pruning.selection.adaptive import AdaptiveRate, adaptive_retention_rate
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import Budget, budget_of
from pruning.selection.retention import keep_of, retention
from pruning.signals.weights import weights
from tests.tiny import tiny

WIDTHS = {"lstm.0": 6, "lstm.1": 9, "lstm.2": 2}


def importance_of(values):
    """Return a table of importance from layer → values."""
    rows = [
        (layer, neuron, float(value))
        for layer, layer_values in values.items()
        for neuron, value in enumerate(layer_values)
    ]
    return pd.DataFrame(rows, columns=["layer", "neuron", "fused"])


def retained(frame, *, by="fused", kinds=None, **settings):
    """Return the table `retention` of half of each layer, or by other settings."""
    usual = {"retain": 0.5, "floor": 1, "scope": "layer"}
    return retention(frame, Allocation(**{**usual, **settings}), variant="v", by=by, kinds=kinds)


def kept_of(values, **settings):
    """Return layer → kept neurons."""
    table = retained(importance_of(values), **settings)
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
    assert retained(frame, scope=scope).equals(retained(frame.sample(frac=1, random_state=3), scope=scope))


def test_ranks_count_from_the_most_important_of_each_layer():
    table = retained(importance_of({"a": [1, 3, 2], "b": [5, 5]}))
    assert table["rank"].tolist() == [3, 1, 2, 1, 2]
    assert table["variant"].unique().tolist() == ["v"]
    assert table["importance"].tolist() == [1, 3, 2, 5, 5]


def test_kept_neurons_are_ascending_indices_that_surgery_takes():
    keep = keep_of(retained(importance_of({"a": [9, 0, 8, 7]}), retain=0.75))
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
        ({"ceiling": {"lstm.0": 0}}, "Expected a ceiling of at least 1 neuron, got 0."),
        ({"multiple": 0}, "Expected a multiple of at least 1 neuron, got 0."),
        ({"rate": "adaptiv"}, r"Unknown rate 'adaptiv'; known: \['fixed', 'adaptive'\]."),
        ({"ceiling": 0}, "Expected a ceiling of at least 1 neuron, got 0."),
        ({"floor": {"lstm.9": 2}}, r"Unknown layer 'lstm.9' of a floor; known: \['lstm.0'\]."),
        ({"floor": 2, "ceiling": 1}, "Expected a width between a floor of 2 and a ceiling of 1"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        kept_of({"lstm.0": [1, 2]}, **settings)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_importance_that_is_not_a_number_is_refused(bad, scope):
    with pytest.raises(
        ValueError, match=r"Expected a finite importance for every neuron, got others for layer 'lstm.0'"
    ):
        kept_of({"lstm.0": [1, bad], "lstm.1": [1, 2]}, scope=scope)


def partly_measured():
    """Return a table whose column `surgeon` has no numbers of `b`, and whose `fused` has them on another scale."""
    frame = importance_of({"a": [4, 3, 2, 1], "b": [1, 5, 3, 2, 4, 0], "c": [9, 8, 7, 6]})
    return frame.assign(fused=1000 * frame["fused"], surgeon=frame["fused"].mask(frame["layer"] == "b"))


def test_a_layer_without_numbers_is_named_with_the_ways_out():
    sentence = (
        r"^Expected a finite importance for every neuron, got others for layer 'b' in 'surgeon'; choose by one of "
        r"\['fused'\], or let otherwise name one of them for what has no numbers\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        retained(partly_measured(), scope="absolute", by="surgeon")


@pytest.mark.parametrize(
    ("change", "otherwise", "sentence"),
    [
        ({}, "surgeon", "got others for layer 'b' in 'surgeon' and in 'surgeon'; choose by one of"),
        ({}, "hessian", r"Unknown importance 'hessian' at otherwise; known: \['fused', 'surgeon'\]."),
        (
            {"surgeon": [math.inf, *range(13)]},
            "fused",
            "got others for layer 'a' in 'surgeon'; choose by one of .'fused'",
        ),
        (
            {"surgeon": math.nan, "fused": math.nan},
            "fused",
            r"the layers \['a', 'b', 'c'\] in 'surgeon' and in 'fused'",
        ),
    ],
)
def test_what_cannot_stand_in_for_missing_numbers_is_refused(change, otherwise, sentence):
    with pytest.raises(ValueError, match=sentence):
        retained(partly_measured().assign(**change), scope="absolute", otherwise=otherwise, by="surgeon")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scope": "layer"}, {"a": [0, 1], "b": [1, 2, 4], "c": [0, 1]}),
        ({"scope": "absolute"}, {"a": [0], "b": [1, 2, 4], "c": [0, 1, 2]}),
        ({"scope": "absolute", "floor": 2, "multiple": 2}, {"a": [0, 1], "b": [1, 2, 3, 4], "c": [0, 1]}),
        ({"scope": "absolute", "budget": 8}, {"a": [0], "b": [1, 2, 4], "c": [0, 1, 2, 3]}),
        ({"scope": "absolute", "rate": "adaptive"}, {"a": [0], "b": [1, 2, 3, 4], "c": [0, 1, 2, 3]}),
    ],
)
def test_a_layer_without_numbers_keeps_its_share_by_another_column(settings, expected):
    if "budget" in settings:
        budget = Budget("neurons", settings["budget"], ("a", "b", "c"), lambda widths: widths.sum(axis=1))
        settings = {**settings, "budget": budget}
    table = retained(partly_measured(), otherwise="fused", by="surgeon", **settings)
    assert {layer: kept.tolist() for layer, kept in keep_of(table).items()} == expected


@pytest.mark.parametrize("rate", ["fixed", "adaptive"])
def test_otherwise_has_no_say_where_every_layer_has_numbers(rate):
    frame = partly_measured().assign(surgeon=np.arange(14.0))
    asked = {"by": "surgeon", "scope": "global", "rate": rate}
    pd.testing.assert_frame_equal(retained(frame, otherwise="fused", **asked), retained(frame, **asked))


def test_a_model_without_any_numbers_keeps_each_layers_share():
    frame = partly_measured().assign(surgeon=math.nan)
    table = retained(frame, otherwise="fused", scope="absolute", by="surgeon")
    assert table.groupby("layer")["kept"].sum().tolist() == [2, 3, 2]


def test_a_ranking_by_absolute_importance_takes_the_largest_numbers_of_all_layers():
    values = {"lstm.0": [1.0, 2.0, 9.0], "lstm.1": [5.0, 6.0, 7.0]}
    assert kept_of(values, scope="absolute") == {"lstm.0": [2], "lstm.1": [1, 2]}


@settings(max_examples=30)
@given(values=importances, retain=st.floats(0.1, 1), multiple=st.integers(1, 4))
@pytest.mark.parametrize("scope", ["layer", "global", "absolute"])
def test_every_width_is_a_multiple_or_the_whole_layer(scope, values, retain, multiple):
    kept = kept_of(values, retain=retain, multiple=multiple, scope=scope)
    assert all(len(neurons) % multiple == 0 or len(neurons) == WIDTHS[layer] for layer, neurons in kept.items())


@pytest.mark.parametrize(("retain", "count"), [(0.3, 4), (0.6, 4), (0.75, 8), (0.9, 8), (1.0, 9)])
def test_a_share_takes_the_nearest_multiple_and_the_larger_of_two(retain, count):
    kept = kept_of({"lstm.1": range(9)}, retain=retain, multiple=4)
    assert len(kept["lstm.1"]) == count


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_keeps_no_more_than_its_ceiling_and_no_less_than_its_floor(scope):
    values = {"lstm.0": [9.0] * 6, "lstm.1": range(1, 10)}
    kept = kept_of(values, retain=0.6, scope=scope, floor={"lstm.1": 7}, ceiling={"lstm.0": 2})
    assert len(kept["lstm.0"]) == 2
    assert len(kept["lstm.1"]) == 7


@settings(max_examples=30)
@given(values=importances, share=st.floats(0.1, 1))
def test_a_budget_of_neurons_keeps_the_importance_that_a_global_ranking_keeps(values, share):
    values = {layer: [abs(value) for value in layer_values] for layer, layer_values in values.items()}
    number = max(3, math.floor(17 * share + 0.5))
    neurons = Budget("neurons", number, tuple(WIDTHS), lambda rows: rows.sum(axis=1))
    ranked = retained(importance_of(values), scope="global", retain=number / 17)
    within = retained(importance_of(values), scope="global", budget=neurons)
    mean = {layer: np.mean(layer_values) or 1.0 for layer, layer_values in values.items()}
    totals = [
        sum(row.importance / mean[row.layer] for row in frame.itertuples() if row.kept) for frame in (ranked, within)
    ]
    assert totals[1] == pytest.approx(totals[0])
    assert within["kept"].sum() == ranked["kept"].sum() == number


@pytest.mark.parametrize("scope", ["layer", "global", "absolute"])
@pytest.mark.parametrize("kind", ["parameters", "multiply_adds"])
def test_the_pruned_model_costs_no_more_than_the_budget_and_nearly_all_of_it(scope, kind):
    model = tiny(widths=(20, 16))
    table = weights(model, threshold=0.1, bins=8).rename(columns={"importance": "fused"})
    full = getattr(size_of(model), kind)
    least = getattr(size_of(model.resized([2, 2])), kind)
    budget = budget_of(model, kind=kind, value=(full + least) / 2)
    smaller = select(model, keep_of(retained(table, scope=scope, floor=2, budget=budget)))
    assert getattr(size_of(smaller), kind) <= budget.value
    assert getattr(size_of(smaller), kind) > 0.85 * budget.value


def test_a_budget_for_other_layers_is_refused():
    neurons = Budget("neurons", 3, ("gru.0",), lambda rows: rows.sum(axis=1))
    with pytest.raises(ValueError, match=r"Expected a budget for the layers \['lstm.0'\], got one for \['gru.0'\]."):
        kept_of({"lstm.0": [1, 2]}, budget=neurons)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_an_adaptive_rate_takes_the_place_of_the_share(scope):
    values = {"lstm.0": [1.0] * 10, "lstm.1": [0.0] * 9 + [5.0]}
    kept = kept_of(values, rate="adaptive", scope=scope, kinds={"lstm.0": "rnn", "lstm.1": "rnn"})
    if scope == "layer":  # no spread: 0.6 × 0.85 of ten; one neuron holds all: 0.1 × 0.85 of ten
        assert {layer: len(neurons) for layer, neurons in kept.items()} == {"lstm.0": 5, "lstm.1": 1}
    else:
        pooled = [1.0] * 10 + [0.0] * 9 + [10.0]
        assert sum(map(len, kept.values())) == math.floor(20 * adaptive_retention_rate(pooled, "rnn") + 0.5)


def rate_by_hand(scores, network_type):
    scores = [max(score, 0.0) for score in scores]
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    cv = spread / mean if mean > 0 else 0.0
    held = 0.7 if cv > 2.5 else 0.8 if cv > 1.5 else 0.9 if cv > 0.8 else None
    share = 0.6
    if held is not None:
        total, count = 0.0, 0
        for score in sorted(scores, reverse=True):
            total, count = total + score, count + 1
            if total >= held * sum(scores) - 1e-9 * sum(scores):
                break
        share = count / len(scores)
    return min(0.8, max(0.05, share * {"rnn": 0.85, "snn": 1.15, "mixed": 1.0}[network_type]))


@settings(max_examples=60)
@given(
    scores=st.lists(st.integers(-3, 9).map(lambda n: float(n) ** 3), min_size=1, max_size=40),
    network_type=st.sampled_from(["rnn", "snn", "mixed"]),
)
def test_the_adaptive_rate_equals_the_one_by_hand(scores, network_type):
    assert adaptive_retention_rate(scores, network_type) == pytest.approx(rate_by_hand(scores, network_type))


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([1.0] * 8 + [2.0] * 8, 0.6),  # cv 0.33
        ([0.0] * 5 + [1.0] * 5, 0.5),  # cv 1: all five hold 90%
        ([0.0] * 8 + [1.0] * 2, 0.2),  # cv 2: both hold 80%
        ([0.0] * 36 + [1.0] * 4, 0.075),  # cv 3: three of four hold 70%
    ],
)
@pytest.mark.parametrize(("network_type", "factor"), [("rnn", 0.85), ("snn", 1.15), ("mixed", 1.0)])
def test_each_threshold_of_the_adaptive_rate_and_each_network_type_has_its_exact_answer(
    scores, share, network_type, factor
):
    expected = min(0.8, max(0.05, share * factor))
    assert adaptive_retention_rate(scores, network_type) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scores", [[0.0] * 7, [3.0] * 7, [-1.0, -2.0, -9.0], [5.0], [1e308] * 3, [1e-320] * 3])
def test_scores_that_tell_no_neuron_from_another_give_the_conservative_share(scores):
    assert adaptive_retention_rate(scores, "mixed") == 0.6


def test_negative_scores_count_as_zero():
    assert adaptive_retention_rate([-7.0, -1.0, 4.0, 4.0], "mixed") == adaptive_retention_rate([0, 0, 4, 4], "mixed")


def test_the_thresholds_of_the_adaptive_rate_are_parameters():
    always = AdaptiveRate(steps=((0.0, 0.5),), lowest=0.01, highest=1.0, factors={"rnn": 2.0}, otherwise=0.3)
    assert adaptive_retention_rate([1.0, 1.0, 1.0, 1.1], "rnn", thresholds=always) == 1.0
    assert adaptive_retention_rate([1.0] * 4, "rnn", thresholds=always) == 0.6


@pytest.mark.parametrize(
    ("scores", "network_type", "sentence"),
    [
        ([], "mixed", "Expected at least one score, got none."),
        ([1.0, math.nan], "mixed", "Expected finite scores, got 1 others."),
        ([math.inf, 1.0, -math.inf], "mixed", "Expected finite scores, got 2 others."),
        ([1.0], "cnn", r"Unknown network type 'cnn'; known: \['rnn', 'snn', 'mixed', 'dense', 'conv', 'head'\]."),
    ],
)
def test_scores_without_an_answer_are_refused(scores, network_type, sentence):
    with pytest.raises(ValueError, match=sentence):
        adaptive_retention_rate(scores, network_type)


HALVES = {"lstm.0": 6, "snn.0": 5, "lstm.1": 4, "snn.1": 9}
KINDS = {"lstm.0": "rnn", "lstm.1": "rnn", "snn.0": "snn", "snn.1": "snn"}
supernets = st.fixed_dictionaries(
    {layer: st.lists(st.integers(-4, 9), min_size=width, max_size=width) for layer, width in HALVES.items()}
)
scopes = pytest.mark.parametrize("scope", ["layer", "global", "absolute"])


def of_kind(values, kind):
    return {layer: own for layer, own in values.items() if KINDS[layer] == kind}


def counts_of(kept):
    """Return how many neurons of each kind are kept."""
    return {kind: sum(map(len, of_kind(kept, kind).values())) for kind in ("rnn", "snn")}


@scopes
@settings(max_examples=20)
@given(values=supernets, ratio=st.floats(0.15, 0.85), floor=st.integers(1, 3))
def test_a_ratio_keeps_of_each_kind_what_that_kind_alone_would_keep_of_its_share(scope, values, ratio, floor):
    kept = kept_of(values, snn_ratio=ratio, kinds=KINDS, retain=1.0, scope=scope, floor=floor)
    for kind, share in {"rnn": 1 - ratio, "snn": ratio}.items():
        alone = kept_of(of_kind(values, kind), retain=share, scope=scope, floor=floor)
        assert of_kind(kept, kind) == alone


@scopes
@pytest.mark.parametrize(("ratio", "emptied"), [(0.0, "snn"), (1.0, "rnn")])
def test_a_ratio_of_nothing_leaves_one_neuron_in_each_half_of_a_layer(scope, ratio, emptied):
    kept = kept_of({layer: range(width) for layer, width in HALVES.items()}, snn_ratio=ratio, kinds=KINDS, scope=scope)
    assert {layer: len(own) for layer, own in kept.items()} == {
        layer: 1 if KINDS[layer] == emptied else width for layer, width in HALVES.items()
    }


@scopes
@settings(max_examples=20)
@given(values=supernets, share=st.floats(0.2, 0.6), spiking=st.floats(0.3, 0.6))
def test_a_quota_shares_out_what_is_kept_in_all(scope, values, share, spiking):
    quota = {"rnn": 1 - spiking, "snn": spiking}
    kept = kept_of(values, quota=quota, kinds=KINDS, retain=share, scope=scope)
    total = math.floor(24 * share + 0.5)
    recurrent = math.floor((1 - spiking) * total + 0.5)
    wanted = {"rnn": recurrent, "snn": total - recurrent}
    slack = 0 if scope != "layer" else 1  # each of a kind's two layers rounds its own share, to at least one neuron
    assert all(abs(counts_of(kept)[kind] - max(2, wanted[kind])) <= slack for kind in wanted)
    for kind in () if scope == "layer" else wanted:
        own = of_kind(values, kind)
        alone = kept_of(own, retain=wanted[kind] / sum(map(len, own.values())), scope=scope)
        assert of_kind(kept, kind) == alone


@scopes
@settings(max_examples=20)
@given(values=supernets, neurons=st.integers(6, 24))
def test_one_budget_with_a_quota_for_each_kind_keeps_as_many_as_fit_and_not_one_more(scope, values, neurons):
    budget = Budget("neurons", neurons, tuple(HALVES), lambda rows: rows.sum(axis=1))
    quota = {"rnn": 0.5, "snn": 0.5}
    kept = counts_of(kept_of(values, quota=quota, kinds=KINDS, budget=budget, scope=scope))
    assert sum(kept.values()) <= neurons
    assert abs(kept["rnn"] - kept["snn"]) <= (1 if scope != "layer" else 2)
    if scope != "layer":
        assert sum(kept.values()) == min(neurons, 20)  # ten recurrent neurons are all there are


def test_a_quota_has_no_say_where_everything_is_kept():
    kept = kept_of({layer: range(width) for layer, width in HALVES.items()}, quota={"rnn": 1, "snn": 0}, retain=1.0)
    assert {layer: len(own) for layer, own in kept.items()} == HALVES


def test_an_adaptive_rate_says_how_many_a_quota_shares_out():
    values = {layer: range(1, width + 1) for layer, width in HALVES.items()}
    free = kept_of(values, rate="adaptive", kinds=KINDS, scope="global")
    held = kept_of(values, rate="adaptive", kinds=KINDS, scope="global", quota={"rnn": 0.25, "snn": 0.75})
    total = sum(map(len, free.values()))
    assert counts_of(held) == {"rnn": math.floor(total / 4 + 0.5), "snn": total - math.floor(total / 4 + 0.5)}


def test_a_tiny_mixed_model_is_cut_to_its_ratio_and_runs():
    model = tiny(widths=(12, 8), family="lstm + snn")
    kinds = {layer.name: layer.kind for layer in model.layers()}
    importance = weights(model, threshold=0.1, bins=8)
    chosen = retained(importance, by="importance", retain=1.0, snn_ratio=0.25, kinds=kinds)
    smaller = select(model, keep_of(chosen))
    assert smaller.widths() == (5, 2, 3, 1)  # of 6, 6, 4, 4
    assert smaller(torch.zeros(3, 2, dtype=torch.long))[0].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"snn_ratio": 1.5}, r"Expected snn_ratio in \[0, 1\], got 1\.5\."),
        ({"snn_ratio": 0.5, "quota": {"rnn": 1, "snn": 0}}, "Expected snn_ratio or quota, got both"),
        ({"snn_ratio": 0.5, "rate": "adaptive"}, "Expected snn_ratio or rate: adaptive, got both"),
        ({"budget": 9, "rate": "adaptive"}, "Expected rate: adaptive or budget, got both"),
        ({"snn_ratio": 0.5, "kinds": {"lstm.0": "rnn"}}, r"Expected layers of the kinds \['rnn', 'snn'\], got "),
        ({"quota": {"rnn": 0.5, "snn": 0.6}}, "Expected the shares of quota to sum to 1, none below 0, got "),
        ({"quota": {}}, "Expected the shares of quota to sum to 1, none below 0, got "),
        ({"quota": {"rnn": 1.0}}, r"Expected layers of the kinds \['rnn'\], got \['rnn', 'snn'\]"),
        ({"quota": {"rnn": 1.0, "snn": 0.0}}, "Expected a quota that 10 rnn neurons can fill, got 1 of 12 in all"),
    ],
)
def test_kinds_that_cannot_be_had_get_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        kept_of({layer: range(width) for layer, width in HALVES.items()}, **{"kinds": KINDS, **changes})
