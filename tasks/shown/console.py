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
    """Items a second."""

    def render(self, task: Row) -> Text:
        """Return the rate as text."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def _bar(items: Sequence[Item], what: str, console: Console) -> Iterator[Item]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, description=what, total=len(items))


def _lines(items: Sequence[Item], what: str) -> Iterator[Item]:
    start = shown = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - shown >= LINES_EVERY:
            shown, rate = now, (done + 1) / (now - start)
            say(f"{what}: {done + 1}/{len(items)}, {rate:.1f}/s, {(len(items) - done - 1) / rate:.0f} s left")
    say(f"{what}: {len(items)} in {time.monotonic() - start:.1f} s")
