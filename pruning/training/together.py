"""Processes that train one model together, each on its own columns of every batch: what they tell each other.

What DistributedDataParallel does for modules that are called, for models that are asked for their loss: gradients are
added over the processes, each weighted by its targets, so that columns need not divide by the number of processes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from pruning.core.devices import finest
from pruning.data.windows import IGNORED, Batches, Window, Windows
from pruning.evaluation.measures import loss_of
from pruning.models.base import Measurable

Value = TypeVar("Value")

APART = 500_009
"""Between the seeds of two processes' dropout: more than any epoch's number, for an epoch adds 1."""
SILENT = timedelta(minutes=10)
"""How long the others wait for one before they give up."""


@dataclass(frozen=True)
class Together:
    """Which of how many processes this is; of one alone nothing is asked and nothing told.

    >>> Together().alone
    True

    Attributes:
        rank: This process, from 0.
        size: How many there are; they talk by `torch.distributed`, whose default group holds them all.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def seed(self) -> int:
        """What is added to the seed of dropout, which would else drop the same in everybody's columns."""
        return self.rank * APART

    def expect(self, windows: Batches, what: str) -> None:
        """Refuse batches that have no columns, or fewer than there are processes.

        Raises:
            ValueError: If they are no windows of text, or too narrow.
        """
        if self.alone:
            return
        if not isinstance(windows, Windows):
            raise ValueError(
                f"Expected windows of text for {self.size} processes, got {what} in {type(windows).__name__}; a "
                "model with batches of its own is trained by one."
            )
        columns = windows.batch
        if columns < self.size:
            raise ValueError(
                f"Expected a batch of at least {self.size} columns, one for each process, got {columns} of {what}; "
                "raise `batch` or start fewer."
            )

    def own(self, columns: Tensor) -> Tensor:
        """Return this process's columns of a tensor (T, B): neighbours, the first processes having one more."""
        return columns if self.alone else columns.tensor_split(self.size, dim=1)[self.rank]

    def loss(self, model: Measurable, windows: Batches) -> float:
        """Return the mean loss over everybody's columns, the same in each process."""
        own, total, weight = _Columns(windows, self), 0.0, 0.0
        if any((targets != IGNORED).any() for _, targets in own):
            loss = loss_of(model, own, finite=False)
            total, weight = loss.total, float(loss.tokens if loss.weight is None else loss.weight)
        sums = self.added(torch.tensor([total, weight], dtype=finest(model.device), device=model.device)).tolist()
        return float(sums[0] / sums[1])

    def begin(self, model: nn.Module) -> None:
        """Let every process start from the first one's parameters and buffers."""
        if not self.alone:
            for tensor in (*model.parameters(), *model.buffers()):
                self._heard(distributed.broadcast, tensor.data, 0)

    def told(self, value: Callable[[], Value]) -> Value:
        """Return what the first process finds."""
        if self.alone:
            return value()
        holder: list[Any] = [None if self.rank else value()]
        self._heard(distributed.broadcast_object_list, holder, 0)
        return holder[0]  # type: ignore[no-any-return]

    def added(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes, the same bytes in each."""
        if not self.alone:
            self._heard(distributed.all_reduce, numbers)
        return numbers

    def add_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Let every parameter's gradient be the sum over all processes, and return the sum of a loss.

        A parameter without a gradient in any of them stays without one, and is left alone by the optimizer.
        """
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        there = loss.new_tensor([parameter.grad is not None for parameter in learning])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        whole = self.added(torch.cat([loss.detach().view(1), there, *(part.flatten().to(loss) for part in parts)]))
        known = whole[1 : 1 + len(learning)].tolist()
        sums = torch.split(whole[1 + len(learning) :], [p.numel() for p in learning])
        for parameter, total, somebody in zip(learning, sums, known, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter) if somebody else None
        return whole[0]

    def _heard(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except RuntimeError as error:
            raise ValueError(
                f"Expected {self.size} processes until training ends, got one that ended or fell silent; the same "
                "command goes on after the last finished epoch."
            ) from error


@dataclass(frozen=True)
class _Columns:
    """Windows of which only a process's own columns are read."""

    windows: Batches
    together: Together

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Window]:
        own = self.together.own
        return (Window(own(tokens), own(targets)) for tokens, targets in self.windows)


by_itself = Together()
"""One process, as ever."""
