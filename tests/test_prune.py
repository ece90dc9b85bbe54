"""What a variant says of itself against what the section `prune` says, and budgets before any work."""

import pytest
from ruamel.yaml import YAML

from tasks.common.parameters import Unexpected, checked, settings_of
from tests.projects import ROOT

SECTION = {"retain": 0.5, "rate": "adaptive", "budget": None, "floor": 8}
BUDGET = {"kind": "parameters", "value": 100.0}


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
    ],
)
def test_what_a_variant_says_of_how_many_stay_displaces_all_that_the_section_says(section, variant, expected):
    assert settings_of(section, variant) == expected


@pytest.mark.parametrize(
    ("prune", "sentence"),
    [
        ({"rate": "adaptive", "budget": BUDGET}, "Expected prune.rate: adaptive or prune.budget, got both"),
        ({"budget": {"kind": "flops", "value": 1}}, "Expected prune.budget.kind in params.yaml to be 'neurons', "),
        (
            {"budget": {"kind": "neurons", "value": 0}},
            "Expected prune.budget.value in params.yaml to be greater than 0",
        ),
        ({"budget": {"kind": "latency", "value": 0.1}}, "Expected batch, repeats and points for a budget of latency"),
        ({"budget": {**BUDGET, "batch": 1}}, "Expected kind and value alone for a budget of parameters, got more"),
        ({"multiple": 0}, "Expected prune.multiple in params.yaml to be greater than or equal to 1, got 0."),
        ({"rate": "adaptiv"}, "Did you mean 'adaptive'?"),
    ],
)
def test_a_wrong_budget_gets_one_sentence(prune, sentence):
    with pytest.raises(Unexpected) as raised:
        checked(values(**prune))
    assert sentence in str(raised.value)


def test_a_budget_in_parameters_is_read_with_its_bounds_for_each_layer():
    parameters = checked(values(budget={"kind": "multiply_adds", "value": 500000}, floor={"lstm.0": 8}, ceiling=96))
    assert parameters.prune.budget is not None
    assert parameters.prune.budget.value == 500000
    assert parameters.prune.floor == {"lstm.0": 8}
    assert parameters.prune.ceiling == 96
