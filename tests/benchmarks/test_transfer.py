"""Weights of other models: who teaches whom, and that what predicts removal everywhere is learned."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.transfer import BEST, EVERYTHING, LEARNED, Case, Planned, planned, transferred

PREDICTS = "gradients"
"""A signal, so that both ways to learn may weigh it."""


def measured(model, *, predicts=PREDICTS, seed=0):
    """Return a model of one layer whose removals one score predicts."""
    random = np.random.default_rng(seed)
    truth = random.random(24)
    frame = pd.DataFrame({"layer": "a", "neuron": range(24), **{name: random.random(24) for name in EVERYTHING}})
    frame[predicts] = truth
    beside = {"simple": random.random(24), "adaptive": random.random(24), "truth_loss_increase": truth}
    frame = frame.assign(**beside, truth_standard_error=0.01, truth_even=truth, truth_odd=truth)
    return Case(model, frame, pd.DataFrame())


def test_a_model_is_planned_for_each_seed_corpus_width_and_family():
    names = [model.name for model in planned([Path("x/one"), Path("two")], [8, 9], [1, 2])]
    assert len(names) == len(set(names)) == 2 * 2 * 2 * 5
    assert names[0] == "one-lstm-8-1"


@pytest.mark.parametrize("part", ["family and corpus", "family"])
def test_what_predicts_removal_in_the_other_models_is_learned(part):
    models = [Planned(Path("one"), kind, 8, 1) for kind in ("lstm", "gru", "rnn")]
    table, scores = transferred([measured(model, seed=index) for index, model in enumerate(models)], part, False)
    assert (table[list(LEARNED)] > 0.9).all(axis=None)
    assert set(table["its name"]) == {PREDICTS}
    assert table["in hindsight"].tolist() == pytest.approx([1, 1, 1])
    assert set(scores) == {model.name for model in models}


def test_models_that_are_left_out_teach_nothing():
    models = [Planned(Path(corpus), kind, 8, 1) for corpus in ("one", "two") for kind in ("lstm", "gru")]
    predicts = {"one": PREDICTS, "two": "hessian"}
    cases = [measured(model, predicts=predicts[model.corpus.name], seed=i) for i, model in enumerate(models)]
    table, _ = transferred(cases, "corpus", False)
    assert (table[[*LEARNED, BEST]] < 0.8).all(axis=None)
    assert table["its name"].tolist() == ["hessian", "hessian", PREDICTS, PREDICTS]
