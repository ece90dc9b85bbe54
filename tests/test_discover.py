"""Any PyTorch model: what is found in it, the three properties of what is found, and what is refused."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pruning
from pruning.discovery import Discovered
from pruning.layers import gather, named_tensors, select, silence
from pruning.record import record
from tests.foreign import FOREIGN, made
from tests.models import bytes_of, tensors_of

every_model = pytest.mark.parametrize("name", FOREIGN)
every_seed = pytest.mark.parametrize("seed", [1, 2])


@cache
def found(name: str) -> tuple[Discovered, Any]:
    model, inputs = made(name)
    return pruning.discover(model, inputs), inputs


def shuffled(width: int, seed: int) -> Tensor:
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed))


def subset(width: int, seed: int) -> Tensor:
    """Return some neurons in any order: unequal numbers of them for unequal seeds, all or one included."""
    kept = torch.randint(1, width + 1, (), generator=torch.Generator().manual_seed(seed))
    return shuffled(width, seed)[:kept]


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return all tensors that a model gives."""
    with torch.no_grad():
        given_back = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return [leaf for leaf in pytree.tree_leaves(given_back) if isinstance(leaf, Tensor)]


def answer(model: nn.Module, inputs: Any) -> Tensor:
    """Return the first tensor that a model gives, which is no state."""
    return answers(model, inputs)[0]


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert one.isfinite().all()
    assert one.std() > 1e-3
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * other.abs().max().item())


@every_model
def test_the_discovered_model_answers_and_carries_state_as_the_users_own(name):
    model, inputs = made(name)
    for one, other in zip(answers(found(name)[0], inputs), answers(model, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@every_model
@every_seed
def test_relabelling_neurons_changes_no_output(name, seed):
    model, inputs = found(name)
    orders = {layer.name: shuffled(layer.width, seed) for layer in model.layers()}
    assert_equal(answer(select(model, orders), inputs), answer(model, inputs))


@every_model
@every_seed
def test_removing_neurons_equals_masking_them(name, seed):
    model, inputs = found(name)
    keep = {layer.name: subset(layer.width, seed + place) for place, layer in enumerate(model.layers())}
    smaller = select(model, keep)
    assert [layer.width for layer in smaller.layers()] == [len(kept) for kept in keep.values()]
    torch.testing.assert_close(answer(smaller, inputs), answer(silence(model, keep), inputs), rtol=0, atol=1e-10)


@every_model
def test_keeping_all_changes_nothing(name):
    model, inputs = found(name)
    whole = select(model, {layer.name: torch.arange(layer.width) for layer in model.layers()})
    assert bytes_of(whole.state_dict()) == bytes_of(model.state_dict())
    assert torch.equal(answer(whole, inputs), answer(model, inputs))


@every_model
def test_cutting_twice_equals_cutting_once(name):
    model, inputs = found(name)
    keep = {layer.name: torch.arange(layer.width - 1, 0, -1) for layer in model.layers()}
    again = {layer.name: torch.arange((layer.width - 1) // 2 + 1) for layer in model.layers()}
    twice = select(select(model, keep), again)
    once = select(model, {layer: kept[again[layer]] for layer, kept in keep.items()})
    assert twice.layers() == once.layers()
    assert torch.equal(answer(twice, inputs), answer(once, inputs))


@every_model
def test_every_module_with_parameters_is_a_layers_or_named_with_the_reason(name):
    model, _ = found(name)
    owned = {piece.parameter.removeprefix("network.") for layer in model.layers() for piece in layer.owned}
    known = {parameter.rpartition(".")[0] or parameter for parameter in owned} | set(model.unprunable)
    for parameter, _ in model.network.named_parameters(remove_duplicate=False):
        assert (parameter.rpartition(".")[0] or parameter) in known
    assert all(model.unprunable.values())


@every_model
def test_what_is_recorded_is_what_the_readers_read(name):
    model, inputs = found(name)
    seen: dict[str, list[Tensor]] = {}
    with record(model, model.layers(), lambda layer, values: seen.setdefault(layer, []).append(values)):
        answer(model, inputs)
    for layer in model.layers():
        assert all(values.shape[1] == layer.width for values in seen[layer.name])
    keep = {layer.name: torch.arange(layer.width - 1, 0, -1) for layer in model.layers()}
    first = model.layers()[0]
    smaller, again = select(model, keep), []
    with record(smaller, smaller.layers()[:1], lambda _, values: again.append(values)):
        answer(smaller, inputs)
    assert {values.shape[1] for values in again} == {first.width - 1}


@every_model
def test_discovering_leaves_the_model_and_the_random_state_as_they_were(name):
    model, inputs = made(name)
    model.train()
    before, state = bytes_of(tensors_of(model)), torch.get_rng_state()
    names = [(key, type(module), module.training) for key, module in model.named_modules()]
    pruning.discover(model, inputs)
    assert [(key, type(module), module.training) for key, module in model.named_modules()] == names
    assert bytes_of(tensors_of(model)) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_gathered_weights_are_those_of_each_neuron_by_hand():
    model, _ = found("concatenated")
    tensors = named_tensors(model)
    right = next(layer for layer in model.layers() if layer.name == "right")
    expected = [
        tensors["network.right.weight"][2].flatten(),
        *(tensors[f"network.norm.{n}"][6:7] for n in ("weight", "bias")),
    ]
    assert torch.equal(gather(right.owned, tensors)[2], torch.cat(expected))
    assert torch.equal(gather(right.read, tensors)[2], tensors["network.wide.weight"][:, 6].flatten())
