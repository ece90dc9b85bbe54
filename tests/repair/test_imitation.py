"""Imitation and distillation against their definitions."""

import pytest
import torch

from pruning.core.neurons import select
from pruning.data.windows import Windows
from pruning.repair.imitation import Imitation, feature_metric, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.signals.activations import activations
from pruning.training.distillation import Teacher, distillation_loss
from pruning.training.loop import train
from tests.tiny import VOCABULARY, bytes_of, logits_of, recipe, tensors_of, text, tiny

KEEP = {"lstm.0": torch.tensor([0, 2, 3, 6]), "lstm.1": torch.tensor([1, 2, 5])}
IMITATION = Imitation(tokens=2000, learning_rate=0.02, warmup=0.1, clip=1.0)


def distance(model, teacher, windows):
    """Return KL(teacher ‖ model), nat/token."""
    wanted, found = (logits_of(one, windows).log_softmax(-1) for one in (teacher, model))
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


def test_the_metric_of_the_features_is_the_mean_hessian_of_the_distance(windows):
    teacher = tiny()
    with torch.no_grad():
        features, _ = teacher.features(windows[0].tokens)
    rows = features.flatten(0, 1)

    def loss(shift):
        wanted = teacher.decode(rows).log_softmax(-1).detach()
        return (wanted.exp() * (wanted - teacher.decode(rows + shift).log_softmax(-1))).sum(-1).mean()

    expected = torch.autograd.functional.hessian(loss, torch.zeros(rows.shape[1], dtype=torch.float64))
    assert torch.allclose(feature_metric(teacher, [windows[0]]), expected, atol=1e-12)


@pytest.mark.parametrize("decoder", ["untied", "projected", "tied, then projected", "tied, then untied"])
def test_imitation_brings_the_pruned_model_nearer_to_the_dense_one(decoder, windows):
    teacher = tiny(decoder, spread=0.4)
    pruned = select(teacher, KEEP)
    found = imitate(pruned, teacher, windows, imitation=IMITATION)
    assert distance(found, teacher, windows) < 0.6 * distance(pruned, teacher, windows)
    assert found.widths() == pruned.widths()


def test_a_tied_model_can_teach_its_projected_self(windows):
    teacher = tiny("tied")
    pruned = select(teacher.decoupled("project"), KEEP)
    found = imitate(pruned, teacher, windows, imitation=IMITATION)
    assert distance(found, teacher, windows) < 0.6 * distance(pruned, teacher, windows)


def test_imitation_starts_from_the_pruned_model(windows):
    teacher = tiny("tied, then projected")
    pruned = select(teacher, KEEP)
    still = Imitation(tokens=1, learning_rate=1e-300, warmup=0.0, clip=1.0)
    found = imitate(pruned, teacher, windows, imitation=still)
    assert (logits_of(found, windows) - logits_of(pruned, windows)).abs().max() < 1e-12


def test_a_decoder_of_its_own_starts_from_the_nearest_map_to_the_teachers(windows):
    """A repaired decoder is one of the teacher's columns, so nothing is lost by going through them."""
    teacher = tiny("untied")
    states = activations(teacher, windows, activation_samples=20, bins=8)[1]
    repaired = reconstruct(teacher, KEEP, states, repair="ridge")
    still = Imitation(tokens=1, learning_rate=1e-300, warmup=0.0, clip=1.0)
    found = imitate(repaired, teacher, windows, imitation=still)
    assert (logits_of(found, windows) - logits_of(repaired, windows)).abs().max() < 1e-9


DEPENDENT = {
    "a dead column": lambda weight: weight[:, 3].zero_(),
    "equal columns": lambda weight: weight[:, 3].copy_(weight[:, 1]),
    "all zero": torch.Tensor.zero_,
    "more columns than words": lambda weight: weight,
}
"""How a decoder's columns come to depend on each other."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", DEPENDENT)
def test_a_decoder_with_dependent_columns_can_teach(how, dtype, windows):
    """The pruned model's own decoder lies within the teacher's columns, so that a map to them loses nothing."""
    teacher = tiny("untied", widths=(7, VOCABULARY + 2 if how.startswith("more") else 6), dtype=dtype)
    with torch.no_grad():
        DEPENDENT[how](teacher.decoder.weight)
    pruned = select(teacher, KEEP)
    with torch.no_grad():
        pruned.decoder.weight.mul_(2)
    still = Imitation(tokens=1, learning_rate=1e-300, warmup=0.0, clip=1.0)
    found = imitate(pruned, teacher, windows, imitation=still)
    limit = 1e-4 if dtype == torch.float32 else 1e-7
    assert (logits_of(found, windows) - logits_of(pruned, windows)).abs().max() < limit


def test_a_text_that_is_read_again_begins_without_a_state(monkeypatch):
    windows, teacher, carried = Windows(text(70), first=0, batch=4, bptt=6), tiny("tied, then untied"), []
    pruned, read = select(teacher, KEEP), type(teacher).features

    def features(self, tokens, state=None, offsets=None):
        carried.append(state is not None)
        return read(self, tokens, state, offsets)

    monkeypatch.setattr(type(teacher), "features", features)
    imitate(pruned, teacher, windows, imitation=Imitation(tokens=7 * 24, learning_rate=0.01, warmup=0.0, clip=1.0))
    assert len(windows) == 3
    assert carried[3:] == [place for place in (False, True, True, False, True, True, False) for _ in range(2)]


def test_embedding_and_a_shared_decoder_stay(windows):
    teacher = tiny("tied, then projected")
    pruned = select(teacher, KEEP)
    found = imitate(pruned, teacher, windows, imitation=IMITATION)
    for name in ("encoder.weight", "decoder.bias"):
        assert torch.equal(found.state_dict()[name], pruned.state_dict()[name])
    assert not torch.equal(found.state_dict()["projection.weight"], pruned.state_dict()["projection.weight"])


def test_imitation_repeats_its_bytes_and_leaves_both_models_alone(windows):
    teacher = tiny(dropout=0.3).train()
    pruned = select(teacher, KEEP)
    before = [bytes_of(tensors_of(model)) for model in (teacher, pruned)]
    one, same = (imitate(pruned, teacher, windows, imitation=IMITATION) for _ in range(2))
    assert bytes_of(tensors_of(one)) == bytes_of(tensors_of(same))
    assert [bytes_of(tensors_of(model)) for model in (teacher, pruned)] == before
    assert all(p.grad is None for model in (one, teacher, pruned) for p in model.parameters())
    assert (one.training, teacher.training) == (True, True)


def test_a_student_with_a_weight_that_is_no_number_is_refused(windows):
    teacher = tiny()
    pruned = select(teacher, KEEP)
    with torch.no_grad():
        pruned.lstm[0].bias_ih_l0[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"Expected finite weights, got 1 of 16 in lstm\.0\.bias_ih_l0"):
        imitate(pruned, teacher, windows, imitation=IMITATION)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_minimised_is_the_weighted_sum_of_labels_and_teacher(temperature, windows):
    model, other = tiny(seed=1), tiny(seed=2)
    padded = windows[len(windows) - 1]
    assert (padded.targets < 0).any()
    teacher = Teacher(model=other, share=0.3, temperature=temperature)
    loss, minimised, _ = distillation_loss(model, teacher, padded, None, None)
    own, wanted = model(padded.tokens)[0], other(padded.tokens)[0]
    cross_entropy, with_teacher, count = 0.0, 0.0, 0
    for step, column in (padded.targets >= 0).nonzero().tolist():
        p, q = ((z[step, column] / temperature).softmax(0) for z in (wanted, own))
        with_teacher -= (p * q.log()).sum().item()
        cross_entropy -= own[step, column].log_softmax(0)[padded.targets[step, column]].item()
        count += 1
    assert loss.item() == pytest.approx(cross_entropy / count)
    expected = 0.7 * cross_entropy / count + 0.3 * temperature**2 * with_teacher / count
    assert minimised.item() == pytest.approx(expected)


def test_no_gradient_reaches_the_teacher(windows):
    model, other = tiny(seed=1), tiny(seed=2)
    teacher = Teacher(model=other, share=0.5, temperature=1.0)
    torch.autograd.backward(distillation_loss(model, teacher, windows[0], None, None)[1])
    assert all(parameter.grad is None for parameter in other.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_with_a_teacher_alone_ends_nearer_to_it_than_training_with_labels_alone():
    windows = Windows(text(700), first=0, batch=4, bptt=8)
    teacher, ends = tiny(seed=5), {}
    for share in (0.0, 1.0):
        model = tiny(seed=6)
        taught = Teacher(model=teacher, share=share, temperature=1.0)
        list(train(model, windows, windows, recipe=recipe(epochs=3), seed=1, teacher=taught))
        ends[share] = distance(model.eval(), teacher, windows)
    assert ends[1.0] < 0.5 * ends[0.0]


def test_a_teacher_without_a_share_changes_no_byte():
    windows = Windows(text(300), first=0, batch=4, bptt=8)
    ends = []
    for teacher in (None, Teacher(model=tiny(seed=5, dtype=torch.float32), share=0.0, temperature=1.0)):
        model = tiny(seed=6, dtype=torch.float32, dropout=0.2)
        list(train(model, windows, windows, recipe=recipe(epochs=1), seed=1, teacher=teacher))
        ends.append(tensors_of(model))
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])
