"""What widths cost in memory against counting the model with them, and widths within a budget of memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pruning
from pruning.evaluation.memory import memory_of, traced
from pruning.models.adapting import adapt
from pruning.selection import memory
from pruning.selection.budgets import budget_of, widths_within
from pruning.selection.memory import memory_costs
from tests.tiny import DECODERS, FAMILIES, tiny

NUMBERS = ("float32", "int8")


def networks():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    images = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
    return {
        "images": (nn.Sequential(*images, nn.Flatten(), nn.Linear(96, 5), nn.ReLU(), nn.Linear(5, 2)), (4, 3, 6, 6)),
        "attention": (
            nn.Sequential(
                nn.Linear(3, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 2)
            ),
            (4, 5, 3),
        ),
    }


def expect_counted(model, numbers):
    rows = np.random.default_rng(0).integers(1, 7, size=(6, len(model.layers())))
    expected = [memory_of(model.resized(row.tolist()), numbers=numbers).total for row in rows]
    assert memory_costs(model, numbers=numbers)(rows).tolist() == expected


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(
    ("decoder", "family"), [*((one, "lstm") for one in DECODERS), *(("untied", f) for f in FAMILIES)]
)
def test_the_memory_of_widths_is_that_of_the_model_with_them(decoder, family, numbers):
    expect_counted(tiny(decoder, family=family), numbers)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", ["images", "attention"])
def test_the_memory_of_widths_of_any_network_is_that_of_the_network_with_them(name, numbers):
    network, shape = networks()[name]
    expect_counted(adapt(network.eval(), torch.randn(*shape), loss=nn.CrossEntropyLoss()), numbers)


def test_a_network_whose_operations_depend_on_its_widths_is_refused(monkeypatch):
    def longer(model):
        trace = traced(model)
        more = model.widths()[0]
        return replace(trace, reads=trace.reads + more * [set()], gives=trace.gives + more * [set()])

    monkeypatch.setattr(memory, "traced", longer)
    with pytest.raises(ValueError, match="Expected memory with at most a product of two widths in each tensor"):
        memory_costs(tiny())


def test_a_budget_is_told_in_bytes_or_with_a_unit():
    assert budget_of(tiny(), kind="memory", value="3KiB").value == budget_of(tiny(), kind="memory", value=3072).value
    with pytest.raises(ValueError, match="Expected bytes, a number alone or with a unit"):
        budget_of(tiny(), kind="memory", value="much")


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_is_pruned_to_a_budget_of_memory_fits_it_and_leaves_no_room_for_another_neuron(share):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    data = [(torch.randn(8, 5), torch.arange(8) % 3) for _ in range(4)]
    found = pruning.discover(network, data[0][0])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss(), signals=["weights", "activations"])
    most = round(share * memory_of(importance.model, numbers="int8").total)
    how = {"kind": "memory", "value": most, "target": "int8"}
    smaller = pruning.prune(found, importance, budget=how, scope="global")
    assert memory_of(smaller, numbers="int8").total <= most
    wider = [np.array(smaller.widths()) + one for one in np.eye(2, dtype=int)]
    assert all(memory_of(smaller.resized(row.tolist()), numbers="int8").total > most for row in wider)


DEEP = 12


def test_what_is_alive_in_a_deep_model_follows_from_as_many_models_as_its_layers_number_has_bits(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "traced", lambda model: calls.append(model) or traced(model))
    expect_counted(tiny("untied", (4,) * DEEP, "tanh"), "float32")
    assert len(calls) == 2 + (DEEP - 1).bit_length()


def test_a_deep_model_is_held_to_a_budget_of_memory_by_the_operation_that_holds_most():
    model = tiny("untied", (8,) * DEEP, "tanh")
    half = memory_costs(model)(np.full((1, DEEP), 8))[0] / 2
    budget = budget_of(model, kind="memory", value=half)
    asked = replace(budget, costs=lambda widths: budget.costs(widths))  # nothing is known of these but what they say
    random = np.random.default_rng(1)
    worths = {name: random.random(8) for name in budget.layers}
    choices = {name: np.arange(1, 9) for name in budget.layers}
    held = []
    for one in (budget, asked):
        widths = widths_within(worths, choices, one)
        assert budget.costs(np.array([list(widths.values())]))[0] <= half
        held.append(sum(np.sort(worths[name])[::-1][:width].sum() for name, width in widths.items()))
    assert held[0] > 0.99 * held[1]
