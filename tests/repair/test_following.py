"""Networks of any kind taught by another, without labels."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import pruning
from pruning.core.neurons import select
from pruning.repair import following
from pruning.repair.following import Pupil
from pruning.repair.imitation import Imitation, imitate
from tests.tiny import tiny

IMITATION = Imitation(tokens=1500, learning_rate=0.02, warmup=0.1, clip=1.0)


class Loaded:
    """Batches that are no sequence, so that nobody knows whether they are the same when they are read again."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Encoder(nn.Module):
    """Gives packed sequences an embedding."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return F.normalize(self.out(self.rnn(packed)[1][-1]), dim=1)


class Detector(nn.Module):
    """Gives two answers under names."""

    def __init__(self):
        super().__init__()
        self.first, self.boxes, self.scores = nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(16, 3)

    def forward(self, x):
        hidden = self.first(x).relu()
        return {"boxes": self.boxes(hidden), "scores": (self.scores(hidden),)}


def classifier():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))


def draw(*shape):
    return torch.randn(*shape)


LENGTHS = torch.tensor([6, 4, 4, 3, 2, 1, 1, 6])
KINDS = {
    "classes": (classifier, nn.CrossEntropyLoss(), lambda: (draw(30, 4), torch.randint(3, (30,)))),
    "classes, from inputs alone": (classifier, nn.CrossEntropyLoss(), lambda: draw(30, 4)),
    "labels": (classifier, nn.BCEWithLogitsLoss(), lambda: (draw(30, 4), torch.rand(30, 3).round())),
    "numbers, from inputs alone": (classifier, nn.MSELoss(), lambda: draw(30, 4)),
    "packed sequences": (Encoder, nn.MSELoss(), lambda: ((draw(8, 6, 4), LENGTHS), draw(8, 5))),
    "packed sequences, from inputs alone": (Encoder, nn.MSELoss(), lambda: (draw(8, 6, 4), LENGTHS)),
    "a loss of one's own": (classifier, lambda a, b: (a - b).abs().mean(), lambda: (draw(30, 4), draw(30, 3))),
    "several answers": (Detector, nn.MSELoss(), lambda: draw(30, 4)),
}


def numbers(answer):
    return torch.cat([part.flatten() for part in torch.utils._pytree.tree_leaves(answer)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("features", "optimizer"), [(0.0, "adam"), (0.5, "adam"), (0.0, "muon")])
def test_a_network_is_brought_nearer_to_the_one_that_teaches_it(kind, features, optimizer):
    torch.manual_seed(0)
    make, criterion, batch = KINDS[kind]
    data = [batch() for _ in range(6)]
    inputs = data[0] if isinstance(data[0], torch.Tensor) or "alone" in kind else data[0][0]
    teacher = pruning.adapt(make(), inputs, criterion=criterion)
    student = select(teacher, {layer.name: torch.arange(layer.width // 2) for layer in teacher.layers()})
    before = [parameter.clone() for parameter in (*student.parameters(), *teacher.parameters())]
    found = imitate(student, teacher, data, imitation=replace(IMITATION, features=features, optimizer=optimizer))
    assert found.widths() == student.widths()
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        answers = [model(*arguments) for model in (teacher, student, found)]
    judged = [answer.log_softmax(1) for answer in answers] if "classes" in kind else answers
    wanted, far, near = map(numbers, judged)
    assert (near - wanted).square().mean() < 0.5 * (far - wanted).square().mean()
    after = (*student.parameters(), *teacher.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("room", [0, 3 * 30 * 3 * 4, 2**29], ids=["none", "half of it", "all"])
def test_what_a_teacher_answers_is_kept_where_the_same_batches_come_again_and_changes_nothing(monkeypatch, room):
    torch.manual_seed(0)
    data = [(draw(30, 4), None) for _ in range(6)]
    teacher = pruning.adapt(classifier(), data[0][0], loss=nn.MSELoss())
    student = select(teacher, {"0": torch.arange(5)})
    monkeypatch.setattr(following, "ANSWERS", room)
    asked = []
    run = Pupil._run
    monkeypatch.setattr(Pupil, "_run", lambda self, model, *given: asked.append(model) or run(self, model, *given))
    imitation = replace(IMITATION, tokens=30 * 6 * 3)
    found = imitate(student, teacher, data, imitation=imitation)
    own = [model for model in asked if model.widths() == teacher.widths()]
    assert len(own) == {0: 18, 3 * 30 * 3 * 4: 3 + 3 * 3, 2**29: 6}[room]
    plain = imitate(student, teacher, Loaded(data), imitation=imitation)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), plain.parameters(), strict=True))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"Unknown optimizer 'sgd' to imitate by; known: \['adam', 'muon'\]"):
        replace(IMITATION, optimizer="sgd")


def test_what_is_minimised_for_classes_is_the_divergence_of_the_loss():
    torch.manual_seed(0)
    inputs, targets = draw(10, 4), torch.tensor([0, 1, 2, -100, 0, 1, 2, -100, 0, 1])
    teacher = pruning.adapt(classifier(), inputs, criterion=nn.CrossEntropyLoss())
    student = select(teacher, {"0": torch.arange(5)})
    loss, _ = Pupil(student, teacher, 0.0).distance((inputs, targets), (None, None))
    known = targets >= 0
    shares, logarithms = teacher(inputs)[known].softmax(1), student(inputs)[known].log_softmax(1)
    assert loss.item() == pytest.approx(-(shares * logarithms).sum(1).mean().item())


def test_features_are_compared_as_what_the_readers_of_kept_neurons_read():
    torch.manual_seed(0)
    inputs = draw(10, 4)
    teacher = pruning.discover(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), inputs)
    student = select(select(teacher, {"0": torch.tensor([1, 3, 4, 5])}), {"0": torch.tensor([2, 0])})  # 4 and 1
    with torch.no_grad():
        student.network[0].weight.mul_(1.5)
        loss, _ = Pupil(student, teacher, 1.0).distance(inputs, (None, None))
        wanted = teacher.network[:2](inputs)[:, [4, 1]]
        apart = (student.network[:2](inputs) - wanted).square().mean() / wanted.square().mean()
    assert loss.item() == pytest.approx(apart.item())


def test_a_batch_without_a_target_that_counts_teaches_nothing():
    torch.manual_seed(0)
    inputs = draw(10, 4)
    teacher = pruning.adapt(classifier(), inputs, criterion=nn.CrossEntropyLoss())
    student = select(teacher, {"0": torch.arange(5)})
    data = [(inputs, torch.full((10,), -100))] * 2
    found = imitate(student, teacher, data, imitation=IMITATION)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), student.parameters(), strict=True))


def test_frozen_networks_and_features_of_unknown_neurons_are_refused():
    teacher = pruning.adapt(classifier(), draw(2, 4), criterion=nn.CrossEntropyLoss())
    frozen = select(teacher, {"0": torch.arange(5)}).requires_grad_(False)
    with pytest.raises(ValueError, match="Expected parameters that can learn to imitate, got frozen ones alone"):
        imitate(frozen, teacher, [draw(2, 4)], imitation=IMITATION)
    with pytest.raises(ValueError, match="Expected networks whose neurons `discover` found"):
        Pupil(tiny(), tiny(), 0.5)


def test_a_rate_that_lets_the_loss_explode_is_refused():
    teacher = pruning.adapt(classifier(), draw(2, 4), criterion=nn.MSELoss())
    student = select(teacher, {"0": torch.arange(5)})
    with pytest.raises(FloatingPointError, match=r"Expected a finite imitation loss.*lower learning_rate or clip"):
        imitate(student, teacher, [draw(20, 4) * 1e30], imitation=replace(IMITATION, learning_rate=1e30))
