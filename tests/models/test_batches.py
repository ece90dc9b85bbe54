"""Batches, states, metrics and losses in the forms in which people have them, and what is said of misfits."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning
from pruning.data.batches import Form, Unlabelled
from pruning.evaluation.measures import loss_of
from pruning.fusion.fusing import Fusing
from pruning.models.adapting import adapt
from pruning.models.answers import main_of
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from tests.models.test_losses import LENGTHS, LONG, SIZES, SPOKEN, Answering, Encoder, Speech, SureByName, X, Y, drawn
from tests.networks import CLASSES, FEATURES, made
from tests.tiny import SIGNALS


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_inputs_alone_are_enough_for_signals_without_labels_and_the_repair(loss, caplog):
    torch.manual_seed(0)
    model = adapt(made(Encoder, spread=0.5), X[0], loss=loss)
    table, covariances = activations(model, X, activation_samples=8, bins=8)
    tables = {"activations": table, "weights": SIGNALS["weights"](model, X)}
    tables["cooperative"] = SIGNALS["cooperative"](model, X)
    tables["surgeon"] = surgeon(covariances, sensitivities(model, X, batches=8, seed=1), damping=1e-4)
    fused = pruning.fuse(tables, Fusing(strategy="simple", seed=1))
    keep = keep_of(retention(fused, Allocation(retain=0.7, floor=1, scope="layer"), variant="v", by="surgeon"))
    cut, repaired = (reconstruct(model, keep, covariances, repair=repair) for repair in ("none", "ridge"))
    objective = model.objective(Unlabelled(6))
    far, near = (
        sum(objective.divergence(m.predicted(x)[0], model.predicted(x)[0], Unlabelled(6), temperature=1.0) for x in X)
        for m in (cut, repaired)
    )
    assert near < far
    assert not [record for record in caplog.records if "empirical" in record.message]
    with pytest.raises(ValueError, match=r"Expected (targets for the loss|a loss, got none)"):
        loss_of(model, X)


class Carrying(nn.Module):
    """A class for each step, from a state made and taken in some form."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, 6, batch_first=batch_first), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> Any:
        outputs, state = self.rnn(x, state)
        return self.head(outputs), state


class OfBatch(Carrying):
    def init_hidden(self, batch: int) -> torch.Tensor:
        return self.head.weight.new_zeros(1, batch, 6)


class OfBatchAndDevice(Carrying):
    def init_hidden(self, batch_size: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(1, batch_size, 6, device=device, dtype=torch.float64)


class OfInputs(Carrying):
    def init_hidden(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(1, x.shape[1], 6)


class OfNothing(Carrying):
    def init_hidden(self) -> None:
        return None


class Within(Carrying):
    """Makes its state itself."""

    def init_hidden(self, batch: int) -> torch.Tensor:
        return self.head.weight.new_zeros(1, batch, 6)

    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, self.init_hidden(x.shape[1]))[0]


@pytest.mark.parametrize("make", [Carrying, OfBatch, OfBatchAndDevice, OfInputs, OfNothing, Within])
def test_a_state_in_any_form_is_carried_or_not_as_the_network_has_it(make):
    steps = [drawn(5, 4, FEATURES, seed=seed) for seed in range(4)]
    batches = [(x, (x[..., 0] > 0).long()) for x in steps]
    network = made(make)
    model = adapt(network, steps[0], loss=nn.CrossEntropyLoss(), example_dim=1)
    carries = make not in (Carrying, Within)
    whole = torch.cat(steps) if carries else None
    with torch.no_grad():
        expected = network(whole)[0].split(5) if carries else [main_of(network(x)) for x in steps]
        losses = [F.cross_entropy(o.flatten(0, 1), y.flatten()) for o, (_, y) in zip(expected, batches, strict=True)]
    assert loss_of(model, batches).mean == pytest.approx(torch.stack(losses).mean().item(), rel=1e-9)
    assert SIGNALS["gradients"](model, batches)["importance"].notna().all()


def test_a_carried_state_of_a_network_with_examples_first_has_as_many_as_there_are_examples():
    class First(OfBatch):
        pass

    network = made(lambda: First(batch_first=True))
    x = drawn(4, 5, FEATURES, seed=1)
    model = adapt(network, x, loss=nn.CrossEntropyLoss())
    assert model.example_dim == 0
    assert model.loss(x, torch.zeros(4, 5, dtype=torch.long))[0].isfinite()
    assert model.example(2).shape == (2, 1, FEATURES)


def worst(outputs, targets):
    """Return the largest error."""
    return (outputs - targets).abs().max()


class Updated:
    """A metric as `torchmetrics` has them."""

    higher_is_better = False

    def reset(self) -> None:
        self.seen: list[torch.Tensor] = []

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.seen.append((preds - target).abs().max())

    def compute(self) -> torch.Tensor:
        return torch.stack(self.seen).max()


def test_metrics_by_name_function_or_object_are_reported_with_their_direction():
    batches = [(x, x[:, :3]) for x in X]
    metrics = {"cosine": "cosine_similarity", "worst": pruning.Metric(worst, better="lower"), "updated": Updated()}
    model = adapt(made(Encoder), X[0], loss=nn.MSELoss(), metrics=metrics)
    found = loss_of(model, batches)
    with torch.no_grad():
        errors = torch.stack([worst(model.module(x), y) for x, y in batches])
        cosine = torch.stack([F.cosine_similarity(model.module(x), y).mean() for x, y in batches]).mean()
    assert found.metrics["worst"] == pytest.approx(errors.mean().item())
    assert found.metrics["updated"] == pytest.approx(errors.max().item())
    assert found.metrics["cosine"] == pytest.approx(cosine.item())
    assert found.better == {
        "mean_squared_error": "lower",
        "mean_absolute_error": "lower",
        "cosine": "higher",
        "worst": "lower",
        "updated": "lower",
    }
    assert math.isnan(found.perplexity)
    assert "perplexity" not in str(found)
    assert "cosine 0" in str(found) or "cosine -0" in str(found)


@pytest.mark.parametrize(
    ("loss", "has"),
    [
        (nn.CrossEntropyLoss(), True),
        (partial(F.cross_entropy, ignore_index=1), True),
        (nn.CrossEntropyLoss(label_smoothing=0.1), False),
        (nn.CrossEntropyLoss(weight=torch.ones(3).double()), False),
        (lambda outputs, targets: F.cross_entropy(outputs, targets), False),
    ],
)
def test_only_a_log_likelihood_of_classes_has_a_perplexity(loss, has):
    model = adapt(made(Encoder), X[0], loss=loss)
    found = loss_of(model, list(zip(X, Y, strict=True)))
    assert math.isnan(found.perplexity) != has
    assert found.metrics["accuracy"] == found.accuracy


class Called(nn.Module):
    """A mean that calls itself otherwise than PyTorch's do."""

    reduction = "elementwise_mean"

    def forward(self, outputs, targets):
        return (outputs - targets).abs().sqrt().mean()


def test_a_mean_is_one_by_whatever_name_the_loss_calls_it():
    model = adapt(made(Encoder), X[0], loss=Called())
    targets = torch.zeros_like(model.network(X[0]))
    torch.testing.assert_close(model.loss(X[0], targets)[0], Called()(model.network(X[0]), targets))


REFUSED = {
    "a class": (lambda: adapt(Encoder(), X[0], loss=nn.MSELoss), r"got the class MSELoss; make one: MSELoss\(\)."),
    "two losses": (lambda: adapt(Encoder(), X[0], loss=nn.MSELoss(), criterion=nn.MSELoss()), "got both."),
    "no function": (lambda: adapt(Encoder(), X[0], loss="mse"), "such as nn.CrossEntropyLoss.., got str."),
    "a sum": (
        lambda: adapt(Encoder(), X[0], loss=nn.MSELoss(reduction="sum")),
        "with reduction 'mean', got 'sum'; make it with that",
    ),
    "a metric without direction": (
        lambda: adapt(Encoder(), X[0], loss=nn.MSELoss(), metrics={"worst": worst}),
        r"give pruning.Metric\(worst, better='lower'\)",
    ),
    "an unknown metric": (
        lambda: adapt(Encoder(), X[0], loss=nn.MSELoss(), metrics=["bleu"]),
        r"Unknown metric 'bleu'; known: \['accuracy'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_loss_or_metric_that_is_none_is_refused_with_what_to_do(case):
    act, sentence = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=sentence):
        act()


class Silent(Answering):
    """Takes labels and makes nothing of them."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return {"logits": super().forward(x, labels)["logits"]}


class Forced(nn.Module):
    """Reads what it is to give, each step the one before: teacher forcing, under a name that labels have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.said, self.out = nn.Linear(FEATURES, 6), nn.Embedding(CLASSES, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.read(x) + self.said(y)))


def test_an_input_that_is_called_as_labels_are_is_one_where_the_network_gives_no_loss():
    batches = [(X[0], Y[0]), (X[1], Y[1])]
    importance = pruning.importance(pruning.discover(made(Forced), batches[0]), batches)
    assert importance.by == "surgeon"
    assert "gradients" in importance.left_out
    known = [(*batch, batch[1]) for batch in batches]
    assert {"accuracy"} <= set(judged(Forced, batches[0], known, nn.CrossEntropyLoss()).metrics)


def judged(network, inputs, batches, loss):
    return loss_of(adapt(made(network), inputs, loss=loss), batches)


WRONG = {
    "numbers for classes": (
        lambda: judged(Encoder, X[0], [(X[0], X[0][:, 0])], nn.NLLLoss()),
        r"Expected class numbers as targets, got torch.float64; use `targets.long\(\)`, or a loss of numbers",
    ),
    "shares of another shape": (
        lambda: judged(Encoder, X[0], [(X[0], X[0][:, :2])], nn.CrossEntropyLoss()),
        r"or shares of the logits' shape \(6, 3\), as targets, got torch.float64 of shape \(6, 2\); use `targets.long",
    ),
    "classes that are none": (
        lambda: judged(Encoder, X[0], [(X[0], Y[1] + 2)], nn.CrossEntropyLoss()),
        "Expected class numbers from 0 to 2, one for each of the 3 logits, got 4; padding is told by `ignore_index`",
    ),
    "one output for two": (
        lambda: judged(Encoder, X[0], [(X[0], X[0][:, :3])], nn.GaussianNLLLoss()),
        r"Expected \(mean, variance\) .* for the loss GaussianNLLLoss, got a tensor .*; let `call` return",
    ),
    "scores for log-probabilities": (
        lambda: judged(Encoder, X[0], [(drawn(5, 4, FEATURES, seed=1), SPOKEN, LENGTHS, SIZES)], nn.CTCLoss()),
        r"got numbers whose exponents sum to .*; end the network with log_softmax\(-1\).",
    ),
    "examples first for CTC": (
        lambda: loss_of(
            adapt(
                made(lambda: Speech()), LONG[0], loss=nn.CTCLoss(), call=lambda n, x, _: (n(x).transpose(0, 1), None)
            ),
            [(LONG[0], SPOKEN, LENGTHS, SIZES)],
        ),
        r"Expected log-probabilities \(steps, 4 examples, classes\) .* got \(4, 5, 4\); let `call` return them so",
    ),
    "two inputs for three": (
        lambda: judged(Encoder, X[0], [(X[0], X[0])], nn.TripletMarginLoss()),
        r"of 3 inputs, which the loss compares, got a tuple of a tensor .* and a tensor .*; let `split`",
    ),
    "no labels": (
        lambda: judged(Encoder, X[0], X, nn.MSELoss()),
        "Expected targets for the loss MSELoss, got batches of",
    ),
    "no loss of its own": (
        lambda: judged(Silent, X[0], [(X[0], Y[0])], None),
        "Expected a network that gives its own loss, got a dict of .*; give `loss`, or batches with the labels under",
    ),
    "names of nothing": (
        lambda: judged(Encoder, X[0], [{"pixels": X[0], "more": X[0], "labels": Y[0]}], nn.CrossEntropyLoss()),
        r"called as the network's arguments, \['x'\], got a dict of pixels: .*, more: .*, labels: .*; let `split`",
    ),
    "a batch that is a word": (
        lambda: judged(Encoder, X[0], ["word"], nn.CrossEntropyLoss()),
        "Expected tensors in a batch, got str; let `split` take them apart.",
    ),
    "batches that end": (
        lambda: judged(Encoder, X[0], iter([(X[0], Y[0])]), nn.CrossEntropyLoss()),
        r"Expected batches that can be read again, .* give `list\(…\)` of it.",
    ),
    "no batches": (
        lambda: judged(Encoder, X[0], None, nn.CrossEntropyLoss()),
        "Expected batches, such as a DataLoader",
    ),
    "several outputs for one": (
        lambda: judged(SureByName, X[0], [(X[0], X[0][:, :2])], nn.MSELoss()),
        r"from the network, got a dict of variance: .*, mean: .*; `call` can say where it is",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_together_is_refused_with_what_to_do(case):
    act, sentence = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=sentence):
        act()


def test_what_forward_cannot_do_without_stays_an_input_though_it_is_called_as_targets_are():
    class Translating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(FEATURES, 4), nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self.out((self.one(x) + self.two(target)).tanh())

    inputs = {"x": X[0], "target": X[0][:, :3]}
    model = adapt(made(Translating), inputs, loss=nn.MSELoss())
    assert loss_of(model, [inputs]).mean == pytest.approx(F.mse_loss(model.module(**inputs), X[0][:, :3]).item())


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        (({"u": 1}, {"v": 2}, 3), ({"u": 1}, {"v": 2})),  # a dictionary for each argument
        (({"one": 1, "two": 2}, 3), {"one": 1, "two": 2}),  # all of them by name
        (({"one": 1, "two": 2}, 3, 4), {"one": 1, "two": 2}),
        (((1, 2), 3, 4), (1, 2)),  # a pair, its label and its weight
        (([1], [2], 3), ([1], [2])),
    ],
)
def test_a_part_that_has_parts_is_one_argument_unless_it_holds_all_of_them(batch, inputs):
    assert Form(arguments=2, names=("one", "two")).pair(batch)[0] == inputs


def test_a_batch_may_be_taken_apart_by_a_function():
    batches = [{"pixels": x, "answer": y} for x, y in zip(X, Y, strict=True)]
    split = lambda batch: (batch["pixels"], batch["answer"])  # noqa: E731
    model = adapt(made(Encoder), X[0], loss=nn.CrossEntropyLoss(), split=split)
    plain = adapt(made(Encoder), X[0], loss=nn.CrossEntropyLoss())
    assert loss_of(model, batches) == loss_of(plain, list(zip(X, Y, strict=True)))


def test_transformers_lose_what_they_say_themselves_and_their_logits_may_be_judged_instead():
    from tests import foreign

    network, inputs = foreign.made("BERT")
    labels = torch.tensor([0, 2])
    library = foreign.transformers()
    batches = [library.BatchEncoding({**inputs, "labels": labels})] * 2
    own, judged_by = (adapt(network, inputs, loss=loss) for loss in (None, nn.CrossEntropyLoss()))
    expected = network(**inputs, labels=labels).loss.item()
    assert loss_of(own, batches).mean == pytest.approx(expected, rel=1e-9)
    assert loss_of(judged_by, batches).mean == pytest.approx(expected, rel=1e-9)
    assert SIGNALS["gradients"](own, batches)["importance"].notna().all()


class Recurrent(nn.Module):
    """Makes the first state, which forward takes last."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 6), nn.Linear(6, 2)

    def init_hidden(self, batch):
        return torch.zeros(1, batch, 6), torch.zeros(1, batch, 6)

    def forward(self, inputs, hidden):
        outputs, hidden = self.rnn(inputs, hidden)
        return self.out(outputs), hidden


def test_a_state_that_the_network_makes_is_no_part_of_its_batches():
    data = [(torch.randn(5, 4, 3), torch.zeros(5, 4, dtype=torch.long)) for _ in range(2)]
    assert pruning.importance(Recurrent(), data, nn.CrossEntropyLoss(), signals=["weights"]).model.widths() == (6,)
