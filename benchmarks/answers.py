"""What networks of any kind answer, as tensors, and how far two answers are apart."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def tensors_of(answer: Any) -> list[Tensor]:
    """Return the floating-point tensors in an answer, as far as they are not empty."""
    parts: list[Any] = []
    for leaf in pytree.tree_leaves(answer):
        parts += (
            pytree.tree_leaves(vars(leaf)) if hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor) else [leaf]
        )
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point() and part.numel()]


def apart(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return how far two answers are apart, of the largest number in each part; infinity where shapes differ."""
    if [one.shape for one in ones] != [other.shape for other in others]:
        return float("inf")
    return max((_apart(one.double(), other.double()) for one, other in zip(ones, others, strict=True)), default=0.0)


def _apart(one: Tensor, other: Tensor) -> float:
    finite = other.isfinite()
    if not torch.equal(finite, one.isfinite()):
        return float("inf")
    one, other = one[finite], other[finite]
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12)) if one.numel() else 0.0
