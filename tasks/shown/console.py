"""How long work shows itself: a bar with rate and remaining time on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Row
from rich.text import Text

Item = TypeVar("Item")
LINES_EVERY = 15.0
"""Seconds between two plain lines."""


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Yield the items while showing how many are done, how fast, and how long the rest will take."""
    console = Console(stderr=True)
    return _bar(items, what, console) if console.is_terminal else _lines(items, what)


def say(sentence: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def log_to_console() -> None:
    """Show the library's warnings as plain lines."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)


class _Rate(ProgressColumn):
    """How fast items are done."""

    def render(self, task: Row) -> Text:
        """Return the rate as text."""
        return Text(_pace(task.speed) if task.speed else "")


def _pace(rate: float) -> str:
    """Return how fast items are done: how many in a second, or in how many seconds one is.

    >>> _pace(2.5), _pace(0.0125)
    ('2.5/s', '80 s each')
    """
    return f"{rate:.1f}/s" if rate >= 0.5 else f"{1 / rate:.0f} s each"


def _bar(items: Sequence[Item], what: str, console: Console) -> Iterator[Item]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, description=what, total=len(items))


def _lines(items: Sequence[Item], what: str) -> Iterator[Item]:
    start = shown = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now, left = time.monotonic(), len(items) - done - 1
        if left and now - shown >= LINES_EVERY:
            shown, rate = now, (done + 1) / (now - start)
            say(f"{what}: {done + 1}/{len(items)}, {_pace(rate)}, {left / rate:.0f} s left")
    say(f"{what}: {len(items)} in {time.monotonic() - start:.1f} s")
