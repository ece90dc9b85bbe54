"""The weights signal against loops over neurons."""

import numpy as np
import pytest
import torch
from torch import nn

import pruning
from pruning.core.neurons import NeuronLayer, Slice
from pruning.signals.schemas import WEIGHTS
from pruning.signals.weights import components_of, weights
from tests.tiny import binned_by_hand, entropy_by_hand, tensors_of, tiny, weighted_by_hand


@pytest.fixture(params=["untied", "projected"])
def model(request):
    return tiny(request.param)


def own_of(model, index, neuron):
    """Return one neuron's weights as (its gates × inputs matrix, all of them in a row)."""
    tensors = {name: tensor.numpy() for name, tensor in tensors_of(model).items()}
    rows = [gate * model.widths()[index] + neuron for gate in range(4)]
    taken = {
        what: tensors[f"lstm.{index}.{what}_l0"][rows] for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    matrix = np.hstack([taken["weight_ih"], taken["weight_hh"]])
    return matrix, np.concatenate([matrix.ravel(), taken["bias_ih"], taken["bias_hh"]])


def components_by_hand(model, index, threshold, bins):
    neurons = range(model.widths()[index])
    layer = np.concatenate([own_of(model, index, neuron)[1] for neuron in neurons])
    size = np.sqrt(np.mean(layer**2))
    found = {name: [] for name in WEIGHTS.shares}
    for neuron in neurons:
        matrix, own = own_of(model, index, neuron)
        singular = np.linalg.svd(matrix, compute_uv=False)
        shares = singular / singular.sum()
        found["norm"].append(np.sqrt(sum(w * w for w in own)))
        found["variance"].append(np.mean((own - own.mean()) ** 2))
        found["nonzero_ratio"].append(sum(abs(w) > threshold * size for w in own) / len(own))
        found["entropy"].append(entropy_by_hand(binned_by_hand(own, np.linspace(-4, 4, bins - 1) * size)))
        found["effective_rank"].append(np.exp(-(shares * np.log(shares)).sum()))
    return found


@pytest.mark.parametrize(("threshold", "bins"), [(0.1, 8), (0.5, 32)])
def test_components_and_importance_equal_loops_over_neurons(model, threshold, bins):
    table = weights(model, threshold=threshold, bins=bins)
    for index, layer in enumerate(model.layers()):
        rows = table[table["layer"] == layer.name]
        expected = components_by_hand(model, index, threshold, bins)
        for name, values in expected.items():
            np.testing.assert_allclose(rows[name], values, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(rows["importance"], weighted_by_hand(expected, WEIGHTS.shares), atol=1e-9)


def test_weights_are_known_exactly(model):
    table = weights(model, threshold=0.1, bins=8)
    assert (table["standard_error"] == 0).all()
    assert table.groupby("layer")["samples"].unique().map(list).tolist() == [[4 * (6 + 7 + 2)], [4 * (7 + 6 + 2)]]


def test_a_layer_twice_as_large_ranks_its_neurons_alike(model):
    before = weights(model, threshold=0.1, bins=8)["importance"]
    for parameter in model.parameters():
        parameter.data *= 2
    np.testing.assert_allclose(weights(model, threshold=0.1, bins=8)["importance"], before, atol=1e-12)


def test_every_component_differs_between_neurons_of_a_trained_model(trained):
    table = weights(trained, threshold=0.1, bins=32)
    assert (table.groupby("layer")[list(WEIGHTS.shares)].std() > 0).all(axis=None)


def test_neurons_of_one_vector_have_rank_1_and_nothing_is_said_of_it(caplog):
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    model = pruning.adapt(network, torch.ones(2, 3))
    np.testing.assert_allclose(weights(model, threshold=0.1, bins=8)["effective_rank"], 1)
    assert "effective_rank" not in caplog.text


def test_matrices_of_unequal_gates_are_blocks_on_the_diagonal():
    """Three gates that read four numbers and their own four neurons, and a linear map beside them."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"inward": (12, 5), "recurrent": (12, 4), "beside": (4, 3), "bias": (4,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    owned = (Slice("inward", 0, 3), Slice("beside", 0), Slice("recurrent", 0, 3), Slice("bias", 0))
    layer = NeuronLayer("gru", "rnn", 4, owned, (), "gru")
    found = components_of(layer, tensors, threshold=0.1, bins=8)["effective_rank"]
    for neuron in range(4):
        matrix = np.zeros((4, 12))
        matrix[:3, :5], matrix[:3, 5:9] = tensors["inward"][neuron::4], tensors["recurrent"][neuron::4]
        matrix[3, 9:] = tensors["beside"][neuron]
        singular = np.linalg.svd(matrix, compute_uv=False)
        shares = singular / singular.sum()
        assert found[neuron] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
