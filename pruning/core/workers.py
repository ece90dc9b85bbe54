"""Who computes what is independent: the library hands it over in pieces, whoever calls it decides where they run."""

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from pruning.core.progress import Track, silently

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        over: Takes a function and items and yields the results in their order, as `ProcessPoolExecutor(2).map`.
        workers: How many calls it computes side by side.
    """

    over: Callable[..., Iterable[Any]] = builtins.map
    workers: int = 1

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function of each item, in their order."""
        return iter(self.over(function, items))


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
        what: What the progress of shares is called.
    """
    if map is in_turn:
        yield from (function(share, track=track) for share in shares)
        return
    results = map(partial(function, track=silently), shares)
    for _, result in zip(track(range(len(shares)), what), results, strict=False):
        yield result
