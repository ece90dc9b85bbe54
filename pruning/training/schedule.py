"""How a learning rate rises and falls, and what share of it each parameter gets."""

import math
from typing import Protocol

from torch import nn


class LearningRateSchedule(Protocol):
    """What a learning rate follows from."""

    @property
    def learning_rate(self) -> float:
        """Its highest value."""

    @property
    def warmup(self) -> float:
        """Share of all steps over which it rises linearly."""


def rate_at(schedule: LearningRateSchedule, step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to zero.

    >>> from types import SimpleNamespace
    >>> [round(rate_at(SimpleNamespace(learning_rate=2, warmup=0.5), step, 4), 3) for step in range(4)]
    [1.0, 2.0, 2.0, 1.0]
    """
    warm = schedule.warmup * steps
    if step < warm:
        return schedule.learning_rate * min(1.0, (step + 1) / warm)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def paces_of(model: nn.Module) -> dict[nn.Parameter, float]:
    """Return the share of the learning rate that suits each parameter: its module's `pace`, or all of it.

    >>> list(paces_of(nn.Linear(2, 1)).values())
    [1.0, 1.0]
    """
    modules = list(model.modules())
    return {own: float(getattr(module, "pace", 1)) for module in modules for own in module.parameters(recurse=False)}
