"""The front against looking at every pair of models."""

import numpy as np
import pytest

from pruning.evaluation.front import on_front


@pytest.mark.parametrize("seed", range(20))
def test_a_model_is_on_the_front_if_no_other_costs_no_more_and_loses_no_more_and_one_of_both_less(seed: int) -> None:
    chance = np.random.default_rng(seed)
    costs, losses = chance.integers(0, 6, (2, 12)).astype(float)
    pairs = list(zip(costs, losses, strict=True))
    expected = [not any(c <= cost and p <= loss and (c, p) != (cost, loss) for c, p in pairs) for cost, loss in pairs]
    assert on_front(costs, losses).tolist() == expected


def test_no_model_has_no_front() -> None:
    assert on_front(np.empty(0), np.empty(0)).tolist() == []
