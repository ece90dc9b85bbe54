"""Cross-entropy in chunks is PyTorch's to rounding, and that over a sample of types has it as its limit."""

import pytest
import torch
from torch.nn import functional as F

from pruning.data.windows import IGNORED
from pruning.models import softmax
from pruning.models.softmax import (
    Guide,
    chunked_cross_entropy,
    chunked_distillation,
    inclusion,
    sampled_cross_entropy,
    sampled_distillation,
)

ROWS, FEATURES, TYPES = 40, 6, 60


def decoder(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((ROWS, FEATURES), (TYPES, FEATURES), (TYPES,))
    parts = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    labels = torch.randint(TYPES, (ROWS,), generator=generator)
    labels[::7] = IGNORED
    return parts, labels


def with_gradients(loss, parts):
    return loss.detach(), *torch.autograd.grad(3 * loss, parts)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_loss_in_chunks_and_its_gradients_are_those_of_cross_entropy(monkeypatch, dtype, tolerance, rows):
    monkeypatch.setattr(softmax, "LOGITS", rows * TYPES)
    monkeypatch.setattr(softmax, "FEWEST", 1)
    parts, labels = decoder(dtype)
    expected = with_gradients(F.cross_entropy(F.linear(*parts), labels, ignore_index=IGNORED), parts)
    for one, other in zip(with_gradients(chunked_cross_entropy(*parts, labels), parts), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_large_logits_do_not_overflow_in_chunks_or_samples():
    parts, labels = decoder()
    large = [parts[0] * 1000, *parts[1:]]
    expected = F.cross_entropy(F.linear(*large), labels, ignore_index=IGNORED)
    torch.testing.assert_close(chunked_cross_entropy(*large, labels), expected)
    torch.testing.assert_close(sampled_cross_entropy(*large, labels, sampled=TYPES), expected)


def test_a_sample_of_all_types_gives_the_loss_and_its_gradients():
    parts, labels = decoder()
    expected = with_gradients(F.cross_entropy(F.linear(*parts), labels, ignore_index=IGNORED), parts)
    found = with_gradients(sampled_cross_entropy(*parts, labels, sampled=TYPES), parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_the_partition_function_of_a_sample_has_the_whole_one_as_its_mean():
    parts, labels = decoder()
    parts, counted = [part.detach() for part in parts], labels != IGNORED
    one = counted.nonzero()[0]
    features, label = 0.3 * parts[0][one], labels[one]
    logits = F.linear(features, *parts[1:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [sampled_cross_entropy(features, *parts[1:], label, sampled=15) for _ in range(4000)]
    sums = (torch.stack(losses) + logits[0, label]).exp()
    error = sums.std() / len(sums) ** 0.5
    assert abs(sums.mean() - logits.exp().sum()) < 4 * error
    assert error < 0.02 * sums.mean()


def test_the_estimate_comes_nearer_to_the_loss_the_more_types_are_drawn():
    parts, labels = decoder()
    parts = [part.detach() for part in parts]
    whole = F.cross_entropy(F.linear(*parts), labels, ignore_index=IGNORED)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        far, near = (
            torch.stack([sampled_cross_entropy(*parts, labels, sampled=sampled) - whole for _ in range(300)])
            for sampled in (12, 45)
        )
    assert near.square().mean() < 0.2 * far.square().mean()
    assert far.mean() < near.mean() < 0


def guide(temperature, dtype=torch.float64, share=0.3):
    """Return a teacher with features of another size."""
    generator = torch.Generator().manual_seed(9)
    shapes = ((ROWS, FEATURES + 3), (TYPES, FEATURES + 3), (TYPES,))
    features, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return Guide(features=features, weight=weight, bias=bias, share=share, temperature=temperature)


def distilled(parts, labels, teacher):
    """Return the labels' loss and what is minimised, a row after the other."""
    logits, taught = F.linear(*parts), F.linear(teacher.features, teacher.weight, teacher.bias)
    counted, warmth = labels != IGNORED, teacher.temperature
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED)
    rows = (F.cross_entropy(z / warmth, (t / warmth).softmax(0)) for z, t in zip(logits, taught, strict=True))
    distance = torch.stack([row for row, counts in zip(rows, counted, strict=True) if counts]).mean()
    return loss, 0.7 * loss + 0.3 * warmth**2 * distance


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("way", ["chunked", "sampled"])
def test_beside_a_teacher_chunks_and_a_sample_of_all_types_give_the_loss_and_its_gradients(
    monkeypatch, way, dtype, tolerance, temperature
):
    monkeypatch.setattr(softmax, "LOGITS", 7 * TYPES)
    monkeypatch.setattr(softmax, "FEWEST", 1)
    parts, labels = decoder(dtype)
    teacher = guide(temperature, dtype)
    if way == "chunked":
        loss, learnt = chunked_distillation(*parts, labels, teacher)
    else:
        loss, learnt = sampled_distillation(*parts, labels, teacher, sampled=TYPES)
    expected, minimised = distilled(parts, labels, teacher)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=tolerance, atol=tolerance)
    for one, other in zip(with_gradients(learnt, parts), with_gradients(minimised, parts), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_beside_a_teacher_the_estimate_comes_nearer_the_more_types_are_drawn():
    parts, labels = decoder()
    parts, teacher = [part.detach() for part in parts], guide(2.0)
    _, whole = distilled(parts, labels, teacher)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        far, near = (
            torch.stack([sampled_distillation(*parts, labels, teacher, sampled=n)[1] - whole for _ in range(300)])
            for n in (12, 45)
        )
    assert near.square().mean() < 0.2 * far.square().mean()


@pytest.mark.parametrize("sampled", [1, 10, 59, 60, 100])
def test_chances_fall_with_rank_and_expect_as_many_types_as_asked(sampled):
    chances = inclusion(TYPES, sampled)
    assert chances.sum().item() == pytest.approx(min(sampled, TYPES), rel=1e-5)
    assert (chances.diff() <= 0).all()
    assert 0 < chances.min() <= chances.max() <= 1


def test_a_window_in_which_nothing_counts_has_no_loss():
    parts, labels = decoder()
    ignored = torch.full_like(labels, IGNORED)
    assert chunked_cross_entropy(*parts, ignored).isnan()
    assert sampled_cross_entropy(*parts, ignored, sampled=9).isnan()
    assert chunked_distillation(*parts, ignored, guide(1.0))[1].isnan()
    assert sampled_distillation(*parts, ignored, guide(1.0), sampled=9)[1].isnan()
