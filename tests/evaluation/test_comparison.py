"""The comparison's arithmetic and what it refuses."""

import pandas as pd
import pytest

from pruning.evaluation.comparison import compare

PERPLEXITY = {
    ("dense", "dense"): 100.0,
    ("dense", "finetuned"): 90.0,
    ("half", "pruned"): 150.0,
    ("half", "reconstructed"): 120.0,
    ("half", "finetuned"): 99.0,
    ("random", "pruned"): 200.0,
    ("random", "reconstructed"): 130.0,
    ("random", "finetuned"): 108.0,
}
NEURONS = {"dense": 40, "half": 20, "random": 20}


@pytest.fixture
def evaluation():
    rows = [
        {
            "variant": variant,
            "phase": phase,
            "split": split,
            "perplexity": perplexity * (1 if split == "test" else 7),
            "loss": perplexity / 50,
            "metrics": "{}",
            "neurons": NEURONS[variant],
            "parameters": 100 * NEURONS[variant],
            "multiply_adds": 10 * NEURONS[variant],
            "synaptic_operations": 0.5 * NEURONS[variant],
            "energy": 46.0 * NEURONS[variant],
        }
        for (variant, phase), perplexity in PERPLEXITY.items()
        for split in ("valid", "test")
    ]
    return pd.DataFrame(rows)


def test_changes_are_relative_to_the_control_in_the_same_phase_on_the_test_split(evaluation):
    table = compare(evaluation, {"random": "random", "half": "fused"}, control="dense").set_index("variant")
    assert table.loc["half"].to_dict() == {
        "importance": "fused",
        "neurons": 20,
        "retention": 0.5,
        "parameters": 2000,
        "multiply_adds": 200,
        "synaptic_operations": 10.0,
        "energy": 920.0,
        "pruned_perplexity": 150.0,
        "reconstructed_perplexity": 120.0,
        "finetuned_perplexity": 99.0,
        "pruned_loss": 3.0,
        "reconstructed_loss": 2.4,
        "finetuned_loss": 1.98,
        "metrics": "{}",
        "pruned_change": pytest.approx(0.5),
        "reconstructed_change": pytest.approx(0.2),
        "finetuned_change": pytest.approx(0.1),
    }
    assert table.loc["random", "pruned_change"] == pytest.approx(1.0)
    assert table.loc["random", "reconstructed_change"] == pytest.approx(0.3)
    assert table.loc["random", "finetuned_change"] == pytest.approx(0.2)


def test_without_a_perplexity_changes_are_those_of_the_loss_over_the_size_of_the_controls(evaluation):
    lost = evaluation.assign(perplexity=float("nan"), loss=evaluation["loss"] - 4)  # as of a likelihood of numbers
    row = compare(lost, {"half": "fused"}, control="dense").iloc[0]
    assert row[["pruned_change", "finetuned_change"]].tolist() == pytest.approx([1 / 2, 0.18 / 2.2])
    assert row[["pruned_perplexity", "finetuned_perplexity"]].isna().all()
    assert row["finetuned_loss"] == pytest.approx(1.98 - 4)


def test_the_control_compared_with_itself_has_not_changed(evaluation):
    row = compare(evaluation, {"dense": "fused"}, control="dense").iloc[0]
    assert row[["retention", "pruned_change", "reconstructed_change", "finetuned_change"]].tolist() == [1, 0, 0, 0]


def test_the_order_of_rows_and_variants_does_not_matter(evaluation):
    choices = {"half": "fused", "random": "random", "dense": "fused"}
    one = compare(evaluation, choices, control="dense")
    other = compare(evaluation[::-1], dict(reversed(choices.items())), control="dense")
    assert one.equals(other)
    assert one["variant"].tolist() == ["dense", "half", "random"]


@pytest.mark.parametrize("phase", ["pruned", "reconstructed", "finetuned"])
def test_a_variant_that_lacks_a_phase_is_refused_by_name(evaluation, phase):
    partial = evaluation[(evaluation["variant"] != "half") | (evaluation["phase"] != phase)]
    with pytest.raises(ValueError, match="Expected variant 'half' evaluated in the phases"):
        compare(partial, {"half": "fused"}, control="dense")


def test_a_control_that_was_not_evaluated_is_refused_by_name(evaluation):
    with pytest.raises(ValueError, match="Expected variant 'none' evaluated in the phases"):
        compare(evaluation, {"half": "fused"}, control="none")
