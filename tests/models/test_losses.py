"""Losses of more than one output, of sequences and embeddings, a network's own and none, through the whole flow."""

import dataclasses
import math
from collections import UserDict
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import pruning
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import mask, select
from pruning.evaluation.measures import loss_of, size_of
from pruning.fusion.fusing import Fusing
from pruning.models.adapting import adapt
from pruning.models.answers import amounts_in
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.steps.removing import apart
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from tests.networks import FEATURES, made
from tests.tiny import SIGNALS, recipe

LABELLED = {
    **SIGNALS,
    "criteria": lambda model, batches: criteria(model, batches, batches=8, bins=4, classes=3, ridge=1e-4, seed=1),
}


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Sure(nn.Module):
    """Numbers and how sure they are: (mean, variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.middle, self.spread = nn.Linear(FEATURES, 7), nn.Linear(7, 2), nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.inner(x).tanh()
        return self.middle(hidden), F.softplus(self.spread(hidden)) + 0.1


class SureByName(Sure):
    """Likewise, in a dictionary."""

    def forward(self, x: torch.Tensor) -> Any:
        mean, variance = super().forward(x)
        return {"variance": variance, "mean": mean}


class Speech(nn.Module):
    """Log-probabilities (steps, examples, classes) of features (examples, steps, features) with lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> Any:
        scores = self.head(self.rnn(x)[0]).log_softmax(-1).transpose(0, 1)
        return scores if lengths is None else (scores, lengths)


class Encoder(nn.Module):
    """An embedding of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(FEATURES, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x).tanh())


class Counter(Encoder):
    """One number for each example, in a dimension of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :1]


class Several(Encoder):
    """Embeddings of two or three inputs at once."""

    def forward(self, *inputs: torch.Tensor) -> Any:
        return tuple(super(Several, self).forward(x) for x in inputs)


class Answering(Encoder):
    """A dictionary with logits and what is between, and, given labels, a loss of its own: as `transformers` has it."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        hidden = self.inner(x).tanh()
        logits = self.head(hidden)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "between": hidden.sum(-1)}


class Detector(Encoder):
    """Two outputs by names of which none is the main one."""

    def forward(self, x: torch.Tensor) -> Any:
        scores = super().forward(x)
        return {"boxes": scores[:, :1], "scores": scores}


class Small(nn.Module):
    """A language model that gives (logits, its loss), as minGPT does, of tokens and, if it is told them, targets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rnn, self.head = nn.Embedding(3, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = self.head(self.rnn(self.inner(idx))[0])
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


class Stateful(nn.Module):
    """A number for each sequence, and the state beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> Any:
        outputs, state = self.rnn(x)
        return self.head(outputs[:, -1]), state


class Packed(nn.Module):
    """A class for each sequence (examples, steps, features) of some length."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(FEATURES, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


@dataclasses.dataclass
class Batch:
    """A batch as some people have it."""

    x: torch.Tensor
    label: torch.Tensor
    name: str = "kept out"


X = [drawn(6, FEATURES, seed=seed) for seed in range(8)]
Y = [torch.arange(6) * (seed + 1) % 3 for seed in range(8)]
LONG = [drawn(4, 5, FEATURES, seed=seed) for seed in range(8)]
LENGTHS = torch.tensor([5, 4, 5, 3])
SPOKEN = torch.tensor([[1, 2], [3, 3], [2, 0], [1, 0]])
SIZES = torch.tensor([2, 2, 1, 1])


def own_of_both(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss that reads two outputs."""
    mean, variance = outputs
    return ((mean - targets).square() / variance + variance.log()).mean()


def by_name(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss that reads outputs by name."""
    return F.cross_entropy(outputs["logits"], targets) + 0.1 * outputs["between"].square().mean()


def counts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss of whole numbers that are no classes."""
    return F.poisson_nll_loss(outputs[:, 0], targets)


KINDS: dict[str, tuple[Any, list[Any], Any, str]] = {
    # name: (network, batches, loss, what targets are drawn from)
    "mean and variance": (Sure, [(x, x[:, :2]) for x in X], nn.GaussianNLLLoss(), "Gaussian"),
    "both by name": (SureByName, [(x, x[:, :2]) for x in X], nn.GaussianNLLLoss(), "Gaussian"),
    "two outputs by a function": (Sure, [(x, x[:, :2]) for x in X], own_of_both, ""),
    "outputs by name by a function": (Answering, list(zip(X, Y, strict=True)), by_name, "categorical"),
    "boxes and classes by name": (
        Detector,
        [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)],
        lambda outputs, targets: F.cross_entropy(outputs["scores"], targets) + outputs["boxes"].square().mean(),
        "",
    ),
    "whole numbers by a function": (Counter, list(zip(X, Y, strict=True)), counts, ""),
    "spoken": (Speech, [(x, SPOKEN, LENGTHS, SIZES) for x in LONG], nn.CTCLoss(), "categorical"),
    "spoken, lengths from the network": (
        Speech,
        [((x, LENGTHS), (SPOKEN, SIZES)) for x in LONG],
        nn.CTCLoss(zero_infinity=True),
        "categorical",
    ),
    "cosines of two inputs": (
        Several,
        [((x, -x + 1), torch.tensor([1, -1] * 3)) for x in X],
        nn.CosineEmbeddingLoss(margin=0.2),
        "",
    ),
    "cosines, one input at a time": (
        Encoder,
        [(x, 1 - x, torch.tensor([1, -1] * 3)) for x in X],
        nn.CosineEmbeddingLoss(margin=0.2),
        "",
    ),
    "triplets at once": (Several, [(x, 2 * x, x.flip(0)) for x in X], nn.TripletMarginLoss(), ""),
    "triplets, one input at a time": (Encoder, [(x, 2 * x, x.flip(0)) for x in X], nn.TripletMarginLoss(), ""),
    "smoothed classes": (
        Encoder,
        list(zip(X, Y, strict=True)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        "categorical",
    ),
    "shares of classes": (Encoder, [(x, x[:, :3].softmax(1)) for x in X], nn.CrossEntropyLoss(), "categorical"),
    "probabilities": (
        lambda: nn.Sequential(Encoder(), nn.Sigmoid()),
        [(x, (x[:, :3] > 0).double()) for x in X],
        nn.BCELoss(),
        "Bernoulli",
    ),
    "its own loss": (Answering, [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)], None, "categorical"),
    "logits of its own loss": (
        Answering,
        [UserDict(x=x, labels=y) for x, y in zip(X, Y, strict=True)],
        nn.CrossEntropyLoss(),
        "categorical",
    ),
    "dataclasses": (Encoder, [Batch(x, y) for x, y in zip(X, Y, strict=True)], nn.CrossEntropyLoss(), "categorical"),
    "its own loss beside logits": (
        Small,
        [(tokens, tokens.roll(-1, 1)) for tokens in (torch.arange(20).view(4, 5) * s % 3 for s in (1, 2, 4, 5))],
        None,
        "categorical",
    ),
    "one output and a state, by a function": (
        Stateful,
        [(x, x[:, 0, :1]) for x in LONG],
        lambda outputs, targets: (outputs - targets).abs().pow(1.5).mean(),
        "",
    ),
    "logarithms of shares": (
        lambda: nn.Sequential(Encoder(), nn.LogSoftmax(-1)),
        [(x, x[:, :3].softmax(1)) for x in X],
        nn.KLDivLoss(reduction="batchmean"),
        "",
    ),
    "packed sequences": (
        Packed,
        [(x, LENGTHS, torch.tensor([0, 1, 2, 1])) for x in LONG],
        nn.CrossEntropyLoss(),
        "categorical",
    ),
}


def inputs_of(kind: str) -> Any:
    batch = KINDS[kind][1][0]
    if kind in ("packed sequences", "triplets at once"):
        return batch[:2] if kind == "packed sequences" else batch
    return (
        getattr(batch, "x", None)
        if isinstance(batch, Batch)
        else batch["x"]
        if not isinstance(batch, tuple)
        else batch[0]
    )


@cache
def model_and_batches(kind: str) -> tuple[Any, list[Any]]:
    make, batches, loss, _ = KINDS[kind]
    torch.manual_seed(0)
    return adapt(made(make, spread=0.5), inputs_of(kind), loss=loss), batches


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_loss_reads_a_model_is_measured_fused_pruned_repaired_and_trained(kind, caplog):
    model, batches = model_and_batches(kind)
    tables = {name: measure(model, batches) for name, measure in LABELLED.items()}
    _, covariances = activations(model, batches, activation_samples=8, bins=8)
    tables["surgeon"] = surgeon(covariances, sensitivities(model, batches, batches=8, seed=1), damping=1e-4)
    unseen = set(model.untappable(next(iter(model.pairs(batches)))[0]))
    for whole in tables.values():
        table = whole[~((whole["samples"] == 0) & whole["layer"].isin(unseen))]
        assert table.empty or table.select_dtypes("number").apply(lambda column: column.abs().max() < math.inf).all()
    said = [record.message for record in caplog.records if "empirical" in record.message]
    assert len(said) == (0 if KINDS[kind][3] else 2)
    importance = pruning.fuse(tables, Fusing(strategy="adaptive", seed=1))
    keep = keep_of(retention(importance, Allocation(retain=0.5, floor=1, scope="layer"), variant="v", by="fused"))
    smaller, masked = select(model, keep), mask(model, keep)
    (inputs, targets), *_ = model.pairs(batches)
    for ours, theirs in zip(*(amounts_in(m.predicted(inputs)[0]) for m in (smaller, masked)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)
    assert size_of(smaller).multiply_adds < size_of(model).multiply_adds
    assert model.objective(targets).drawn == KINDS[kind][3]
    repaired, pairs = reconstruct(model, keep, data=batches, repair="ridge"), model.pairs(batches)
    imitation = Imitation(tokens=60 * model.count(targets), learning_rate=0.01, warmup=0.1, clip=1.0)
    taught = imitate(repaired, model, batches, imitation=imitation)
    assert apart(taught, model, pairs) < max(1e-9, apart(repaired, model, pairs))
    before = loss_of(repaired, batches).mean
    teacher = Teacher(model=model, share=0.5, temperature=1.0)
    *_, last = train(repaired, batches, batches, recipe=recipe(epochs=2, learning_rate=0.01), seed=1, teacher=teacher)
    repaired.load_state_dict(last.best())
    assert loss_of(repaired, batches).mean == pytest.approx(last.history["valid_loss"].min())
    assert loss_of(repaired, batches).mean < before


@pytest.mark.parametrize("kind", KINDS)
def test_measured_removal_is_the_rise_of_the_loss_whatever_it_reads(kind):
    model, batches = model_and_batches(kind)
    found = oracle(model, batches, Ablation(neurons="all", tokens=10**6, seed=1))
    layer = model.layers()[0]
    keep = {layer.name: torch.arange(1, layer.width)}
    rise = loss_of(select(model, keep), batches).mean - loss_of(model, batches).mean
    assert found.loc[(found["layer"] == layer.name), "loss_increase"].iloc[0] == pytest.approx(rise, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_least_between_equal_outputs(kind):
    model, batches = model_and_batches(kind)
    (inputs, targets), *_ = model.pairs(batches)
    with torch.no_grad():
        taught = model.predicted(inputs)[0]
        other = select(model, {layer.name: torch.arange(2) for layer in model.layers()}).predicted(inputs)[0]
    objective = model.objective(targets)
    least, more = (objective.divergence(outputs, taught, targets, temperature=1.0) for outputs in (taught, other))
    assert least < more


def test_pytorchs_loss_of_the_same_batch_is_the_models():
    for kind, expected in {
        "mean and variance": lambda net, x: nn.GaussianNLLLoss()(net(x)[0], x[:, :2], net(x)[1]),
        "spoken": lambda net, x: nn.CTCLoss()(net(x), SPOKEN, LENGTHS, SIZES),
        "triplets, one input at a time": lambda net, x: nn.TripletMarginLoss()(net(x), net(2 * x), net(x.flip(0))),
        "cosines, one input at a time": lambda net, x: nn.CosineEmbeddingLoss(margin=0.2)(
            net(x), net(1 - x), torch.tensor([1, -1] * 3)
        ),
    }.items():
        model, batches = model_and_batches(kind)
        (inputs, targets), *_ = model.pairs(batches)
        found = model.loss(inputs, targets)[0].item()
        assert found == pytest.approx(expected(model.module, batches[0][0]).item(), rel=1e-9)


class Stepping(nn.Module):
    """The answers of each of some steps to the same input, (steps, examples, classes), as a spiking network's are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        potential, outputs = torch.zeros(()), []
        for _ in range(2):
            potential = 0.8 * potential + self.inner(x)
            outputs.append(self.outer(potential.tanh()))
        return torch.stack(outputs)


def test_a_loss_over_steps_with_a_class_for_each_example_is_measured_whatever_the_batch():
    def rate(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.cross_entropy(step, targets) for step in outputs]).mean()

    network = made(Stepping)
    data = [(drawn(size, FEATURES, seed=size), torch.arange(size) % 3) for size in (5, 5, 3)]
    model = adapt(network, data[0][0], loss=rate)
    for inputs, targets in data:
        torch.testing.assert_close(model.loss(inputs, targets)[0], rate(network(inputs), targets))
        assert int(model.counted(targets).sum()) == len(targets)
    table = LABELLED["gradients"](model, data)
    assert table["importance"].gt(0).all()
