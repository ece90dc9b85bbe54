"""The library's `map` on Dask's workers: processes of this machine, or of others that a scheduler knows.

What a call gives depends on the call alone: each begins with a fresh copy of what it reads, on as many threads and with
the same settings of floating-point numbers as the process that asked. So a call whose worker is lost is made again by
another one, and the bytes are those of a run without workers, however many there are. One call at a time is made in a
process, for the library sets modes and seeds that are the process's.
"""

import hashlib
import logging
import os
import pickle
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pruning.core.workers import Item, Map, Result, in_turn
from tasks.common.devices import Computing, computing
from tasks.common.parameters import Unexpected

ASKED = "PRUNING_WORKERS"
"""The variable that says what `--workers` says, also to stages that `dvc repro` runs."""
KEPT = 4
"""Results for each worker that may wait for an earlier one, since they are given in the order of their items."""
PATIENCE_SECONDS = 20.0
"""How long a scheduler, and the first of its workers, may take to answer."""
LARGE = "10 GiB"
"""What Dask need not warn of: models are sent once, as part of the graph, so that they outlive every worker."""


def checked(asked: str) -> str:
    """Return what `--workers` asks for: a number of processes of this machine, or a scheduler's address.

    Raises:
        Unexpected: If it is neither, or nobody listens at the address.
    """
    if asked.isdecimal() and int(asked) > 0:
        return asked
    address = urlsplit(asked)
    try:
        known = address.scheme in ("tcp", "tls") and bool(address.hostname) and bool(address.port)
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise Unexpected(
            f"Expected for workers a number from 1 on, or a scheduler's address as tcp://host:8786, got {asked!r}."
        )
    try:
        socket.create_connection((address.hostname or "", address.port or 0), PATIENCE_SECONDS).close()
    except OSError as error:
        raise Unexpected(
            f"Expected a scheduler at {asked}, got none ({error.strerror or error}); start one with `dask scheduler`."
        ) from error
    return asked


@contextmanager
def workers(asked: str | None) -> Iterator[Map]:
    """Yield the `map` of what is asked for, and let go of the workers in the end; None and nothing ask for none.

    Workers are started, or their scheduler is spoken to, when there is something to compute.

    Raises:
        Unexpected: If it is no number of processes and no address, nobody listens there, or Dask is missing.
    """
    if not asked:
        yield in_turn
        return
    pool = Pool(checked(asked))
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
        yield {ASKED: map.address} if isinstance(map, Pool) else {}


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
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here, in sentences
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
        client, how = self._client, How(computing(), code())
        sent, copies = _sent(function), dict[str | None, Any]()
        waiting: deque[Any] = deque()
        busy: dict[Any, str | None] = {}
        try:
            for item in items:
                content, place = _sent(item), self._free(busy)
                if place not in copies:
                    # A task and not a scattered copy, which would be gone with the worker that has it; and one for
                    # each, for a worker that falls silent keeps those waiting that fetch from it.
                    there = {"workers": place, "allow_other_workers": True} if place else {}
                    copies[place] = client.submit(_same, sent, pure=False, **there)
                call = client.submit(_made, how, copies[place], content, pure=False)  # is made where the copy is
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
        settings = {"admin.large-graph-warning-threshold": LARGE, "nanny.pre-spawn-environ": {}}
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
            raise Unexpected(
                f"Expected a scheduler with workers at {address}, got none within {PATIENCE_SECONDS:g} s; start some "
                f"with `python -m dask worker {address} --nthreads 1` where this code is."
            ) from error
        return client

    def _free(self, busy: dict[Any, str | None]) -> str | None:
        """Wait for a worker that computes none of the busy calls, and return its address; None where there is none.

        Calls that have ended are no longer busy. None is sent ahead: it would wait for its worker, though another one
        is free.
        """
        with self._in_sentences(), self._client.as_current():
            while True:
                free = [address for address in self._client.nthreads() if address not in busy.values()]
                if free or not busy:
                    return free[0] if free else None
                for call in self._distributed.wait([*busy], return_when="FIRST_COMPLETED").done:
                    del busy[call]

    def _received(self, call: Any) -> Any:
        with self._in_sentences():
            return pickle.loads(call.result())  # noqa: S301 - from workers that the user trusts with the code

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
                "again, then run the same command."
            ) from error
        except RuntimeError as error:
            if isinstance(error.__cause__, ImportError):
                raise Unexpected(
                    f"Expected workers that run in a clone of this code, got one without it ({error.__cause__})."
                ) from error
            raise


def _sent(value: Any) -> bytes:
    """Return anything as bytes."""
    try:
        return bytes(import_module("cloudpickle").dumps(value))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise Unexpected(
            f"Expected what can be sent to workers, got what cannot ({error}); leave --workers out."
        ) from error


def _same(content: bytes) -> bytes:
    return content


_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class How:
    """What a call's bytes depend on beside the call: the process's settings, and the code."""

    computing: Computing
    code: str


def _made(how: How, function: bytes, item: bytes) -> bytes:
    """Call a function on a worker."""
    if how.code != code():
        raise Unexpected(
            f"Expected workers that run this code, got one on {socket.gethostname()} with other code or packages; "
            "bring its clone up to date and start it again."
        )
    with _ONE_AT_A_TIME:
        how.computing.apply()
        return _sent(pickle.loads(function)(pickle.loads(item)))  # noqa: S301 - from whoever runs the workers


@cache
def code() -> str:
    """Return what tells the code that results depend on from other code: every file of it, and PyTorch's version."""
    import torch

    root, digest = Path(__file__).parents[2], hashlib.sha256(torch.__version__.encode())
    for file in sorted(path for room in ("pruning", "tasks") for path in (root / room).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


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
