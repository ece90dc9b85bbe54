"""Whatever a network is for, it is measured, fused, pruned, repaired, trained and judged by its own loss."""

import math
from functools import cache, partial

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning
from pruning.ablation.joint_removal import joint_removal
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import mask, select
from pruning.core.statistics import merged
from pruning.data.windows import IGNORED
from pruning.evaluation.measures import loss_of, size_of
from pruning.models.adapting import adapt
from pruning.models.base import NEXT_TOKEN
from pruning.models.losses import objective_of
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import activations
from pruning.signals.criteria import criteria
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from tests.networks import FEATURES, Classifier, made
from tests.tiny import SIGNALS, recipe

ALL = {
    **SIGNALS,
    "surgeon": lambda model, batches: surgeon(
        activations(model, batches, activation_samples=16, bins=8)[1],
        sensitivities(model, batches, batches=16, seed=1),
        damping=1e-4,
    ),
    "criteria": lambda model, batches: criteria(model, batches, batches=16, bins=4, classes=3, ridge=1e-4, seed=1),
}


class Forecaster(nn.Module):
    """The next two numbers of series (B, T, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, series):
        return self.head(self.rnn(series)[0][:, -1])


class Enhancer(nn.Module):
    """Three numbers for each step of sequences (B, T, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, steps):
        return self.head(self.rnn(steps)[0])


class Price(nn.Module):
    """One number for each example, without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(FEATURES, 6), nn.Linear(6, 1)

    def forward(self, examples):
        return self.head(self.inner(examples).tanh())[:, 0]


def denoiser():
    return nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 3, padding=1))


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def series(_):
    long = (0.4 * torch.arange(9.0).double() + drawn(80, 1, seed=1)).sin()[..., None]
    return long[:, :7], long[:, 7:, 0]


def labelled(_):
    inputs = drawn(80, FEATURES, seed=1)
    return inputs, (inputs[:, :3] + 0.3 * inputs[:, 2:] > 0).double()


def steps(threshold):
    clean = drawn(80, 4, 3, seed=1).cumsum(1)
    return clean + 0.3 * drawn(80, 4, 3, seed=2), (clean > 0).double() if threshold else clean


def amounts(_):
    inputs = drawn(80, FEATURES, seed=1)
    return inputs, inputs[:, 0] * inputs[:, 1]


def pictures(_):
    clean = drawn(80, 1, 5, 5, seed=1).cumsum(-1)
    return clean + 0.3 * drawn(80, 1, 5, 5, seed=2), clean


def pinball(outputs, targets, quantile=0.8):
    """Return the quantile loss of each example, their mean."""
    errors = targets - outputs
    return torch.maximum(quantile * errors, (quantile - 1) * errors).flatten(1).sum(1).mean()


def apart(outputs, targets):
    """Return the mean cosine distance of embeddings."""
    return 1 - F.cosine_similarity(outputs, targets, dim=-1).mean()


KINDS = {
    "quantiles by a function": (Forecaster, series, pinball),
    "embeddings by a function": (Classifier, labelled, lambda outputs, targets: apart(outputs, targets - 0.5)),
    "forecast by MSE": (Forecaster, series, nn.MSELoss()),
    "forecast by the function": (Forecaster, series, F.mse_loss),
    "labels by BCE": (Classifier, labelled, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5]).double())),
    "labels of each step": (Enhancer, lambda _: steps(threshold=True), nn.BCEWithLogitsLoss()),
    "steps by L1": (Enhancer, lambda _: steps(threshold=False), nn.L1Loss()),
    "steps by Huber": (Enhancer, lambda _: steps(threshold=False), partial(F.huber_loss, delta=0.5)),
    "one number by smooth L1": (Price, amounts, nn.SmoothL1Loss()),
    "one number by MSE": (Price, amounts, nn.MSELoss()),
    "images by MSE": (denoiser, pictures, nn.MSELoss()),
}
OWN = {"quantiles by a function", "embeddings by a function"}
EMPIRICAL = {*OWN, "steps by L1", "steps by Huber", "one number by smooth L1"}


@cache
def model_and_batches(kind):
    make, data, criterion = KINDS[kind]
    batches = list(zip(*(part.split(5) for part in data(None)), strict=True))
    return adapt(made(make, spread=0.5), batches[0][0], loss=criterion), batches


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_loss_a_model_is_measured_fused_pruned_repaired_and_trained(kind, caplog):
    model, batches = model_and_batches(kind)
    tables = {name: measure(model, batches) for name, measure in ALL.items()}
    for table in tables.values():
        assert table.select_dtypes("number").apply(lambda column: column.abs().max() < math.inf).all()
    said = [record.message for record in caplog.records if "empirical" in record.message]
    assert len(said) == (2 if kind in EMPIRICAL else 0)
    importance = pruning.fuse(tables, pruning.Fusing(strategy="adaptive", seed=1))
    keep = keep_of(retention(importance, Allocation(retain=0.6, floor=1, scope="layer"), variant="v", by="fused"))
    smaller = select(model, keep)
    inputs = batches[0][0]
    assert torch.allclose(smaller.predicted(inputs)[0], mask(model, keep).predicted(inputs)[0], atol=1e-10)
    assert size_of(smaller).multiply_adds < size_of(model).multiply_adds
    covariances = activations(model, batches, activation_samples=16, bins=8)[1]
    repaired = reconstruct(model, keep, covariances, repair="ridge")
    assert repaired.widths() == smaller.widths()
    before = loss_of(smaller, batches).mean
    teacher = Teacher(model=model, share=0.5, temperature=2.0)
    *_, last = train(smaller, batches, batches, recipe=recipe(epochs=2, learning_rate=0.01), seed=1, teacher=teacher)
    smaller.load_state_dict(last.best())
    assert loss_of(smaller, batches).mean == pytest.approx(last.history["valid_loss"].min())
    assert loss_of(smaller, batches).mean < before


@pytest.mark.parametrize("kind", KINDS)
def test_measured_removals_are_the_rise_of_the_loss_itself(kind):
    model, batches = model_and_batches(kind)
    found = oracle(model, batches, Ablation(neurons="all", tokens=10**6, seed=1))
    criterion = KINDS[kind][2]

    def mean(network):
        with torch.no_grad():
            return sum(criterion(network(inputs), targets).item() for inputs, targets in batches) / len(batches)

    (name, rows), *_ = found.groupby("layer")
    layer = next(layer for layer in model.layers() if layer.name == name)
    removed = {name: [0, 2]}
    for neuron in (0, 2):
        keep = {name: torch.tensor([other for other in range(layer.width) if other != neuron])}
        rise = mean(select(model, keep)) - mean(model)
        assert rows.set_index("neuron")["loss_increase"][neuron] == pytest.approx(rise, rel=1e-9, abs=1e-12)
    both = joint_removal(model, batches, found, sets={"both": removed}, tokens=10**6)
    keep = {name: torch.tensor([other for other in range(layer.width) if other not in (0, 2)])}
    assert both["loss_increase"].tolist() == pytest.approx([mean(select(model, keep)) - mean(model)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_over_batches_is_the_criterions_mean_and_metrics_have_directions(kind):
    model, batches = model_and_batches(kind)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    uneven = list(zip(inputs.split(33), targets.split(33), strict=True))
    found = loss_of(model, uneven)
    outputs = model.module(inputs).detach()
    assert found.mean == pytest.approx(KINDS[kind][2](outputs, targets).item(), rel=1e-10)
    directions = model.objective(targets).metrics
    assert set(found.metrics) == set(directions)
    if "accuracy" in directions:
        assert directions["accuracy"] == "higher"
        assert found.accuracy == pytest.approx(((outputs > 0) == (targets > 0.5)).double().mean().item())
    else:
        assert math.isnan(found.accuracy)
        assert set(directions.values()) <= {"lower"}
    if kind not in OWN and "accuracy" not in directions:
        assert found.metrics["mean_absolute_error"] == pytest.approx((outputs - targets).abs().mean().item())


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_the_fisher_information_of_outputs_is_the_hessian_of_a_targets_mean_loss(criterion):
    outputs = torch.tensor([-1.5, 0.2, 2.0], dtype=torch.float64)
    targets = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    objective = objective_of(criterion, targets)
    many = outputs.repeat(60_000, 1).requires_grad_()
    loss = objective.fisher_loss(many, targets.repeat(60_000, 1), torch.Generator().manual_seed(1))
    scores = torch.autograd.grad(loss, many)[0]
    expected = torch.autograd.functional.hessian(lambda f: criterion(f, targets), outputs)
    assert torch.allclose(scores.T @ scores / len(scores), expected, rtol=0.02, atol=0.005)
    assert scores.mean(0).abs().max() < 0.01


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_sensitivities_are_the_closed_form_of_what_the_last_layer_makes_of_sampled_targets(criterion):
    """γ = Wᵀ s at the last hidden layer, and E[s sᵀ] is 2/d for squares and p (1 − p)/d for labels."""
    inputs = drawn(20_000, FEATURES, seed=3)
    targets = torch.zeros(20_000, 3, dtype=torch.float64)
    model = adapt(made(Classifier, spread=0.5), inputs[:5], loss=criterion)
    found = merged(sensitivities(model, [(inputs, targets)] * 2, batches=2, seed=1)["second"]).second_moment
    with torch.no_grad():
        last, shares = model.module.last.weight, model.module(inputs).sigmoid()
    variances = torch.full((3,), 2.0) if isinstance(criterion, nn.MSELoss) else (shares * (1 - shares)).mean(0)
    expected = last.T @ torch.diag(variances.double() / 3) @ last
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_distance_to_itself_has_no_gradient():
    for criterion in (nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.L1Loss(), nn.HuberLoss()):
        taught = drawn(5, 3, seed=1)
        outputs = taught.clone().requires_grad_()
        distance = objective_of(criterion, taught).divergence(outputs, taught, taught, temperature=1.0)
        assert torch.autograd.grad(distance, outputs)[0].abs().max() < 1e-15


@pytest.mark.parametrize(
    ("outputs", "targets"), [((5, 3), (5,)), ((5, 1), (3,)), ((5, 4), (4, 5)), ((5,), (5, 2)), ((5, 1), (5, 5))]
)
def test_targets_of_another_shape_than_the_outputs_are_refused(outputs, targets):
    sentence = r"Expected targets of the outputs' shape \(5.*, got \(.*; give one number for each output."
    for criterion in (nn.MSELoss(), nn.BCEWithLogitsLoss()):
        with pytest.raises(ValueError, match=sentence):
            objective_of(criterion, torch.zeros(targets)).mean(torch.zeros(outputs), torch.zeros(targets))


def test_whole_numbers_are_amounts_to_a_loss_of_amounts():
    outputs = torch.tensor([[0.5], [2.0]], requires_grad=True)
    loss = objective_of(nn.MSELoss(), torch.tensor([1, 2])).mean(outputs, torch.tensor([1, 2]))
    assert torch.autograd.grad(loss, outputs)[0].tolist() == [[-0.5], [0.0]]


class Segmenter(nn.Module):
    """A class for each place of images (B, 1, 5, 5), classes second, as PyTorch's losses want them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 3, 1)

    def forward(self, images):
        return self.head(self.stem(images).relu())


def test_classes_that_come_second_as_pytorch_has_them_give_what_classes_that_come_last_give():
    images = drawn(80, 1, 5, 5, seed=1)
    targets = (2 * images[:, 0]).round().long().clamp(-1, 1) + 1
    targets[:4, 0] = -100
    batches = list(zip(images.split(5), targets.split(5), strict=True))
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double(), label_smoothing=0.1)
    second, last = (
        adapt(made(Segmenter), images[:5], loss=criterion, call=call)
        for call in (None, lambda network, inputs, _: (network(inputs).movedim(1, -1), None))
    )
    expected = criterion(second.module(images[:5]), targets[:5]).item()
    assert second.loss(images[:5], targets[:5])[0].item() == pytest.approx(expected, rel=1e-12)
    assert loss_of(second, batches) == loss_of(last, batches)
    for measure in ALL.values():
        pd.testing.assert_frame_equal(measure(second, batches), measure(last, batches))


def test_outputs_judged_by_a_function_are_apart_by_their_squared_distance_and_others_by_what_the_loss_rises():
    own, taught = drawn(5, 3, seed=1), drawn(5, 3, seed=2)
    objective = objective_of(pinball, taught)
    apart = objective.divergence(own, taught, taught, temperature=1.0)
    assert apart.item() == pytest.approx((own - taught).square().mean().item())
    risen = objective.divergence(own[:, :2], taught, taught[:, :1], temperature=1.0)
    assert risen.item() == pytest.approx((pinball(own[:, :2], taught[:, :1]) - pinball(taught, taught[:, :1])).item())


def test_examples_are_counted_along_their_dimension():
    targets = torch.zeros(7, 4, 2)
    assert [objective_of(pinball, targets, example_dim=dim).weight(targets) for dim in (0, 1)] == [7, 4]


class Stream(nn.Module):
    """The next number after each step of series (T, B, 1), from a state that is carried on."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 6), nn.Linear(6, 1)

    def forward(self, series, state):
        outputs, state = self.rnn(series, state)
        return self.head(outputs)[..., 0], state

    def init_hidden(self, examples):
        return self.head.weight.new_zeros(1, examples, 6)


def test_steps_of_a_network_that_carries_a_state_are_targets_with_or_without_a_dimension_for_their_number():
    long = (0.4 * torch.arange(81.0).double()[:, None] + drawn(1, 5, seed=1)).sin()
    flat = [(long[i : i + 8, :, None], long[i + 1 : i + 9]) for i in range(0, 80, 8)]
    deep = [(inputs, targets[..., None]) for inputs, targets in flat]
    plain = adapt(made(Stream, spread=0.5), flat[0][0], loss=nn.MSELoss())
    call = lambda network, inputs, state: (lambda o, s: (o[..., None], s))(*plain.use.call(network, inputs, state))  # noqa: E731
    other = adapt(made(Stream, spread=0.5), flat[0][0], loss=nn.MSELoss(), call=call)
    assert loss_of(plain, flat).tokens == loss_of(other, deep).tokens == 400
    for measure in ALL.values():
        pd.testing.assert_frame_equal(measure(plain, flat), measure(other, deep))


def test_as_many_targets_are_right_as_have_the_first_highest_logit() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(3, (200, 4), generator=generator).float()  # of four logits two are mostly equal
    labels = torch.randint(4, (200,), generator=generator)
    labels[::7] = IGNORED
    assert NEXT_TOKEN.totals(logits, labels) == {"accuracy": int((logits.argmax(1) == labels).sum())}
    assert NEXT_TOKEN.totals(logits[:0], labels[:0]) == {"accuracy": 0}
