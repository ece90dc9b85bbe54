"""Batches in the forms in which people have them, as pairs of what a network is given and what it is to give."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pruning.core.devices import expect_seed
from pruning.core.nested import parts_of, tensors_in
from pruning.core.words import described

Split = Callable[[Any], tuple[Any, Any]]
"""Batch → (inputs, targets)."""
TARGETS = ("labels", "label", "targets", "target", "y")
"""What the part of a batch with names is called that holds the targets."""


@dataclass(frozen=True)
class Unlabelled:
    """In place of the targets of a batch that has none.

    Attributes:
        examples: How many examples the batch has.
        left: Names of the parts of the batch that are no inputs, of which one may be the targets by another name.
    """

    examples: int
    left: tuple[str, ...] = field(default=(), compare=False)

    def unknown(self) -> str:
        """Return what to say of targets that are looked for in vain."""
        parts = [f"batch[{name!r}]" for name in self.left]
        targets = parts[0] if len(parts) == 1 else f"({', '.join(parts)})"
        return (
            f"Expected targets under one of {list(TARGETS)} in a batch, got {list(self.left)} beside the inputs; let "
            f"`split` say what of a batch is what: `lambda batch: (…, {targets})`."
        )


class Pair(NamedTuple):
    """A batch that has been taken apart."""

    inputs: Any
    targets: Any


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is known of a network's arguments, by which its batches are taken apart.

    Attributes:
        arguments: How many it is given by place.
        names: What it calls them.
        others: Whether it takes arguments of other names, too.
        example_dim: The dimension of inputs that runs over the examples of a batch.
        keeps_targets: Whether it is given the targets, too, and so gives its own loss.
        needed: Names of arguments that it cannot be called without.
        together: How many inputs of a batch it reads one after the other, as if they were one of as many more examples.
        like: Of the one tensor that it was given, the type of its numbers and how many dimensions it has.
        judged: Whether its loss needs targets, which what is none of its inputs is then likely to be.
    """

    arguments: int
    names: Sequence[str]
    others: bool = False
    example_dim: int = 0
    keeps_targets: bool = False
    needed: frozenset[str] = frozenset()
    together: int = 1
    like: tuple[torch.dtype, int] | None = None
    judged: bool = False

    def pair(self, batch: Any) -> tuple[Any, Any]:
        """Return (inputs, targets) of a batch.

        - A dictionary or dataclass, or a named tuple that has a part of such a name, has its targets under one of
          `TARGETS`; what a network has no argument for is left out. Where it has no other argument, the one tensor of
          the rest is its input, or the only one that is like the one that it was given.
        - Of a tuple or list whose first is a pair, list or dictionary itself that holds all of the network's arguments,
          or that has no more parts than these, or where the network has one argument, the first are the inputs and the
          second the targets.
        - Of any other, as many parts as the network has arguments are inputs, and the rest, alone or as a tuple, are
          targets.
        - Inputs alone have `Unlabelled` targets.

        Raises:
            TypeError: If the batch has no inputs for the network.
        """
        if isinstance(batch, Pair):
            return batch
        fields = getattr(batch, "_fields", ())
        if isinstance(batch, tuple) and set(fields) & set(TARGETS):
            return self._of_names(batch, dict(zip(fields, batch, strict=True)))
        if isinstance(batch, list | tuple) and not hasattr(batch, "batch_sizes"):
            return self._of_places(tuple(batch))
        named = parts_of(batch)
        if named is None:
            return batch, self.unlabelled(batch)
        return self._of_names(batch, named)

    def _of_places(self, batch: tuple[Any, ...]) -> tuple[Any, Any]:
        if len(batch) == 2 and (batch[1] is None or isinstance(batch[1], Unlabelled)):
            return batch[0], self.unlabelled(batch[0]) if batch[1] is None else batch[1]
        nested = bool(batch) and self._holds_all(batch[0], len(batch) - 1)
        first = 1 if nested or self.arguments == 0 else min(self.arguments, len(batch))
        if not batch or (not nested and len(batch) < self.arguments):
            raise TypeError(
                f"Expected batches with the network's {self.arguments} inputs, got {described(batch)}; "
                "let `split` say what of a batch is what."
            )
        inputs = batch[0] if first == 1 else batch[:first]
        rest = batch[first:]
        if self.together > 1:
            inputs, *others = self._in_one(batch[0] if nested else batch)
            rest = rest if nested else tuple(others)
            if not rest:
                return inputs, Unlabelled(inputs.shape[self.example_dim] // self.together)
        if not rest:
            return inputs, self.unlabelled(inputs)
        targets = rest[0] if len(rest) == 1 else rest
        name = next((name for name in self.names if name in TARGETS), None)
        if self.keeps_targets and name is not None and self.arguments == 1:
            return {**(inputs if isinstance(inputs, Mapping) else {self.names[0]: inputs}), name: targets}, targets
        return inputs, targets

    def _holds_all(self, first: Any, others: int) -> bool:
        """Return whether the first part of a batch holds all inputs; if not, it is one argument, as more follow it."""
        parts = parts_of(first)
        if parts is None or self.arguments < 2 or others < self.arguments:
            return parts is not None
        return not parts.keys().isdisjoint(self.names) if isinstance(first, Mapping) else len(parts) == self.arguments

    def _in_one(self, parts: Any) -> list[Any]:
        """Return the first inputs as one tensor, and what is left."""
        several, rest = list(parts)[: self.together], list(parts)[self.together :]
        if len(several) < self.together or not all(isinstance(part, Tensor) for part in several):
            raise TypeError(
                f"Expected batches of {self.together} inputs, which the loss compares, got {described(parts)}; "
                "let `split` say what of a batch is what."
            )
        return [torch.cat(several, dim=self.example_dim), *rest]

    def _of_names(self, batch: Any, named: Mapping[Any, Any]) -> tuple[Any, Any]:
        place = next((name for name in TARGETS if named.get(name) is not None), None)
        targets = None if place is None else named[place]
        given = self.keeps_targets or place in self.needed
        others = {name: part for name, part in named.items() if name != place or given}
        inputs = {name: part for name, part in others.items() if self.others or name in self.names}
        if not any(True for _ in tensors_in({n: p for n, p in inputs.items() if n != place})):
            alone = [part for name, part in others.items() if name != place and isinstance(part, Tensor)]
            if len(alone) > 1:  # a number of the example beside its image, say
                alone = [part for part in alone if (part.dtype, part.ndim) == self.like]
            if len(alone) != 1 or self.arguments != 1:
                raise TypeError(
                    f"Expected batches whose parts are called as the network's arguments, {list(self.names)}, "
                    f"got {described(batch)}; let `split` say what of a batch is what."
                )
            return alone[0], self._unlabelled_in(named, alone[0], alone) if targets is None else targets
        return inputs, self._unlabelled_in(named, inputs, inputs.values()) if targets is None else targets

    def _unlabelled_in(self, named: Mapping[Any, Any], inputs: Any, used: Iterable[Any]) -> Unlabelled:
        """Return what stands for targets that a batch with names has none of.

        Raises:
            TypeError: If the loss needs targets, and a part that is no input may be these under another name.
        """
        known = {id(part) for part in used}
        left = [name for name, part in named.items() if id(part) not in known and any(True for _ in tensors_in(part))]
        found = replace(self.unlabelled(inputs), left=tuple(left))
        if self.judged and left:
            raise TypeError(found.unknown())
        return found

    def unlabelled(self, inputs: Any) -> Unlabelled:
        """Return what stands for the targets of inputs alone.

        Raises:
            TypeError: If the inputs hold no tensor.
        """
        first = next(tensors_in(inputs), None)
        if first is None:
            raise TypeError(f"Expected tensors in a batch, got {described(inputs)}; let `split` take them apart.")
        sizes = getattr(inputs, "batch_sizes", None)  # of a packed sequence
        if sizes is not None:
            return Unlabelled(int(sizes[0]))
        return Unlabelled(first.shape[self.example_dim if first.ndim > self.example_dim else 0] if first.ndim else 1)


def taken_apart(split: Split, batch: Any) -> tuple[Any, Any]:
    """Return what `split` makes of a batch.

    Raises:
        TypeError: If that is no pair.
    """
    parts = split(batch)
    if not isinstance(parts, tuple | list) or len(parts) != len(Pair._fields):
        raise TypeError(
            f"Expected `split` to give (inputs, targets), got {described(parts)}; give None as the targets where there "
            "are none: `lambda batch: (batch, None)`."
        )
    inputs, targets = parts
    return inputs, targets


class Pairs:
    """Batches of any form as pairs (inputs, targets), again and again; at most so many of them.

    Args:
        batches: A `DataLoader`, a list or anything else that can be read more than once.
        split: What makes a pair of a batch.
        most: How many batches are read; all of them if None.
        seed: Of the order of a `DataLoader` that shuffles, the same whenever they are read, and random states are then
            as before; None leaves the order to the global random state.

    Raises:
        TypeError: If the batches can be read only once, or are one tensor, dictionary or text.
    """

    def __init__(self, batches: Iterable[Any], split: Split, most: int | None = None, seed: int | None = None) -> None:
        if not isinstance(batches, Iterable):
            what = described(batches)
            advice = f"; give DataLoader({what}, batch_size=32)" if isinstance(batches, Dataset) else ""
            raise TypeError(f"Expected batches, such as a DataLoader or a list, got {what}{advice}.")
        if seed is not None:
            expect_seed(seed)
        if isinstance(batches, Tensor | Mapping | str | bytes):  # which can be iterated over, though not by batches
            advice = "tensor.split(32)" if isinstance(batches, Tensor) else "[batch]"
            alone = "" if isinstance(batches, str | bytes) else f" alone; give {advice}"
            raise TypeError(f"Expected batches, such as a DataLoader or a list, got {described(batches)}{alone}.")
        if isinstance(batches, Iterator):
            raise TypeError(
                f"Expected batches that can be read again, such as a DataLoader or a list, got {described(batches)}, "
                "which ends after once; give `list(…)` of it."
            )
        _expect_no_batch(batches)
        _expect_some_left(batches)
        self.batches, self.split, self.most, self.seed = batches, split, most, seed
        self._length: int | None = None

    def __len__(self) -> int:
        """How many batches there are; those that do not know are counted once."""
        if self._length is None:
            try:
                self._length = len(self.batches)  # type: ignore[arg-type]
            except TypeError:
                self._length = sum(1 for _ in self.batches)
        return self._length if self.most is None else min(self._length, self.most)

    def __iter__(self) -> Iterator[Pair]:
        for batch in islice(self._read(), self.most):
            yield batch if isinstance(batch, Pair) else Pair(*taken_apart(self.split, batch))

    def _read(self) -> Iterator[Any]:
        """Return the batches in their order; a loader draws it when the first one is asked for."""
        if self.seed is None:
            return iter(self.batches)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            batches = iter(self.batches)
            first = list(islice(batches, 1))
        return chain(first, batches)


def _expect_some_left(batches: Any) -> None:
    """Refuse a `DataLoader` that leaves out all examples, since they are fewer than one batch has."""
    loader = isinstance(batches, DataLoader) and batches.drop_last and not isinstance(batches.dataset, IterableDataset)
    if loader and not len(batches) and (examples := len(batches.dataset)):
        raise ValueError(
            f"Expected at least one batch, got a DataLoader that drops the last one and has {examples} examples in "
            f"batches of {batches.batch_size}; lower batch_size, or leave out drop_last."
        )


def _expect_no_batch(batches: Any) -> None:
    """Refuse tensors that are the parts of one batch, where batches are due.

    Raises:
        TypeError: For a tuple of two tensors, or tensors of several kinds.
    """
    if type(batches) not in (tuple, list) or not all(isinstance(part, Tensor) for part in batches):
        return
    pair = isinstance(batches, tuple) and len(batches) == 2  # of one kind, such as numbers and their targets
    if pair or len({(part.dtype, part.ndim) for part in batches}) > 1:
        raise TypeError(
            f"Expected batches, such as a DataLoader or a list, got {described(batches)}, the parts of one; give "
            "DataLoader(TensorDataset(inputs, targets), batch_size=32), or a list where each is a batch."
        )
