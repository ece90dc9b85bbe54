"""Cross-entropy where the decoder dominates: in row chunks with its gradient at once, or over a sample of the types.

Each is with labels alone or beside a teacher's softmax, whose logits are no more held at once than the model's own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, Self

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
    loss: Tensor = _Chunked.apply(features, weight, bias, labels, None)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What a teacher makes of the same rows, by its own linear decoder, and how much it counts.

    Attributes:
        features: (n, H'), H' being the teacher's own.
        weight: (V, H').
        bias: (V,).
        share: Share of the teacher in what is minimised.
        temperature: Divides both models' logits where they are compared.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor
    share: float
    temperature: float

    def shares(self, rows: int) -> Iterator[Tensor]:
        """Yield the teacher's softmax(z / T), so many rows at a time."""
        multiplied = self.weight.to(self.features.dtype)
        for part in torch.split(self.features, rows):
            yield (((part @ multiplied.T).to(self.bias.dtype) + self.bias) / self.temperature).softmax(1)

    def both(self, loss: Tensor, distance: Tensor) -> Tensor:
        """Return what is minimised: (1 − share) · loss + share · T² · distance."""
        return (1 - self.share) * loss + self.share * self.temperature**2 * distance


def chunked_distillation(
    features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, guide: Guide
) -> tuple[Tensor, Tensor]:
    """Return the labels' mean cross-entropy and what is minimised beside a teacher, both nat/token, in row chunks.

    learnt = (1 − s) · CE(labels) + s · T² · CE(softmax(z_t / T), softmax(z / T)), as `distillation_loss` has it, and
    ∂learnt/∂z = ((1 − s) (softmax(z) − onehot(y)) + s · T · (softmax(z / T) − softmax(z_t / T))) / n. The first number
    has no gradient; the teacher has none either.

    >>> f, w, b, y = torch.randn(5, 3), torch.randn(7, 3), torch.randn(7), torch.tensor([0, 6, -100, 2, 2])
    >>> guide = Guide(features=f, weight=w, bias=b, share=0.0, temperature=2.0)
    >>> loss, learnt = chunked_distillation(f, w, b, y, guide)
    >>> torch.allclose(loss, learnt) and torch.allclose(loss, F.cross_entropy(f @ w.T + b, y))
    True

    Args:
        features: See `chunked_cross_entropy`.
        weight: (V, H).
        bias: (V,).
        labels: (n,); `IGNORED` counts nowhere, for the teacher neither.
        guide: The teacher, of the same V types.
    """
    both: tuple[Tensor, Tensor] = _Chunked.apply(features, weight, bias, labels, guide)  # type: ignore[no-untyped-call]
    return both


class _Chunked(torch.autograd.Function):
    """See `chunked_cross_entropy`, and with a guide `chunked_distillation`."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, guide: Guide | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        types, device = weight.dtype, features.device.type
        read, of_weight, of_bias = torch.empty_like(features), torch.zeros_like(weight), torch.zeros_like(bias)
        counted = labels != IGNORED
        share = counted.to(types) / counted.sum()
        total, distance = bias.new_zeros(()), bias.new_zeros(())
        with torch.autocast(device, enabled=False):
            multiplied = weight.to(features.dtype)
            rows = max(FEWEST, LOGITS // len(weight))
            parts = (torch.split(tensor, rows) for tensor in (features, labels.clamp(min=0), share, read))
            taught = guide.shares(rows) if guide else repeat(None)
            for own, label, each, part, shares in zip(*parts, taught, strict=False):
                logits = (own @ multiplied.T).to(types) + bias
                logits -= logits.amax(1, keepdim=True)
                label = label[:, None]
                target = logits.gather(1, label)
                if guide and shares is not None:
                    softened = (logits / guide.temperature).log_softmax(1)
                    distance -= torch.where(each > 0, torch.linalg.vecdot(shares, softened) * each, 0).sum()
                    apart = softened.exp_() - shares
                sums = logits.exp_().sum(1, keepdim=True)
                # rows that are ignored may hold anything, so long as it is finite
                total += torch.where(each > 0, (sums.log() - target)[:, 0] * each, 0).sum()
                logits *= each[:, None] / sums
                logits.scatter_add_(1, label, -each[:, None])
                if guide:
                    logits *= 1 - guide.share
                    logits += apart * (guide.share * guide.temperature * each[:, None])
                of_bias += logits.sum(0)
                gradient = logits.to(features.dtype)
                torch.mm(gradient, multiplied, out=part)
                if features.dtype == types:
                    of_weight.addmm_(gradient.T, own)
                else:
                    of_weight += gradient.T @ own
        ctx.save_for_backward(read, of_weight, of_bias)
        total += 0 if counted.any() else math.nan
        if guide is None:
            return total
        ctx.mark_non_differentiable(total)
        return total, guide.both(total, distance)

    @staticmethod
    def backward(ctx: Any, *losses: Tensor) -> tuple[Tensor | None, ...]:
        return (*(part * losses[-1].to(part.dtype) for part in ctx.saved_tensors), None, None)


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
    sample = _Sample.of(weight, labels, sampled)
    return _label_losses(*sample.logits(features, weight, bias)).mean()


def sampled_distillation(
    features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, guide: Guide, *, sampled: int
) -> tuple[Tensor, Tensor]:
    """Return estimates of the labels' mean cross-entropy and of what is minimised beside a teacher, both nat/token.

    Both softmaxes are over the label and the same drawn types, each of whose exponents counts 1 / π_v times (see
    `sampled_cross_entropy`), and so is the teacher's mean of the model's logits: with all types drawn it is
    `chunked_distillation`.

    >>> f, w, b, y = torch.randn(5, 3), torch.randn(7, 3), torch.randn(7), torch.tensor([0, 6, -100, 2, 2])
    >>> guide = Guide(features=f.flip(0), weight=w, bias=b, share=0.5, temperature=2.0)
    >>> one, other = sampled_distillation(f, w, b, y, guide, sampled=7), chunked_distillation(f, w, b, y, guide)
    >>> torch.allclose(torch.stack(one), torch.stack(other))
    True

    Args:
        features: What the decoder reads, (n, H).
        weight: (V, H).
        bias: (V,).
        labels: (n,); `IGNORED` counts nowhere, for the teacher neither.
        guide: The teacher, of the same V types.
        sampled: How many types are expected to be drawn.
    """
    sample, warmth = _Sample.of(weight, labels, sampled), guide.temperature
    plain = sample.logits(features, weight, bias)
    loss = _label_losses(*plain).mean()
    with torch.no_grad():
        target, others = sample.logits(guide.features, guide.weight, guide.bias, warmth)
        shares = torch.cat([target[:, None], others], 1).softmax(1)
    target, others = plain if warmth == 1 else sample.logits(features, weight, bias, warmth)
    softened = torch.cat([target[:, None], others], 1).log_softmax(1)
    return loss.detach(), guide.both(loss, -torch.linalg.vecdot(shares, softened).mean())


@dataclass(frozen=True)
class _Sample:
    """The types that were drawn for a batch, in order, log π of each, and the labels that count.

    `hits` are the rows whose label was drawn, `places` where it stands among what was: there it would count twice.
    """

    drawn: Tensor
    corrections: Tensor
    counted: Tensor
    labels: Tensor
    hits: Tensor
    places: Tensor

    @classmethod
    def of(cls, weight: Tensor, labels: Tensor, sampled: int) -> Self:
        """Draw from the CPU's global random state."""
        chances = inclusion(len(weight), sampled)
        drawn = (torch.rand(len(chances)) < chances).nonzero().flatten()
        corrections = moved(chances[drawn].log().to(weight.dtype), weight.device)
        drawn = moved(drawn, weight.device)
        counted = labels != IGNORED
        labels = labels[counted]
        places = torch.searchsorted(drawn, labels).clamp(max=max(len(drawn) - 1, 0))
        again = drawn[places] == labels if len(drawn) else torch.zeros_like(labels, dtype=torch.bool)
        hits = again.nonzero().flatten()
        return cls(drawn, corrections, counted, labels, hits, places[hits])

    def logits(self, features: Tensor, weight: Tensor, bias: Tensor, warmth: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return z / T of the labels, (n,), and z / T − log π of the drawn types, (n, drawn), next to none at hits."""
        features = features[self.counted] / warmth
        both = torch.cat([self.drawn, self.labels])
        rows, drawn = F.embedding(both, weight), len(self.drawn)  # one gradient for both
        biases = bias[both] / warmth
        others = F.linear(features, rows[:drawn]).to(bias.dtype) + (biases[:drawn] - self.corrections)
        target = torch.linalg.vecdot(features.to(rows.dtype), rows[drawn:]) + biases[drawn:]
        # none, −∞, would times a share of 0 be no number
        return target, others.index_put((self.hits, self.places), others.new_tensor(torch.finfo(others.dtype).min / 4))


def _label_losses(target: Tensor, others: Tensor) -> Tensor:
    """Return log Ẑ − z_y of each row."""
    return torch.logaddexp(others.logsumexp(1), target) - target


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
