"""Who computes what is independent: Dask's workers, processes of this machine or of others that a scheduler knows.

What a call gives depends on the call alone: each begins with a fresh copy of what it reads, on as many threads and with
the same settings of floating-point numbers as the process that asked. So a call whose worker is lost is made again by
another one, and the bytes are those of a run without workers, however many there are. One call at a time is made in a
process, for the library sets modes and seeds that are the process's. Ray's workers, of `on_ray`, are asked for alike.
"""

import logging
import operator
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from pruning.core.workers import Item, Map, Result, in_turn
from tasks.common.calls import KEPT, LOOK_SECONDS, LOST_SECONDS, how, made, received, sent
from tasks.common.on_ray import SCHEME, RayPool
from tasks.common.parameters import Unexpected

ASKED = "PRUNING_WORKERS"
"""The variable that says what `--workers` says, also to stages that `dvc repro` runs."""
PATIENCE_SECONDS = 20.0
"""How long a scheduler, and the first of its workers, may take to answer."""
MOST = 64
"""As many processes as this a machine of few cores may be asked for, too; each holds PyTorch and the model."""
SPEAKERS = "distributed."
"""What Dask's own logs begin with, some of which have a level and a way to the screen of their own."""
LARGE = "10 GiB"
"""What Dask need not warn of: models are sent once, as part of the graph, so that they outlive every worker."""


def checked(asked: str) -> str:
    """Return what `--workers` asks for: a number of processes of this machine, or a scheduler's or cluster's address.

    Raises:
        Unexpected: If it is neither, or more processes than a machine can hold, or nobody listens at the address.
    """
    number = asked.removeprefix(SCHEME)
    if number.isdecimal() and (digits := number.lstrip("0")):
        cores = os.cpu_count() or 1
        if len(digits) > 9 or int(digits) > max(MOST, cores):  # Python reads no number of thousands of digits
            raise Unexpected(
                f"Expected for workers at most {max(MOST, cores)} processes of this machine, which has {cores} cores, "
                f"got {asked}; {cores} make use of all of them."
            )
        return asked
    address = urlsplit(asked if "://" in asked else asked.replace(":", "://", 1))
    try:
        known = address.scheme in ("tcp", "tls", "ray") and bool(address.hostname) and bool(address.port)
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise Unexpected(
            "Expected for workers a number from 1 on, or a scheduler's address as tcp://host:8786 (of Ray ray:4 or "
            f"ray:host:6379), got {asked!r}."
        )
    try:
        socket.create_connection((address.hostname or "", address.port or 0), PATIENCE_SECONDS).close()
    except OSError as error:
        start = "ray start --head" if address.scheme == "ray" else "dask scheduler"
        raise Unexpected(
            f"Expected a scheduler at {asked}, got none ({error.strerror or error}); start one with `{start}`."
        ) from error
    return asked


@contextmanager
def workers(asked: str | None) -> Iterator[Map]:
    """Yield the `map` of what is asked for, and let go of the workers in the end; None and nothing ask for none.

    Workers are started, or their scheduler is spoken to, when there is something to compute.

    Raises:
        Unexpected: If it is no number of processes and no address, nobody listens there, or Dask (or Ray) is missing.
    """
    if not asked:
        yield in_turn
        return
    pool = RayPool(checked(asked)) if asked.startswith(SCHEME) else Pool(checked(asked))
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def asked_of(asked: str | None) -> Iterator[dict[str, str]]:
    """Yield the variables by which other processes ask for the same workers, started once for all of them.

    Raises:
        Unexpected: As of `workers`.
    """
    with workers(asked) as map:
        yield {ASKED: map.address} if isinstance(map, Pool | RayPool) else {}


class Pool:
    """A `Map` of Dask's.

    Raises:
        Unexpected: If Dask is missing.
    """

    def __init__(self, asked: str) -> None:
        self.asked = asked
        try:
            self._dask, self._distributed = import_module("dask"), import_module("distributed")
        except ModuleNotFoundError as error:
            raise Unexpected(
                f"Expected the package {error.name} for workers, got none; `make install EXTRA=workers` installs it."
            ) from error
        for name in ("distributed", *(name for name in logging.root.manager.loggerDict if name.startswith(SPEAKERS))):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said here, in sentences
        self._closing: list[Any] = []

    @property
    def workers(self) -> int:
        """How many compute side by side."""
        return int(self.asked) if self.asked.isdecimal() else max(1, len(self._client.scheduler_info(-1)["workers"]))

    @property
    def address(self) -> str:
        """Where others reach the workers' scheduler."""
        return str(self._client.scheduler.address)

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function of each item, in their order."""
        client = self._client
        content = sent(partial(made, *how(), sent(function)))
        waiting: deque[Any] = deque()
        busy: dict[Any, int] = {}
        here: frozenset[str] = frozenset()
        copies: dict[int, Any] = {}
        try:
            for item in items:
                given = sent(item)
                place, there = self._free(busy)
                if there != here:  # whoever came is to have a copy, too, and nobody two
                    here, copies = there, {}
                if place not in copies:
                    # Of Python's own functions alone, so that the scheduler needs none of this code, which reads them.
                    # A task and not a scattered copy, which would be gone with the worker that has it; and one for
                    # each, for a worker that falls silent keeps those waiting that fetch from it. Dask gives it to
                    # whoever has nothing to do. It is tied to nobody: Dask forgets what is, once nobody is left.
                    copies[place] = client.submit(pickle.loads, content, pure=False)
                call = client.submit(operator.call, copies[place], given, pure=False)  # is made where the copy is
                waiting.append(call)
                busy[call] = place
                while waiting and (waiting[0].done() or len(waiting) > KEPT * self.workers):
                    yield self._received(waiting.popleft())
            while waiting:
                yield self._received(waiting.popleft())
        finally:
            client.cancel([*waiting, *copies.values()])

    def close(self) -> None:
        """Let go of what was started."""
        while self._closing:
            self._closing.pop().close()
        self.__dict__.pop("_client", None)

    @cached_property
    def _client(self) -> Any:
        # Dask's variables let malloc hand back what is freed at once, which makes training half as slow again.
        # A worker that ends is started again, which takes long on a busy machine: Dask would soon give it up for good.
        # Watching its own event loops at 50 Hz and sampling workers' stacks at 100 Hz takes 2% of two cores, always.
        settings = {
            "admin.large-graph-warning-threshold": LARGE,
            "nanny.pre-spawn-environ": {},
            "deploy.lost-worker-timeout": f"{LOST_SECONDS} s",
            "admin.tick.interval": "1 s",
            "worker.profile.enabled": False,
        }
        self._dask.config.set({f"distributed.{name}": value for name, value in settings.items()})
        address = self.asked
        try:
            if self.asked.isdecimal():
                # No limit of memory: Dask would halt or end a worker near it, and this process has none either.
                cluster = self._distributed.LocalCluster(
                    n_workers=int(self.asked),
                    threads_per_worker=1,
                    memory_limit=0,
                    dashboard_address=":0",
                    silence_logs="CRITICAL",
                )
                self._closing.append(cluster)
                address = cluster.scheduler_address
            client = self._distributed.Client(address, timeout=PATIENCE_SECONDS, set_as_default=False)
            self._closing.append(client)
            client.wait_for_workers(1, timeout=PATIENCE_SECONDS)
        except (OSError, TimeoutError) as error:
            self.close()
            raise _nobody(address, PATIENCE_SECONDS) from error
        return client

    def _free(self, busy: dict[Any, int]) -> tuple[int, frozenset[str]]:
        """Wait until fewer calls are busy than there are workers; return a place without one, and who the workers are.

        Calls that have ended are no longer busy. None is sent ahead: it would wait for its worker, though another one
        is free.
        """
        with self._in_sentences():
            while len(busy) >= max(1, len(here := frozenset(self._client.nthreads()))):
                for call in self._ended([*busy]):
                    del busy[call]
        return min({*range(len(busy) + 1)}.difference(busy.values())), here

    def _ended(self, calls: Sequence[Any]) -> set[Any]:
        """Wait until some of the calls have ended, and return these."""
        with self._client.as_current():
            while True:
                try:
                    return set(self._distributed.wait(calls, LOOK_SECONDS, "FIRST_COMPLETED").done)
                except TimeoutError:
                    self._expect_somebody()

    def _received(self, call: Any) -> Any:
        """Return what a call gives; should what it gave be lost with its worker, it is made again."""
        seconds = LOOK_SECONDS
        with self._in_sentences():
            while True:
                try:
                    return received(call.result(seconds))
                except TimeoutError:
                    if call.status == "error":  # it is the call's own
                        raise
                    self._expect_somebody()
                    seconds *= 2  # lest a result that takes long to come begins to come again and again

    def _expect_somebody(self) -> None:
        """Wait until there is a worker, as there mostly is; Dask hands it what is to be done."""
        try:
            self._client.wait_for_workers(1, timeout=LOST_SECONDS)
        except TimeoutError as error:
            raise _nobody(self.address, LOST_SECONDS) from error

    @contextmanager
    def _in_sentences(self) -> Iterator[None]:
        """Say what Dask gives up in a sentence."""
        dask = self._distributed.client
        cancelled = (dask.FutureCancelledError, dask.FuturesCancelledError)
        try:
            yield
        except self._distributed.KilledWorker as error:
            raise Unexpected(
                "Expected a worker to finish its part, got several that ended one after the other on the same one; "
                "see whether they have memory enough, and run the same command again."
            ) from error
        except (*cancelled, self._distributed.comm.CommClosedError) as error:
            raise Unexpected(
                f"Expected the scheduler at {self.asked} until the work is done, got a closed connection; start it "
                "and its workers again, then run the same command."
            ) from error
        except ImportError as error:
            raise Unexpected(
                f"Expected workers that run in a clone of this code, with its packages, got one without it ({error}); "
                "start it there."
            ) from error


def _nobody(address: str, seconds: float) -> Unexpected:
    return Unexpected(
        f"Expected a scheduler with workers at {address}, got none within {seconds:g} s; start some with "
        f"`python -m dask worker {address} --nthreads 1` where this code is."
    )


def asked_for(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what `--workers` asks for, or else the environment, and the other words.

    >>> asked_for(["oracle", "--workers", "4"])
    ('4', ['oracle'])

    Raises:
        Unexpected: If nothing follows `--workers`.
    """
    asked, others, left = os.environ.get(ASKED), [], iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name != "--workers":
            others.append(word)
            continue
        asked = value if equals else next(left, "")
        if not asked:
            raise Unexpected("Expected a number or a scheduler's address after --workers, got nothing.")
    return asked, others
