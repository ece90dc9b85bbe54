"""Losses of users on class numbers that are no classes, on answers that hold no numbers, and without targets."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

import pruning
from pruning.models.adapting import adapt
from pruning.models.asking import ignored_by, judges_softmax
from pruning.models.classes import Classes
from pruning.models.examples import Examples
from tests.foreign import floats
from tests.networks import made


class Grades(nn.Module):
    """Thresholds that share one direction: how likely a grade is above each of three (CORAL, Cao et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.along, self.thresholds = nn.Linear(4, 8), nn.Linear(8, 1, bias=False), nn.Parameter(floats(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.along(self.inner(inputs).relu()) + self.thresholds


def ordinal(outputs: Tensor, grades: Tensor) -> Tensor:
    above = (grades[:, None] > torch.arange(outputs.shape[1])).to(outputs)
    return F.binary_cross_entropy_with_logits(outputs, above, reduction="none").sum(1).mean()


def focal(outputs: Tensor, classes: Tensor) -> Tensor:
    likely = outputs.log_softmax(-1).gather(1, classes[:, None])
    return -((1 - likely.exp()) ** 2 * likely).mean()


def of_probabilities(outputs: Tensor, classes: Tensor) -> Tensor:
    return F.nll_loss(outputs, classes)


def by_steps(outputs: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), classes)


def of_directions(outputs: Tensor, classes: Tensor) -> Tensor:
    """Judge embeddings by how near they are to the direction of their class, of which there are two."""
    return F.cross_entropy(F.normalize(outputs) @ F.normalize(floats(3, 2), dim=0), classes)


def unable(outputs: Tensor, classes: Tensor) -> Tensor:
    raise TypeError(f"Expected triples, got {outputs.shape} and {classes.shape}.")


LOGITS, STEPS = floats(5, 3), floats(4, 5, 3)


@pytest.mark.parametrize(
    ("loss", "outputs", "expected"),
    [
        (focal, LOGITS, True),
        (nn.MultiMarginLoss(), LOGITS, True),
        (of_probabilities, LOGITS.log_softmax(-1), True),
        (by_steps, STEPS, True),
        (lambda outputs, classes: F.cross_entropy(outputs, classes), STEPS.movedim(-1, 1), True),
        (unable, LOGITS, True),
        (ordinal, LOGITS, False),
        (of_directions, LOGITS, False),
        (lambda outputs, classes: F.mse_loss(outputs, F.one_hot(classes, 3).to(outputs)), LOGITS, False),
    ],
)
def test_a_loss_judges_classes_where_it_judges_rows_by_their_softmax(loss, outputs, expected):
    assert judges_softmax(loss, outputs) is expected


def grades():
    return [(floats(6, 4, seed=seed), (torch.arange(6) + seed) % 4) for seed in range(4)]


def test_grades_that_share_one_direction_are_told_apart_though_their_softmax_never_changes():
    torch.manual_seed(0)
    network = Grades().double()
    model = pruning.adapt(network, grades()[0][0], loss=ordinal)
    assert type(model.objective(grades()[0][1])) is Examples
    found = pruning.discover(network, grades()[0][0])
    importance = pruning.importance(found, grades(), ordinal)
    assert not importance.left_out
    assert pruning.prune(found, importance, keep=0.5, repair="none", scope="layer").report.apart["layer"] > 1e-4
    assert type(pruning.adapt(network, grades()[0][0], loss=focal).objective(grades()[0][1])) is Classes


class Likely(nn.Module):
    """Gives a distribution, in which no tensors are known."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mean = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Normal:
        return Normal(self.mean(self.inner(inputs).tanh()), 0.5)


class Towers(nn.Module):
    """How alike each of some inputs is to each of others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return F.normalize(self.one(one), dim=-1) @ F.normalize(self.other(other), dim=-1).T


def alike(scores: Tensor, _: None = None) -> Tensor:
    places = torch.arange(len(scores))
    return F.cross_entropy(scores, places) + F.cross_entropy(scores.T, places)


def signed(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.softplus(-labels * (outputs[:, 1] - outputs[:, 0])).mean()


def from_one(outputs: Tensor, numbers: Tensor) -> Tensor:
    return F.cross_entropy(outputs, numbers - 1)


def others(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Judge by classes that an example is not of (Ishida et al. 2017)."""
    return -(1 - outputs.softmax(-1).gather(1, numbers[:, None])).log().mean()


@pytest.mark.parametrize(
    ("loss", "numbers", "classes"),
    [
        (signed, torch.tensor([1, -1, -1, 1, 1, -1]), 2),
        (from_one, torch.tensor([1, 2, 3, 3, 2, 1]), 3),
        (from_one, torch.tensor([1, 2, 1, 2, 2, 1]), 3),  # of which each has a logit of its number
        (others, torch.tensor([0, 1, 2, 2, 1, 0]), 3),
    ],
)
def test_numbers_whose_own_logits_a_loss_does_not_raise_are_those_of_no_classes(loss, numbers, classes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    data = [(floats(6, 4, seed=seed), numbers.roll(seed)) for seed in range(3)]
    found = pruning.evaluate(network, data, loss)
    assert found.mean == pytest.approx(sum(loss(network(x), y).item() for x, y in data) / 3, rel=1e-12)
    assert (found.tokens, found.metrics) == (18, {})


def test_a_class_that_a_users_own_loss_ignores_counts_nowhere_though_it_has_a_logit():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    known = nn.CrossEntropyLoss(ignore_index=0)
    data = [(floats(6, 4, seed=seed), torch.tensor([0, 1, 2, 2, 0, 1])[: 4 + seed]) for seed in range(3)]
    data = [(inputs[: len(numbers)], numbers) for inputs, numbers in data]
    expected, found = (
        pruning.evaluate(network, data, loss) for loss in (known, lambda outputs, numbers: known(outputs, numbers))
    )
    assert (found.tokens, found.mean, found.metrics) == (expected.tokens, expected.mean, expected.metrics)


def hardest(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Judge by the two rows that are judged worst alone."""
    return F.cross_entropy(outputs, numbers, reduction="none").topk(2).values.mean()


def test_a_class_whose_rows_a_loss_happens_to_leave_out_is_not_ignored():
    numbers = torch.tensor([0, 1, 2, 2, 1, 1])
    assert ignored_by(Classes(hardest), floats(6, 3), numbers) == frozenset()


def smoothed(outputs: Tensor, numbers: Tensor) -> Tensor:
    return F.cross_entropy(outputs, numbers, label_smoothing=0.2)


@pytest.mark.parametrize("loss", [focal, smoothed, nn.MultiMarginLoss(), of_probabilities])
def test_a_loss_of_classes_is_one_also_where_it_is_sure(loss):
    sure = 50 * F.one_hot(torch.tensor([0, 1, 2, 2]), 3).double()
    assert ignored_by(Classes(loss), sure.log_softmax(-1), torch.tensor([0, 1, 2, 2])) == frozenset()


class Pair(nn.Module):
    """Two embeddings of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(one), self.inner(other)


def apart_by(one: Tensor, other: Tensor, label: Tensor) -> Tensor:
    distance = F.pairwise_distance(one, other)
    return (label * distance.square() + (1 - label) * (1 - distance).relu().square()).mean()


def with_target_between(mean: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    return ((mean.sum(1) - target).square() / (1 + spread.sum(1).square())).mean()


def both(one: Tensor, other: Tensor) -> Tensor:
    return F.cross_entropy(one @ other.T, torch.arange(len(one)))


def weighed(outputs: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    return ((outputs[:, 0] - values).square() * weights).sum() / weights.sum()


ONE, OTHER, NUMBERS, REAL = floats(6, 4), floats(6, 4, seed=1), torch.tensor([0, 1, 1, 0, 1, 0]), floats(6, seed=2)
CALLED = {
    "two outputs and class numbers": (Pair, (ONE, OTHER, NUMBERS), apart_by, lambda out: apart_by(*out, NUMBERS)),
    "the target between two outputs": (
        Pair,
        (ONE, OTHER, REAL),
        with_target_between,
        lambda out: with_target_between(out[0], REAL, out[1]),
    ),
    "two outputs alone": (Pair, (ONE, OTHER), both, lambda out: both(*out)),
    "one output alone": (None, (ONE, NUMBERS), lambda output: output.square().mean(), lambda out: out.square().mean()),
    "several targets": (None, (ONE, REAL, REAL.abs()), weighed, lambda out: weighed(out, REAL, REAL.abs())),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_loss_may_be_called_with(name):
    kind, batch, loss, expected = CALLED[name]
    torch.manual_seed(0)
    network = (kind() if kind else Pair().inner).double()
    inputs = batch[:2] if kind else batch[0]
    model = pruning.adapt(network, inputs, loss=loss)
    given = network(*inputs) if kind else network(inputs)
    assert pruning.evaluate(model, [batch] * 2).mean == pytest.approx(expected(given).item(), rel=1e-12)


def test_a_loss_of_which_it_is_not_clear_what_is_what_is_refused():
    def likely(mean: Tensor, seen: Tensor, spread: Tensor) -> Tensor:
        return with_target_between(mean, seen, spread)

    with pytest.raises(
        TypeError, match=r"^Expected a loss of \(outputs, targets\), got likely\(mean, seen, spread\), .*;"
    ):
        pruning.evaluate(pruning.adapt(Pair().double(), (ONE, OTHER), loss=likely), [(ONE, OTHER, REAL)])


@pytest.mark.parametrize("name", ["a distribution", "no targets", "targets that are none"])
def test_a_loss_goes_through_the_front_door_with(name):
    torch.manual_seed(0)
    split = None
    if name == "a distribution":
        network, data = Likely(), [(floats(6, 4, seed=seed), floats(6, 1, seed=seed)) for seed in range(4)]
        found = pruning.discover(network.double(), data[0][0])
        loss = lambda answer, targets: -answer.log_prob(targets).mean()  # noqa: E731
    else:
        network, data = Towers(), [(floats(6, 4, seed=seed), floats(6, 4, seed=9 + seed)) for seed in range(4)]
        found, loss = pruning.discover(network.double(), data[0]), alike
        split = (lambda batch: (batch, None)) if name == "targets that are none" else None
    importance = pruning.importance(found, data, loss, split=split)
    assert not importance.left_out
    smaller = pruning.prune(found, importance, keep=0.5)
    before = pruning.evaluate(smaller, data).mean
    pruning.finetune(smaller, data, epochs=2, learning_rate=1e-2)
    assert pruning.evaluate(smaller, data).mean < before


X, Y = [floats(4, 5), floats(4, 5) + 1], [torch.tensor([0, 1, 2, 1]), torch.tensor([2, 2, 0, 1])]


class Judging(nn.Module):
    """A network of two tasks that judges itself, its labels called as nobody else calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tags, self.values = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor, tags: Tensor) -> dict[str, Tensor]:
        inner = torch.tanh(self.inner(x))
        answer = {"tags": self.tags(inner), "values": self.values(inner)}
        loss = F.cross_entropy(answer["tags"], tags) + answer["values"].square().mean()
        return {**answer, "loss": loss}


class Labelled(Judging):
    """The same with labels called as usual."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return super().forward(x, labels)


@pytest.mark.parametrize(("kind", "name"), [(Judging, "tags"), (Labelled, "labels")])
def test_a_network_that_gives_several_outputs_and_its_loss_is_judged_by_that(kind, name):
    network, batches = made(kind), [{"x": x, name: y} for x, y in zip(X, Y, strict=True)]
    expected = sum(network(**batch)["loss"].item() for batch in batches) / len(batches)
    found = pruning.discover(network, batches[0])
    measured = pruning.importance(found, batches, signals=["gradients", "activations"])
    assert not measured.left_out
    assert pruning.evaluate(found, batches).mean == pytest.approx(expected, rel=1e-12)


def test_what_a_loss_of_all_outputs_raises_is_told_and_not_what_it_raises_of_the_logits_alone():
    class Beside(Judging):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.tags(torch.tanh(self.inner(x))), "norms": x.norm(dim=1)}

    model = adapt(made(Beside), X[0], loss=lambda outputs, _: outputs["logits"].sum() + outputs["norm"].mean())
    with pytest.raises(KeyError, match=r"^'norm'$"):
        model.judged(model.predicted(X[0])[0], Y[0])


class Several(nn.Module):
    """Gives logits, and something beside them, by names."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.body(inputs).relu()
        return {"logits": self.head(hidden), "norm": hidden.square().mean()}


_given: list[type] = []  # a list that the loss held would be put back as it was before it was asked


def test_a_loss_of_several_outputs_is_called_with_all_of_them_before_it_is_tried_with_one():
    def loss(outputs, targets):
        _given.append(type(outputs))
        return nn.functional.cross_entropy(outputs["logits"], targets) + outputs["norm"]

    torch.manual_seed(0)
    data = [(torch.randn(5, 3), torch.arange(5) % 4) for _ in range(2)]
    model = pruning.adapt(Several(), data[0][0], loss=loss)
    pruning.evaluate(model, data)
    _given.clear()
    pruning.evaluate(model, data)
    assert all(kind is dict for kind in _given)
    assert len(_given) == 2
