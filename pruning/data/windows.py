"""What a model reads: batches of (inputs, targets), and how a stream of tokens becomes windows of columns."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
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


class Stretch:
    """So many batches from one on, and from the first again after the last; each is read when it is asked for.

    >>> list(Stretch([5, 6, 7, 8], of=3, start=2, length=4))
    [7, 5, 6, 7]

    Args:
        batches: Where they come from.
        of: After how many of those the first one follows again; at least 1, at most all.
        start: The first one's place, counted on over all passes.
        length: How many.

    Raises:
        ValueError: If there is no batch.
    """

    def __init__(self, batches: Batches, *, of: int, start: int, length: int) -> None:
        if not len(batches):
            raise ValueError("Expected at least one batch of (inputs, targets), got none.")
        self._batches, self._of, self._start, self._length = batches, of, start % of, length

    def __len__(self) -> int:
        """How many batches there are."""
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Yield them in order; what cannot be indexed is read from its first batch on."""
        places = range(self._start, self._start + self._length)
        if isinstance(self._batches, Sequence):
            return (self._batches[place % self._of] for place in places)
        passes = chain.from_iterable(islice(batches, self._of) for batches in repeat(self._batches))
        return islice(passes, places.start, places.stop)


class Window(NamedTuple):
    """`bptt` steps of every column: the tokens read and the tokens to predict, both (T, B)."""

    tokens: Tensor
    targets: Tensor

    @classmethod
    def of(cls, tokens: Tensor, targets: Tensor, ignored: int = IGNORED) -> "Window":
        """Return tokens (T, B) with what is to be predicted after each, in the same order; `ignored` where nothing is.

        >>> Window.of(torch.tensor([[1, 2]]), torch.tensor([3, 0]), ignored=0).targets
        tensor([[   3, -100]])

        Raises:
            ValueError: If there is not one target for each token.
        """
        if targets.numel() != tokens.numel() or tokens.ndim != 2:
            shapes = f"{tuple(tokens.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"Expected data (T, B) with a target for each token, got {shapes}.")
        wanted = targets.reshape(tokens.shape)
        return cls(tokens, wanted.masked_fill(wanted == ignored, IGNORED))


class Stream(Protocol):
    """Token numbers of a text in their order: a tensor, a NumPy array, or what reads them from a file when asked."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, places: Any, /) -> Any:
        """Return the tokens at these places, of any shape: a tensor where the stream is one, else NumPy's."""


class Windows(Sequence[Window]):
    """A split as consecutive windows of `batch` columns, in which every token is predicted exactly once.

    The stream is cut into `batch` columns of equal length (the last is padded and its padding ignored). Each column
    reads `<eos>` or the token before it first, so the first token of the split is predicted too. A window is read from
    the stream when it is asked for, so that of text in a file (`numpy.memmap`) no more than a window is held.

    >>> [w.targets[:, 0].tolist() for w in Windows(torch.tensor([5, 6, 7, 8, 9]), first=0, batch=2, bptt=2)]
    [[5, 6], [7]]

    Attributes:
        batch: The columns, B.
        bptt: The steps of each window but the last, which may have fewer.
    """

    def __init__(self, tokens: Stream, *, first: int, batch: int, bptt: int) -> None:
        if len(tokens) < batch:
            raise ValueError(f"Expected at least {batch} tokens, one for each column of the batch, got {len(tokens)}.")
        self.batch, self.bptt = batch, bptt
        self._tokens, self._first, self._steps = tokens, first, -(-len(tokens) // batch)

    def __len__(self) -> int:
        return -(-self._steps // self.bptt)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # windows are taken one at a time
        if not 0 <= index < len(self):
            raise IndexError(index)
        steps = torch.arange(index * self.bptt, min((index + 1) * self.bptt, self._steps))
        places = steps[:, None] + torch.arange(self.batch) * self._steps
        last = len(self._tokens) - 1
        # a step before the first too, whose tokens are the ones read there
        both = _taken(self._tokens, torch.cat([places[:1] - 1, places]).clamp(0, last))
        places = places.to(both.device)
        inputs = both[:-1].masked_fill((places == 0) | (places > last), self._first)
        return Window(inputs, both[1:].masked_fill(places > last, IGNORED))

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    @property
    def inputs(self) -> Tensor:
        """What all windows read, (steps, B), in memory; for text that fits there."""
        return torch.cat([window.tokens for window in self])

    @property
    def targets(self) -> Tensor:
        """What all windows are to predict, (steps, B), likewise."""
        return torch.cat([window.targets for window in self])


def _taken(tokens: Stream, places: Tensor) -> Tensor:
    """Return the tokens at places of a stream, as whole numbers of 64 bits unless they are a tensor of others."""
    if isinstance(tokens, Tensor):
        return tokens[places.to(tokens.device)]
    return torch.from_numpy(np.asarray(tokens[places.numpy()], dtype=np.int64))


def cut(tokens: Tensor, *, batch: int, bptt: int) -> list[Window]:
    """Return tokens, (n,) or in columns (n, B), as windows of `bptt` steps, each token read before what follows it.

    >>> [window.targets[:, 0].tolist() for window in cut(torch.tensor([5, 6, 7, 8]), batch=1, bptt=2)]
    [[6, 7], [8]]

    Raises:
        ValueError: If there is nothing to read, or the tokens are in another shape.
    """
    if batch < 1 or bptt < 1:
        raise ValueError(f"Expected batch_size and bptt of at least 1, got {batch} and {bptt}.")
    columns = tokens[: len(tokens) // batch * batch].view(batch, -1).T if tokens.ndim == 1 else tokens
    if columns.ndim != 2 or len(columns) < 2:
        raise ValueError(f"Expected tokens (n,) or in columns (n, batch), got a tensor {tuple(tokens.shape)}.")
    starts = range(0, len(columns) - 1, bptt)
    return [Window(columns[:-1][start : start + bptt], columns[1:][start : start + bptt]) for start in starts]


def first_batches(loader: Iterable[Any], count: int) -> list[Any]:
    """Return the first batches, (inputs, targets), of a loader that may shuffle: the same ones each time.

    The random state is left as it was.

    Raises:
        ValueError: If there is none, or one that is no pair.
    """
    if count < 1:
        raise ValueError(f"Expected to read at least one batch, got {count}.")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # a loader that shuffles draws its order from here
        batches = list(islice(loader, count))
    if not batches:
        raise ValueError("Expected at least one batch (data, targets) from the loader, got none.")
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"Expected batches (data, targets) from the loader, got {type(batch).__name__}.")
    return batches
