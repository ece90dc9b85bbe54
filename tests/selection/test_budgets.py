"""Costs of widths against models that are built, and widths within a budget against trying everything."""

import tracemalloc
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.evaluation.measures import size_of
from pruning.models.adapting import adapt
from pruning.selection import budgets, costs
from pruning.selection.budgets import (
    Budget,
    allowed_widths,
    budget_of,
    equal_shares_within,
    widths_within,
)
from pruning.selection.costs import interpolated, measured_latency, size_costs
from pruning.selection.prices import AskedPrices, known_prices
from tests.tiny import DECODERS, WIDTHS, bytes_of, tensors_of, tiny

SIZES = ("neurons", "parameters", "multiply_adds")


def linear(value, *prices):
    """Return a budget in which each neuron of a layer has the layer's price."""
    layers = tuple(f"l{index}" for index in range(len(prices)))
    return Budget("coins", value, layers, lambda rows: rows @ np.array(prices, dtype=float))


def multiply_adds_of_a_chain(inputs, outputs, layers):
    """Return what a chain of recurrent layers costs: each reads itself and the layer before."""

    def costs(rows):
        rows = np.asarray(rows, dtype=float)
        before = np.column_stack([np.full(len(rows), inputs), rows[:, :-1]])
        return (4 * rows * (rows + before)).sum(axis=1) + outputs * rows[:, -1]

    return lambda value: Budget("multiply_adds", value, layers, costs)


def peak_of(call):
    """Return what the call returns and the most bytes that it held at once."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def built(monkeypatch, kind):
    """Return a list that grows by one with each model of this kind that is resized."""
    made, resized = [], kind.resized
    monkeypatch.setattr(kind, "resized", lambda self, widths: made.append(widths) or resized(self, widths))
    return made


def every(width):
    return np.arange(1, width + 1)


def best_by_hand(worths, choices, budget):
    """Return the most importance of all sets of neurons whose sizes are allowed and that fit: sets, not only widths."""
    best = -1.0
    for sizes in product(*choices.values()):
        if budget.costs(np.array([sizes]))[0] <= budget.value:
            best = max(best, sum(_most(worths[layer], size) for layer, size in zip(choices, sizes, strict=True)))
    return best


def _most(values, size):
    return max(sum(max(value, 0.0) for value in chosen) for chosen in combinations(values, size))


def held(worths, widths):
    return sum(np.sort(np.maximum(worths[layer], 0))[::-1][:width].sum() for layer, width in widths.items())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("depth", WIDTHS)
@pytest.mark.parametrize("kind", SIZES)
def test_the_cost_of_widths_is_the_size_of_the_model_with_them(decoder, depth, kind):
    model = tiny(decoder, WIDTHS[depth])
    rows = np.random.default_rng(0).integers(1, 9, size=(20, depth))
    expected = [getattr(size_of(model.resized(row.tolist())), kind) for row in rows]
    assert size_costs(model, kind)(rows).tolist() == expected


@pytest.mark.parametrize(("kind", "models"), [("neurons", 0), ("parameters", 2), ("multiply_adds", 2)])
def test_counting_what_a_hundred_layers_cost_builds_next_to_no_models(monkeypatch, kind, models):
    model = tiny(widths=[3] * 100)
    made = built(monkeypatch, type(model))
    costs = size_costs(model, kind)
    assert len(made) <= models
    assert costs(np.full((1, 100), 3))[0] == getattr(size_of(model), kind)


def test_counting_by_running_builds_one_model_for_each_layer_and_each_product(monkeypatch):
    network = nn.Sequential(*[part for _ in range(12) for part in (nn.Linear(5, 5), nn.ReLU())], nn.Linear(5, 2))
    model = adapt(network, torch.randn(4, 5), loss=nn.CrossEntropyLoss())
    made = built(monkeypatch, type(model))
    costs, depth = size_costs(model, "multiply_adds"), len(model.layers())
    assert depth == 12
    assert len(made) <= 2 + 1 + depth + (depth - 1)
    rows = np.random.default_rng(0).integers(1, 6, size=(4, depth))
    assert costs(rows).tolist() == [model.resized(row.tolist()).multiply_adds() for row in rows]


def test_products_that_no_shape_tells_of_are_found_too(monkeypatch):
    model = tiny(widths=(4, 3, 5))
    monkeypatch.setattr(type(model), "multiply_adds", lambda self: 7 + self.widths()[0] * self.widths()[2])
    assert size_costs(model, "multiply_adds")(np.array([[2, 9, 6]])).tolist() == [19]


def test_counting_leaves_the_model_and_the_global_random_state_as_they_were():
    model = tiny()
    before, state = bytes_of(tensors_of(model)), torch.get_rng_state()
    size_costs(model, "parameters")
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert next(model.parameters()).device.type == "cpu"


def test_a_size_of_another_form_is_refused(monkeypatch):
    monkeypatch.setattr(type(tiny()), "multiply_adds", lambda self: self.widths()[0] ** 3)
    with pytest.raises(ValueError, match="Expected multiply_adds with at most a product of two widths"):
        size_costs(tiny(), "multiply_adds")


@settings(max_examples=40)
@given(
    worths=st.lists(st.lists(st.integers(-2, 9), min_size=1, max_size=5), min_size=1, max_size=3),
    share=st.floats(0, 1),
    multiple=st.integers(1, 2),
    floor=st.integers(1, 2),
)
def test_the_widths_hold_as_much_as_the_best_set_of_neurons_within_the_budget(worths, share, multiple, floor):
    worths = {f"l{index}": np.array(values, dtype=float) for index, values in enumerate(worths)}
    choices = {
        layer: allowed_widths(len(values), floor=floor, ceiling=None, multiple=multiple)
        for layer, values in worths.items()
    }
    price = multiply_adds_of_a_chain(3, 7, tuple(worths))
    least, most = (price(0).costs(np.array([[c[end] for c in choices.values()]]))[0] for end in (0, -1))
    budget = price(least + share * (most - least))
    widths = widths_within(worths, choices, budget)
    assert budget.costs(np.array([list(widths.values())]))[0] <= budget.value
    assert all(width in choices[layer] for layer, width in widths.items())
    assert held(worths, widths) == pytest.approx(best_by_hand(worths, choices, budget))


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95), layers=st.integers(1, 4))
def test_beyond_what_can_be_enumerated_at_least_ninety_nine_hundredths_of_the_optimum_are_held(seed, share, layers):
    random = np.random.default_rng(seed)
    worths = {f"l{i}": random.lognormal(sigma=1.0, size=random.integers(4, 20)) for i in range(layers)}
    choices = {layer: every(len(values)) for layer, values in worths.items()}
    price = multiply_adds_of_a_chain(3, 7, tuple(worths))
    least, most = (price(0).costs(np.array([[c[end] for c in choices.values()]]))[0] for end in (0, -1))
    budget = price(least + share * (most - least))
    steps, values = list(choices.values()), [budgets._held(worth) for worth in worths.values()]
    found, best = (search(values, steps, budget) for search in (budgets._greedy, budgets._best))
    assert budget.costs(found[None])[0] <= budget.value
    assert budgets._worth(values, found[None])[0] >= 0.99 * budgets._worth(values, best[None])[0]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_with_a_price_for_each_neuron_the_greedy_choice_misses_less_than_one_neuron(seed, share):
    random = np.random.default_rng(seed)
    worths = [random.lognormal(size=12) for _ in range(3)]
    values, steps = [budgets._held(worth) for worth in worths], [every(12)] * 3
    prices = random.uniform(1, 5, size=3)
    budget = linear(prices.sum() + share * 11 * prices.sum(), *prices)
    found, best = (search(values, steps, budget) for search in (budgets._greedy, budgets._best))
    missed = budgets._worth(values, best[None])[0] - budgets._worth(values, found[None])[0]
    assert missed <= max(worth.max() for worth in worths)


def test_many_layers_are_searched_without_enumeration():
    random = np.random.default_rng(1)
    worths = {f"l{index}": random.lognormal(size=64) for index in range(6)}
    budget = multiply_adds_of_a_chain(64, 1000, tuple(worths))(100_000.0)
    widths = widths_within(worths, {layer: every(64) for layer in worths}, budget)
    cost = budget.costs(np.array([list(widths.values())]))[0]
    assert 97_000 < cost <= 100_000


def test_a_hundred_layers_are_searched_within_little_memory():
    random = np.random.default_rng(1)
    worths = {f"l{index}": random.lognormal(size=40) for index in range(100)}
    budget = multiply_adds_of_a_chain(64, 1000, tuple(worths))(600_000.0)
    asked = []
    counted = Budget("coins", budget.value, budget.layers, lambda rows: asked.append(len(rows)) or budget.costs(rows))
    widths, peak = peak_of(lambda: widths_within(worths, {layer: every(40) for layer in worths}, counted))
    assert 597_000 < budget.costs(np.array([list(widths.values())]))[0] <= 600_000
    assert peak < 20e6
    assert sum(asked) < 20_000


def test_every_combination_is_looked_at_without_holding_them_all():
    worths = {f"l{index}": np.array([2.0, 1.0 + index]) for index in range(20)}
    budget = linear(25.0, *[1.0] * 20)
    widths, peak = peak_of(lambda: widths_within(worths, {layer: every(2) for layer in worths}, budget))
    assert list(widths.values()) == [1] * 15 + [2] * 5
    assert peak < 50e6


def test_equal_shares_of_many_layers_are_found_by_halving():
    choices = {f"l{index}": every(50 + index) for index in range(100)}
    asked = []
    budget = Budget("coins", 4000.0, tuple(choices), lambda rows: asked.append(len(rows)) or rows.sum(axis=1))
    widths = equal_shares_within(choices, budget)
    assert 3900 < sum(widths.values()) <= 4000
    assert sum(asked) < 50


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_the_search_by_looked_up_prices_finds_what_the_search_by_asking_finds(seed, share):
    random = np.random.default_rng(seed)
    steps = [np.unique([*range(2, width + 1, 2), width]) for width in random.integers(3, 30, size=5)]
    values = [budgets._held(random.lognormal(size=step[-1])) for step in steps]
    price = multiply_adds_of_a_chain(3, 7, tuple("abcde"))
    least, most = (price(0).costs(np.array([[step[end] for step in steps]]))[0] for end in (0, -1))
    budget = price(least + share * (most - least))
    prices = known_prices(steps, budget.costs)
    assert (np.argwhere(np.triu(prices.coupled)) == [[0, 1], [1, 2], [2, 3], [3, 4]]).all()
    found = budgets._searched(values, steps, budget, prices)
    assert found.tolist() == budgets._searched(values, steps, budget, AskedPrices(steps, budget.costs)).tolist()


def test_costs_of_any_other_form_are_asked_for_each_choice():
    steps, values = [every(12)] * 4, [budgets._held(np.linspace(1, 2 + index, 12)) for index in range(4)]
    slowest = Budget("latency", 20.0, tuple("abcd"), lambda rows: rows.max(axis=1) + rows.sum(axis=1) / 2)
    assert known_prices(steps, slowest.costs) is None
    found, best = (search(values, steps, slowest) for search in (budgets._greedy, budgets._best))
    assert slowest.costs(found[None])[0] <= 20
    assert budgets._worth(values, found[None])[0] >= 0.95 * budgets._worth(values, best[None])[0]


def test_a_cheaper_layer_keeps_more_of_equally_important_neurons():
    widths = widths_within({"l0": np.ones(6), "l1": np.ones(6)}, {"l0": every(6), "l1": every(6)}, linear(12, 1, 3))
    assert widths == {"l0": 6, "l1": 2}


def test_negative_importance_counts_as_none_and_what_is_left_of_the_budget_is_filled():
    worths = {"l0": np.array([-5.0, -1.0, 3.0]), "l1": np.array([1.0, -9.0])}
    choices = {"l0": every(3), "l1": every(2)}
    assert widths_within(worths, choices, linear(2, 1, 1)) == {"l0": 1, "l1": 1}
    assert widths_within(worths, choices, linear(5, 1, 1)) == {"l0": 3, "l1": 2}


def test_a_plateau_of_the_latency_is_crossed():
    steps, values = [np.arange(1, 17)] * 2, [budgets._held(np.linspace(1, 2, 16))] * 2
    stairs = Budget("latency", 2.0, ("l0", "l1"), lambda rows: np.ceil(rows / 8).sum(axis=1))
    assert budgets._greedy(values, steps, stairs).tolist() == [8, 8]


def test_an_impossible_budget_says_what_is_possible():
    sentence = r"at least 8 coins, what the narrowest widths cost \(l0 2, l1 2; the widest cost 24\), got 7."
    choices = {layer: allowed_widths(6, floor=2, ceiling=None, multiple=1) for layer in ("l0", "l1")}
    for call in (
        lambda: widths_within({"l0": np.ones(6), "l1": np.ones(6)}, choices, linear(7, 1, 3)),
        lambda: equal_shares_within(choices, linear(7, 1, 3)),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_budget_that_is_no_budget_is_impossible(value):
    with pytest.raises(ValueError, match="Expected a budget of at least 1 coins"):
        widths_within({"l0": np.ones(3)}, {"l0": every(3)}, linear(value, 1))


@given(value=st.integers(5, 40))
def test_the_largest_equal_share_within_a_budget_is_found(value):
    widths = equal_shares_within({"l0": every(8), "l1": every(5)}, linear(value, 1, 4))
    rows = [(max(1, part * 8 // 40), max(1, part * 5 // 40)) for part in range(1, 41)]  # every share of 8 and of 5
    assert tuple(widths.values()) == [row for row in rows if row[0] + 4 * row[1] <= value][-1]


@pytest.mark.parametrize(
    ("width", "floor", "ceiling", "multiple", "expected"),
    [
        (6, 1, None, 1, [1, 2, 3, 4, 5, 6]),
        (20, 1, None, 8, [8, 16, 20]),
        (16, 9, None, 8, [16]),
        (20, 1, 17, 8, [8, 16]),
        (5, 9, None, 1, [5]),
        (5, 1, None, 8, [5]),
    ],
)
def test_a_layer_may_have_multiples_within_its_bounds_or_stay_whole(width, floor, ceiling, multiple, expected):
    assert allowed_widths(width, floor=floor, ceiling=ceiling, multiple=multiple).tolist() == expected


def test_bounds_that_leave_no_width_are_refused():
    with pytest.raises(ValueError, match="between a floor of 9 and a ceiling of 15 that is a multiple of 8, got none"):
        allowed_widths(20, floor=9, ceiling=15, multiple=8)


def test_measured_times_are_interpolated_and_a_wider_layer_is_never_faster():
    times = pd.DataFrame(
        {"layer": ["a", "a", "a", "b", "b"], "width": [8, 4, 2, 1, 3], "seconds": [3.0, 1.0, 2.0, 0.0, 4.0]}
    )
    assert interpolated(times, ["a", "b"])(np.array([[2, 1], [6, 2], [9, 3]])).tolist() == [2.0, 4.5, 7.0]


def test_a_layer_without_measured_times_is_refused():
    times = pd.DataFrame({"layer": ["a"], "width": [8], "seconds": [3.0]})
    with pytest.raises(ValueError, match=r"Expected measured times of the layers \['a', 'b'\], got none of \['b'\]."):
        interpolated(times, ["a", "b"])


def test_measured_latency_rises_with_the_widths_and_serves_as_a_budget(monkeypatch):
    from pruning.evaluation.latency import Latency

    def counted(models, **_):
        return {n: Latency(1e-5 + 1e-9 * m.multiply_adds(), 0.0, 1) for n, m in models.items()}

    monkeypatch.setattr(costs, "latencies", counted)
    model = tiny(widths=(12, 10))
    fitted, misfit = measured_latency(model, batch=1, repeats=1, points=4)
    rows = np.array([[12, 10], [5, 7], [1, 1]])
    expected = [1e-5 + 1e-9 * model.resized(row.tolist()).multiply_adds() for row in rows]
    np.testing.assert_allclose(fitted(rows), expected, rtol=1e-6)
    assert misfit < 1e-6
    budget = budget_of(model, kind="latency", value=expected[1], latency=fitted)
    worths = {"lstm.0": np.ones(12), "lstm.1": np.ones(10)}
    widths = widths_within(worths, {"lstm.0": every(12), "lstm.1": every(10)}, budget)
    assert 12 <= sum(widths.values()) < 22


def test_real_latency_is_positive_and_never_falls_when_a_layer_widens():
    fitted, misfit = measured_latency(tiny(widths=(12, 10)), batch=2, repeats=10, points=3)
    rows = np.array([[1, 1], [1, 5], [6, 5], [6, 10], [12, 10]])
    assert (fitted(rows) > 0).all()
    assert (np.diff(fitted(rows)) >= 0).all()
    assert misfit >= 0


def test_an_unknown_budget_and_one_without_a_measurement_are_refused():
    with pytest.raises(ValueError, match=r"Unknown budget 'flops'; known: \['neurons', "):
        budget_of(tiny(), kind="flops", value=1)
    with pytest.raises(ValueError, match="Expected how long each choice of widths takes"):
        budget_of(tiny(), kind="latency", value=1)


class Last(nn.Module):
    """Reads the last state of a recurrent layer, which is padded to its former width."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.out(self.rnn(inputs)[1][-1])


@pytest.mark.parametrize("kind", SIZES)
def test_a_network_that_reads_a_last_state_has_costs(kind):
    model = adapt(Last(), torch.ones(4, 3, 2))
    assert size_costs(model, kind)(np.array([[3]]))[0] == getattr(size_of(model.resized([3])), kind)
