"""The order of removal against refitting by brute force, and against every subset where one removal is all."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

import pruning
from pruning.core.sketches import Sketch
from pruning.core.statistics import Covariance, merged
from pruning.repair.reconstruction import reconstruct
from pruning.signals import surgeon as module
from pruning.signals.activations import activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import OrderEvidence, removal_order, surgeon, swapped
from tests.tiny import logits_of, tiny

DAMPING = 1e-9


def matrices(width, seed):
    """Return a covariance and a Gram matrix of random directions and scales."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(width + 3, width, dtype=torch.float64, generator=generator) for _ in range(2))
    return one.T @ one / width, other.T @ other / width


def damped(covariance):
    return covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)


def loss_without(covariance, gram, removed):
    """Return ½ tr(M_PP (C_PP − C_PK C_KK⁻¹ C_KP)): what is lost once all readers are refitted on the kept."""
    removed = sorted(removed)
    kept = [neuron for neuron in range(len(covariance)) if neuron not in removed]
    left = damped(covariance)
    error = left[removed][:, removed]
    if kept:
        error = error - left[removed][:, kept] @ torch.linalg.solve(left[kept][:, kept], left[kept][:, removed])
    return 0.5 * (gram[removed][:, removed] * error).sum().item()


def order_by_hand(layers):
    """Return [(layer, neuron, cost)] of greedy removal, each candidate refitted from nothing."""
    removed, order = {name: [] for name in layers}, []
    for _ in range(sum(len(covariance) for covariance, _ in layers.values())):
        candidates = []
        for name, (covariance, gram) in layers.items():
            before = loss_without(covariance, gram, removed[name]) if removed[name] else 0.0
            left = [neuron for neuron in range(len(covariance)) if neuron not in removed[name]]
            losses = [loss_without(covariance, gram, [*removed[name], neuron]) for neuron in left]
            candidates += [(loss - before, name, neuron) for loss, neuron in zip(losses, left, strict=True)]
        cost, name, neuron = min(candidates)
        removed[name].append(neuron)
        order.append((name, neuron, cost))
    return order


@given(seed=st.integers(0, 10_000), widths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_every_removal_is_the_cheapest_of_all_layers_after_refitting(seed, widths):
    layers = {f"layer.{i}": matrices(width, seed + i) for i, width in enumerate(widths)}
    places, costs = removal_order(layers, damping=DAMPING)
    for place, (name, neuron, cost) in enumerate(order_by_hand(layers), start=1):
        assert places[name][neuron] == place
        assert costs[name][neuron].item() == pytest.approx(cost, rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 10_000))
def test_costs_add_up_to_the_loss_of_the_whole_removed_set(seed):
    covariance, gram = matrices(7, seed)
    places, costs = removal_order({"one": (covariance, gram)}, damping=DAMPING)
    order = places["one"].argsort().tolist()
    for count in range(1, 8):
        expected = loss_without(covariance, gram, order[:count])
        assert costs["one"][order[:count]].sum().item() == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 10_000))
def test_the_first_removal_is_the_best_of_all_subsets_of_one(seed):
    covariance, gram = matrices(6, seed)
    places, _ = removal_order({"one": (covariance, gram)}, damping=DAMPING)
    best = min(combinations(range(6), 1), key=lambda removed: loss_without(covariance, gram, removed))
    assert places["one"].argmin() == best[0]


def best_subset(covariance, gram, count):
    """Return the loss of the best of all subsets of `count` removed neurons."""
    subsets = combinations(range(len(covariance)), count)
    return min(loss_without(covariance, gram, removed) for removed in subsets)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_after_swaps_no_single_swap_lowers_the_loss_and_greedy_removal_is_never_better(seed, count):
    covariance, gram = matrices(7, seed)
    places, _ = removal_order({"one": (covariance, gram)}, damping=DAMPING)
    greedy = places["one"].argsort()[:count]
    removed = swapped(covariance, gram, greedy, damping=DAMPING).tolist()
    loss = loss_without(covariance, gram, removed)
    assert loss <= loss_without(covariance, gram, greedy.tolist()) * (1 + 1e-9)
    for out in removed:
        for other in set(range(7)) - set(removed):
            assert loss_without(covariance, gram, [*(set(removed) - {out}), other]) >= loss * (1 - 1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_greedy_removal_with_swaps_finds_the_best_of_all_subsets_of_small_layers(count):
    for seed in range(20):
        covariance, gram = matrices(6, seed)
        places, _ = removal_order({"one": (covariance, gram)}, damping=DAMPING)
        removed = swapped(covariance, gram, places["one"].argsort()[:count], damping=DAMPING).tolist()
        best = best_subset(covariance, gram, count)
        assert loss_without(covariance, gram, removed) == pytest.approx(best, rel=1e-6), seed


def test_a_layer_whose_outputs_never_vary_goes_first_and_costs_nothing():
    silent = torch.zeros(3, 3, dtype=torch.float64)
    layers = {"alive": matrices(4, 1), "silent": (silent, matrices(3, 2)[1])}
    places, costs = removal_order(layers, damping=1e-4)
    assert places["silent"].max() == 3
    assert costs["silent"].max() < 1e-20
    assert all(own.isfinite().all() for own in costs.values())


def test_blocks_of_updates_change_no_place(monkeypatch):
    layers = {"one": matrices(40, 1), "other": matrices(25, 2)}
    one, costs = removal_order(layers, damping=1e-6)
    monkeypatch.setattr(module, "BLOCK", 3)
    other, same = removal_order(layers, damping=1e-6)
    for name in layers:
        assert torch.equal(one[name], other[name])
        assert torch.allclose(costs[name], same[name], rtol=1e-6)


def test_a_neuron_that_others_repeat_goes_before_one_that_nobody_replaces():
    covariance = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    places, costs = removal_order({"one": (covariance, torch.eye(3, dtype=torch.float64))}, damping=1e-6)
    assert places["one"][2] > places["one"][:2].min()
    assert costs["one"][places["one"].argmin()] < 1e-5


def evidence(model, windows):
    states = activations(model, windows, activation_samples=20, bins=8)[1]
    return states, sensitivities(model, windows, batches=20, seed=1)


@pytest.mark.parametrize(("loss", "fisher"), [(nn.MSELoss(), "Gaussian"), (nn.L1Loss(), "empirical")])
def test_the_table_says_what_the_fisher_information_draws_targets_from(loss, fisher):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    batches = [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)]
    table = surgeon(*evidence(pruning.adapt(network, batches[0][0], loss=loss), batches), damping=1e-4)
    assert set(table["fisher"]) == {fisher}


def test_the_table_holds_each_place_once_and_ranks_by_it(trained, windows):
    table = surgeon(*evidence(trained, windows), damping=1e-4)
    neurons = sum(trained.widths())
    assert sorted(table["place"]) == list(range(1, neurons + 1))
    assert (table["importance"] == table["place"] / neurons).all()
    assert (table["cost"] >= 0).all()


@pytest.mark.parametrize("batches", [2, 3, 7])
def test_all_text_counts_where_covariances_and_sensitivities_have_other_numbers_of_groups(trained, windows, batches):
    """The places and costs are those of both whole texts, however each of them is cut into groups."""
    states = activations(trained, windows, activation_samples=16, bins=8)[1]
    grams = sensitivities(trained, windows, batches=batches, seed=1)
    frame = surgeon(states, grams, damping=1e-4).set_index(["layer", "neuron"])
    whole = {n: (merged(states[n]).matrix, merged(grams[n]).second_moment) for n in states}
    places, costs = removal_order(whole, damping=1e-4)
    for name, own in places.items():
        assert frame.loc[name, "place"].tolist() == own.tolist()
        assert frame.loc[name, "cost"].tolist() == pytest.approx(costs[name].tolist(), rel=1e-6)
    assert (frame["samples"] == 16 * 24).all()


def test_the_standard_error_is_zero_where_all_groups_of_text_agree():
    model = tiny(widths=(4,))
    state, gram = matrices(4, 5)

    class Same:
        count = 7
        matrix, second_moment = state, gram

        def merge(self, _):
            return self

    table = surgeon({"lstm.0": [Same()] * 4}, {"lstm.0": [Same()] * 4}, damping=1e-6)
    assert len(table) == model.widths()[0]
    assert (table["standard_error"] == 0).all()


def test_what_a_removal_is_said_to_cost_tracks_how_far_the_repaired_model_is_from_the_dense_one(trained, windows):
    states, gradients = evidence(trained, windows)
    dense, predicted, measured = logits_of(trained, windows).log_softmax(-1), [], []
    for name, groups in states.items():
        left = merged(groups).matrix
        inverse = torch.linalg.inv(left + 1e-9 * torch.eye(len(left), dtype=left.dtype))
        predicted += (0.5 * merged(gradients[name]).second_moment.diagonal() / inverse.diagonal()).tolist()
        for neuron in range(len(left)):
            keep = {name: torch.tensor([other for other in range(len(left)) if other != neuron])}
            repaired = logits_of(reconstruct(trained, keep, states, repair="ridge"), windows).log_softmax(-1)
            measured.append((dense.exp() * (dense - repaired)).sum(-1).mean().item())
    assert spearmanr(predicted, measured).statistic > 0.8


def test_leaving_removed_neurons_out_of_wide_matrices_changes_no_order(monkeypatch):
    layers = {"one": matrices(40, 1), "other": matrices(23, 2)}
    places, costs = removal_order(layers, damping=1e-4)
    monkeypatch.setattr(module, "BLOCK", 3)
    monkeypatch.setattr(module, "WIDE", 4)
    made, left_out = [], module.Columns._leave_out
    monkeypatch.setattr(module.Columns, "_leave_out", lambda self: made.append(len(self.rows)) or left_out(self))
    same, close = removal_order(layers, damping=1e-4)
    assert len(made) > 4
    assert min(made) > 4
    for name in layers:
        assert torch.equal(places[name], same[name])
        torch.testing.assert_close(costs[name], close[name], rtol=1e-9, atol=1e-12)


def few_of(matrix, directions):
    """Return a sketch of the covariance of so many directions, and an exact state of what it stands for."""
    width = len(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    rows = (values.clamp(min=0).sqrt()[:, None] * vectors.T)[-directions:]
    sketch = Sketch(2, torch.zeros(width, dtype=torch.float64), matrix.diagonal().clone(), rows, max(directions, 1))
    return sketch, Covariance(2, sketch.mean, sketch.products)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_by_sketches_that_know_all_directions_is_that_by_exact_covariances(seed):
    width = 9
    covariance, gram = matrices(width, seed)
    few, whole = (
        OrderEvidence({"a": pair}) for pair in zip(few_of(covariance, width), few_of(gram, width), strict=True)
    )
    (places, costs), (expected, wanted) = few.order(1e-4), whole.order(1e-4)
    assert torch.equal(places["a"], expected["a"])
    assert torch.allclose(costs["a"], wanted["a"], rtol=1e-6)


@pytest.mark.parametrize("directions", [0, 2, 5])
def test_by_few_directions_the_first_removals_cost_what_the_matrices_that_they_stand_for_say(directions):
    """What a removal moves of what readers have alone lies on the diagonal: later ones may cost something else."""
    covariance, gram = matrices(9, 4)
    few, whole = (
        OrderEvidence({"a": pair})
        for pair in zip(few_of(covariance, directions), few_of(gram, directions), strict=True)
    )
    (places, costs), (expected, wanted) = few.order(1e-4), whole.order(1e-4)
    first = places["a"] <= 2
    assert torch.equal(first, expected["a"] <= 2)
    assert torch.allclose(costs["a"][first], wanted["a"][first], rtol=1e-6)
    assert spearmanr(places["a"], expected["a"]).statistic > 0.8
    assert sorted(places["a"].tolist()) == list(range(1, 10))


def test_all_neurons_of_a_wide_layer_are_ordered_by_sketches_of_what_activations_and_sensitivities_saw():
    model = tiny(widths=(12, 4))
    text = pruning.Windows(torch.arange(400) % 9, first=0, batch=2, bptt=8)
    _, states = activations(model, text, activation_samples=20, bins=8, rank=3)
    moments = sensitivities(model, text, batches=20, seed=1, rank=3)
    kinds = {name: {type(group) for group in groups} for name, groups in states.items()}
    assert list(kinds.values()) == [{Sketch}, {Covariance}]
    assert {name: {type(group) for group in groups} for name, groups in moments.items()} == kinds
    order = surgeon(states, moments, damping=1e-4)
    assert sorted(order["place"]) == list(range(1, 17))
    assert (order["cost"] >= 0).all()
