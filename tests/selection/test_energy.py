"""What spiking neurons cost by how often they fire against counting, and budgets of it as measured."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import pruning
from pruning.core.neurons import gather, named_tensors, select
from pruning.core.options import FIRING
from pruning.data.windows import Windows
from pruning.evaluation.energy import energy_of, firing_rates
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import budget_of, widths_within
from pruning.selection.retention import keep_of, retention
from pruning.selection.spending import met
from tests.tiny import text, tiny

SPIKING = ["snn", "feed-forward snn", "lstm + snn", "relu + feed-forward snn"]
WINDOWS = Windows(text(200), first=0, batch=4, bptt=10)
WIDTHS = (7, 9, 8)


class Cut(NamedTuple):
    model: torch.nn.Module
    keep: dict[str, torch.Tensor]


def spiking_model(family, decoder="untied"):
    return tiny(decoder, widths=WIDTHS, family=family).decoupled()


def counted(model, keep, kind):
    """Return what kept neurons cost by the rates of the whole model: one neuron, and one matrix, at a time."""
    smaller, layers = select(model, keep), {layer.name: layer for layer in model.layers()}
    spiking = [layer for layer in smaller.layers() if layer.kind == "snn"]
    rates = firing_rates(model, [layers[layer.name] for layer in spiking], WINDOWS)
    tensors, operations, read = named_tensors(smaller), 0.0, 0
    for layer in spiking:
        for neuron in keep[layer.name].tolist():
            readers = gather(layer.read, tensors).shape[1]
            operations += rates[layer.name][neuron].item() * readers
            read += readers
    return operations if kind == "synaptic_operations" else 4.6 * (smaller.multiply_adds() - read) + 0.9 * operations


@pytest.mark.parametrize("kind", FIRING)
@pytest.mark.parametrize(("family", "decoder"), [*((one, "untied") for one in SPIKING), ("lstm + snn", "projected")])
def test_widths_in_an_order_cost_what_counting_one_neuron_after_the_other_gives(family, decoder, kind):
    model = spiking_model(family, decoder)
    budget, random = budget_of(model, kind=kind, value=1, data=WINDOWS), np.random.default_rng(0)
    order = {layer.name: random.permutation(layer.width) for layer in model.layers()}
    costs = budget.spikes.costs(order)
    for row in random.integers(1, [layer.width + 1 for layer in model.layers()], size=(4, len(model.layers()))):
        keep = {name: torch.tensor(np.sort(order[name][:width])) for name, width in zip(order, row, strict=True)}
        assert costs(row[None])[0] == pytest.approx(counted(model, keep, kind), rel=1e-12)


@pytest.mark.parametrize("kind", FIRING)
@pytest.mark.parametrize("family", SPIKING)
def test_all_neurons_cost_what_is_measured(family, kind):
    model = spiking_model(family)
    budget = budget_of(model, kind=kind, value=1, data=WINDOWS)
    assert budget.costs(np.array([model.widths()]))[0] == pytest.approx(getattr(energy_of(model, WINDOWS), kind))


def importance_of(model, seed=0):
    random = np.random.default_rng(seed)
    parts = [
        pd.DataFrame({"layer": layer.name, "neuron": range(layer.width), "score": random.lognormal(size=layer.width)})
        for layer in model.layers()
    ]
    return pd.concat(parts, ignore_index=True)


def cut(model, budget, *, scope="global", **more):
    allocation = Allocation(retain=1.0, floor=1, scope=scope, budget=budget, **more)
    kinds = {layer.name: layer.kind for layer in model.layers()}
    table = retention(importance_of(model), allocation, variant="spiking", by="score", kinds=kinds)
    keep = keep_of(table)
    return Cut(select(model, keep), keep)


@pytest.mark.parametrize("kind", FIRING)
@pytest.mark.parametrize(("family", "scope"), [("snn", "layer"), ("snn", "global"), ("lstm + snn", "absolute")])
def test_a_pruned_network_spends_no_more_than_its_budget_as_measured(family, scope, kind):
    model = spiking_model(family)
    least = float(budget_of(model, kind=kind, value=1, data=WINDOWS).costs(np.ones((1, len(model.layers())), int))[0])
    value = least + 0.5 * (getattr(energy_of(model, WINDOWS), kind) - least)
    budget = budget_of(model, kind=kind, value=value, data=WINDOWS)
    smaller = met(lambda asked: cut(model, asked, scope=scope), budget, WINDOWS)
    assert getattr(energy_of(smaller.model, WINDOWS), kind) <= value
    assert sum(smaller.model.widths()) < sum(model.widths())


def test_a_quota_of_kinds_is_met_within_a_budget_too():
    model = spiking_model("lstm + snn")
    value = 0.5 * energy_of(model, WINDOWS).energy
    budget = budget_of(model, kind="energy", value=value, data=WINDOWS)
    smaller = met(lambda asked: cut(model, asked, quota={"rnn": 0.5, "snn": 0.5}), budget, WINDOWS)
    assert energy_of(smaller.model, WINDOWS).energy <= value


def test_of_equally_important_neurons_those_that_fire_most_leave_first():
    model = spiking_model("feed-forward snn")
    budget = budget_of(model, kind="synaptic_operations", value=1, data=WINDOWS)
    worths = {layer.name: np.ones(layer.width) for layer in model.layers()}
    order = budget.ordered(worths).order
    for name, rates in budget.spikes.rates.items():
        assert (np.diff(rates[order[name]]) >= 0).all()


def test_what_is_worth_less_than_nothing_leaves_first_whatever_it_costs():
    model = spiking_model("snn")
    budget = budget_of(model, kind="energy", value=1, data=WINDOWS)
    worths = {layer.name: np.where(np.arange(layer.width) == 2, -1.0, 1.0) for layer in model.layers()}
    assert all(order[-1] == 2 for order in budget.ordered(worths).order.values())


def test_more_importance_stays_than_by_importance_alone_within_the_same_budget():
    model = spiking_model("snn")
    value = 0.4 * energy_of(model, WINDOWS).synaptic_operations
    budget = budget_of(model, kind="synaptic_operations", value=value, data=WINDOWS)
    worths = {str(name): rows["score"].to_numpy() for name, rows in importance_of(model).groupby("layer")}
    by_importance = {name: np.argsort(-worth) for name, worth in worths.items()}

    def held(limited):
        choices = {name: np.arange(1, len(worth) + 1) for name, worth in worths.items()}
        widths = widths_within(worths, choices, limited)
        return sum(worths[name][limited.order[name][:width]].sum() for name, width in widths.items())

    plain = replace(budget, order=by_importance, costs=budget.spikes.costs(by_importance))
    assert held(budget.ordered(worths)) > held(plain)


def test_a_network_that_fires_more_once_it_is_smaller_is_made_smaller_still():
    model = spiking_model("snn")
    value, asked = 0.6 * energy_of(model, WINDOWS).energy, []
    budget = budget_of(model, kind="energy", value=value, data=WINDOWS)

    def made(smaller):
        asked.append(smaller.value)
        found = cut(model, smaller)
        for layer in found.model.layers():  # as if it fired all the time
            torch.nn.init.constant_(found.model.get_submodule(layer.name).threshold, -100.0)
        return found

    assert energy_of(met(made, budget, WINDOWS).model, WINDOWS).energy <= value
    assert asked[0] == value
    assert len(asked) > 1
    assert asked == sorted(asked, reverse=True)


def test_a_budget_that_no_smaller_network_meets_says_what_was_measured():
    model = spiking_model("snn")
    budget = budget_of(model, kind="energy", value=1, data=WINDOWS)
    worths = {str(name): rows["score"].to_numpy() for name, rows in importance_of(model).groupby("layer")}
    worths = {name: worth / worth.mean() for name, worth in worths.items()}
    budget = replace(budget, value=1.01 * float(budget.ordered(worths).costs(np.ones((1, 3), int))[0]))

    def made(asked):
        found = cut(model, asked)
        for layer in found.model.layers():
            torch.nn.init.constant_(found.model.get_submodule(layer.name).threshold, -100.0)
        return found

    with pytest.raises(
        ValueError, match=r"Expected a budget of at least .* energy, what the smallest network that was"
    ):
        met(made, budget, WINDOWS)


@pytest.mark.parametrize("kind", FIRING)
def test_a_network_without_spiking_neurons_is_refused_with_what_to_ask_instead(kind):
    with pytest.raises(
        ValueError, match=r"Expected layers of spiking neurons for a budget of .*\['rnn'\].*multiply_adds"
    ):
        budget_of(tiny(), kind=kind, value=1000, data=WINDOWS)


@pytest.mark.parametrize("kind", FIRING)
def test_firing_rates_need_text(kind):
    with pytest.raises(ValueError, match=r"Expected text to measure firing rates on for a budget of .*; give `data`"):
        budget_of(spiking_model("snn"), kind=kind, value=1000)


def test_an_impossible_budget_says_what_the_narrowest_widths_cost():
    model = spiking_model("snn")
    with pytest.raises(ValueError, match=r"Expected a budget of at least .* energy, what the narrowest widths cost"):
        cut(model, budget_of(model, kind="energy", value=1, data=WINDOWS))


def test_the_front_door_meets_a_budget_after_the_repair():
    model = spiking_model("lstm + snn")
    measured = pruning.importance(model, WINDOWS, signals=["weights"], batches=3)
    value = 0.6 * energy_of(model, WINDOWS).synaptic_operations
    asked = {"kind": "synaptic_operations", "value": value}
    smaller = pruning.prune(model, measured, budget=asked, scope="global", data=WINDOWS)
    assert energy_of(smaller, WINDOWS).synaptic_operations <= value
