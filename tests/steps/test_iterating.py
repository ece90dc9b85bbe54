"""Pruning in rounds against its parts, one after the other; who is left, and how much each round trains."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pruning
from pruning.core.neurons import select
from pruning.data.windows import Windows
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.steps.iterating import Rounds, prune_iteratively
from pruning.training.loop import train
from tests.tiny import bytes_of, recipe, tensors_of, text, tiny

WINDOWS = Windows(text(300), first=0, batch=3, bptt=8)
VALID = Windows(text(60, seed=1), first=0, batch=3, bptt=8)
ROUNDS = Rounds(retain=0.5, rounds=3, floor=2, calibration=4, damping=1e-4, last=0.5)
STILL = recipe(epochs=1, learning_rate=0.0, weight_decay=0.0)


def test_one_round_is_choosing_repairing_and_training_once():
    model = tiny(dtype=torch.float32)
    *_, found = prune_iteratively(
        model, WINDOWS, VALID, rounds=replace(ROUNDS, rounds=1), recipe=recipe(epochs=1), seed=3
    )
    some = list(WINDOWS)[:4]
    _, states = activations(model, some, activation_samples=4, bins=16)
    order = surgeon(states, sensitivities(model, some, batches=4, seed=3), damping=1e-4)
    allocation = Allocation(retain=7 / 13, floor=2, scope="absolute")
    keep = keep_of(retention(order, allocation, variant="once", by="importance"))
    expected = reconstruct(model, keep, states, repair="ridge")
    *_, last = train(expected, WINDOWS, VALID, recipe=recipe(epochs=1), seed=3)
    expected.load_state_dict(last.best())
    assert bytes_of(tensors_of(found.model)) == bytes_of(tensors_of(expected))
    assert found.valid_loss == last.history["valid_loss"].iloc[-1]


def test_neurons_leave_a_share_at_a_time_and_those_that_are_left_keep_their_numbers():
    model = tiny(family="snn", dtype=torch.float32)
    before, found = (
        bytes_of(tensors_of(model)),
        list(prune_iteratively(model, WINDOWS, VALID, rounds=ROUNDS, recipe=STILL, seed=1)),
    )
    assert [sum(step.model.widths()) for step in found] == ROUNDS.neurons(sum(model.widths()))
    for earlier, later in pairwise(found):
        assert all(set(later.kept[name].tolist()) <= set(earlier.kept[name].tolist()) for name in later.kept)
    for step in found:
        for name, kept in step.kept.items():  # nothing but removal touches the leak
            assert torch.equal(step.model.get_submodule(name).leak, model.get_submodule(name).leak[kept])
    assert bytes_of(tensors_of(model)) == before


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_resumed_from_anywhere_ends_with_the_bytes_of_one_that_was_not_interrupted(epochs):
    model = tiny(dtype=torch.float32, dropout=0.3)
    rounds, how = replace(ROUNDS, last=0.8), recipe(epochs=epochs)
    every = list(prune_iteratively(model, WINDOWS, VALID, rounds=rounds, recipe=how, seed=2))
    assert [state.number for state in every] == ([1, 2, 3] if epochs == 1 else [1, 2, 3, 3])
    before = torch.random.get_rng_state()
    for done, state in enumerate(every, 1):
        rest = list(prune_iteratively(model, WINDOWS, VALID, rounds=rounds, recipe=how, seed=2, resume=state))
        assert len(rest) == len(every) - done
        if rest:
            assert bytes_of(tensors_of(rest[-1].model)) == bytes_of(tensors_of(every[-1].model))
            assert rest[-1].history.equals(every[-1].history)
            assert bytes_of(rest[-1].kept) == bytes_of(every[-1].kept)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_widths_are_the_multiples_asked_for_in_every_round():
    model = tiny(dtype=torch.float32)
    rounds = replace(ROUNDS, rounds=2, multiple=3, floor={"lstm.0": 6}, ceiling={"lstm.1": 3})
    found = list(prune_iteratively(model, WINDOWS, VALID, rounds=rounds, recipe=STILL, seed=1))
    whole = dict(zip([layer.name for layer in model.layers()], model.widths(), strict=True))
    for state in found:
        assert all(len(kept) % 3 == 0 or len(kept) == whole[name] for name, kept in state.kept.items())
    assert len(found[-1].kept["lstm.0"]) >= 6
    assert len(found[-1].kept["lstm.1"]) <= 3


def test_the_history_of_all_rounds_counts_on():
    model = tiny(dtype=torch.float32)
    *_, last = prune_iteratively(model, WINDOWS, VALID, rounds=ROUNDS, recipe=recipe(epochs=2), seed=2)
    assert last.history["step"].tolist() == [*range(1, 2 * len(WINDOWS) + 1)]
    assert last.history["tokens"].is_monotonic_increasing


def test_one_round_trains_in_epochs_as_training_does():
    model = tiny(dtype=torch.float32)
    rounds, how = replace(ROUNDS, rounds=1, retain=1.0), recipe(epochs=3)
    *_, last = prune_iteratively(model, WINDOWS, VALID, rounds=rounds, recipe=how, seed=2)
    _, states = activations(model, list(WINDOWS)[:4], activation_samples=4, bins=16)
    alike = reconstruct(model, {}, states, repair="ridge")
    *_, trained = train(alike, WINDOWS, VALID, recipe=how, seed=2)
    assert last.history.equals(trained.history)


def test_batches_of_a_loader_that_shuffles_leave_the_random_state_alone_and_repeat():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))
    data = DataLoader(TensorDataset(torch.randn(48, 4), torch.arange(48) % 3), batch_size=8, shuffle=True)
    model = pruning.adapt(network, torch.randn(8, 4), loss=nn.CrossEntropyLoss())
    before = torch.random.get_rng_state()
    ends = [
        list(prune_iteratively(model, data, data, rounds=ROUNDS, recipe=recipe(epochs=1), seed=1))[-1] for _ in range(2)
    ]
    assert bytes_of(tensors_of(ends[0].model)) == bytes_of(tensors_of(ends[1].model))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_batch_there_is_nothing_to_prune_by():
    with pytest.raises(ValueError, match="Expected at least one batch of \\(inputs, targets\\), got none"):
        next(prune_iteratively(tiny(), [], [], rounds=ROUNDS, recipe=STILL, seed=1))


def test_rounds_train_as_many_steps_together_as_the_recipe_has():
    for rounds in (1, 2, 5):
        steps = replace(ROUNDS, rounds=rounds, last=0.4).steps(101)
        assert (len(steps), sum(steps)) == (rounds, 101)
        assert steps[-1] == pytest.approx(101 if rounds == 1 else 40.4, abs=1)


def test_a_network_of_ones_own_is_pruned_in_rounds_too():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(16, 4), torch.arange(16) % 3) for _ in range(6)]
    model = pruning.adapt(network, data[0][0], loss=nn.CrossEntropyLoss())
    *_, last = prune_iteratively(model, data, data, rounds=ROUNDS, recipe=recipe(epochs=1), seed=1)
    assert sum(last.model.widths()) == 9
    assert sum(network[i].out_features for i in (0, 2)) == 18


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"retain": 0.0}, r"Expected retain and last in \(0, 1\], got 0.0 and 0.5"),
        ({"last": 1.5}, r"Expected retain and last in \(0, 1\], got 0.5 and 1.5"),
        ({"rounds": 0}, "Expected at least 1 round and 2 batches to measure on, got 0 and 4"),
        ({"floor": 0}, "Expected a floor of at least 1 neuron, got 0"),
        ({"multiple": 0}, "Expected a multiple of at least 1 neuron, got 0"),
    ],
)
def test_rounds_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(ROUNDS, **changes)


def test_all_that_is_left_may_be_everything():
    model = tiny(dtype=torch.float32)
    rounds = replace(ROUNDS, retain=1.0, rounds=2)
    *_, last = prune_iteratively(model, WINDOWS, VALID, rounds=rounds, recipe=STILL, seed=1)
    assert bytes_of(tensors_of(last.model)) == bytes_of(tensors_of(select(model, {})))
