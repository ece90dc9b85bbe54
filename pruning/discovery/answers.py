"""What a network gave in two runs, beside each other: equal up to rounding, near, or not numbers in other places."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.discovery.running import close, greatest


def left_of(whole: Tensor, like: Tensor, kept: Tensor) -> Tensor:
    """Return of a tensor with all neurons what another one has that is as wide as those that are kept."""
    if whole.ndim != like.ndim:
        return whole
    for dim, (size, left) in enumerate(zip(whole.shape, like.shape, strict=True)):
        if size != left == len(kept) and size > int(kept.max()):
            whole = whole.index_select(dim, kept.to(whole.device))
    return whole


def equal(ones: Sequence[Tensor], others: Sequence[Tensor], rounding: float, **power: float) -> bool:
    """Return whether two answers of as many tensors are equal up to rounding, see `close`."""
    return all(close(one, other, rounding, **power) for one, other in zip(ones, others, strict=True))


def as_many_nans(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold as many of what is no number."""
    return int(one.isnan().sum()) == int(other.isnan().sum())


def near(one: Tensor, other: Tensor) -> bool:
    """Return whether rounding might be why two tensors differ."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-2 * greatest(other))
