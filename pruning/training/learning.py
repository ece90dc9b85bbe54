"""What a training step learns from labels: in which type it multiplies, and how the loss comes by all types' logits."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.core.devices import moved
from pruning.core.modes import evaluating
from pruning.core.options import Softmax, TrainingType
from pruning.data.windows import IGNORED
from pruning.models.base import LanguageModel, Measurable
from pruning.models.softmax import (
    Guide,
    chunked_cross_entropy,
    chunked_distillation,
    sampled_cross_entropy,
    sampled_distillation,
)
from pruning.training.distillation import Teacher, distillation_loss


def multiplying(device: torch.device, type_of_products: TrainingType) -> AbstractContextManager[Any]:
    """Return a context in which products are of that type; `float32` leaves them in the type of the weights."""
    return torch.autocast(device.type, torch.bfloat16) if type_of_products == "bfloat16" else nullcontext()


def labels_loss(
    model: Measurable, inputs: Any, targets: Any, state: Any, *, softmax: Softmax, sampled: int
) -> tuple[Tensor, Any]:
    """Return the mean loss of a batch by its labels, nat/token, and the state to carry on from.

    Args:
        model: A language model of the library unless the softmax is full.
        inputs: Of the batch.
        targets: Of the batch.
        state: What the batch before left, cut off from its graph.
        softmax: How a language model's loss comes by the logits.
        sampled: How many types a sampled softmax is expected to read.
    """
    if not isinstance(model, LanguageModel) or (softmax == "full" and not torch.is_autocast_enabled(model.device.type)):
        return model.loss(inputs, targets, state)
    rows, state = _rows(model, inputs, state)
    decoder, labels = (model.decoder_weight, model.decoder.bias), model.labels(targets)
    if softmax == "chunked":
        return chunked_cross_entropy(rows, *decoder, labels), state
    if softmax == "sampled":
        return sampled_cross_entropy(rows, *decoder, labels, sampled=sampled), state
    logits = model.decode(rows).to(model.decoder.bias.dtype)  # of bfloat16 a sum over all types would lose digits
    return F.cross_entropy(logits, labels, ignore_index=IGNORED), state


def taught_loss(
    model: Measurable, teacher: Teacher, batch: Any, states: tuple[Any, Any], *, softmax: Softmax, sampled: int
) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
    """Return what `distillation_loss` does, of language models by any softmax: they have the same types.

    Args:
        model: A language model of the library unless the softmax is full, and so is the teacher.
        teacher: Whom it learns from.
        batch: Inputs and targets.
        states: What the batch before left of both models.
        softmax: How both come by the logits.
        sampled: How many types a sampled softmax is expected to read.
    """
    other = teacher.model
    if softmax == "full" or not isinstance(model, LanguageModel) or not isinstance(other, LanguageModel):
        return distillation_loss(model, teacher, batch, *states)
    inputs, targets = batch
    rows, state = _rows(model, inputs, states[0])
    with torch.no_grad(), evaluating(other):
        taught, after = _rows(other, inputs, states[1])
        weight, bias = other.decoder_weight, other.decoder.bias.detach()
    guide = Guide(features=taught, weight=weight, bias=bias, share=teacher.share, temperature=teacher.temperature)
    whole = (rows, model.decoder_weight, model.decoder.bias, model.labels(targets), guide)
    both = chunked_distillation(*whole) if softmax == "chunked" else sampled_distillation(*whole, sampled=sampled)
    return *both, (state, after)


def _rows(model: LanguageModel, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Return what the decoder reads, (n, H), and the state to carry on from."""
    features, state = model.features(moved(inputs, model.device), state)
    return features.flatten(0, 1), state


def expect_softmax(model: Measurable, softmax: Softmax, teacher: Teacher | None) -> None:
    """Refuse a softmax that needs a language model's decoder, and its teacher's, where there are others.

    Raises:
        ValueError: With what there is.
    """
    if softmax == "full":
        return
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"Expected a language model of the library to train by a {softmax} softmax, got {type(model).__name__}; "
            "train by softmax 'full'."
        )
    if teacher is not None and not isinstance(teacher.model, LanguageModel):
        raise ValueError(
            f"Expected a language model of the library as teacher by a {softmax} softmax, got "
            f"{type(teacher.model).__name__}; train by softmax 'full'."
        )
