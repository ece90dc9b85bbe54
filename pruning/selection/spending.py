"""A budget of what neurons spend as they fire, met as it is measured in the network that is left."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from pruning.data.windows import Batches
from pruning.evaluation.energy import energy_of
from pruning.models.base import Measurable
from pruning.selection.budgets import Budget

SHORTER = 0.99
"""What a budget that was missed is multiplied by, at most, before it is tried again."""


class Cut(Protocol):
    """What is made within a budget: a smaller network, and whatever else is known of it."""

    @property
    def model(self) -> Measurable:
        """The smaller network."""


Made = TypeVar("Made", bound=Cut)


def met(made: Callable[[Budget], Made], budget: Budget, data: Batches) -> Made:
    """Return what is made within a budget; one of firing rates holds as it is measured on some text.

    Neurons fire otherwise once others are gone, and otherwise again once their readers are repaired, so that what a
    choice spends is known when it is measured. Where that is too much, a budget smaller by as much is tried.

    Args:
        made: Makes a smaller network within a budget.
        budget: Of any kind; of all but synaptic operations and energy the first try is the answer.
        data: Text (or other batches) on which it is measured.

    Raises:
        ValueError: If nothing that can be made spends so little.
    """
    asked, least = budget, math.inf
    while True:
        try:
            something = made(asked)
        except ValueError as error:
            if least == math.inf:  # the first try is refused as any budget is
                raise
            raise ValueError(
                f"Expected a budget of at least {least:.6g} {budget.unit}, what the smallest network that was tried "
                f"spends as measured, got {budget.value:.6g}; raise it, or lower the floor."
            ) from error
        if budget.spikes is None:
            return something
        spent = float(getattr(energy_of(something.model, data), budget.kind))
        if spent <= budget.value:
            return something
        least = min(least, spent)
        asked = replace(asked, value=asked.value * min(budget.value / spent, SHORTER))
