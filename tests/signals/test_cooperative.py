"""The cooperative signal against plain loops over neurons."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.core import statistics
from pruning.core.neurons import NeuronLayer, Slice
from pruning.core.sketches import Sketch
from pruning.core.statistics import Covariance
from pruning.data.windows import Windows
from pruning.signals.activations import activations
from pruning.signals.cooperative import _clustering, _shared, _strong, components_of, cooperative, recurrent_coupling
from pruning.signals.schemas import COOPERATIVE
from tests.tiny import tensors_of, text, tiny, twin_of, weighted_by_hand


@pytest.fixture(scope="module", params=["lstm", "gru", "tanh", "snn", "feed-forward snn"])
def model(request):
    return tiny(widths=(8, 7), family=request.param, spread=0.6)


@pytest.fixture(scope="module")
def calibration():
    return Windows(text(600), first=0, batch=4, bptt=15)


@pytest.fixture(scope="module")
def states(model, calibration):
    """Layer → outputs (samples, width) of the unrolled twin."""
    twin = twin_of(model)
    for window in calibration:
        twin(window.tokens)
    return [torch.cat(outputs).numpy() for outputs in twin.hidden]


def edges_by_hand(values, recurrent):
    """Return the weight of each edge by loops over pairs of neurons and gates."""
    width = values.shape[1]
    coupling = np.zeros((width, width))
    for i in range(width):
        for j in range(width):
            both = [
                recurrent[gate * width + a, b] for gate in range(len(recurrent) // width) for a, b in ((i, j), (j, i))
            ]
            coupling[i, j] = np.sqrt(sum(w * w for w in both))
    large = np.quantile([coupling[i, j] for i in range(width) for j in range(width) if i != j], 0.95)
    edges = np.zeros((width, width))
    for i in range(width):
        for j in range(width):
            if i != j:
                constant = 0 in (np.ptp(values[:, i]), np.ptp(values[:, j]))
                correlation = 0 if constant else np.corrcoef(values[:, i], values[:, j])[0, 1]
                wired = min(coupling[i, j] / large, 1) if large else abs(correlation)
                edges[i, j] = (wired + abs(correlation)) / 2
    return edges


def uniqueness_by_hand(values, neuron):
    """Return 1 − R² of one neuron regressed on the others by least squares."""
    centred = values - values.mean(0)
    others = np.delete(centred, neuron, axis=1)
    wanted = centred[:, neuron]
    if not wanted.any():
        return 0.0
    rest = wanted - others @ np.linalg.lstsq(others, wanted, rcond=None)[0]
    return (rest @ rest) / (wanted @ wanted)


def clustering_by_hand(edges, strong, neuron):
    """Return Barrat's weighted clustering coefficient by a triple loop."""
    partners = [other for other in range(len(edges)) if strong[neuron, other]]
    if len(partners) < 2:
        return 0.0
    closed = sum(
        (edges[neuron, one] + edges[neuron, two]) / 2
        for one in partners
        for two in partners
        if one != two and strong[one, two]
    )
    return closed / (sum(edges[neuron, other] for other in partners) * (len(partners) - 1))


def components_by_hand(edges, values, quantile):
    width = len(edges)
    pairs = [edges[i, j] for i in range(width) for j in range(i + 1, width)]
    strong = edges > np.quantile(pairs, quantile)
    return {
        "connection_strength": [sum(edges[i]) / (width - 1) for i in range(width)],
        "uniqueness": [uniqueness_by_hand(values, i) for i in range(width)],
        "degree_centrality": [sum(strong[i]) / (width - 1) for i in range(width)],
        "cooperative_ability": [clustering_by_hand(edges, strong, i) for i in range(width)],
    }


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("quantile", [0.33, 0.61])
def test_components_and_importance_equal_loops_over_neurons(model, calibration, states, index, quantile):
    _, covariances = activations(model, calibration, activation_samples=99, bins=8)
    table = cooperative(model, covariances, strong=quantile)
    layer = model.layers()[index]
    rows = table[table["layer"] == layer.name]
    own = [tensor for name, tensor in tensors_of(model).items() if name.startswith(f"{layer.name}.weight_hh")]
    recurrent = own[0].numpy() if own else np.zeros((layer.width, layer.width))
    expected = components_by_hand(edges_by_hand(states[index], recurrent), states[index], quantile)
    assert max(expected["cooperative_ability"]) > 0
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, atol=1e-4 if name == "uniqueness" else 1e-9, err_msg=name)
    np.testing.assert_allclose(rows["importance"], weighted_by_hand(expected, COOPERATIVE.shares), atol=1e-4)
    assert (rows["samples"] == 600).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), width=st.integers(2, 12), quantile=st.floats(0, 1), places=st.integers(1, 3))
def test_edges_as_heavy_as_the_threshold_are_not_strong_and_the_rest_clusters_as_by_loops(
    seed, width, quantile, places
):
    half = np.round(np.triu(np.random.default_rng(seed).random((width, width)), 1), places)  # full of ties
    edges = half + half.T
    strong = edges > np.quantile(half[np.triu_indices(width, 1)], quantile)
    found = _strong(torch.tensor(edges), quantile)
    assert (found.numpy() == strong).all()
    expected = [clustering_by_hand(edges, strong, neuron) for neuron in range(width)]
    np.testing.assert_allclose(_clustering(torch.tensor(edges), found), expected, atol=1e-12)


def test_an_edge_is_strong_from_both_of_its_ends_even_where_they_differ_by_rounding():
    edges = torch.zeros(3, 3, dtype=torch.float64)
    edges[0, 1], edges[0, 2], edges[1, 2] = 0.5, 0.25, 0.75
    edges = edges + edges.T
    edges[1, 0] += 1e-16
    assert _strong(edges, 0.5).tolist() == [[False] * 3, [False, False, True], [False, True, False]]


def test_layers_of_more_pairs_than_a_sorted_quantile_takes_are_measured():
    values = torch.arange(2**24 + 2, dtype=torch.float32).flip(0)
    assert statistics.quantile(values, 0.5).item() == pytest.approx(2**23, rel=1e-6)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.5)


@settings(max_examples=30)
@given(values=st.lists(st.floats(-9, 9), min_size=1, max_size=9), share=st.floats(0, 1))
def test_a_quantile_is_the_one_of_a_sort_to_the_last_digit(values, share):
    tensor = torch.tensor(values, dtype=torch.float64)
    assert statistics.quantile(tensor, share) == torch.quantile(tensor, share)


def covariance_of(values):
    state = Covariance.empty(values.shape[1])
    state.update(values)
    return state


@pytest.fixture
def independent():
    return torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_copied_neuron_is_not_unique_and_an_independent_one_is(independent):
    values = torch.cat([independent, -3 * independent[:, :1]], dim=1)
    uniqueness = components_of(covariance_of(values), None, 0.5)["uniqueness"]
    assert uniqueness[[0, 4]].max() < 1e-4
    assert uniqueness[1:4].min() > 0.95


def test_a_neuron_that_never_varies_is_not_unique(independent):
    values = torch.cat([independent, torch.full((500, 1), 0.7, dtype=torch.float64)], dim=1)
    assert components_of(covariance_of(values), None, 0.5)["uniqueness"][4] == 0


def test_a_layer_that_does_not_feed_itself_is_joined_by_correlation_alone(independent):
    values = torch.stack([independent[:, 0], independent[:, 0] + independent[:, 1], independent[:, 2]], dim=1)
    found = components_of(covariance_of(values), None, 0.5)["connection_strength"]
    expected = (np.abs(np.corrcoef(values.T.numpy())) - np.eye(3)).sum(1) / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_only_a_parameter_that_a_layer_both_owns_and_reads_wires_it_to_itself():
    layer = NeuronLayer("dense", "dense", 2, (Slice("inward", dim=0),), (Slice("outward", dim=1),), "dense")
    assert recurrent_coupling(layer, {"inward": torch.ones(2, 3), "outward": torch.ones(3, 2)}) is None


@pytest.mark.parametrize(
    ("owned", "read", "shape"),
    [
        (Slice("w", 0), Slice("w", 1), (3, 3, 2, 2)),
        (Slice("w", 0), Slice("w", 1, start=5), (3, 8)),
        (Slice("w", 0, blocks=2), Slice("w", 1, start=1, length=6, size=2), (6, 9)),
        (Slice("w", 1), Slice("w", 0, blocks=2), (6, 3)),
    ],
    ids=["kernel", "beside others", "gates and places", "transposed"],
)
def test_neurons_are_wired_by_every_weight_between_them_and_no_other(owned, read, shape):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = recurrent_coupling(NeuronLayer("layer", "dense", 3, (owned,), (read, read), "layer"), {"w": weights})
    rows, columns = ({n: piece.indices(torch.tensor([n]), 3).tolist() for n in range(3)} for piece in (owned, read))
    matrix = weights.movedim((owned.dim, read.dim), (0, 1))
    for i in range(3):
        for j in range(3):
            between = [matrix[a, b] for to, at in ((i, j), (j, i)) for a in rows[to] for b in columns[at]]
            assert found[i, j] == pytest.approx(sum(w.square().sum() for w in between) ** 0.5)


@pytest.mark.parametrize("rank", [3, 20])
def test_of_few_directions_the_components_are_those_of_the_matrix_that_these_make(rank, independent):
    values = independent @ torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[:, :4] += independent.square()
    sketch = Sketch.empty(9, rank)
    sketch.update(values)
    made = Covariance(sketch.count, sketch.mean, sketch.products)
    for name, expected in components_of(made, None, 0.5).items():
        torch.testing.assert_close(components_of(sketch, None, 0.5)[name], expected, rtol=1e-6, atol=1e-9)


def test_partners_that_are_shared_are_counted_half_of_them_at_a_time_and_not_otherwise(monkeypatch):
    monkeypatch.setattr("pruning.signals.cooperative.TOGETHER", 4)
    half = torch.rand(11, 11, generator=torch.Generator().manual_seed(0)).triu(1) > 0.5
    partners = half | half.T
    assert torch.equal(_shared(partners), partners.float() @ partners.float())


def test_a_layer_of_one_neuron_has_no_edges():
    found = components_of(covariance_of(torch.tensor([[1.0], [2.0], [4.0]])), torch.ones(1, 1), 0.5)
    assert {name: values.tolist() for name, values in found.items()} == {
        "connection_strength": [0],
        "uniqueness": [pytest.approx(1, abs=1e-5)],
        "degree_centrality": [0],
        "cooperative_ability": [0],
    }


def test_every_component_differs_between_neurons_of_a_trained_model(trained, windows):
    _, covariances = activations(trained, windows, activation_samples=20, bins=8)
    table = cooperative(trained, covariances, strong=0.5)
    assert (table.groupby("layer")[list(COOPERATIVE.shares)].std() > 0).all(axis=None)
