"""Sketches of covariances against exact ones: variances always, all of them where there are directions enough."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.core.sketches import Sketch, covariance_of, rank_of, shrunk
from pruning.core.statistics import Covariance, merged

WIDTH = 12


def samples(count, directions=WIDTH, seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return drawn(count, directions) @ drawn(directions, WIDTH) + noise * drawn(count, WIDTH) + 3


def state_of(state, values, size=7, repeats=None):
    for number, part in enumerate(values.split(size)):
        state.update(part, None if repeats is None else repeats.split(size)[number])
    return state


@pytest.mark.parametrize("what", ["products", "matrix", "second_moment", "correlation", "variance", "mean", "varies"])
@pytest.mark.parametrize(("directions", "rank"), [(3, 4), (WIDTH, WIDTH)])
def test_with_as_many_directions_as_the_data_has_all_is_as_it_is_exactly(what, directions, rank):
    values = samples(90, directions)
    sketch, exact = state_of(Sketch.empty(WIDTH, rank), values), state_of(Covariance.empty(WIDTH), values)
    one, other = getattr(sketch, what), getattr(exact, what)
    assert torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-9)
    assert torch.allclose(sketch.moments.squares, exact.moments.squares, rtol=1e-10)


@given(rank=st.integers(1, 5), cut=st.integers(0, 80), seed=st.integers(0, 5))
def test_two_halves_merged_have_the_exact_count_mean_and_variances_and_no_direction_is_off_by_much(rank, cut, seed):
    values = samples(80, seed=seed)
    halves = [state_of(Sketch.empty(WIDTH, rank), half) for half in (values[:cut], values[cut:]) if len(half)]
    sketch, exact = merged(halves), state_of(Covariance.empty(WIDTH), values)
    assert sketch.count == 80
    assert torch.allclose(sketch.mean, exact.mean)
    assert torch.allclose(sketch.variance, exact.variance)
    assert len(sketch.rows) <= 2 * rank
    missing = torch.linalg.eigvalsh(exact.products - sketch.rows.T @ sketch.rows)
    assert missing[0] > -1e-8 * missing[-1]  # nothing is said to vary together that does not
    rest = torch.linalg.eigvalsh(exact.products).sum()
    assert missing[-1] <= rest / max(rank / 5, 1) + 1e-8


def test_samples_that_count_several_times_are_so_many_samples():
    values, repeats = samples(20), torch.arange(20) % 3
    once = state_of(Sketch.empty(WIDTH, WIDTH), values, repeats=repeats)
    exact = state_of(Covariance.empty(WIDTH), values.repeat_interleave(repeats, 0))
    assert once.count == exact.count
    assert torch.allclose(once.products, exact.products)


@pytest.mark.parametrize("centred", [True, False])
def test_factors_are_those_of_the_matrix(centred):
    sketch = state_of(Sketch.empty(WIDTH, 3), samples(60))
    rows, left = sketch.factors(centred=centred)
    assert bool((left >= 0).all())
    assert torch.allclose(rows.T @ rows + torch.diag(left), sketch.matrix if centred else sketch.second_moment)


def test_a_sketch_grows_with_width_and_rank_alone_and_equal_data_give_equal_bytes():
    one, other = (state_of(Sketch.empty(WIDTH, 2), samples(500)) for _ in range(2))
    assert one.rows.shape[0] <= 4
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.squares, other.squares)


def test_many_rows_at_once_and_nothing_at_all_are_taken_in():
    whole = shrunk(samples(100, directions=3), 4)
    assert len(whole) <= 8
    assert torch.allclose(whole.T @ whole, samples(100, directions=3).T @ samples(100, directions=3))
    empty = Sketch.empty(WIDTH, 2)
    assert merged([empty, Sketch.empty(WIDTH, 2)]).count == 0
    assert float(empty.variance.sum()) == 0


def test_only_layers_more_than_twice_as_wide_as_the_rank_are_sketched():
    layers = {"narrow": [covariance_of(8, 4)], "wide": [covariance_of(9, 4)]}
    assert [type(groups[0]) for groups in layers.values()] == [Covariance, Sketch]
    assert rank_of(layers) == 4
    assert rank_of({"narrow": layers["narrow"]}) is None


@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_what_the_others_leave_unexplained_is_by_the_inverse_of_the_sketchs_own_matrix(ridge, rank, correlation):
    values = samples(90, 5, noise=0.1)
    values[:, 4] = 3.0  # never varies
    sketch = state_of(Sketch.empty(WIDTH, rank), values)
    matrix = sketch.correlation if correlation else sketch.matrix
    expected = torch.linalg.inv(matrix + ridge * matrix.diagonal().mean() * torch.eye(WIDTH)).diagonal()
    assert torch.allclose(sketch.precision(ridge, correlation=correlation), expected, rtol=1e-7)


@pytest.mark.parametrize("state", [Covariance.empty(WIDTH), Sketch.empty(WIDTH, 2)])
def test_where_nothing_varies_the_precision_is_that_of_the_ridge_alone(state):
    state.update(torch.ones(5, WIDTH))
    assert torch.allclose(state.precision(0.25), torch.full((WIDTH,), 4.0, dtype=torch.float64))
    assert torch.allclose(state.precision(0.25, correlation=True), torch.full((WIDTH,), 0.8, dtype=torch.float64))


def test_the_precision_of_a_sketch_is_known_without_a_number_for_each_pair(monkeypatch):
    sketch = state_of(Sketch.empty(WIDTH, 2), samples(90))
    monkeypatch.delattr(Sketch, "products")
    monkeypatch.delattr(Covariance, "matrix")
    monkeypatch.delattr(Covariance, "correlation")
    assert (sketch.precision(1e-4) > 0).all()
    assert (sketch.precision(1e-4, correlation=True) > 0).all()
