"""What goes on from one batch to the next where targets are drawn from the model: its state, and the generator's."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pruning.core.modes import carried
from pruning.models.base import Measurable


@dataclass(frozen=True)
class Drawn:
    """Where reading and drawing stand.

    Attributes:
        state: The model's.
        random: The generator's.
    """

    state: Any
    random: Tensor

    @classmethod
    def of(cls, seed: int) -> Self:
        """Return where they stand before the first batch."""
        return cls(None, torch.Generator().manual_seed(seed).get_state())

    def generator(self) -> torch.Generator:
        """Return what draws on from here."""
        generator = torch.Generator()
        generator.set_state(self.random)
        return generator


def drawing_passed(model: Measurable, batches: Iterable[Any], before: Drawn) -> Drawn:
    """Return where reading by `tapped` and drawing stand after batches, which are not measured."""
    state, generator = before.state, before.generator()
    for inputs, targets in batches:
        if model.count(targets):
            state = carried(model.passed_drawing(inputs, targets, carried(state), generator, taps=True))
        else:
            state = model.passed(inputs, state)
    return Drawn(state, generator.get_state())
