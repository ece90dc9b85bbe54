"""What the experiment's pieces give equals what one gets by hand, and the verdict says what the figures say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import pruning
from pruning.ablation.joint_removal import joint_removal, joint_sets
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import named_tensors, select
from pruning.data.windows import Windows
from pruning.evaluation.measures import Size, loss_of
from pruning.evaluation.passes import counted
from pruning.experiment.choices import importance_of
from pruning.experiment.judging import (
    compare_pruning_results,
    of_sets,
    overlap,
    overlap_drawn,
    precision,
    progressive,
    scores_of,
    stability,
)
from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import calibrate
from pruning.experiment.runs import run_enhanced_pruning, run_traditional_pruning
from pruning.experiment.trials import (
    Losses,
    Pruning,
    Selection,
    Texts,
    Treatment,
    chosen,
    losses_of,
    prune_and_train,
    run_dense_control,
)
from pruning.experiment.variants import VARIANTS
from pruning.experiment.verdict import verdict
from pruning.fusion import learned
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.repair.imitation import Imitation
from pruning.repair.reconstruction import reconstruct
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.schemas import CRITERIA, SIGNALS
from pruning.training.loop import train
from tests.schemas import TABLES
from tests.tiny import recipe, text, tiny

EFFORT = {
    "weights": {"threshold": 0.1, "bins": 8},
    "hessian": {"probes": 8, "stability": 0.0},
    "activations": {"activation_samples": 16, "bins": 8},
    "gradients": {"batches": 8},
    "cooperative": {"strong": 0.6},
    "surgeon": {"batches": 8, "damping": 1e-4},
    "intervention": {"tokens": 48, "batches": 8, "words": 4},
    "criteria": {"batches": 8, "bins": 4, "classes": 4, "ridge": 1e-4},
}
TREATMENT = Treatment(
    scope="layer",
    floor=2,
    repair="ridge",
    imitation=Imitation(tokens=48, learning_rate=1e-3, warmup=0.1, clip=1.0),
    recipe=recipe(epochs=1),
    distillation=0.0,
)
HALF = Selection(variant="simple", retain=0.5)
PHASES = ("pruned", "reconstructed", "finetuned")


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch):
    """Let learning try two ways to fit, of two dozen, each of which takes its time."""
    monkeypatch.setattr(learned, "CANDIDATES", learned.CANDIDATES[:2])


@pytest.fixture(scope="module")
def model():
    dense = tiny("untied", widths=(12, 11), spread=0.4)
    windows = Windows(text(470), first=0, batch=4, bptt=6)
    for _ in train(dense, windows, windows, recipe=recipe(epochs=2), seed=1):
        pass
    return dense


@pytest.fixture(scope="module")
def texts():
    windows = Windows(text(470), first=0, batch=4, bptt=6)
    return Texts(calibration=windows, training=windows, judged=Windows(text(200, seed=5), first=0, batch=4, bptt=10))


@pytest.fixture(scope="module")
def calibrations(model, texts):
    return {seed: calibrate(model, texts.calibration, MEASURED, effort=EFFORT, seed=seed) for seed in (0, 1)}


@pytest.fixture(scope="module")
def removals(model):
    windows = Windows(text(300, seed=7), first=0, batch=4, bptt=6)
    return oracle(model, windows, Ablation(neurons="all", tokens=300, seed=1)), windows


def losses(*sums, tokens=10.0):
    return Losses(torch.tensor(sums, dtype=torch.float64), torch.full((len(sums),), tokens, dtype=torch.float64))


def result(variant, retain, *, pruned, reconstructed=None, finetuned=None, calibration=0, training=0, keep=(0, 1)):
    phases = {"pruned": pruned, "reconstructed": reconstructed or pruned, "finetuned": finetuned or pruned}
    size = Size(neurons=len(keep), parameters=7, multiply_adds=5)
    return Pruning(
        variant=variant,
        retain=retain,
        calibration=calibration,
        training=training,
        keep={"l": torch.tensor(keep)},
        losses=phases,
        size=size,
    )


def test_the_traditional_pruning_is_the_hessians_choice_cut_repaired_and_trained(model, texts):
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    found = run_traditional_pruning(model, texts, retain=0.5, treatment=TREATMENT, seed=3, effort=EFFORT)
    table = hessian(model, texts.calibration, **EFFORT["hessian"], seed=3)
    keep = {
        layer: torch.tensor(sorted(own.nlargest((len(own) + 1) // 2, "importance")["neuron"]))
        for layer, own in table.groupby("layer")
    }
    assert {layer: kept.tolist() for layer, kept in found.keep.items()} == {k: v.tolist() for k, v in keep.items()}
    states = calibrate(model, texts.calibration, (), effort=EFFORT, seed=3).covariances
    repaired = reconstruct(model, keep, states, repair="ridge")
    by_hand = {"pruned": select(model, keep), "reconstructed": repaired}
    for phase, other in by_hand.items():
        assert found.losses[phase].mean == pytest.approx(loss_of(other, texts.judged).mean, abs=1e-12)
    for _ in train(repaired, texts.training, texts.judged, recipe=TREATMENT.recipe, seed=3):
        pass
    assert found.losses["finetuned"].mean == pytest.approx(loss_of(repaired, texts.judged).mean, abs=1e-12)
    assert found.size.neurons == sum(map(len, keep.values()))
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(model).items())


def test_an_enhanced_pruning_measures_what_it_needs_or_takes_what_is_known(model, texts, calibrations):
    half, settings = Selection(variant="adaptive", retain=0.5), {"treatment": TREATMENT, "seed": 1}
    measured = run_enhanced_pruning(model, texts, half, **settings, effort=EFFORT)
    known = run_enhanced_pruning(model, texts, half, **settings, calibration=calibrations[1])
    assert all(torch.equal(measured.keep[layer], kept) for layer, kept in known.keep.items())
    assert all(measured.losses[phase].mean == known.losses[phase].mean for phase in PHASES)


def test_the_steps_of_the_comparison_fuse_ever_more_signals(calibrations):
    tables = calibrations[0].tables
    steps = {"weights": 1, "weights+activations": 2, "weights+activations+gradients": 3, "simple": 5}
    for variant, count in steps.items():
        signals = VARIANTS[variant].signals
        assert len(signals or SIGNALS) == count
        fused = fuse(tables, Fusing(strategy="simple", seed=0, signals=signals))["fused"]
        pd.testing.assert_series_equal(
            importance_of(calibrations[0], variant)["importance"], fused, check_names=False, check_exact=True
        )


def test_a_control_chosen_at_random_changes_with_the_seed_alone(calibrations):
    one, other = (importance_of(calibrations[seed], "random")["importance"] for seed in (0, 1))
    assert one.equals(importance_of(calibrations[0], "random")["importance"])
    assert not one.equals(other)


def test_the_dense_control_gets_the_same_extra_training(model, texts):
    found = run_dense_control(model, texts, treatment=TREATMENT, seed=1)
    assert found.losses["pruned"].mean == found.losses["reconstructed"].mean
    assert found.losses["finetuned"].mean != found.losses["pruned"].mean
    assert found.size.neurons == 23


@pytest.mark.parametrize("change", [{"repair": "imitate"}, {"repair": "none"}, {"distillation": 0.5}])
def test_repair_and_teacher_are_as_the_treatment_says(model, texts, calibrations, change):
    usual, other = (
        prune_and_train(model, texts, calibrations[0], HALF, treatment=how, seed=1)
        for how in (TREATMENT, replace(TREATMENT, **change))
    )
    assert usual.losses["pruned"].mean == other.losses["pruned"].mean
    differs = "finetuned" if "distillation" in change else "reconstructed"
    assert usual.losses[differs].mean != other.losses[differs].mean
    if change == {"repair": "none"}:
        assert other.losses["reconstructed"].mean == other.losses["pruned"].mean


def test_unknown_names_are_refused_with_the_known_ones(calibrations):
    with pytest.raises(ValueError, match=r"Unknown variant 'lerned'; known: \['random', 'traditional', .*\]."):
        Selection(retain=0.5, variant="lerned")
    with pytest.raises(ValueError, match=r"Expected measured removals \(the table `oracle`\) for fusion 'learned'"):
        chosen(calibrations[0], replace(HALF, variant="learned"), TREATMENT)


def test_losses_are_summed_over_the_columns_of_each_window(model, texts):
    found = losses_of(model, texts.judged)
    whole = loss_of(model, texts.judged)
    assert len(found.sums) == 4 * len(texts.judged)
    assert found.mean == pytest.approx(whole.mean, abs=1e-12)
    assert (found.perplexity, found.tokens.sum()) == (pytest.approx(whole.perplexity), whole.tokens)


def test_a_difference_of_losses_is_paired_on_the_same_tokens():
    ours, theirs = losses(30.0, 20.0, 25.0), losses(20.0, 15.0, 19.0)
    differences = np.array([10.0, 5.0, 6.0])
    mean = differences.sum() / 30
    error = np.sqrt(3 / 2 * ((differences - 10 * mean) ** 2).sum()) / 30
    assert ours.above(theirs) == (pytest.approx(mean), pytest.approx(error))


def test_the_progressive_table_holds_each_phase_against_dense_traditional_and_random():
    results = [
        result("dense", 1.0, pruned=losses(20.0, 20.0), finetuned=losses(18.0, 18.0), keep=(0, 1, 2, 3)),
        result("traditional", 0.5, pruned=losses(30.0, 32.0), finetuned=losses(22.0, 22.0)),
        result("simple", 0.5, pruned=losses(26.0, 26.0), finetuned=losses(23.0, 25.0)),
        result("simple", 0.5, pruned=losses(99.0, 99.0), calibration=1),
    ]
    found = progressive(results).set_index(["variant", "retain", "phase"])
    row = found.loc[("simple", 0.5, "finetuned")]
    assert row["loss"] == pytest.approx(2.4)
    assert row["perplexity"] == pytest.approx(np.exp(2.4))
    assert row["change"] == pytest.approx(np.exp(2.4 - 1.8) - 1)
    assert row["above_dense"] == pytest.approx(2.4 - 1.8)
    assert row["above_dense_error"] == row["loss_error"] == pytest.approx(np.sqrt(2 * (1.0 + 1.0)) / 20)
    assert row["above_traditional"] == pytest.approx(0.2)
    assert row["above_traditional_error"] == pytest.approx(np.sqrt(2 * (1.0 + 1.0)) / 20)
    assert np.isnan(row["above_random"])
    assert (row["neurons"], row["parameters"], row["tokens"]) == (2, 7, 20)
    assert found.loc[("simple", 0.5, "pruned"), "above_traditional"] == pytest.approx(-0.5)
    assert len(found) == 9


def test_prunings_without_their_dense_control_are_refused():
    with pytest.raises(ValueError, match="Expected the dense control of model 0 among the results, got none"):
        progressive([result("simple", 0.5, pruned=losses(1.0))])


def test_precision_is_rank_correlation_and_overlap_with_measured_removal(calibrations, removals):
    measured, _ = removals
    found = precision(calibrations[0], scores_of(calibrations[0], measured), measured, seed=1).set_index("score")
    truth = measured.set_index(["layer", "neuron"])["loss_increase"]
    for name in ("hessian", "gate_fisher", "simple"):
        table = calibrations[0].tables["criteria" if name in CRITERIA else "hessian"]
        column = name if name in CRITERIA else "importance"
        scores = importance_of(calibrations[0], name) if name == "simple" else table
        column = "importance" if name == "simple" else column
        by_hand, sets = [], []
        for layer, own in scores.groupby("layer"):
            values = own.set_index("neuron")[column]
            true = truth[layer][values.index]
            by_hand.append((spearmanr(values, true).statistic, len(own)))
            half = len(own) // 2
            sets.append((len(set(values.nlargest(half).index) & set(true.nlargest(half).index)), half))
        correlations, widths = zip(*by_hand, strict=True)
        assert found["spearman"][name] == pytest.approx(np.average(correlations, weights=widths))
        both, halves = zip(*sets, strict=True)
        assert found["overlap"][name] == pytest.approx(sum(both) / sum(halves))
    best = found["best_single"].iloc[0]
    singles = found[found["kind"] != "variant"]
    assert singles["spearman"].idxmax() == best
    assert (found["gain_low"][best], found["gain_high"][best]) == (0, 0)
    assert (found["spearman_low"] <= found["spearman_high"]).all()
    reliability = found["oracle_reliability"].iloc[0]
    for end in ("", "_low", "_high"):
        expected = found[f"spearman{end}"] / (reliability**0.5 if reliability > 0 else np.nan)
        np.testing.assert_allclose(found[f"without_noise{end}"], expected)
    assert found["held_out"].sum() == found.loc["learned", "held_out"] == 1
    assert found.loc["traditional", "spearman"] == found.loc["hessian", "spearman"]


def test_overlap_over_resampled_neurons_is_that_of_each_resample():
    random = np.random.default_rng(3)
    layers = np.array(["a"] * 6 + ["b"] * 4)
    truth, score = random.permutation(10), random.permutation(10)
    found = overlap_drawn(layers, truth, score, seed=2)
    assert len(found) == learned.BOOTSTRAPS
    drawn = np.random.default_rng(2)
    places = {
        layer: np.flatnonzero(layers == layer)[
            drawn.integers((layers == layer).sum(), size=(learned.BOOTSTRAPS, (layers == layer).sum()))
        ]
        for layer in ("a", "b")
    }
    for index in range(5):
        rows = np.concatenate([places["a"][index], places["b"][index]])
        assert found[index] == pytest.approx(overlap(layers, truth[rows], score[rows]))


def test_sets_are_ranked_by_the_sum_of_their_neurons_ranks(model, removals):
    measured, windows = removals
    sets = joint_sets(measured, sets=4, share=0.3, seed=1)
    assert {name.split()[0] for name in sets} == {"lstm.0", "lstm.1"}
    removed = joint_removal(model, windows, measured, sets=sets, tokens=200)
    frame = measured.assign(score=np.arange(len(measured))[::-1])
    increase = removed.set_index("set")["loss_increase"]
    by_hand = []
    for layer, own in frame.groupby("layer"):
        ranks = own.set_index("neuron")["score"].rank()
        names = [name for name in sets if name.startswith(str(layer))]
        sums = [ranks[sets[name][layer]].sum() for name in names]
        by_hand.append(spearmanr(sums, increase[names]).statistic)
    assert learned.within_layers(*of_sets(frame, "score", sets, removed)) == pytest.approx(np.mean(by_hand))


def test_stability_over_seeds_is_the_overlap_of_kept_sets_and_the_spread_of_perplexities():
    trained = [
        result("dense", 1.0, pruned=losses(11.0), training=1),
        result("simple", 0.5, pruned=losses(14.0), training=1),
    ]
    results = [
        result("dense", 1.0, pruned=losses(10.0)),
        result("simple", 0.9, pruned=losses(11.0)),
        *(
            result("simple", 0.5, pruned=losses(12.0 + seed), keep=keep, calibration=seed)
            for seed, keep in enumerate([(0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 5, 4)])
        ),
        *trained,
    ]
    found = stability(results, {}).set_index(["over", "score"])
    row = found.loc[("calibration", "simple")]
    perplexities = np.exp([1.2, 1.3, 1.4])
    assert (row["runs"], row["overlap"], row["overlap_low"]) == (3, pytest.approx((3 + 2 + 3) / 12), 0.5)
    assert row["pruned_perplexity"] == pytest.approx(perplexities.mean())
    assert row["pruned_spread"] == pytest.approx(perplexities.std(ddof=1))
    assert np.isnan(row["rank_correlation"])
    other = found.loc[("training", "simple")]
    assert other["finetuned_perplexity"] == pytest.approx(np.exp([1.2, 1.4]).mean())
    assert (other["runs"], np.isnan(other["overlap"])) == (2, True)
    assert found.loc[("training", "dense"), "finetuned_perplexity"] == pytest.approx(np.exp([1.0, 1.1]).mean())


def test_ranks_of_two_seeds_are_compared_for_every_signal_and_fusion(calibrations):
    found = stability(
        [result("dense", 1.0, pruned=losses(1.0))], {seed: scores_of(found) for seed, found in calibrations.items()}
    ).set_index("score")
    one, other = (calibrations[seed].tables["hessian"].groupby("layer") for seed in (0, 1))
    by_hand = [
        spearmanr(one.get_group(n)["importance"], other.get_group(n)["importance"]).statistic for n in one.groups
    ]
    assert found["rank_correlation"]["hessian"] == pytest.approx(np.average(by_hand, weights=[12, 11]))
    assert found["rank_correlation"]["weights"] == 1
    assert found["overlap"]["weights"] == 1
    assert {"simple", "adaptive", "traditional"} <= set(found.index)
    assert "learned" not in found.index


def test_the_comparison_holds_every_table_that_there_is_evidence_for(model, texts, calibrations, removals):
    settings = {"treatment": TREATMENT, "seed": 1}
    results = [run_dense_control(model, texts, treatment=TREATMENT, seed=1)]
    results += [
        prune_and_train(model, texts, calibrations[0], replace(HALF, variant=name), **settings)
        for name in ("traditional", "simple")
    ]
    assert set(pruning.compare_pruning_results(results)) == {"progressive", "stability"}
    cost = {
        "score": "hessian",
        "seconds": 1.0,
        "peak_memory": 2.0,
        "forward_passes": 3,
        "backward_passes": 6,
        "runs": 1,
    }
    tables = compare_pruning_results(results, calibrations=calibrations, oracle=removals[0], costs=[cost])
    assert set(tables) == {"progressive", "precision", "stability", "cost"} <= set(TABLES)
    assert verdict(tables)


def rows_against(above, error, *, variant="simple", shares=(0.5,), dense=0.1):
    """Return a progressive table in which a variant's loss is `above` the traditional one's, twice that at random's.

    Args:
        above: Of all phases alike, or by phase.
        error: Of every difference.
        variant: The variant.
        shares: Those that are kept.
        dense: Loss above that of dense.
    """
    base = {"neurons": 1, "parameters": 1, "multiply_adds": 1, "tokens": 9000, "change": 0.1, "loss_error": 0.05}
    rows = []
    for share in shares:
        for phase in PHASES:
            own = above[phase] if isinstance(above, dict) else above
            for name, difference in ((variant, own), ("traditional", 0.0)):
                row = {**base, "variant": name, "phase": phase, "retain": share, "loss": 2 + difference}
                row |= {"perplexity": np.exp(2 + difference), "above_dense": dense, "above_dense_error": error}
                row |= {"above_traditional": difference, "above_traditional_error": error}
                rows.append({**row, "above_random": 2 * difference, "above_random_error": error})
    return pd.DataFrame(rows)


def test_the_verdict_is_one_sentence_on_each_question_each_figure_with_its_error():
    said = verdict({"progressive": rows_against(-0.1, 0.01, shares=(0.75, 0.5))})
    assert said == [
        "Once fine-tuned, `simple` is best: below `traditional` at 2 of 2 shares, by up to 9.5 ± 0.9% of perplexity, "
        "at 75% of the neurons.",
        "At 50%, choosing by `simple` and not at random changes perplexity by -18.1 ± 0.8% after removal, "
        "-18.1 ± 0.8% after repair and -18.1 ± 0.8% after fine-tuning.",
        "All signals fused (`simple`) beside `traditional`, of 2 shares: after removal 2 lower; after repair 2 lower; "
        "after fine-tuning 2 lower.",
        "Beside the dense model, perplexity with `simple`, once fine-tuned, is +11 ± 1% at 75% and +11 ± 1% at 50%.",
    ]


def test_the_verdict_says_where_the_enhanced_method_is_behind():
    said = verdict({"progressive": rows_against(0.1, 0.01)})
    assert said[0] == (
        "Once fine-tuned, no choice is below `traditional`; `simple` comes closest with +11 ± 1% of perplexity at 50%."
    )
    assert "after removal 1 higher; after repair 1 higher; after fine-tuning 1 higher." in said[2]


def test_where_nothing_can_be_told_apart_no_sentence_reads_like_a_finding():
    said = verdict({"progressive": rows_against(-0.01, 0.02, dense=0.001)})
    assert said == [
        "Once fine-tuned, no choice can be told apart from `traditional` at this size (9,000 tokens): the best, "
        "`simple`, differs by -1.0 ± 2.0% of perplexity at most, at 50%.",
        "At 50% it cannot be told apart from a choice at random in any phase (-2.0 ± 2.0% once fine-tuned).",
        "All signals fused (`simple`) cannot be told apart from `traditional` at any share, in any phase.",
        "Even at 50% of the neurons `simple` cannot be told apart from the dense model at this size (9,000 tokens): "
        "+0.1 ± 2.0% of perplexity.",
    ]


def test_a_difference_within_its_error_is_level_and_the_others_are_counted():
    by_phase = {"pruned": -0.1, "reconstructed": 0.001, "finetuned": 0.1}
    said = verdict({"progressive": rows_against(by_phase, 0.02)})
    assert said[2].endswith("after removal 1 lower; after repair 1 level; after fine-tuning 1 higher.")
    assert "+0.2 ± 2.0% after repair (level)" in said[1]


@pytest.mark.parametrize(
    ("spearman", "low", "high", "words"),
    [
        (0.9, 0.02, 0.2, ["`learned` beats it with 0.90 [0.50, 1.00]", "0.85 is reached"]),
        (0.82, -0.1, 0.2, ["`learned` cannot be told apart from it", "0.85 is not reached"]),
        (0.5, -0.4, -0.1, ["`learned` is behind it", "0.85 is not reached"]),
    ],
)
def test_the_verdict_on_precision_follows_the_intervals(spearman, low, high, words):
    base = {"spearman_low": 0.5, "spearman_high": 1.0, "best_single": "hessian", "oracle_reliability": 0.95}
    rows = [
        {**base, "score": "learned", "spearman": spearman, "gain_low": low, "gain_high": high, "held_out": True},
        {**base, "score": "hessian", "spearman": 0.8, "gain_low": 0.0, "gain_high": 0.0, "held_out": False},
    ]
    (sentence,) = verdict({"precision": pd.DataFrame(rows)})
    assert sentence.startswith("Measured removal is foreseen best by `hessian`, Spearman 0.80 [0.50, 1.00]; ")
    assert "on neurons that it has not seen" in sentence
    assert "agrees to 0.95" in sentence
    assert all(word in sentence for word in words)
    (level,) = verdict({"precision": pd.DataFrame(rows).assign(spearman_low=-0.1, measured=40)})
    assert level == (
        "No score's order can be told apart from chance by measured removal of 40 neurons: the best, `hessian`, "
        "has Spearman 0.80 [-0.10, 1.00]."
    )


def test_the_verdict_on_stability_and_cost_follows_the_figures():
    rows = [
        {"score": "simple", "over": "calibration", "runs": 3, "overlap": 0.95},
        {"score": "surgeon", "over": "calibration", "runs": 3, "overlap": 0.8},
        {"score": "surgeon", "over": "training", "runs": 2, "finetuned_perplexity": 122.4, "finetuned_spread": 0.4},
    ]
    cost = pd.DataFrame(
        {"score": ["hessian", "weights", "oracle"], "seconds": [10.0, 5.0, 60.0], "seconds_spread": [0.8, 0.6, 9.0]}
    )
    assert verdict({"stability": pd.DataFrame(rows), "cost": cost}) == [
        "Of the neurons kept with one calibration text, another keeps `surgeon` 80% and `simple` 95% (3 seeds); "
        "dense models of 2 seeds end with `surgeon` at 122.4 ± 0.4; "
        "measuring all signals and criteria takes 15 ± 1 s, 1.5 times the Hessian's alone, and measured removal 60 s."
    ]


def test_passes_are_counted_and_everything_is_left_as_it_was(model, texts):
    before = torch.autograd.grad, torch.autograd.backward
    with counted(model) as passes:
        gradients(model, texts.calibration, batches=5)
    assert (passes.forward, passes.backward) == (5, 5)
    with counted(model) as passes:
        found = hessian(model, texts.calibration, probes=6, stability=0.0, seed=1)
    assert (passes.forward, passes.backward) == (found["samples"].iloc[0], 2 * found["samples"].iloc[0])
    with pytest.raises(RuntimeError, match="stop"), counted(model):
        raise RuntimeError("stop")
    assert (torch.autograd.grad, torch.autograd.backward) == before
    assert not model.encoder._forward_hooks
