"""Losses that are likelihoods held against their distributions: divergences, drawn targets, CTC in two ways."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.data.batches import Unlabelled
from pruning.models.alignments import losses_of
from pruning.models.losses import objective_of
from tests.models.test_losses import LENGTHS, SIZES, SPOKEN, drawn


def test_divergences_of_gaussians_and_of_steps_are_those_of_their_distributions():
    means, variances = drawn(2, 5, 3, seed=1), drawn(2, 5, 3, seed=2).exp()
    own, taught = (torch.distributions.Normal(m, v.sqrt()) for m, v in zip(means, variances, strict=True))
    gaussian = objective_of(nn.GaussianNLLLoss(), means[0])
    pairs = tuple(zip(means, variances, strict=True))
    found = gaussian.divergence(pairs[0], pairs[1], means[0], temperature=1.0)
    assert found.item() == pytest.approx(torch.distributions.kl_divergence(taught, own).mean().item())
    steps, other = (drawn(5, 4, 4, seed=seed).log_softmax(-1) for seed in (3, 4))
    targets = (SPOKEN, LENGTHS, SIZES)
    ctc = objective_of(nn.CTCLoss(), targets)
    apart_by = ctc.divergence(steps, other, targets, temperature=1.0) - ctc.divergence(
        other, other, targets, temperature=1.0
    )
    each = F.kl_div(steps, other, log_target=True, reduction="none").sum(-1)
    counted = torch.arange(5)[:, None] < LENGTHS
    assert apart_by.item() == pytest.approx(each[counted].mean().item())


def test_labels_drawn_for_ctc_are_as_likely_as_the_network_says():
    steps = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]]).double().log()[:, None]
    many = steps.expand(2, 20_000, 3).clone().requires_grad_()
    objective = objective_of(nn.CTCLoss(), Unlabelled(20_000))
    loss = objective.fisher_loss(many, Unlabelled(20_000), torch.Generator().manual_seed(1))
    scores = torch.autograd.grad(loss, many)[0]
    assert scores.mean(1).abs().max() < 0.02  # E of the gradient by the logits is 0 where labels are the network's own


def test_ctc_that_is_differentiated_twice_is_pytorchs():
    steps = drawn(7, 4, 4, seed=1).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([7, 4, 6, 3])
    labels, sizes = torch.tensor([[1, 1, 2], [3, 2, 1], [2, 0, 0], [0, 0, 0]]), torch.tensor([3, 3, 1, 0])
    ours, theirs = (
        losses_of(steps, labels, lengths, sizes, 0),
        F.ctc_loss(steps, labels, lengths, sizes, reduction="none"),
    )
    assert torch.allclose(ours, theirs, rtol=1e-10)
    found, expected = (torch.autograd.grad(loss.sum(), steps, retain_graph=True)[0] for loss in (ours, theirs))
    # PyTorch's gradient is that by the logits below a log-softmax
    assert torch.allclose(found - steps.exp() * found.sum(-1, keepdim=True), expected, atol=1e-10)
    impossible = losses_of(steps[:2], labels[:1, :3], lengths[:1].clamp(max=2), sizes[:1], 0)
    assert impossible.item() > 1e20


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (nn.GaussianNLLLoss(), (torch.tensor([[0.3]]), torch.tensor([[0.7]]))),
        (nn.BCELoss(), (torch.tensor([[0.3]]),)),
    ],
)
def test_the_fisher_information_is_the_curvature_expected_under_the_models_own_targets(loss, outputs):
    many = [part.double().repeat(40_000, 1).requires_grad_() for part in outputs]
    answer = tuple(many) if len(many) > 1 else many[0]
    objective = objective_of(loss, torch.zeros(40_000, 1))
    drawn_loss = objective.fisher_loss(answer, torch.zeros(40_000, 1), torch.Generator().manual_seed(1))
    scores = torch.cat(torch.autograd.grad(drawn_loss, many), dim=1)
    if len(outputs) > 1:  # E of the Hessian of ½ (log v + (m − y)² / v)
        variance = outputs[1].item()
        expected = torch.diag(torch.tensor([1 / variance, 0.5 / variance**2]))
    else:
        expected = torch.tensor([[1 / (0.3 * 0.7)]])
    assert torch.allclose(scores.T @ scores / len(scores), expected.double(), rtol=0.03, atol=0.03)


class Frames(nn.Module):
    """Log-probabilities (steps, examples, classes) of frames, each read by itself, examples or steps first."""

    def __init__(self, example_dim: int) -> None:
        super().__init__()
        self.example_dim = example_dim
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, frames: Tensor) -> Tensor:
        shares = self.two(torch.tanh(self.one(frames))).log_softmax(-1)
        return shares if self.example_dim else shares.transpose(0, 1)


@pytest.mark.parametrize("example_dim", [0, 1])
def test_frames_behind_an_examples_length_count_in_no_activation_and_no_sensitivity(example_dim: int) -> None:
    torch.manual_seed(0)
    lengths, sizes = torch.tensor([9, 6, 4]), torch.tensor([3, 2, 2])
    network, batches = Frames(example_dim), []
    for _ in range(4):
        frames = torch.randn(9, 3, 3)
        frames[torch.arange(9)[:, None] >= lengths] = 1e3
        inputs = frames if example_dim else frames.transpose(0, 1)
        batches.append((inputs, (torch.randint(1, 5, (3, 3)), lengths, sizes)))
    model = pruning.adapt(network, batches[0][0], loss=nn.CTCLoss(), example_dim=example_dim)
    table, _ = pruning.activations(model, batches, activation_samples=9, bins=4)
    assert (table["samples"] == 4 * int(lengths.sum())).all()
    inside = [inputs if example_dim else inputs.transpose(0, 1) for inputs, _ in batches]
    real = torch.cat([x[torch.arange(9)[:, None] < lengths] for x in inside])
    expected = torch.tanh(network.one(real)).detach().abs().mean(0).double()
    torch.testing.assert_close(torch.tensor(table["magnitude"].to_numpy()), expected, rtol=1e-5, atol=1e-6)
    moments = pruning.sensitivities(model, batches, batches=9, seed=1)
    assert sum(group.count for group in moments["one"]) == 4 * int(lengths.sum())
