"""Which neurons leave a model in training, how many, and when."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When neurons leave: many at first, fewer and fewer later (Zhu & Gupta 2018).

    >>> schedule = Schedule(begin=0.0, end=1.0, every=5)
    >>> [schedule.neurons_left(step, steps=10, neurons=100, retain=0.5) for step in (0, 5, 10)]
    [100, 56, 50]

    Attributes:
        begin: Share of all steps after which removal starts, in [0, end].
        end: Share of all steps after which the last neurons have left, in [begin, 1].
        every: Steps from one removal to the next, ≥ 1.

    Raises:
        ValueError: If these are out of order.
    """

    begin: float
    end: float
    every: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end <= 1 or self.every < 1:
            raise ValueError(f"Expected 0 ≤ begin ≤ end ≤ 1 and every ≥ 1, got {self}.")

    def neurons_left(self, step: int, *, steps: int, neurons: int, retain: float) -> int:
        """Return how many of `neurons` are left once `step` of `steps` are taken.

        With a = begin × steps, b = end × steps (rounded) and t = a, a + every, a + 2 every, …, the share that is
        left is retain + (1 − retain) (1 − (t − a) / (b − a))³ from t on, and retain from b on; the number is rounded
        half up.

        >>> schedule = Schedule(begin=0.0, end=0.8, every=2)
        >>> [schedule.neurons_left(step, steps=10, neurons=100, retain=0.5) for step in range(11)]
        [100, 100, 71, 71, 56, 56, 51, 51, 50, 50, 50]
        """
        first, last = round(self.begin * steps), round(self.end * steps)
        passed = max(0, step - first) // self.every * self.every
        ahead = 1 - passed / max(last - first, 1) if step < last else 0.0
        return math.floor((retain + (1 - retain) * ahead**3) * neurons + 0.5)


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """How neurons leave a model in training; see `prune_gradually`.

    >>> thinning = Thinning(
    ...     retain=0.5, floor=1, schedule=Schedule(begin=0.0, end=1.0, every=5), momentum=0.9, penalty=0.0
    ... )
    >>> [thinning.neurons_left(step, steps=10, widths=[60, 40]) for step in (0, 5, 10)]
    [100, 56, 50]

    Attributes:
        retain: Share of neurons to keep, in (0, 1]; ⌊retain × neurons + ½⌋ are left in all.
        floor: Fewest neurons that a layer keeps, ≥ 1.
        schedule: When neurons leave.
        momentum: How much of a neuron's importance each step preserves, in [0, 1).
        penalty: Strength λ of the group lasso (see `shrink_groups`), per unit of learning rate, as long as neurons are
            still to leave; 0 for none.

    Raises:
        ValueError: For a setting outside its range.
    """

    retain: float
    floor: int
    schedule: Schedule
    momentum: float
    penalty: float

    def __post_init__(self) -> None:
        if not 0 < self.retain <= 1:
            raise ValueError(f"Expected retain in (0, 1], got {self.retain}.")
        if self.floor < 1:
            raise ValueError(f"Expected a floor of at least 1 neuron, got {self.floor}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected a momentum in [0, 1), got {self.momentum}.")
        if self.penalty < 0:
            raise ValueError(f"Expected a penalty of at least 0, got {self.penalty}.")

    def neurons_left(self, step: int, *, steps: int, widths: Sequence[int]) -> int:
        """Return how many neurons of layers of these widths are left once `step` of `steps` are taken."""
        least = sum(min(self.floor, width) for width in widths)
        return max(least, self.schedule.neurons_left(step, steps=steps, neurons=sum(widths), retain=self.retain))
