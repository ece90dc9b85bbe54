"""How a network's answers differ from the dense one's, batch by batch."""

from collections.abc import Callable
from typing import Any

import torch

from pruning.core.devices import states_of
from pruning.core.modes import evaluating
from pruning.models.base import Measurable
from pruning.models.objectives import Objective

COMPARED = 20
"""Batches that choices between networks are measured on."""
Difference = Callable[[Objective, Any, Any, Any], float]
"""(what the network is for, outputs, the dense one's, targets) → how much the outputs are worse."""


def differences(model: Measurable, dense: Measurable, pairs: Any, difference: Difference) -> list[float]:
    """Return how a model's outputs differ from the dense one's in each of the first `COMPARED` batches.

    Each reads with its own carried state; a batch in which no target counts is read and left out.

    Args:
        model: With the same outputs.
        dense: What it is compared with.
        pairs: Batches.
        difference: What is asked of a batch.
    """
    each: list[float] = []
    states: tuple[Any, Any] = (None, None)
    with torch.no_grad(), evaluating(model), evaluating(dense):
        for number, (inputs, targets) in enumerate(pairs):
            if number == COMPARED:
                break
            drawn = states_of(dense)
            outputs, ours = model.predicted(inputs, states[0])
            with drawn.again():
                taught, theirs = dense.predicted(inputs, states[1])
            states = (ours, theirs)
            if dense.count(targets):
                each.append(difference(dense.objective(targets), outputs, taught, targets))
    return each


def distance(objective: Objective, outputs: Any, taught: Any, targets: Any) -> float:
    """Return the loss's own divergence (see `Objective.divergence`) less what it is between equals; a `Difference`."""
    one, other = (objective.divergence(given, taught, targets, temperature=1.0) for given in (outputs, taught))
    return float(one - other)
