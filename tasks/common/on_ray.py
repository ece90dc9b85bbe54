"""The library's `map` on Ray's workers: processes of this machine, or of a cluster that it belongs to.

What a call gives depends on the call alone, as on Dask's workers (see `workers`). Ray makes one call at a time in a
process, hands it to another one if that ends, and keeps what is sent for every machine of the cluster.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib import import_module
from typing import Any

from pruning.core.workers import Item, Result
from tasks.common.calls import KEPT, LOOK_SECONDS, LOST_SECONDS, how, made, received, sent
from tasks.common.parameters import Unexpected

SCHEME = "ray:"
"""What `--workers` begins with: `ray:4` are processes of this machine, `ray:host:6379` is a cluster, by its head."""
CLIENT = "ray://"
"""What it begins with where this machine has not joined the cluster, whose head speaks for it (`ray://host:10001`)."""
MOST_ENDED = 10
"""How many processes may end on one call, the next time on another."""
ANSWER_SECONDS = 5.0
"""How long a head may take to answer that it is there."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": f"{LOST_SECONDS:.0f}",
}
"""Nothing is told to Ray's makers; an accelerator is not hidden from calls, which ask for a core alone; a call after a
connection is lost fails, where Ray would look for another cluster, for minutes; and Ray does not end this process,
which it does a minute after the head, before this process has noticed."""


class RayPool:
    """A `Map` of Ray's.

    Raises:
        Unexpected: If Ray is missing.
    """

    def __init__(self, asked: str) -> None:
        self.asked = asked if asked.startswith(CLIENT) else asked.removeprefix(SCHEME)
        os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
        try:
            self._package = import_module("ray")
        except ModuleNotFoundError as error:
            raise Unexpected(
                f"Expected the package {error.name} for workers of {asked}, got none; `make install EXTRA=ray` "
                "installs it."
            ) from error

    @property
    def workers(self) -> int:
        """How many compute side by side."""
        return int(self.asked) if self.asked.isdecimal() else max(1, int(self._cores()))

    @property
    def address(self) -> str:
        """Where other processes of this machine reach the same workers."""
        if self.asked.startswith(CLIENT):
            return self.asked
        return f"{SCHEME}{self._ray.get_runtime_context().gcs_address}"

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function of each item, in their order."""
        ray = self._ray
        with self._connected():
            yield from self._results(ray, function, items)

    def _results(self, ray: Any, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        call = ray.remote(num_cpus=1, max_retries=MOST_ENDED)(_by_value())
        content = ray.put(sent(partial(made, *how(), sent(function))))
        waiting: deque[Any] = deque()
        busy: list[Any] = []
        try:
            for item in items:
                if len(busy) >= self.workers:
                    busy = self._others(busy)
                busy.append(call.remote(content, sent(item)))
                waiting.append(busy[-1])
                while waiting and (waiting[0] not in busy or len(waiting) > KEPT * self.workers):
                    yield self._received(waiting.popleft())
            while waiting:
                yield self._received(waiting.popleft())
        finally:
            with suppress(Exception):  # where the head ended, Ray has nothing to cancel and says so
                for left in waiting:
                    ray.cancel(left)

    def close(self) -> None:
        """Let go of what was started."""
        if self.__dict__.pop("_ray", None):
            self._package.shutdown()

    @cached_property
    def _ray(self) -> Any:
        here = {"num_cpus": int(self.asked), "include_dashboard": False} if self.asked.isdecimal() else {}
        threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))  # which Ray would set to 1
        try:
            self._package.init(
                "local" if here else self.asked,
                log_to_driver=False,
                logging_level="CRITICAL",
                runtime_env={"env_vars": {"OMP_NUM_THREADS": threads}},
                **here,
            )
        except (ConnectionError, ImportError, ValueError, RuntimeError) as error:
            why = str(error).partition("\n")[0].rstrip(".")
            if self.asked.startswith(CLIENT):
                raise Unexpected(
                    f"Expected a head of Ray's at {self.asked} that takes calls from other machines, got none ({why}); "
                    "install `ray[client]` on both, at the same version, and start the head again."
                ) from error
            raise Unexpected(
                f"Expected a cluster of Ray's at {self.asked} that this machine belongs to, got none ({why}); join it "
                f"with `ray start --address {self.asked}`."
            ) from error
        return self._package

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Say in a sentence that the head ended, of which each of Ray's calls tells by an error of another kind."""
        try:
            yield
        except Exception as error:
            try:
                there = self._package.is_initialized()
            except Exception:  # as a client's that lost its head
                there = False
            if there or isinstance(error, Unexpected):
                raise
            raise self._gone() from error

    def _cores(self) -> float:
        ray = self._ray
        self._expect_head()  # without it Ray does not answer
        return float(ray.cluster_resources().get("CPU", 0))

    def _expect_head(self) -> None:
        """Refuse to go on without the head, of which Ray would end this process after a while, in words of its own."""
        if self.asked.isdecimal() or self.asked.startswith(CLIENT):
            return  # a process of this machine, or one whose end each call tells of
        host, _, port = self.asked.rpartition(":")
        for last in (False, True):
            try:
                socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
            except OSError as error:
                if last:
                    raise self._gone() from error
                time.sleep(LOOK_SECONDS)  # a network may be away for a moment
            else:
                return

    def _gone(self) -> Unexpected:
        return Unexpected(
            f"Expected the head of Ray's at {self.asked} until the work is done, got a closed connection; start it and "
            "its nodes again, then run the same command."
        )

    def _others(self, calls: list[Any]) -> list[Any]:
        """Wait until one of the calls has ended, as long as somebody can make them, and return the others."""
        late = time.monotonic() + LOST_SECONDS
        while True:
            ended, others = self._ray.wait(calls, timeout=LOOK_SECONDS)
            if ended:
                return list(others)
            if self._cores() >= 1:
                late = time.monotonic() + LOST_SECONDS
            elif time.monotonic() > late:
                raise Unexpected(
                    f"Expected a cluster of Ray's with a core at {self.asked}, got none within {LOST_SECONDS:g} s; "
                    f"start a node of it with `ray start` where this code is."
                )

    def _received(self, call: Any) -> Any:
        self._others([call])
        try:
            return received(self._ray.get(call))
        except self._package.exceptions.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                raise Unexpected(
                    f"Expected workers that run in a clone of this code, with its packages, got one without it "
                    f"({error.cause}); start it there."
                ) from error
            raise error.cause from error
        except self._package.exceptions.RayError as error:
            raise Unexpected(
                f"Expected a worker to finish its part, got {MOST_ENDED} that ended on it or a cluster that ended "
                f"({type(error).__name__}); see whether they have memory enough, and run the same command again."
            ) from error


def _by_value() -> Callable[[bytes, bytes], bytes]:
    """Return what calls what it is sent, itself sent by what it says: a head need not have this code, as no path is.

    A function of a module is sent by its name, which a client's head reads too, and a worker before it can say so.
    """

    def called(content: bytes, item: bytes) -> bytes:
        import pickle

        return bytes(pickle.loads(content)(item))  # noqa: S301 - from whoever runs the workers

    return called
