"""Learning from the dense model: its features without labels as a repair, its logits beside labels in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pruning.core.modes import evaluating
from pruning.data.windows import IGNORED
from pruning.models.base import Measurable


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that another learns from (Hinton, Vinyals & Dean 2015).

    >>> import pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> Teacher(model=model, share=0.5, temperature=2.0).share
    0.5

    Attributes:
        model: It is evaluated without dropout and never changed.
        share: Share of the teacher in what is minimised, in [0, 1]; the labels have the rest.
        temperature: Divides both models' logits where they are compared.
    """

    model: Measurable
    share: float
    temperature: float

    @classmethod
    def of(cls, model: Measurable, *, share: float, temperature: float = 1.0) -> Self | None:
        """Return the teacher, or None where it has no share and need not be run."""
        return cls(model=model, share=share, temperature=temperature) if share else None


def distillation_loss(
    model: Measurable, teacher: Teacher, batch: Sequence[Any], state: Any, taught: Any
) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
    """Return the labels' loss, what is minimised with a teacher, both nat/token, and both models' states.

    (1 − share) · CE(labels) + share · T² · CE(softmax(z_t / T), softmax(z / T)), T the temperature, z the logits: T²
    keeps the gradient's size whatever the temperature, and the cross-entropy with the teacher differs from the
    Kullback–Leibler divergence by what no student can change. Padding is left out of both. The labels' loss is the
    model's own, whatever its criterion.
    """
    inputs, targets = batch
    logits, state = model.logits(inputs, state)
    own = logits.log_softmax(-1)
    with torch.no_grad(), evaluating(teacher.model):
        taught_logits, taught = teacher.model.logits(inputs, taught)
        shares = (taught_logits / teacher.temperature).softmax(-1)
    loss = model.judged(logits, targets, logarithms=own)
    softened = own if teacher.temperature == 1 else (logits / teacher.temperature).log_softmax(-1)
    distance = -torch.linalg.vecdot(shares, softened)[
        model.labels(targets) != IGNORED
    ].mean()  # one product, no copy of the logits
    return loss, (1 - teacher.share) * loss + teacher.share * teacher.temperature**2 * distance, (state, taught)
