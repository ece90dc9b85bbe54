"""Whose the results of an operation are, as a probe tells it, beside what the operation says of itself."""

import pytest
import torch

from pruning.discovery.probing import owners
from tests.foreign import floats

NUMBERS = torch.arange(1, 13).view(3, 4)
aten = torch.ops.aten


def told(operation, *arguments, places=NUMBERS):
    given = [places if index == 0 else None for index in range(len(arguments))]
    return owners(operation, (arguments, {}), given, operation(*arguments))


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [(aten.flip, ([1],)), (aten.roll, ([1], [0])), (aten.t, ()), (aten.gather, (1, torch.tensor([[3, 0], [1, 1]])))],
)
def test_what_moves_elements_moves_whose_they_are(operation, arguments):
    ((found,),) = told(operation, floats(3, 4), *arguments).owners
    assert torch.equal(found, operation(NUMBERS, *arguments))


def test_what_bends_each_element_leaves_it_whose_it_is_and_others_nobodys():
    places = NUMBERS * (NUMBERS % 3 > 0)
    probe = told(aten.logit, floats(3, 4).sigmoid(), places=places)
    assert torch.equal(probe.owners[0][0], places)
    assert probe.mixed == []


def test_what_depends_on_several_belongs_to_none_of_them_and_says_so():
    probe = told(aten.cumsum, floats(3, 4), 1)
    assert torch.equal(probe.owners[0][0], NUMBERS * torch.tensor([1, 0, 0, 0]))
    assert [torch.equal(mixed, NUMBERS) for mixed in probe.mixed] == [True]


def test_one_neuron_over_many_elements_is_one():
    probe = told(aten.cumsum, floats(3, 4), 1, places=torch.tensor([[1], [2], [3]]).expand(3, 4))
    assert torch.equal(probe.owners[0][0], torch.tensor([[1], [2], [3]]).expand(3, 4))
    assert probe.mixed == []


def test_results_whose_number_depends_on_the_values_cannot_be_told():
    assert told(aten.nonzero, floats(3, 4).relu()) is None


def test_a_threshold_hides_no_neuron_whichever_side_of_it_its_number_is():
    potentials = torch.linspace(-3, 3, 40).view(1, 40)
    places = torch.arange(1, 41).view(1, 40)
    told = owners(lambda x: (x >= 0.2).float(), ((potentials,), {}), [places], (potentials >= 0.2).float())
    assert told is not None
    assert torch.equal(told.owners[0][0], places)
    assert not told.mixed


def test_what_draws_draws_the_same_for_every_probe_and_no_other_device_is_seeded(monkeypatch):
    def every_device(_):
        raise AssertionError("devices were seeded that no tensor lives on")

    monkeypatch.setattr(torch, "manual_seed", every_device)
    numbers = floats(3, 4)
    before = torch.get_rng_state()
    probe = owners(lambda x: x + torch.rand(3, 4), ((numbers,), {}), [NUMBERS], numbers)
    assert torch.equal(probe.owners[0][0], NUMBERS)
    assert probe.mixed == []
    assert torch.equal(torch.get_rng_state(), before)
