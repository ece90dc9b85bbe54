"""What a variant says of itself against what the section `prune` says, and budgets before any work."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from pruning.data.windows import Windows
from pruning.evaluation.energy import energy_of
from pruning.selection.allocation import Allocation
from tasks.common.models import read_model
from tasks.common.parameters import Unexpected, settings_of
from tasks.common.tables import read_table
from tasks.settings.choosing import Prune
from tasks.settings.parameters import checked
from tasks.stages import prune
from tests.projects import ROOT
from tests.tiny import text, tiny

SECTION = {"retain": 0.5, "rate": "adaptive", "budget": None, "floor": 8}
BUDGET = {"kind": "parameters", "value": 100.0}
FIRING = {"kind": "synaptic_operations", "value": 100.0}
QUOTA = {"rnn": 0.25, "snn": 0.75}
MIXED = {**SECTION, "rate": "fixed", "snn_ratio": 0.5, "quota": None}
QUOTED = {**MIXED, "snn_ratio": None, "quota": QUOTA}


def values(**prune):
    parameters = YAML(typ="safe").load(ROOT / "params.yaml")
    parameters["prune"] |= prune
    return parameters


@pytest.mark.parametrize(
    ("section", "variant", "expected"),
    [
        (SECTION, {"by": "fused", "retain": None}, SECTION),
        (SECTION, {"retain": 1.0}, {**SECTION, "retain": 1.0, "rate": "fixed"}),
        ({**SECTION, "rate": "fixed", "budget": BUDGET}, {"retain": 1.0}, {**SECTION, "retain": 1.0, "rate": "fixed"}),
        ({**SECTION, "rate": "fixed", "budget": BUDGET}, {"rate": "adaptive"}, SECTION),
        ({**SECTION, "rate": "fixed"}, {"budget": BUDGET}, {**SECTION, "rate": "fixed", "budget": BUDGET}),
        (SECTION, {"floor": {"lstm.0": 4}}, {**SECTION, "floor": {"lstm.0": 4}}),
        (SECTION, {"budget": BUDGET}, {**SECTION, "rate": "fixed", "budget": BUDGET}),
        (MIXED, {"retain": 1.0}, {**MIXED, "retain": 1.0, "snn_ratio": None}),
        (MIXED, {"quota": QUOTA}, QUOTED),
        (QUOTED, {"snn_ratio": 0.3}, {**MIXED, "snn_ratio": 0.3}),
        (QUOTED, {"retain": 0.3}, {**QUOTED, "retain": 0.3}),
    ],
)
def test_what_a_variant_says_of_how_many_stay_displaces_all_that_the_section_says(section, variant, expected):
    assert settings_of(section, variant) == expected


@pytest.mark.parametrize(
    ("prune", "sentence"),
    [
        ({"rate": "adaptive", "budget": BUDGET}, "Expected prune.rate: adaptive or prune.budget, got both"),
        (
            {"budget": {"kind": "flops", "value": 1}},
            "Expected prune.budget.kind in params.yaml to be one of 'neurons', ",
        ),
        (
            {"budget": {"kind": "neurons", "value": 0}},
            "Expected prune.budget.value in params.yaml to be a number above 0 and at most 1e",
        ),
        ({"budget": {"kind": "latency", "value": 0.1}}, "Expected batch, repeats and points for a budget of latency"),
        ({"budget": {"kind": "memory", "value": "1 foo"}}, "Expected bytes, a number alone or with a unit of ['B', "),
        (
            {"budget": {**BUDGET, "target": "int8"}},
            "Expected target for a budget of memory alone, got one for parameter",
        ),
        ({"budget": {**BUDGET, "batch": 1}}, "Expected kind and value alone for a budget of parameters, got more"),
        (
            {"budget": FIRING},
            "Expected windows to measure firing rates on for a budget of synaptic_operations, got none",
        ),
        (
            {"budget": {**BUDGET, "windows": 4}},
            "Expected windows for a budget of synaptic_operations or energy alone, got them for parameters",
        ),
        ({"multiple": 0}, "Expected prune.multiple in params.yaml to be a whole number from 1 to "),
        ({"rate": "adaptiv"}, "Did you mean 'adaptive'?"),
    ],
)
def test_a_wrong_budget_gets_one_sentence(prune, sentence):
    with pytest.raises(Unexpected) as raised:
        checked(values(**prune))
    assert sentence in str(raised.value)


def test_a_budget_of_memory_is_read_in_bytes_whatever_its_unit():
    found = checked(values(budget={"kind": "memory", "value": "512KiB", "target": "int8"})).prune.budget
    assert found is not None
    assert (found.value, found.target) == (524288, "int8")


def test_the_stage_meets_a_budget_of_firing_rates_in_the_model_that_it_writes(tmp_path, monkeypatch):
    model, text_read = tiny(family="lstm + snn"), Windows(text(120), first=0, batch=4, bptt=10)
    value = 0.5 * energy_of(model, list(text_read)[:2]).synaptic_operations
    asked = checked(mixed({"budget": {**FIRING, "value": value, "windows": 2}}, {})).prune.model_dump()
    scores = [
        pd.DataFrame({"layer": layer.name, "neuron": range(layer.width), "fused": np.arange(float(layer.width))})
        for layer in model.layers()
    ]
    monkeypatch.setattr(prune, "read_model", lambda _: model)
    monkeypatch.setattr(prune, "read_neurons", lambda *_: pd.concat(scores, ignore_index=True))
    monkeypatch.setattr(prune, "calibration_batches", lambda _: text_read)
    job = SimpleNamespace(
        stage=SimpleNamespace(variant="own"),
        settings_of_variant=lambda _: {**asked, "floor": 1, "multiple": 1},
        settings=lambda _: {"by": "fused"},
        input=lambda name: name,
        output=lambda name: tmp_path / name,
    )
    prune.run(job)
    smaller = read_model(tmp_path / "model")
    assert 0 < energy_of(smaller.double(), list(text_read)[:2]).synaptic_operations <= value
    assert sum(smaller.widths()) == read_table(tmp_path / "retention")["kept"].sum() < sum(model.widths())


def test_a_budget_in_parameters_is_read_with_its_bounds_for_each_layer():
    parameters = checked(values(budget={"kind": "multiply_adds", "value": 500000}, floor={"lstm.0": 8}, ceiling=96))
    assert parameters.prune.budget is not None
    assert parameters.prune.budget.value == 500000
    assert parameters.prune.floor == {"lstm.0": 8}
    assert parameters.prune.ceiling == 96


@pytest.mark.parametrize(
    ("prune", "variant", "sentence"),
    [
        ({"snn_ratio": 0.5, "budget": BUDGET}, {}, "Expected prune.snn_ratio or prune.budget, got both"),
        ({"snn_ratio": 0.5, "rate": "adaptive"}, {}, "Expected prune.snn_ratio or prune.rate: adaptive, got both"),
        ({}, {"snn_ratio": 0.5, "quota": QUOTA}, "Expected variants.own.snn_ratio or variants.own.quota, got both"),
        (
            {},
            {"quota": {"rnn": 0.5, "snn": 0.25}},
            "Expected the shares of variants.own.quota to sum to 1,",
        ),
        ({"quota": {"rnn": 0.5, "ann": 0.5}}, {}, "ann"),
        (
            {"snn_ratio": 1.5},
            {},
            "Expected prune.snn_ratio in params.yaml to be a number from 0 to 1, or null, got 1.5.",
        ),
    ],
)
def test_kinds_of_neurons_that_contradict_each_other_get_one_sentence(prune, variant, sentence):
    with pytest.raises(Unexpected) as raised:
        checked(mixed(prune, variant))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_setting_of_the_section_is_one_of_the_library_but_what_the_stage_makes_of_it():
    assert set(Prune.model_fields) - {"tied"} == {field.name for field in fields(Allocation)}


def test_a_variant_says_by_what_a_layer_without_numbers_is_ranked():
    parameters = values()
    parameters["variants"]["surgeon"] |= {"otherwise": "hessian"}
    found = checked(parameters)
    assert (found.prune.otherwise, found.variants["surgeon"].otherwise) == (None, "hessian")
    own = settings_of(found.prune.model_dump(), found.variants["surgeon"].model_dump())
    assert (own["otherwise"], own["retain"]) == ("hessian", 0.5)
    parameters["variants"]["surgeon"] |= {"otherwise": "hesian"}
    with pytest.raises(Unexpected, match=r"variants\.surgeon\.otherwise.*Did you mean 'hessian'\?"):
        checked(parameters)


def test_kinds_of_neurons_are_refused_for_a_family_that_has_one_kind():
    with pytest.raises(Unexpected, match=r"Expected train\.family: mixed for prune\.snn_ratio, got lstm"):
        checked(values(snn_ratio=0.5))


def test_a_mixed_model_takes_a_ratio_and_a_dense_control_beside_it():
    parameters = checked(mixed({"snn_ratio": 0.25}, {"quota": QUOTA, "budget": BUDGET}))
    assert parameters.prune.snn_ratio == 0.25
    assert parameters.variants["own"].quota == QUOTA


def mixed(prune, variant):
    """Return parameters of a mixed model with a variant `own`."""
    parameters = values(**prune)
    parameters["train"] |= {"family": "mixed"}
    parameters["variants"] |= {"own": {"by": "fused", **variant}}
    return parameters
