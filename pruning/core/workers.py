"""Who computes what is independent: the library hands it over in pieces, whoever calls it decides where they run."""

import builtins
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, Protocol, TypeVar

from pruning.core.progress import Track, silently

Item = TypeVar("Item")
Result = TypeVar("Result")
Told = TypeVar("Told", covariant=True)


class Map(Protocol):
    """Applies a function to items and gives the results in the items' order, as `map` does, wherever they are computed.

    A call is handed to another process or machine, and to a second one if the first is lost: functions, items and
    results pickle, and a call leaves nothing behind that the next depends on.
    """

    @property
    def workers(self) -> int:
        """How many calls are computed side by side: into as many parts is divided what could be any number."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function of each item, in their order; items are asked for when there is somebody to compute."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A `Map` of anything that has one: of an executor's processes, say.

    Threads will not do: what is measured on a model changes its modes and hooks for as long as it takes.

    >>> list(Spread()(abs, [-1, 2]))
    [1, 2]

    Attributes:
        over: Takes a function and items and yields the results in their order, as `ProcessPoolExecutor(2).map`. It is
            given all items at once, for an executor sends the function on while it asks for more of them.
        workers: How many calls it computes side by side.
    """

    over: Callable[..., Iterable[Any]] = builtins.map
    workers: int = 1

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function of each item, in their order."""
        return iter(self.over(function, list(items)))


in_turn: Map = Spread()
"""Everything here, one after the other."""


def dealt(items: Sequence[Item], map: Map) -> list[Sequence[Item]]:
    """Return items in as many parts as there are workers, dealt like cards; never an empty part.

    >>> dealt([1, 2, 3, 4, 5], Spread(workers=2))
    [[1, 3, 5], [2, 4]]
    """
    count = min(map.workers, len(items))
    return [items[start::count] for start in range(count)]


def computed(
    map: Map,
    function: Callable[..., Result],
    shares: Sequence[Item],
    *,
    track: Track,
    what: str,
) -> Iterator[Result]:
    """Yield a function of each share, which shows its progress itself where it runs here, and else as shares are done.

    Args:
        map: Who computes.
        function: Takes a share and, as `track`, what shows progress.
        shares: What it is of.
        track: Shows progress.
        what: What is counted as shares are done.
    """
    if map is in_turn:
        yield from (function(share, track=track) for share in shares)
        return
    results = map(partial(function, track=silently), shares)
    for _, result in zip(track(range(len(shares)), what), results, strict=False):
        yield result


class Reading(Protocol[Told]):
    """What is told by batches that are read in order, each from where the one before it ended.

    What goes on from one batch to the next, the carry, is whatever it makes of it: a model's state, say, and that of a
    generator; None before the first.
    """

    def running(self) -> AbstractContextManager[object]:
        """Return the context in which batches are to be read."""

    def read(self, batches: Iterable[Any], carry: Any) -> tuple[Told, Any]:
        """Return what consecutive batches tell, and the carry after them; it pickles, as what they tell does."""

    def passed(self, batches: Iterable[Any], carry: Any) -> Any:
        """Return the very carry that `read` would, to the bit, at a fraction of what that costs."""


def in_stretches(
    map: Map, reading: Reading[Told], batches: Iterable[Any], count: int, parts: int, *, track: Track, what: str
) -> Generator[Told]:
    """Yield what each of some stretches of consecutive batches tells; they are divided by their number alone.

    To be called where `reading.running()` holds. Here batches are read as they come. Workers are handed a stretch each,
    with the carry that it begins from, which this process finds by `passed`.

    Args:
        map: Who computes.
        reading: What is told of them.
        batches: In their order.
        count: How many of them are read.
        parts: How many stretches, of nearly equal length, at most `count`.
        track: Shows progress.
        what: What that is called.
    """
    parts = max(parts, 1)
    lengths = [end - start for start, end in pairwise(-(-part * count // parts) for part in range(parts + 1))]
    if map is in_turn:
        tracked = (batch for _, batch in zip(track(range(count), f"{what}, batches"), batches, strict=False))
        yield from one_by_one(map, reading, (islice(tracked, length) for length in lengths))
        next(tracked, None)  # so that the last one is reported, too
        return
    ahead = iter(batches)
    results = one_by_one(map, reading, (islice(ahead, length) for length in lengths))
    for _, result in zip(track(range(parts), f"{what}, stretches of batches"), results, strict=False):
        yield result


def one_by_one(
    map: Map, reading: Reading[Told], stretches: Iterable[Iterable[Any]], carry: Any = None
) -> Generator[Told]:
    """Yield what each stretch of batches tells, from a carry on; see `in_stretches`."""
    if map is not in_turn:
        yield from map(partial(_apart, reading), _begun(reading, stretches, carry))
        return
    for stretch in stretches:
        result, carry = reading.read(stretch, carry)
        yield result


def _begun(
    reading: Reading[Any], stretches: Iterable[Iterable[Any]], carry: Any
) -> Iterator[tuple[Sequence[Any], Any]]:
    """Yield each stretch with the carry that it begins from."""
    before: Sequence[Any] = ()
    for stretch in stretches:
        carry = reading.passed(before, carry) if before else carry
        before = list(stretch)
        yield before, carry


def _apart(reading: Reading[Told], stretch: tuple[Sequence[Any], Any]) -> Told:
    """Return what a stretch tells, in a process that has read nothing before."""
    with reading.running():
        return reading.read(*stretch)[0]
