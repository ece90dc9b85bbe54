"""What a model reads: batches of (inputs, targets), and how a stream of tokens becomes windows of columns."""

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

IGNORED = -100
"""The target of a padded place; `cross_entropy` skips it."""


class Batches(Protocol):
    """Pairs (inputs, targets) in an order, such as `Windows`, a list, or a `DataLoader` that does not shuffle.

    Inputs are a tensor, or tensors in a tuple, list or dictionary; targets are a tensor.
    """

    def __len__(self) -> int:
        """How many batches there are."""

    def __iter__(self) -> Iterator[Any]:
        """Yield (inputs, targets) from the first batch on."""


def endless(batches: Batches) -> Iterator[Any]:
    """Return an iterator over the batches that starts again from the first one after the last.

    Raises:
        ValueError: If there is none.
    """
    if not len(batches):
        raise ValueError("Expected at least one batch of (inputs, targets), got none.")
    return chain.from_iterable(repeat(batches))


class Window(NamedTuple):
    """`bptt` steps of every column: the tokens read and the tokens to predict, both (T, B)."""

    tokens: Tensor
    targets: Tensor


class Windows(Sequence[Window]):
    """A split as consecutive windows of `batch` columns, in which every token is predicted exactly once.

    The stream is cut into `batch` columns of equal length (the last is padded and its padding ignored). Each column
    reads `<eos>` or the token before it first, so the first token of the split is predicted too.

    >>> [w.targets[:, 0].tolist() for w in Windows(torch.tensor([5, 6, 7, 8, 9]), first=0, batch=2, bptt=2)]
    [[5, 6], [7]]
    """

    def __init__(self, tokens: Tensor, *, first: int, batch: int, bptt: int) -> None:
        if len(tokens) < batch:
            raise ValueError(f"Expected at least {batch} tokens, one for each column of the batch, got {len(tokens)}.")
        self.bptt = bptt
        steps = -(-len(tokens) // batch)
        padding = steps * batch - len(tokens)
        inputs = torch.cat([tokens.new_tensor([first]), tokens[:-1], tokens.new_full((padding,), first)])
        targets = torch.cat([tokens, tokens.new_full((padding,), IGNORED)])
        self.inputs = inputs.view(batch, steps).T.contiguous()
        self.targets = targets.view(batch, steps).T.contiguous()

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.bptt)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # windows are taken one at a time
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = slice(index * self.bptt, (index + 1) * self.bptt)
        return Window(self.inputs[rows], self.targets[rows])

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))
