"""Repair against regression by hand, and where a repair can be exact."""

import numpy as np
import pytest
import torch

from pruning.core.neurons import removed_neurons, select
from pruning.core.sketches import Sketch
from pruning.core.statistics import Covariance, merged
from pruning.repair.fitting import RIDGES, best_ridge, error_of, fit_of, judging
from pruning.repair.reconstruction import REPAIRS, reconstruct
from pruning.signals.activations import activations
from tests.tiny import bytes_of, logits_of, tensors_of, tiny

KEEP = {"lstm.0": torch.tensor([0, 2, 3, 6]), "lstm.1": torch.tensor([1, 2, 5])}
KEPT, REMOVED = torch.tensor([0, 3]), torch.tensor([1, 2, 4])


def states_of(model, windows):
    return activations(model, windows, activation_samples=20, bins=8)[1]


def samples(count=200, seed=0):
    random = np.random.default_rng(seed)
    return torch.tensor(random.normal(size=(count, 2)) @ random.normal(size=(2, 5)) + random.normal(size=(count, 5)))


def state_of(values):
    state = Covariance.empty(values.shape[1])
    state.update(values)
    return state


def sketch_of(values, rank=1):
    state = Sketch.empty(values.shape[1], rank)
    for part in values.split(7):
        state.update(part)
    return state


def matrix_of(sketch):
    return Covariance(sketch.count, sketch.mean, sketch.products)


def whole_sketch_of(state):
    values, vectors = torch.linalg.eigh(state.products)
    rows = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return Sketch(state.count, state.mean, state.products.diagonal().clone(), rows, len(rows))


def test_the_fit_without_ridge_is_the_least_squares_regression_with_intercept():
    values = samples()
    fit = fit_of(state_of(values), KEPT, REMOVED, ridge=0.0)
    inputs = np.column_stack([values[:, KEPT], np.ones(len(values))])
    expected = np.linalg.lstsq(inputs, values[:, REMOVED].numpy(), rcond=None)[0].T
    np.testing.assert_allclose(fit.slopes, expected[:, :2], atol=1e-10)
    np.testing.assert_allclose(fit.intercept, expected[:, 2], atol=1e-10)


def test_the_error_of_a_fit_on_other_text_is_that_of_its_predictions():
    fit, other = fit_of(state_of(samples()), KEPT, REMOVED, ridge=1e-2), samples(90, seed=7)
    errors = other[:, REMOVED] - other[:, KEPT] @ fit.slopes.T - fit.intercept
    assert torch.allclose(error_of(fit, state_of(other), KEPT, REMOVED), errors.T @ errors / 90, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
def test_the_fit_of_few_directions_is_that_of_the_whole_matrix_which_they_stand_for(centred):
    state, other = sketch_of(samples(100)), sketch_of(samples(50, seed=7))
    few, whole = (fit_of(one, KEPT, REMOVED, ridge=1e-2, intercept=centred) for one in (state, matrix_of(state)))
    readers = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[REMOVED]
    assert torch.allclose(few.slopes, whole.slopes, atol=1e-12)
    assert torch.allclose(few.intercept, whole.intercept, atol=1e-12)
    assert torch.allclose(few.moved(readers), whole.moved(readers), atol=1e-12)
    judged = judging(readers[:, 0], KEPT, REMOVED)
    errors = judged(few, other), judged(whole, matrix_of(other))
    assert errors[0] == pytest.approx(errors[1], rel=1e-10)


def test_readers_are_refitted_by_sketches_that_know_all_directions_as_by_exact_covariances(trained, windows):
    keep = {layer.name: torch.arange(0, layer.width, 2) for layer in trained.layers()}
    exact = states_of(trained, windows)
    sketches = {name: [whole_sketch_of(group) for group in groups] for name, groups in exact.items()}
    models = [reconstruct(trained, keep, states, repair="ridge") for states in (exact, sketches)]
    for name, tensor in tensors_of(models[0]).items():
        assert torch.allclose(tensor, tensors_of(models[1])[name], atol=1e-5), name


def test_the_ridge_strength_is_the_one_with_the_smallest_error_on_held_out_text():
    groups = [state_of(samples(6, seed=seed)) for seed in range(8)]
    readers = torch.eye(5, dtype=torch.float64)
    held_out = torch.cat([samples(6, seed=seed) for seed in (3, 7)])
    fitted_on = state_of(torch.cat([samples(6, seed=seed) for seed in (0, 1, 2, 4, 5, 6)]))
    errors = {}
    for ridge in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        fit = fit_of(fitted_on, KEPT, REMOVED, ridge=ridge)
        left = held_out[:, REMOVED] - held_out[:, KEPT] @ fit.slopes.T - fit.intercept
        errors[ridge] = left.square().sum().item()
    assert best_ridge(groups, KEPT, REMOVED, readers) == min(errors, key=errors.get)


@pytest.mark.parametrize("count", [2, 3])
def test_of_fewer_than_four_groups_the_last_is_held_out(count, windows):
    groups = [state_of(samples(6, seed=seed)) for seed in range(count)]
    fitted_on, held_out = merged(groups[:-1]), groups[-1]
    errors = {r: error_of(fit_of(fitted_on, KEPT, REMOVED, ridge=r), held_out, KEPT, REMOVED) for r in RIDGES}
    readers = torch.eye(5, dtype=torch.float64)
    assert best_ridge(groups, KEPT, REMOVED, readers) == min(errors, key=lambda r: errors[r].trace())
    model = tiny()
    few = activations(model, windows, activation_samples=count, bins=8)[1]
    assert reconstruct(model, KEEP, few, repair="ridge").widths() == (4, 3)


def test_one_group_of_text_is_refused_by_the_ridge_with_what_to_do(windows):
    model = tiny()
    one = {name: [merged(groups)] for name, groups in states_of(model, windows).items()}
    with pytest.raises(ValueError, match=r"Expected at least two groups of text, to hold one out.*repair by 'mean'"):
        reconstruct(model, KEEP, one, repair="ridge")
    assert reconstruct(model, KEEP, one, repair="mean").widths() == (4, 3)


@pytest.mark.parametrize("decoder", ["untied", "projected", "tied, then projected", "tied, then untied"])
def test_a_neuron_that_repeats_others_is_removed_without_loss(decoder, windows):
    """Neuron 1 of each layer is made a copy of neuron 0: the repair gives its readers' columns to the copy."""
    model = tiny(decoder)
    tensors = tensors_of(model)
    for layer in model.layers():
        for piece in layer.owned:
            rows = piece.split(tensors[piece.parameter]).clone()
            rows[1] = rows[0]
            tensors[piece.parameter] = piece.join(rows, tensors[piece.parameter])
    model.load_state_dict(tensors)
    keep = {layer.name: torch.tensor([n for n in range(layer.width) if n != 1]) for layer in model.layers()}
    repaired = reconstruct(model, keep, states_of(model, windows), repair="ridge")
    dense = logits_of(model, windows)
    assert (logits_of(select(model, keep), windows) - dense).abs().max() > 0.1
    assert (logits_of(repaired, windows) - dense).abs().max() < 1e-3


def test_a_neuron_that_never_varies_is_removed_without_loss_by_its_mean_alone(windows):
    model = tiny(widths=(4, 3))
    tensors = tensors_of(model)
    for piece in model.layers()[1].owned:
        rows = piece.split(tensors[piece.parameter]).clone()
        rows[2] = 0
        rows[2, 2] = 0.7 if piece.parameter.endswith("bias_ih_l0") else 0  # the content gate: i, f and o stay at ½
        rows[2, 1] = -60 if piece.parameter.endswith("bias_ih_l0") else 0  # forgets at once, so that it is constant
        tensors[piece.parameter] = piece.join(rows, tensors[piece.parameter])
    model.load_state_dict(tensors)
    keep = {"lstm.1": torch.tensor([0, 1])}
    repaired = reconstruct(model, keep, states_of(model, windows), repair="mean")
    steps = logits_of(repaired, windows)[2:] - logits_of(model, windows)[2:]  # the first step reads a state of zero
    assert steps.abs().max() < 1e-2


def test_each_repair_is_nearer_to_the_dense_model_than_the_one_before(trained, windows):
    dense, states = logits_of(trained, windows).log_softmax(-1), states_of(trained, windows)
    distance = {}
    for repair in REPAIRS:
        found = logits_of(reconstruct(trained, KEEP, states, repair=repair), windows).log_softmax(-1)
        distance[repair] = (dense.exp() * (dense - found)).sum(-1).mean().item()
    assert distance["ridge"] < distance["mean"] < distance["none"]


def test_without_repair_it_is_the_plain_removal(trained, windows):
    plain, found = select(trained, KEEP), reconstruct(trained, KEEP, states_of(trained, windows), repair="none")
    assert bytes_of(tensors_of(found)) == bytes_of(tensors_of(plain))


def test_what_computes_the_kept_neurons_from_outside_is_left_alone(trained, windows):
    plain, found = select(trained, KEEP), reconstruct(trained, KEEP, states_of(trained, windows), repair="ridge")
    for name in ("encoder.weight", "lstm.0.weight_ih_l0", "lstm.0.bias_ih_l0"):
        assert torch.equal(found.state_dict()[name], plain.state_dict()[name])
    assert not torch.equal(found.state_dict()["lstm.0.weight_hh_l0"], plain.state_dict()["lstm.0.weight_hh_l0"])


def test_a_layer_that_keeps_everything_is_left_alone(trained, windows):
    keep = {"lstm.1": torch.tensor([0, 1, 2])}
    found = reconstruct(trained, keep, states_of(trained, windows), repair="ridge")
    assert not len(removed_neurons(trained.layers()[0], keep))
    assert torch.equal(found.state_dict()["lstm.0.weight_hh_l0"], trained.state_dict()["lstm.0.weight_hh_l0"])


def test_the_original_is_left_as_it_was(trained, windows):
    before = bytes_of(tensors_of(trained))
    reconstruct(trained, KEEP, states_of(trained, windows), repair="ridge")
    assert bytes_of(tensors_of(trained)) == before


def test_an_unknown_repair_and_a_wrong_choice_are_refused(trained, windows):
    states = states_of(trained, windows)
    with pytest.raises(ValueError, match=r"Unknown repair 'rigde'; known: \['none', 'mean', 'ridge'\]."):
        reconstruct(trained, KEEP, states, repair="rigde")
    with pytest.raises(ValueError, match=r"Unknown layer 'lstm\.9'"):
        reconstruct(trained, {"lstm.9": torch.tensor([0])}, states, repair="ridge")


def test_nothing_is_cast_but_what_is_solved_for(monkeypatch, windows):
    model = tiny(dtype=torch.float32)
    covariances, cast, double = states_of(model, windows), [], torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: cast.append(tensor.data_ptr()) or double(tensor))
    reconstruct(model, KEEP, covariances, repair="ridge")
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert places["decoder.weight"] in cast
    assert places["encoder.weight"] not in cast
