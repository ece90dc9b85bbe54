"""Learning from the dense model's outputs beside the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from pruning.core.devices import states_of
from pruning.core.modes import evaluating
from pruning.core.nested import mapped, tensors_in
from pruning.core.words import described
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
    model's own, whatever its criterion. Where that is no loss of classes, the distance is its own
    (`Objective.divergence`): binary cross-entropies for several labels, the criterion between both outputs for numbers,
    the squared distance of the outputs for a loss of the user's own.
    """
    inputs, targets = batch
    objective = model.objective(targets)
    drawn = states_of(model)
    outputs, state = _predicted(model, inputs, state)
    known = objective.logarithms(outputs, targets)
    with torch.no_grad(), evaluating(teacher.model), drawn.again():
        taught_outputs, taught = _predicted(teacher.model, inputs, taught)
    ours, theirs = ([part.shape for part in tensors_in(given)] for given in (outputs, taught_outputs))
    if ours != theirs:
        raise ValueError(
            f"Expected a teacher that gives what the network gives, {described(outputs)}, got "
            f"{described(taught_outputs)}."
        )
    loss = model.judged(outputs, targets, logarithms=known)
    distance = objective.divergence(outputs, taught_outputs, targets, temperature=teacher.temperature, logarithms=known)
    scale = teacher.temperature**2 if objective.tempered else 1
    return loss, (1 - teacher.share) * loss + teacher.share * scale * distance, (state, taught)


def _predicted(model: Measurable, inputs: Any, state: Any) -> tuple[Any, Any]:
    """Return what a model gives, in the type of its weights also where products are of a coarser one.

    A log-softmax in bfloat16 would round the loss to two digits.
    """
    outputs, state = model.predicted(inputs, state)
    if torch.is_autocast_enabled(model.device.type):
        outputs = mapped(partial(_as_weights, next(model.parameters()).dtype), outputs)
    return outputs, state


def _as_weights(dtype: torch.dtype, tensor: Any) -> Any:
    return tensor.to(dtype) if tensor.data.is_floating_point() else tensor  # `data`: of what is packed
