"""In which order stages run: each when all that it needs is done, so many side by side, and some by themselves."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from graphlib import TopologicalSorter
from queue import SimpleQueue
from typing import TypeVar

from flows.execution import NOT_STARTED, RAN, Outcome
from flows.stages import GraphStage

Started = TypeVar("Started")
MOST = 64
"""Stages side by side, at most."""


def job_count(word: str) -> int:
    """Return how many stages may run side by side, as a parser's type, which refuses what is none."""
    if not word.isascii() or not word.isdigit() or not 1 <= int(word) <= MOST:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST}, got {word!r}")
    return int(word)


def run_in_order(
    stages: Mapping[str, GraphStage],
    jobs: int,
    start: Callable[[GraphStage, Sequence[Started], Callable[[object], None]], Started],
    outcome: Callable[[GraphStage, Started, float], Outcome],
    ran: Callable[[str], None] | None = None,
) -> dict[str, Outcome]:
    """Run each stage when all that it needs is done; a failed stage holds up its dependents.

    A stage that is `alone` waits until nothing else can run, and nothing starts beside it; one that is `first` starts
    before others that may.

    Args:
        stages: By address.
        jobs: How many run side by side.
        start: Starts a stage, told what was started of those that it needs, and what to call once it has ended.
        outcome: How a stage ended, told what was started and after how many seconds.
        ran: Is called with the address of each stage that ran.
    """
    order = TopologicalSorter({address: stage.needs for address, stage in stages.items()})
    order.prepare()
    waiting, ended = list(order.get_ready()), SimpleQueue[str]()
    running: dict[str, float] = {}
    started: dict[str, Started] = {}
    outcomes: dict[str, Outcome] = {}
    while waiting or running:
        while (address := _next(stages, waiting, running, jobs)) is not None:
            waiting.remove(address)
            running[address] = time.monotonic()
            needed = [started[other] for other in stages[address].needs]
            started[address] = start(stages[address], needed, partial(_put, ended, address))
        address = ended.get()
        outcomes[address] = outcome(stages[address], started[address], time.monotonic() - running.pop(address))
        if ran and outcomes[address].state == RAN:
            ran(address)
        if not outcomes[address].problem:
            order.done(address)
            waiting.extend(order.get_ready())
    never = {address: Outcome(address, NOT_STARTED, 0.0, stages[address].description) for address in stages}
    return never | outcomes


def _next(
    stages: Mapping[str, GraphStage], waiting: Sequence[str], running: Mapping[str, float], jobs: int
) -> str | None:
    """Return which stage starts now: the first that waits, one that is alone only when nothing else is left to do."""
    if len(running) >= jobs or any(stages[address].alone for address in running):
        return None
    others = sorted((address for address in waiting if not stages[address].alone), key=lambda a: not stages[a].first)
    if others:
        return others[0]
    return waiting[0] if waiting and not running else None


def _put(ended: SimpleQueue[str], address: str, _: object) -> None:
    ended.put(address)
