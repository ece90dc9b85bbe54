"""The cross-entropy of logits, and its second derivative in two passes over them where that is asked for."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pruning.core.devices import differentiated_twice
from pruning.data.windows import IGNORED

LOGITS = 2**16
"""Numbers that are looked at together, so that the next operation finds them in a core's cache."""


def cross_entropy(logits: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
    """Return Σ_i (log Σ_v exp z_iv − z_iy), nat, of rows whose label counts, or its mean over them.

    In `twice_differentiable` it is a function of its own: with p = softmax(z), the gradient p − onehot(y) and its
    derivative along u, p ⊙ (u − Σ p u), are a pass each over rows that stay in the cache, where PyTorch's own second
    derivative makes some ten matrices of the logits' size. Equal but for rounding.

    >>> logits, labels = torch.tensor([[0.0, 0.0], [5.0, 0.0]]), torch.tensor([1, IGNORED])
    >>> round(cross_entropy(logits, labels, reduction="sum").item(), 4)
    0.6931

    Args:
        logits: (n, V).
        labels: (n,); `IGNORED` counts nowhere.
        reduction: `mean`, which is not a number where nothing counts, or `sum`.
    """
    if not (differentiated_twice() and torch.is_grad_enabled() and logits.requires_grad):
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)
    function: Any = _CrossEntropy
    total: Tensor = function.apply(logits, labels)
    return total / (labels != IGNORED).sum() if reduction == "mean" else total


class _CrossEntropy(torch.autograd.Function):
    """See `cross_entropy`; the sum."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        shares, losses = torch.empty_like(logits), logits.new_empty(len(logits))
        for z, p, y, loss in _rows(logits, shares, labels.clamp(min=0)[:, None], losses):
            torch.softmax(z, 1, out=p)
            torch.sub(z.amax(1) - z.gather(1, y)[:, 0], p.amax(1).log(), out=loss)  # log Σ exp (z − max z) = −log max p
        ctx.save_for_backward(logits, shares, labels)
        return torch.where(labels != IGNORED, losses, 0).sum()

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None]:
        function: Any = _Slope
        return function.apply(by_loss, *ctx.saved_tensors), None


class _Slope(torch.autograd.Function):
    """(∂/∂loss, logits, their softmax, labels) → the gradient by the logits."""

    @staticmethod
    def forward(ctx: Any, by_loss: Tensor, logits: Tensor, shares: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(by_loss, shares, labels)
        slope = torch.empty_like(logits)
        counts = torch.where(labels != IGNORED, by_loss, 0)[:, None]
        for p, own, y, count in _rows(shares, slope, labels.clamp(min=0)[:, None], counts):
            torch.mul(p, count, out=own).scatter_add_(1, y, -count)
        return slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_loss, shares, labels = ctx.saved_tensors
        curved, products = torch.empty_like(shares), along.new_empty(len(along), 1)
        counts = torch.where(labels != IGNORED, by_loss, 0)[:, None]
        for p, own, u, product, count in _rows(shares, curved, along, products, counts):
            torch.linalg.vecdot(p, u, out=product[:, 0])
            torch.sub(u, product, out=own).mul_(p).mul_(count)
        true = along.gather(1, labels.clamp(min=0)[:, None])
        return torch.where(labels != IGNORED, (products - true)[:, 0], 0).sum(), curved, None, None


def _rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield some rows after others of all the tensors, the first of which is as wide as the logits; on a GPU all."""
    rows = max(1, LOGITS // tensors[0].shape[1]) if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
