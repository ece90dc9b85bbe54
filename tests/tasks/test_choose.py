"""Choosing on the path, against looking at every row."""

import pytest

from tasks.commands.choose import best_in, best_within, fastest_within, next_above, next_faster
from tasks.common.parameters import Unexpected

ROWS = [
    {"retain": 1.0, "valid_perplexity": 100.0, "milliseconds": 4.0},
    {"retain": 0.75, "valid_perplexity": 101.5, "milliseconds": 3.0},
    {"retain": 0.6, "valid_perplexity": 101.9, "milliseconds": 3.2},
    {"retain": 0.5, "valid_perplexity": 110.0, "milliseconds": 2.0},
]


@pytest.mark.parametrize(("percent", "retain"), [(0, 1.0), (1.6, 0.75), (2, 0.75), (10.5, 0.5), (99, 0.5)])
def test_the_fastest_of_the_good_enough_is_chosen(percent, retain):
    assert fastest_within(ROWS, ROWS[0], percent)["retain"] == retain


@pytest.mark.parametrize(("milliseconds", "retain"), [(2.0, 0.5), (3.1, 0.75), (3.5, 0.75), (9.0, 1.0)])
def test_the_best_of_the_fast_enough_is_chosen(milliseconds, retain):
    assert best_within(ROWS, milliseconds)["retain"] == retain


def test_what_nothing_on_the_path_meets_is_refused_with_what_is_possible():
    with pytest.raises(Unexpected, match=r"Expected --latency of at least 2\.000 ms, the fastest, got 1\."):
        best_within(ROWS, 1.0)
    with pytest.raises(Unexpected, match=r"Expected --within of at least 1\.50, the best on the path, got 1\."):
        fastest_within(ROWS[1:], ROWS[0], 1.0)
    with pytest.raises(Unexpected, match="got nan"):
        best_within(ROWS, float("nan"))
    with pytest.raises(Unexpected, match="got nan"):
        fastest_within(ROWS, ROWS[0], float("nan"))


@pytest.mark.parametrize(("chosen", "faster", "better"), [(0, 1, None), (1, 3, 0), (2, 1, 1), (3, None, 1)])
def test_the_next_point_is_the_best_of_the_faster_ones_and_the_fastest_of_the_better_ones(chosen, faster, better):
    rows = [{**row, "valid_perplexity": row["valid_perplexity"] + 0.5 * (row["retain"] == 0.6)} for row in ROWS]
    assert next_faster(rows, rows[chosen]) == (None if faster is None else rows[faster])
    assert next_above(rows, rows[chosen]) == (None if better is None else rows[better])


@pytest.mark.parametrize(("most", "retain"), [(59, 0.5), (60, 0.6), (99, 0.75), (100, 1.0)])
def test_the_best_of_the_small_enough_is_chosen_and_the_next_is_the_smallest_of_the_better_ones(most, retain):
    rows = [{**row, "memory": 100 * row["retain"]} for row in ROWS]
    chosen = best_in(rows, most, "int8")
    assert chosen["retain"] == retain
    better = next_above(rows, chosen, "memory")
    assert (None if better is None else better["retain"]) == {0.5: 0.6, 0.6: 0.75, 0.75: 1.0, 1.0: None}[retain]


def test_memory_that_nothing_on_the_path_fits_is_refused_with_the_least_that_does():
    rows = [{**row, "memory": 2048 * row["retain"]} for row in ROWS]
    with pytest.raises(Unexpected, match=r"--memory of at least 1 KiB \(1024 bytes\), the least on the path in int8"):
        best_in(rows, 1000, "int8")
