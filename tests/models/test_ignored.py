"""Targets that are ignored count nowhere: every number is that of the text without them."""

from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.ablation.joint_removal import joint_removal
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.hooks import Places, counting
from pruning.core.neurons import select
from pruning.data.windows import IGNORED, Window, Windows
from pruning.evaluation.energy import firing_rates
from pruning.evaluation.measures import loss_of
from pruning.fusion.calibration import removal_curves
from pruning.models.adapting import adapt
from pruning.models.classes import Classes
from pruning.repair.imitation import Imitation, feature_metric, imitate
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from tests.networks import CLASSES, Classifier, Tagger, examples, made
from tests.tiny import SIGNALS, bytes_of, recipe, tensors_of, text, tiny

BATCHES = examples(16 * 5, batch=5)
MEASURED = SIGNALS | {
    "surgeon": lambda model, batches: surgeon(
        activations(model, batches, activation_samples=16, bins=8)[1],
        sensitivities(model, batches, batches=16, seed=1),
        damping=1e-4,
    ),
    "criteria": lambda model, batches: criteria(model, batches, batches=16, bins=4, classes=3, ridge=1e-4, seed=1),
    "oracle": lambda model, batches: oracle(model, batches, Ablation(neurons="all", tokens=999, seed=1)),
}
PADDED = [name for name in MEASURED if name != "weights"]
TEXT = Windows(text(16 * 12), first=0, batch=3, bptt=4)


def classifier(criterion=None):
    return adapt(made(Classifier), BATCHES[0][0], criterion=criterion or nn.CrossEntropyLoss())


def padded(batches):
    """Return the batches with examples of no class behind each, and a batch of nothing else after every other one."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for index, (inputs, classes) in enumerate(batches):
        more = 9 * torch.randn(2, inputs.shape[1], generator=generator, dtype=inputs.dtype)
        found.append((torch.cat([inputs, more]), torch.cat([classes, torch.full((2,), IGNORED)])))
        if index % 2:
            found.append((more, torch.full((2,), IGNORED)))
    return found


@pytest.fixture
def _likeliest(monkeypatch):
    """Let sampled labels be the likeliest ones, for a random one is drawn for each target, ignored or not."""
    monkeypatch.setattr(
        "pruning.models.classes.sampled_labels",
        lambda p, wanted, _: torch.where(wanted == IGNORED, wanted, p.argmax(1)),
    )


def numbers(table):
    """Return the table without what depends on which batches make a group."""
    return table.drop(columns=[name for name in table if name.endswith("error") and name != "trace_standard_error"])


@pytest.mark.parametrize("signal", PADDED)
@pytest.mark.usefixtures("_likeliest")
def test_every_signal_of_padded_batches_is_that_of_the_batches_without_padding(signal):
    expected, found = (MEASURED[signal](classifier(), batches) for batches in (BATCHES[:6], padded(BATCHES[:6])))
    pd.testing.assert_frame_equal(numbers(found), numbers(expected), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("number", [255, -1, IGNORED])
def test_numbers_that_no_logit_is_of_are_those_that_a_users_own_loss_ignores(number):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)).double()
    generator, batches = torch.Generator().manual_seed(1), []
    for _ in range(4):
        classes = torch.randint(4, (2, 3, 5), generator=generator)
        classes[:, 0] = number
        batches.append((torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64), classes))
    known = nn.CrossEntropyLoss(ignore_index=number)
    expected, found = (
        adapt(network, batches[0][0], loss=loss) for loss in (known, lambda outputs, targets: known(outputs, targets))
    )
    assert (loss_of(found, batches).tokens, loss_of(found, batches).mean) == (80, loss_of(expected, batches).mean)
    for signal in ("criteria", "surgeon", "oracle"):
        pd.testing.assert_frame_equal(*(MEASURED[signal](model, batches) for model in (found, expected)))


@pytest.mark.parametrize(
    ("targets", "shape", "counted"),
    [
        (torch.tensor([0, 4, 5, -1]), (2, 5), [0, 1]),
        (torch.tensor([[0, 7, 255]]), (2, 9, 3), [0, 1]),  # logits (examples, classes, steps), as PyTorch has them
        (torch.tensor([[0, 2, 7]]), (2, 3, 9), [0, 1, 2]),  # logits (examples, steps, classes)
        (torch.tensor([[0, 2, 7, 8, 9]]), (2, 3, 9), [0, 1, 2, 3]),  # of another length: as many as either end has
        (torch.tensor([0, 8, 9]), (2, 3, 9), [0, 1]),  # flattened already
    ],
)
def test_how_many_classes_there_are_is_told_by_the_outputs(targets, shape, counted):
    labels = Classes(F.cross_entropy, torch.Size(shape)).labels(targets)
    assert (labels != IGNORED).nonzero().flatten().tolist() == counted


@pytest.mark.parametrize("signal", PADDED)
@pytest.mark.usefixtures("_likeliest")
def test_every_signal_of_a_text_with_a_column_of_padding_is_that_of_the_text_without_it(signal):
    if signal == "oracle":
        pytest.skip("a language model's reads windows of its own, whose padding its own tests know")
    expected, found = (MEASURED[signal](tiny(), windows) for windows in (TEXT, wider(TEXT)))
    pd.testing.assert_frame_equal(numbers(found), numbers(expected), rtol=1e-7, atol=1e-10)


def wider(windows):
    """Return the windows with one more column, of whose targets none counts."""
    return [
        Window(
            torch.cat([window.tokens, window.tokens[:, :1] * 0 + 7], dim=1),
            torch.cat([window.targets, window.targets[:, :1] * 0 + IGNORED], dim=1),
        )
        for window in windows
    ]


@pytest.mark.parametrize("signal", [name for name in PADDED if name != "oracle"])
def test_a_text_of_which_nothing_is_to_be_predicted_is_refused(signal):
    empty = [Window(window.tokens, torch.full_like(window.targets, IGNORED)) for window in TEXT]
    with pytest.raises(ValueError, match=r"Expected .*targets that count"):
        MEASURED[signal](tiny(), empty)


def test_the_places_that_count_are_found_through_two_directions_and_layers():
    network = made(Tagger)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 5, (6, 4), generator=generator)
    classes = torch.randint(0, CLASSES, (6, 4), generator=generator)
    classes[:, 2:], classes[4] = IGNORED, IGNORED
    model = adapt(network, tokens, loss=nn.CrossEntropyLoss())
    outputs = {}
    for layer in model.layers():
        model.get_submodule(layer.output).register_forward_hook(
            lambda _module, inputs, outs, layer=layer: outputs.__setitem__(
                layer.name,
                layer.seen.split(inputs[0]).flatten(1).T if layer.seen is not None else outs[0].flatten(0, -2),
            )
        )
    model.read(tokens)
    expected = dict(outputs)
    states = activations(model, [(tokens, classes)] * 2, activation_samples=2, bins=4)[1]
    counted = (classes != IGNORED).flatten()
    for name, values in expected.items():
        assert states[name][0].count == 10
        assert torch.allclose(states[name][0].mean, values[counted].detach().double().mean(0), atol=1e-12)


def test_steps_of_a_cell_that_runs_once_a_step_are_those_of_the_targets():
    wanted = torch.tensor([[True, False], [True, True], [False, False]])  # (T, B)
    calls = [Places((2,), 0)] * 3
    assert [mask.tolist() for mask in counting(wanted.flatten(), calls, targets_last=True)] == wanted.tolist()
    by_example = counting(wanted.T.flatten(), calls, targets_last=False)
    assert [mask.tolist() for mask in by_example] == wanted.tolist()


@pytest.mark.parametrize(
    ("wanted", "places", "expected"),
    [
        ([True, False], Places((2, 3), 0), [[True] * 3, [False] * 3]),  # one target for three places
        ([True, False], Places((2, 3), 0, repeats=2), [[True] * 3, [False] * 3] * 2),  # of two dimensions each
        ([True, False, False, False], Places((2, 3), 0), [[True] * 3, [False] * 3]),  # 2 targets, 3 places
        ([True, False], Places((6,), 0), [[True] * 3, [False] * 3]),  # places and examples in one dimension
        ([True, False, True], Places((2, 3), 0), None),  # no whole number of targets for an example
    ],
)
def test_places_count_with_their_targets_else_with_their_example(wanted, places, expected):
    found = counting(torch.tensor(wanted), [places], targets_last=False)
    assert (found and found[0].tolist()) == (expected and [flag for row in expected for flag in row])
    assert counting(torch.tensor(wanted), [None], targets_last=False) is None


def test_the_loss_of_batches_without_targets_is_that_of_the_others():
    assert loss_of(classifier(), padded(BATCHES)).mean == pytest.approx(loss_of(classifier(), BATCHES).mean, rel=1e-12)
    with pytest.raises(ValueError, match="Expected targets that count in some of 1 batches, got none"):
        loss_of(classifier(), padded(BATCHES)[2:3])


WEIGHTS = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)[:CLASSES]


@pytest.mark.parametrize(
    ("criterion", "alike"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHTS), True),
        (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), True),
        (partial(F.cross_entropy, weight=WEIGHTS), True),
        (nn.MultiMarginLoss(weight=WEIGHTS), False),
    ],
    ids=["cross-entropy", "smoothed", "partial", "margin"],
)
def test_the_loss_does_not_depend_on_how_weighted_examples_are_cut_into_batches(criterion, alike):
    """The criterion of all examples at once is the truth."""
    model = classifier(criterion)
    inputs, classes = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    with torch.no_grad():
        expected = criterion(model.logits(inputs)[0], classes).item()
    found = loss_of(model, BATCHES)
    assert found.mean == pytest.approx(expected, rel=1e-12)
    assert found.tokens == len(classes)
    assert (model.weight(classes) != model.count(classes)) == alike


def test_measured_removal_weighs_classes_as_the_criterion_does():
    model = classifier(nn.CrossEntropyLoss(weight=WEIGHTS))
    table = MEASURED["oracle"](model, BATCHES)
    first = model.layers()[0]
    smaller = select(model, {first.name: torch.arange(1, first.width)})
    increase = loss_of(smaller, BATCHES).mean - loss_of(model, BATCHES).mean
    assert table[table["layer"] == first.name]["loss_increase"].iloc[0] == pytest.approx(increase, rel=1e-9)
    assert (table["samples"] == 80).all()
    sets = {"one": {first.name: [0]}}
    joint = joint_removal(model, BATCHES, table, sets=sets, tokens=999)
    assert joint["loss_increase"].iloc[0] == pytest.approx(increase, rel=1e-9)
    assert joint["samples"].iloc[0] == 80


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_nothing_is_learnt_from_a_batch_without_targets(share):
    """Training on padded batches ends as training on the others, if the rates of their steps are the same."""
    flat = recipe(epochs=1, learning_rate=1e-3, warmup=0.0)
    model = classifier()
    teacher = Teacher.of(classifier(), share=share)
    batches = padded(BATCHES[:4])
    state = list(train(model, batches, BATCHES, recipe=flat, seed=1, teacher=teacher))[-1]
    losses, tokens = state.history["train_loss"], state.history["tokens"]
    assert losses.isna().tolist() == [False, False, True, False, False, True]
    assert tokens.tolist() == [5, 10, 10, 15, 20, 20]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    alone = classifier()
    list(train(alone, batches[2:3], BATCHES, recipe=flat, seed=1, teacher=teacher))
    assert bytes_of(tensors_of(alone)) == bytes_of(tensors_of(classifier()))


def test_a_column_of_padding_changes_no_imitation():
    teacher = tiny(spread=0.4)
    student = select(teacher, {"lstm.0": torch.tensor([0, 2, 3, 6])})
    windows = list(TEXT)
    assert torch.allclose(feature_metric(teacher, wider(windows)), feature_metric(teacher, windows), rtol=1e-12)
    ends = [
        imitate(student, teacher, text, imitation=Imitation(tokens=n, learning_rate=0.02, warmup=0.1, clip=1.0))
        for text, n in ((windows, 12 * 10), (wider(windows), 16 * 10))
    ]
    for one, other in zip(*(end.parameters() for end in ends), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_padding_fires_nowhere():
    model = tiny(family="snn")
    expected, found = (firing_rates(model, model.layers(), windows) for windows in (TEXT, wider(TEXT)))
    for name, rates in expected.items():
        assert torch.allclose(found[name], rates, rtol=1e-12)


def test_removal_curves_of_padded_batches_are_those_of_the_others():
    scores = MEASURED["weights"](classifier(), BATCHES)
    one, other = (
        removal_curves(classifier(), batches, scores, by="importance", shares=[0.5])
        for batches in (BATCHES, padded(BATCHES))
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)
