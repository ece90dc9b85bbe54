"""A network as files of one target: what each target's module gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""The tensors of a network's inputs → those of its outputs."""


@dataclass(frozen=True)
class Made:
    """What a target holds a network in.

    Attributes:
        files: Name → contents.
        weights: Bytes of the numbers in them, scales included.
        arena: Bytes that the target plans for everything else of one step, inputs, outputs and the state included; None
            where it does not tell before it runs.
    """

    files: Mapping[str, bytes]
    weights: int
    arena: int | None
