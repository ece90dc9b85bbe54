"""The losses that measured removal compares: from all words or a few, and summed over what depends on each other."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.core.devices import finest, moved, seeded
from pruning.core.holding import holding
from pruning.core.modes import evaluating
from pruning.data.batches import Pair
from pruning.data.windows import IGNORED, Batches, Window
from pruning.models.base import LanguageModel, Measurable, State

AT_ONCE = 320
"""Tokens whose logits of all words are held at once where a few words cannot tell."""


class _ReferenceLoss(Protocol):
    """The dense model's losses on one window, for others to be compared with."""

    device: torch.device

    def compared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much larger each token's loss is and how far its distribution is from the dense model's.

        Both (T, models, B), nat, given (T, models, B, features); the latter is KL(dense ‖ model), which needs no label.
        """


def _dense_loss(
    model: LanguageModel, window: Window, state: State | None, words: int | Literal["all"], generator: torch.Generator
) -> tuple[_ReferenceLoss, State]:
    device = next(model.parameters()).device
    features, state = model.features(moved(window.tokens, device), state)
    targets = moved(window.targets, device)
    if words == "all" or words >= len(model.decoder_weight):
        return WholeLoss(model, features, targets), state
    return SampledLoss(model, features, targets, words, generator), state


class WholeLoss:
    """Losses from all words of the vocabulary."""

    def __init__(self, model: LanguageModel, features: Tensor, targets: Tensor) -> None:
        self.model, self.targets, self.device, self.features = model, targets, features.device, features

    def compared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `_ReferenceLoss`; 0 where nothing is to be predicted."""
        steps = [self._step(*step) for step in zip(features, self.features, self.targets, strict=True)]
        increases, divergences = zip(*steps, strict=True)  # step by step, for the logits of all would not fit
        return torch.stack(increases), torch.stack(divergences)

    def _step(self, read: Tensor, dense: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return a step's loss increases and divergences, (models, B)."""
        before, predicted = self.model.decode(dense).log_softmax(-1), wanted != IGNORED
        after = self.model.decode(read.flatten(0, 1)).log_softmax(-1).view(*read.shape[:2], -1)
        lost = before - after
        increase = lost.gather(2, wanted.clamp(min=0).expand(len(read), -1)[..., None])[..., 0]
        divergence = (before.exp() * lost).sum(-1)
        return increase.masked_fill(~predicted, 0), divergence.masked_fill(~predicted, 0)


class SampledLoss:
    """Loss increases from a few words for each token, unbiased but for what the logarithm makes of their noise.

    With p the dense model's probabilities, D the decoder's matrix, δ the change of the features and x = Dδ that of
    the logits, the loss of target y rises by log E_p[exp x] − x_y, and

        E_p[exp x] = 1 + (Dᵀp)·δ + Σ_v p_v φ(x_v),   φ(x) = exp x − 1 − x.

    The divergence KL(p ‖ without) is the same without the label's x_y: log E_p[exp x] − E_p[x], with E_p[x] = (Dᵀp)·δ.
    Most of the increase's noise is the label's, so that it needs a thirtieth of the text.

    The linear term is exact and costs one product. The sum, of second order, takes half of `words` exactly, the most
    probable, and the other half by systematic sampling from the rest, with probabilities proportional to p (Madow
    1949). Σ over the certain words of p exp x is a lower bound of the whole.

    **Where words are too few.** An increase is computed from all words where the estimate is no number (exp x
    overflows), where it lies below its bound or is lost in the rounding of its terms, and where a word that was not
    read may outweigh all others. No such word is more probable than the least of the certain ones, nor than r / n, with
    r the probability of the rest and n the words drawn from it; and its x is at most c·δ + max_v ‖D_v − c‖ ‖δ‖ for any
    c, here the mean row of D.
    """

    def __init__(
        self, model: LanguageModel, features: Tensor, targets: Tensor, words: int, generator: torch.Generator
    ) -> None:
        self.model, self.targets, self.dense, self.device = model, targets.clamp(min=0), features, features.device
        self.predicted = targets != IGNORED
        decoder, shares = model.decoder_weight, model.decode(features).softmax(-1)
        self.certain, precision = max(1, words // 2), torch.finfo(shares.dtype)
        chosen, self.weights, self.rest = _words(shares, self.certain, words - self.certain, generator)
        even = (self.rest + len(decoder) * precision.tiny) / max(words - self.certain, 1)
        most = torch.minimum(even, self.weights[..., self.certain - 1] + precision.tiny)
        self.centre, self.rounding = decoder.mean(0), precision.eps**0.5
        self.farthest, self.unread = (decoder - self.centre).norm(dim=1).max(), most.log()
        wanted = self.targets[..., None]
        self.rows = decoder[torch.cat([chosen, wanted, wanted], dim=-1)]  # (T, B, words + 2, features)
        self.rows[:, :, -1] = shares @ decoder

    def compared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `_ReferenceLoss`; 0 where nothing is to be predicted."""
        steps = zip(features, self.dense, self.rows, self.weights, self.rest, self.unread, strict=True)
        parts = zip(*(self._step(*step) for step in steps), strict=True)
        increases, divergences, doubtful = (torch.stack(part) for part in parts)
        predicted = self.predicted[:, None]
        for places in torch.split((doubtful & predicted).nonzero(), AT_ONCE):
            step, model, column = places.T
            whole = self._whole(features[step, model, column], step, column)
            increases[step, model, column], divergences[step, model, column] = whole
        return increases.masked_fill(~predicted, 0), divergences.masked_fill(~predicted, 0)

    def _step(
        self, read: Tensor, dense: Tensor, rows: Tensor, weights: Tensor, rest: Tensor, unread: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return one step's increases and divergences, (models, B), and which of them cannot be trusted."""
        delta = read - dense
        change = torch.bmm(rows, delta.permute(1, 2, 0))
        x, of_target, linear = torch.split(change, [weights.shape[1], 1, 1], dim=1)
        growth = x.expm1()  # (B, words, models)
        second = torch.bmm(weights[:, None], growth - x)[:, 0]
        estimate = linear[:, 0] + second  # E[exp x] − 1, as all sums here, for their logarithm's sake
        bound = torch.bmm(weights[:, None, : self.certain], growth[:, : self.certain])[:, 0] - rest[:, None]
        total = torch.maximum(estimate, bound)
        logarithm, scale = total.log1p(), self.rounding * (1 + linear[:, 0].abs() + second)
        largest = delta @ self.centre + self.farthest * delta.norm(dim=-1)  # (models, B)
        trusted = (1 + total > scale) & (estimate > bound - scale) & (unread[:, None] + largest.T < logarithm)
        doubtful = ~(trusted & logarithm.isfinite())
        return (logarithm - of_target[:, 0]).T, (logarithm - linear[:, 0]).T, doubtful.T

    def _whole(self, read: Tensor, step: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Return increases and divergences from all words, (n,), of tokens at these steps and columns."""
        dense = self.dense[step, column]
        change = (read - dense) @ self.model.decoder_weight.T
        of_target = change.gather(1, self.targets[step, column][:, None])
        logarithms = self.model.decode(dense).log_softmax(-1)
        increase = (logarithms + (change - of_target)).logsumexp(-1)
        divergence = increase + of_target[:, 0] - (logarithms.exp() * change).sum(-1)
        return increase, divergence


def _words(shares: Tensor, certain: int, sampled: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return words, (T, B, words), weights with which their sum estimates that over all words, and the rest's share."""
    top = shares.topk(certain, dim=-1)
    ends = shares.to(finest(shares.device), copy=True).scatter_(-1, top.indices, 0).cumsum_(-1)
    rest = ends[..., -1:]
    offset = torch.rand(*ends.shape[:-1], 1, dtype=ends.dtype, generator=generator).to(ends.device)
    points = (torch.arange(sampled, device=ends.device) + offset) / max(sampled, 1) * rest
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=ends.shape[-1] - 1)
    weights = (rest / max(sampled, 1)).expand(*rest.shape[:-1], sampled).to(shares.dtype)
    return torch.cat([top.indices, drawn], dim=-1), torch.cat([top.values, weights], dim=-1), rest[..., 0].to(shares)


ClusterLosses = list[tuple[Tensor, Tensor]]


"""For each batch: the summed losses of its clusters, (clusters,), and the weight of each: how many targets it has, or
their classes' weights where the criterion has some."""


def cluster_losses(model: Measurable, batches: Sequence[Any]) -> ClusterLosses:
    """Return the losses of clusters of targets that may depend on each other: a column of a window, or a batch."""
    state, losses = None, []
    with evaluating(model), torch.no_grad(), seeded(model, 0):  # what is drawn is the same for each that is compared
        for inputs, targets in batches:
            logits, state = model.predicted(inputs, state)
            losses.append(_by_cluster(model, logits, targets))
    return losses


def _divergence_by_cluster(model: Measurable, outputs: Any, dense: Any, targets: Any) -> Tensor:
    """Return the summed divergence of each cluster from what the dense model gave, (clusters,)."""
    if not isinstance(model, LanguageModel):
        objective = model.objective(targets)
        apart = objective.divergence(outputs, dense, targets, temperature=1.0)
        own = objective.divergence(dense, dense, targets, temperature=1.0)  # the constant that it holds
        return ((apart - own) * model.weight(targets))[None]
    before = dense.log_softmax(-1)
    lost = (before.exp() * (before - outputs.log_softmax(-1))).sum(-1).view(targets.shape)
    divergence: Tensor = lost.masked_fill(targets == IGNORED, 0).sum(0)
    return divergence


def _by_cluster(model: Measurable, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed losses of the clusters of a batch and what each weighs, (clusters,)."""
    if not isinstance(model, LanguageModel):
        with holding(model):  # the same loss for each removal
            loss = model.judged(logits, targets, reduction="sum")[None]
        return loss, torch.tensor([model.weight(targets)], dtype=torch.float64)
    wanted = model.labels(targets)
    losses = F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="none").view(targets.shape)
    return losses.sum(0), (targets != IGNORED).sum(0)


def _first(model: Measurable, batches: Batches, tokens: int) -> list[Any]:
    """Return the first batches that hold this many targets, or all."""
    text, read = [], 0
    for inputs, targets in model.pairs(batches):
        if read >= tokens:
            break
        text.append(Pair(inputs, targets))
        read += model.count(targets)
    return text
