"""A number that is none is refused by name: in a model before it is measured, in a loss at its step, in a table."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from pruning.ablation.oracle import Ablation, oracle
from pruning.core.finite import expect_finite
from pruning.core.neurons import select
from pruning.core.tables import UNMEASURED, table, unmeasured
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.signals.activations import activations
from pruning.signals.cooperative import cooperative
from pruning.signals.criteria import criteria
from pruning.signals.schemas import SURGEON
from pruning.signals.sensitivity import sensitivities
from pruning.training.distillation import Teacher
from pruning.training.gradual import prune_gradually
from pruning.training.loop import train
from pruning.training.thinning import Schedule, Thinning
from tests.schemas import TABLES
from tests.tiny import SIGNALS, recipe, text, tiny

WINDOWS = Windows(text(24 * 6), first=0, batch=4, bptt=6)
KEEP = {"lstm.0": torch.tensor([0, 2, 3, 6])}
IMITATION = Imitation(tokens=240, learning_rate=0.02, warmup=0.1, clip=1.0)
THINNING = Thinning(retain=0.5, floor=1, schedule=Schedule(begin=0.0, end=0.5, every=2), momentum=0.9, penalty=0.0)
STATES = activations(tiny(), WINDOWS, activation_samples=4, bins=4)[1]
ASKED = {
    **{name: lambda model, signal=signal: signal(model, WINDOWS) for name, signal in SIGNALS.items()},
    "cooperative": lambda model: cooperative(model, STATES, strong=0.6),
    "criteria": lambda model: criteria(model, WINDOWS, batches=4, bins=4, classes=3, ridge=1e-4, seed=1),
    "sensitivities": lambda model: sensitivities(model, WINDOWS, batches=4, seed=1),
    "oracle": lambda model: oracle(model, WINDOWS, Ablation(neurons="all", tokens=96, seed=1)),
    "loss_of": lambda model: loss_of(model, WINDOWS),
    "reconstruct": lambda model: reconstruct(model, KEEP, STATES, repair="ridge"),
    "imitate (student)": lambda model: imitate(model, tiny(), WINDOWS, imitation=IMITATION),
    "imitate (teacher)": lambda model: imitate(select(tiny(), KEEP), model, WINDOWS, imitation=IMITATION),
    "train": lambda model: next(train(model, WINDOWS, WINDOWS, recipe=recipe(), seed=1)),
    "prune_gradually": lambda model: next(
        prune_gradually(
            model,
            WINDOWS,
            WINDOWS,
            recipe=recipe(),
            thinning=THINNING,
            seed=1,
        )
    ),
}


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["encoder.weight", "lstm.1.weight_hh_l0", "decoder.bias"])
@pytest.mark.parametrize("function", ASKED)
def test_a_model_with_one_weight_that_is_no_number_is_refused_with_its_name(function, name, number):
    model = tiny()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = number
    with pytest.raises(FloatingPointError, match=rf"Expected finite weights, got 1 of \d+ in {name} that are NaN"):
        ASKED[function](model)


def test_a_buffer_may_hold_infinities_and_no_nan():
    model = nn.BatchNorm1d(3)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    expect_finite(model)
    model.running_mean[1] = math.nan
    with pytest.raises(FloatingPointError, match="Expected finite weights, got 1 of 3 in running_mean"):
        expect_finite(model)


class Breaking:
    """A model's loss that is no number from the n-th training step on."""

    def __init__(self, model, step):
        self.judged, self.left = model.judged, step

    def __call__(self, *given, **settings):
        loss = self.judged(*given, **settings)
        self.left -= settings.get("reduction") != "sum"
        return loss if self.left > 0 else loss * math.nan


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize(("every", "epoch"), [(1, 0), (4, 0), (4, 1)])
def test_training_ends_at_the_step_whose_loss_is_no_number_and_says_which(monkeypatch, share, every, epoch):
    """Also where losses are read some steps later only, as they are on an accelerator."""
    model, length = tiny(), len(WINDOWS)
    step = 3 + epoch * length
    model.judged = Breaking(model, step)
    if every > 1:
        monkeypatch.setattr("pruning.training.loop.UNREAD", every)
        monkeypatch.setattr("pruning.training.loop.AT_ONCE", ())
    run = train(
        model,
        WINDOWS,
        WINDOWS,
        recipe=recipe(warmup=0.0),
        seed=1,
        teacher=Teacher.of(tiny(), share=share),
    )
    for _ in range(epoch):
        assert next(run).history["train_loss"].notna().all()
    with pytest.raises(FloatingPointError, match=rf"got nan at step {step} \(learning rate 0\.\d+\); lower learning"):
        next(run)
    if every == 1:
        assert model.judged.left == 0


def test_a_first_step_without_a_finite_loss_is_blamed_on_the_inputs():
    model = tiny()
    model.judged = Breaking(model, 1)
    with pytest.raises(FloatingPointError, match=r"at step 1 .*nothing was learnt yet, so look for numbers in the in"):
        next(train(model, WINDOWS, WINDOWS, recipe=recipe(), seed=1))


def test_imitation_names_the_step_whose_loss_is_no_number():
    settings = Imitation(tokens=960, learning_rate=math.inf, warmup=0.0, clip=1.0)
    with pytest.raises(FloatingPointError, match=r"Expected a finite imitation loss, got .* at step 2 \(highest lear"):
        imitate(select(tiny(), KEEP), tiny(), WINDOWS, imitation=settings)


def frame_of(name):
    schema = TABLES[name]
    kinds = {"text": ["a", "b"], "integer": [0, 1], "number": [0.5, 1.5], "flag": [True, False]}
    return pd.DataFrame({column: kinds[about.type] for column, about in schema.columns.items()}).assign(
        **({"samples": [3, 4]} if "samples" in schema.columns else {})
    )


NUMBERS = [(n, c) for n, schema in TABLES.items() for c, about in schema.columns.items() if about.type == "number"]


@pytest.mark.parametrize(("name", "column"), NUMBERS)
def test_a_table_refuses_what_is_not_finite_unless_its_schema_says_that_it_may_be_missing(name, column):
    about, frame = TABLES[name].columns[column], frame_of(name)
    table(TABLES[name], frame)
    sentence = rf"Expected finite numbers in column '{column}' of {name}, got "
    for number in (math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"{sentence}{number} at "):
            table(TABLES[name], frame.assign(**{column: [0.5, number]}))
    missing = frame.assign(**{column: [0.5, math.nan]})
    if not about.missing or about.missing == UNMEASURED:
        with pytest.raises(ValueError, match=f"{sentence}nan at "):
            table(TABLES[name], missing)
    if about.missing == UNMEASURED:
        missing = missing.assign(samples=[3, 0])
    if about.missing:
        assert math.isnan(table(TABLES[name], missing)[column].iloc[1])


def test_a_layer_without_numbers_says_so_by_its_samples():
    frame = unmeasured(SURGEON, [("l", 2)])
    assert frame["cost"].isna().all()
    with pytest.raises(
        ValueError, match="Expected finite numbers in column 'cost' of surgeon, got nan at layer l, neu"
    ):
        table(SURGEON, frame.assign(samples=7))
