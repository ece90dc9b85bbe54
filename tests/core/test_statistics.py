"""Streaming statistics against numpy on everything at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.core.statistics import (
    Covariance,
    Histogram,
    Moments,
    entropy,
    inverse_diagonal,
    jackknife_error,
    merged,
)
from tests.tiny import binned_by_hand, entropy_by_hand

SIZE = 3
EDGES = torch.linspace(-2, 2, 6, dtype=torch.float64)
EMPTY = {
    "moments": lambda: Moments.empty(SIZE),
    "covariance": lambda: Covariance.empty(SIZE),
    "histogram": lambda: Histogram.empty(SIZE, EDGES),
}
every_state = pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
lengths = st.lists(st.integers(1, 9), min_size=2, max_size=6)


def batches(sizes, shift=0.0):
    random = np.random.default_rng(sum(sizes))
    return [torch.tensor(random.normal(shift, 1 + row, (size, SIZE))) for row, size in enumerate(sizes)]


def state_of(empty, parts):
    state = empty()
    for part in parts:
        assert state.update(part) is None
    return state


def tensors_in(state):
    return {name: value for name, value in vars(state).items() if isinstance(value, torch.Tensor)}


@every_state
@given(sizes=lengths, cut=st.integers(0, 6), shift=st.sampled_from([0.0, 1e3]))
def test_two_halves_merged_equal_the_whole(empty, sizes, cut, shift):
    parts = batches(sizes, shift)
    halves = state_of(empty, parts[:cut]).merge(state_of(empty, parts[cut:]))
    whole = state_of(empty, [torch.cat(parts)])
    assert getattr(halves, "count", 0) == getattr(whole, "count", 0)
    for name, expected in tensors_in(whole).items():
        torch.testing.assert_close(getattr(halves, name), expected, rtol=1e-10, atol=1e-8)


@every_state
def test_merging_changes_neither_state(empty):
    first, second = (state_of(empty, batches(sizes)) for sizes in ([4, 5], [7]))
    before = [tensor.clone() for state in (first, second) for tensor in tensors_in(state).values()]
    result = first.merge(second)
    result.update(torch.ones(2, SIZE))
    after = [tensor for state in (first, second) for tensor in tensors_in(state).values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@every_state
def test_memory_does_not_grow_with_the_number_of_batches(empty):
    few, many = (state_of(empty, batches([5] * count)) for count in (1, 100))
    sizes = [[tensor.untyped_storage().nbytes() for tensor in tensors_in(state).values()] for state in (few, many)]
    assert sizes[0] == sizes[1]
    assert vars(few).keys() == vars(many).keys()


@given(sizes=lengths)
def test_moments_and_covariance_equal_numpy(sizes):
    parts = batches(sizes, shift=5)
    everything = torch.cat(parts).numpy()
    moments, covariance = state_of(EMPTY["moments"], parts), state_of(EMPTY["covariance"], parts)
    variance = everything.var(0, ddof=1)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(moments.standard_error, np.sqrt(variance / len(everything)), rtol=1e-10)
    np.testing.assert_allclose(covariance.matrix, np.cov(everything.T), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(covariance.correlation, np.corrcoef(everything.T), rtol=1e-9, atol=1e-12)


@given(sizes=lengths)
def test_a_histogram_equals_counting_by_hand(sizes):
    parts = batches(sizes)
    everything = torch.cat(parts).numpy()
    histogram = state_of(EMPTY["histogram"], parts)
    for variable, values in enumerate(everything.T):
        counts = binned_by_hand(values, EDGES.numpy())
        assert histogram.counts[variable].tolist() == counts
        assert histogram.entropy[variable].item() == pytest.approx(entropy_by_hand(counts), abs=1e-12)
    np.testing.assert_array_equal(histogram.range, np.ptp(everything, axis=0))


def test_a_histogram_takes_an_edge_into_the_bin_below_and_what_lies_outside_into_the_outer_bins():
    histogram = Histogram.empty(1, torch.tensor([0.0, 1.0]))
    histogram.update(torch.tensor([[-9.0], [0.0], [0.5], [1.0], [9.0]]))
    assert histogram.counts.tolist() == [[2, 2, 1]]


def test_fewer_than_two_samples_have_no_variance():
    moments = Moments.empty(2)
    assert moments.variance.tolist() == moments.standard_error.tolist() == [0, 0]
    moments.update(torch.tensor([[3.0, 4.0]]))
    assert moments.variance.tolist() == [0, 0]


def test_a_variable_that_never_varies_correlates_with_nothing():
    covariance = Covariance.empty(2)
    covariance.update(torch.tensor([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]]))
    assert covariance.correlation.tolist() == [[1, 0], [0, 1]]


def test_single_precision_batches_are_summed_in_double_precision():
    moments = Moments.empty(1)
    for _ in range(2):
        moments.update(torch.tensor([[1e4], [1e4 + 1e-3]], dtype=torch.float32))
    assert moments.mean.dtype == torch.float64
    assert moments.variance.item() == pytest.approx(0.0009765625**2 / 3, rel=1e-6)


def test_entropy_of_equal_masses_is_the_logarithm_of_their_number():
    masses = torch.tensor([[1.0] * 4, [2.0, 2.0, 0.0, 0.0], [0.0] * 4], dtype=torch.float64)
    assert entropy(masses).tolist() == pytest.approx([np.log(4), np.log(2), 0])


@given(groups=st.integers(2, 8), size=st.integers(1, 5))
def test_the_jackknife_of_a_mean_is_its_closed_form(groups, size):
    parts = batches([size] * groups)
    states = [state_of(EMPTY["moments"], [part]) for part in parts]
    means = np.array([part.numpy().mean(0) for part in parts])
    error = jackknife_error(states, lambda state: state.mean)
    np.testing.assert_allclose(error, means.std(0, ddof=1) / np.sqrt(groups), rtol=1e-9)


def test_the_jackknife_refuses_a_single_group():
    with pytest.raises(ValueError, match=r"Expected at least two groups .*, got 1"):
        jackknife_error([state_of(EMPTY["moments"], batches([4]))], lambda state: state.mean)


def test_merging_many_states_equals_the_whole():
    parts = batches([3, 1, 4, 2])
    states = [state_of(EMPTY["covariance"], [part]) for part in parts]
    torch.testing.assert_close(merged(states).products, state_of(EMPTY["covariance"], parts).products)


def test_an_inverse_made_some_columns_at_a_time_has_the_diagonal_of_the_whole(monkeypatch):
    monkeypatch.setattr("pruning.core.statistics.TOGETHER", 3)
    values = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.inv(values.T @ values).diagonal()
    torch.testing.assert_close(inverse_diagonal(values.T @ values), expected, rtol=1e-12, atol=0)
