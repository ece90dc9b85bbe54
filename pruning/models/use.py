"""What a network's author knows of it and its code does not say: inputs, loss, how it is run, what is reported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pruning.core.words import described
from pruning.data.batches import TARGETS, Split
from pruning.models.calling import Call, forward_names
from pruning.models.examples import own_loss
from pruning.models.metrics import Metric
from pruning.models.objectives import Criterion, Objective, setting

NO_MEANS = ("sum", "none", None)
"""Reductions by which a loss is no mean; others are known by many names: "batchmean", "elementwise_mean", "micro"."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a network's author knows and its code does not say.

    Attributes:
        inputs: Inputs of one batch.
        criterion: What it loses; None where there is no loss.
        call: How it is run.
        example_dim: The dimension of inputs and of layers' outputs that runs over the examples of a batch.
        carries: Whether it carries a state from batch to batch, its inputs being steps (T, B) of B sequences.
        split: What makes (inputs, targets) of a batch, if its author says so.
        metrics: What is reported beside the loss.
        stream: Whether each batch goes on where the one before it ended, also where the modules keep the state.
        shape: Of the main output for `inputs`, where it is known; () where the loss takes it for no logits.
        differentiates: Whether the loss takes gradients itself, of what the network gives by what that was made of.
        ignored: Class numbers that a loss that is not known was seen to ignore.
        gives: Whether the network gives its own loss also where a batch has no targets.
        asked: Whether that is known of batches with targets (True), and of those without (False).
    """

    inputs: Any
    criterion: Criterion | Objective | None
    call: Call
    example_dim: int
    carries: bool
    split: Split | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    stream: bool = False
    shape: torch.Size | None = None
    differentiates: bool = False
    ignored: frozenset[int] = frozenset()
    gives: bool = True
    asked: frozenset[bool] = frozenset()


def one_loss(network: nn.Module, loss: Any, criterion: Any) -> Criterion | Objective | None:
    """Return the loss, by whichever name it was given; the network's own where none was and its forward has labels."""
    if loss is not None and criterion is not None:
        raise ValueError("Expected `loss` or its older name `criterion`, got both.")
    loss = criterion if loss is None else loss
    if loss is None:
        return own_loss if set(forward_names(network)[0]) & set(TARGETS) else None
    if not callable(loss) and not isinstance(loss, Objective):
        raise TypeError(
            f"Expected a loss (outputs, targets) → one number, such as nn.CrossEntropyLoss(), got {described(loss)}."
        )
    if isinstance(loss, type):
        raise TypeError(f"Expected a loss, got the class {loss.__name__}; make one: {loss.__name__}().")
    if (reduction := setting(loss, "reduction", "mean")) in NO_MEANS:
        raise ValueError(f"Expected a criterion with reduction 'mean', got {reduction!r}; make it with that.")
    return loss  # type: ignore[no-any-return]
