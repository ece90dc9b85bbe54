"""The cross-entropy whose second derivative is asked for, beside PyTorch's."""

import pytest
import torch
from torch.nn import functional as F

from pruning.core.devices import twice_differentiable
from pruning.data.windows import IGNORED
from pruning.models.likelihood import cross_entropy

LABELS = torch.tensor([0, 4, IGNORED, 2, 2, 1])


def derived(function, logits, scale):
    """Return a loss, its gradient, and the Hessian's product with a vector."""
    loss = (function(logits) * scale).square()
    gradients = torch.autograd.grad(loss, [logits, scale], create_graph=True)
    generator = torch.Generator().manual_seed(2)
    vectors = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in (logits, scale)]
    return [loss, *gradients, *torch.autograd.grad(gradients, [logits, scale], grad_outputs=vectors)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("together", [1, 10, 2**16])
def test_loss_gradient_and_second_derivative_are_pytorchs(monkeypatch, reduction, together):
    monkeypatch.setattr("pruning.models.likelihood.LOGITS", together)
    torch.manual_seed(1)
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    with twice_differentiable():
        found = derived(lambda z: cross_entropy(z, LABELS, reduction=reduction), logits, scale)
    expected = derived(lambda z: F.cross_entropy(z, LABELS, reduction=reduction), logits, scale)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_class_of_no_chance_costs_what_its_logit_says():
    logits = torch.tensor([[1000.0, 0.0], [0.0, -1000.0]], requires_grad=True)
    with twice_differentiable():
        assert cross_entropy(logits, torch.tensor([1, 0]), reduction="sum").item() == 1000.0


def test_the_mean_over_nothing_is_no_number_and_the_sum_is_0():
    logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([IGNORED, IGNORED])
    with twice_differentiable():
        assert cross_entropy(logits, labels, reduction="mean").isnan()
        assert cross_entropy(logits, labels, reduction="sum").item() == 0


def test_elsewhere_it_is_pytorchs_to_the_bit():
    torch.manual_seed(1)
    logits = torch.randn(6, 5)
    assert torch.equal(cross_entropy(logits, LABELS, reduction="mean"), F.cross_entropy(logits, LABELS))
