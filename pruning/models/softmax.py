"""Cross-entropy where the decoder dominates: in row chunks with its gradient at once, or over a sample of the types."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.core.devices import moved
from pruning.data.windows import IGNORED

LOGITS = 2**20
"""Numbers that a chunk of logits has, 4 MB of float32, which stay in a core's cache between one pass and the next."""
FEWEST = 128
"""Rows that a chunk has at least: each chunk reads the whole decoder."""


def chunked_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a linear decoder, nat/token, its logits never held at once.

    loss = 1/n Σ_i (log Σ_v exp z_iv − z_iy),  z = f Wᵀ + b;  ∂loss/∂z = (softmax(z) − onehot(y)) / n.

    The gradient of the logits is made in the forward pass, a chunk of rows at a time, and what features, weight and
    bias take from it is summed up, so that the backward pass multiplies by one number. Equal to `F.cross_entropy` and
    its gradients but for rounding.

    >>> f, w, b, y = torch.randn(5, 3), torch.randn(7, 3), torch.randn(7), torch.tensor([0, 6, -100, 2, 2])
    >>> torch.allclose(chunked_cross_entropy(f, w, b, y), F.cross_entropy(f @ w.T + b, y))
    True

    Args:
        features: What the decoder reads, (n, H); its type is that of the products, sums are in the weight's.
        weight: (V, H).
        bias: (V,).
        labels: (n,); `IGNORED` counts nowhere. Without any that counts the loss is not a number.
    """
    loss: Tensor = _Chunked.apply(features, weight, bias, labels)  # type: ignore[no-untyped-call]
    return loss


class _Chunked(torch.autograd.Function):
    """See `chunked_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        types, device = weight.dtype, features.device.type
        read, of_weight, of_bias = torch.empty_like(features), torch.zeros_like(weight), torch.zeros_like(bias)
        counted = labels != IGNORED
        share = counted.to(types) / counted.sum()
        total = bias.new_zeros(())
        with torch.autocast(device, enabled=False):
            multiplied = weight.to(features.dtype)
            rows = max(FEWEST, LOGITS // len(weight))
            for own, label, each, part in zip(
                *(torch.split(tensor, rows) for tensor in (features, labels.clamp(min=0), share, read)), strict=True
            ):
                logits = (own @ multiplied.T).to(types) + bias
                logits -= logits.amax(1, keepdim=True)
                label = label[:, None]
                target = logits.gather(1, label)
                sums = logits.exp_().sum(1, keepdim=True)
                # rows that are ignored may hold anything, so long as it is finite
                total += torch.where(each > 0, (sums.log() - target)[:, 0] * each, 0).sum()
                logits *= each[:, None] / sums
                logits.scatter_add_(1, label, -each[:, None])
                of_bias += logits.sum(0)
                gradient = logits.to(features.dtype)
                torch.mm(gradient, multiplied, out=part)
                if features.dtype == types:
                    of_weight.addmm_(gradient.T, own)
                else:
                    of_weight += gradient.T @ own
        ctx.save_for_backward(read, of_weight, of_bias)
        return total + (0 if counted.any() else math.nan)

    @staticmethod
    def backward(ctx: Any, loss: Tensor) -> tuple[Tensor | None, ...]:
        return (*(part * loss.to(part.dtype) for part in ctx.saved_tensors), None)


def sampled_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, sampled: int) -> Tensor:
    """Return an estimate of the mean cross-entropy, nat/token, from the logits of about `sampled` types a call.

    Each type i is drawn by itself with the chance π_i = min(1, c · log((i + 2) / (i + 1))), the log-uniform law that
    words by rank follow (Zipf), with c such that `sampled` are expected: the frequent ones always, so that a vocabulary
    has to be numbered from the most frequent on, as `prepare` does. Then

        loss_i = log Ẑ_i − z_iy,   Ẑ_i = exp z_iy + Σ_{v drawn, v ≠ y} exp(z_iv) / π_v.

    Ẑ has the partition function as its mean, whatever is drawn (Horvitz & Thompson 1952), so the estimate lies below
    the loss in the mean by half of Ẑ's relative variance, and is the loss itself where all types are drawn (cf. Bengio
    & Senécal 2008; Jean et al. 2015). It is drawn from the CPU's global random state.

    >>> f, w, b, y = torch.randn(5, 3), torch.randn(7, 3), torch.randn(7), torch.tensor([0, 6, -100, 2, 2])
    >>> torch.allclose(sampled_cross_entropy(f, w, b, y, sampled=7), F.cross_entropy(f @ w.T + b, y))
    True

    Args:
        features: What the decoder reads, (n, H).
        weight: (V, H).
        bias: (V,).
        labels: (n,); `IGNORED` counts nowhere. Without any that counts the loss is not a number.
        sampled: How many types are expected to be drawn.
    """
    chances = inclusion(len(weight), sampled)
    drawn = (torch.rand(len(chances)) < chances).nonzero().flatten()
    corrections = moved(chances[drawn].log().to(bias.dtype), features.device)
    drawn = moved(drawn, features.device)
    counted = labels != IGNORED
    features, labels = features[counted], labels[counted]
    both = torch.cat([drawn, labels])
    rows = F.embedding(both, weight)  # one gradient for both
    biases = bias[both]
    others = F.linear(features, rows[: len(drawn)]).to(bias.dtype) + (biases[: len(drawn)] - corrections)
    target = torch.linalg.vecdot(features.to(rows.dtype), rows[len(drawn) :]) + biases[len(drawn) :]
    place = torch.searchsorted(drawn, labels).clamp(max=max(len(drawn) - 1, 0))
    again = drawn[place] == labels if len(drawn) else torch.zeros_like(labels, dtype=torch.bool)
    hits = again.nonzero().flatten()
    others = others.index_put((hits, place[hits]), others.new_tensor(-math.inf))
    losses: Tensor = torch.logaddexp(others.logsumexp(1), target) - target
    return losses.mean()


@lru_cache(maxsize=4)
def inclusion(types: int, sampled: int) -> Tensor:
    """Return the chance of each type to be drawn, (types,), float32: in proportion to the log-uniform law, at most 1.

    >>> inclusion(5, 5).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    >>> round(inclusion(100_000, 2_000).sum().item())
    2000
    """
    law = torch.log1p(1 / torch.arange(1, types + 1, dtype=torch.float64))
    if sampled >= types:
        return torch.ones(types)
    certain = 0
    while True:  # the law falls, so those whose chance is 1 come first
        scale = (sampled - certain) / law[certain:].sum()
        more = int((law[certain:] * scale >= 1).sum())
        if not more:
            break
        certain += more
    return torch.cat([torch.ones(certain, dtype=torch.float64), law[certain:] * scale]).float()
