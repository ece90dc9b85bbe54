"""Reliability, agreement and the weights that follow from them, against halves of data and loops over signals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from pruning.fusion.weights import adaptive, agreements, spearman, variance_reliability

shares = arrays(float, 5, elements=st.floats(0, 1, allow_subnormal=False))


@pytest.mark.parametrize("noise", [0.2, 1.0, 3.0])
def test_reliability_is_what_two_independent_measurements_correlate_by(noise):
    random = np.random.default_rng(0)
    truth = random.normal(size=20_000)
    one, other = (truth + noise * random.normal(size=20_000) for _ in range(2))
    expected = np.corrcoef(one, other)[0, 1]
    assert variance_reliability(one, np.full(20_000, noise)) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("importance", "error", "expected"),
    [
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], 1.0),
        ([0.7, 0.7, 0.7], [0.0, 0.0, 0.0], 0.0),
        ([0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0], 0.0),
        ([1.0, 2.0], [9.0, 9.0], 0.0),
        ([1.0, 3.0], [0.5, 0.5], 0.75),
        ([5.0], [0.0], 0.0),
    ],
)
def test_reliability_has_exact_answers_between_zero_and_one(importance, error, expected):
    assert variance_reliability(np.array(importance), np.array(error)) == pytest.approx(expected)


def test_agreement_is_the_correlation_with_the_mean_of_the_others():
    ranks = np.random.default_rng(1).random((30, 4))
    found = agreements(ranks, np.array([True, True, True, True]))
    for signal in range(4):
        others = [ranks[:, other] for other in range(4) if other != signal]
        assert found[signal] == pytest.approx(np.corrcoef(ranks[:, signal], sum(others) / 3)[0, 1])


def test_a_constant_signal_agrees_with_none_and_is_in_nobodys_mean():
    ranks = np.random.default_rng(1).random((30, 3))
    ranks[:, 1] = 0.5
    found = agreements(ranks, np.array([True, False, True]))
    expected = np.corrcoef(ranks[:, 0], ranks[:, 2])[0, 1]
    np.testing.assert_allclose(found, [expected, 0, expected])


@given(reliabilities=shares, agreement=arrays(float, 5, elements=st.floats(-1, 1, allow_subnormal=False)))
def test_weights_are_not_negative_and_sum_to_one(reliabilities, agreement):
    weights = adaptive(reliabilities, agreement)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("reliabilities", "agreement", "expected"),
    [
        ([1.0, 0.5, 0.0], [0.2, 0.4, 0.9], [0.5, 0.5, 0.0]),
        ([1.0, 1.0, 1.0], [0.5, -0.9, 0.5], [0.5, 0.0, 0.5]),
        ([0.6, 0.2], [-0.1, -0.1], [0.75, 0.25]),
        ([0.3], [0.0], [1.0]),
        ([0.0, 0.0], [0.0, 0.0], [0.5, 0.5]),
    ],
)
def test_the_rule_has_these_answers(reliabilities, agreement, expected):
    np.testing.assert_allclose(adaptive(np.array(reliabilities), np.array(agreement)), expected)


def test_the_rank_correlation_is_spearmans_and_zero_for_a_constant():
    one, other = np.random.default_rng(2).integers(5, size=(2, 40)).astype(float)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(one, np.ones(40)) == 0
