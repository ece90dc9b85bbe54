"""How clones share what they make: DVC's remote is read before a run, and told of each stage while others run."""

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from pathlib import Path
from queue import Empty, SimpleQueue

from flows.execution import DONE, CommandError, Commands, Outcome

RUN_CACHE = Path(__file__).with_name("run_cache.py")
Warn = Callable[[str], None]


class Sharing:
    """DVC's remote during one run, for the length of a `with`.

    Args:
        commands: Where commands run.
        warn: Is told what did not reach the remote, which costs no result.
    """

    def __init__(self, commands: Commands, warn: Warn) -> None:
        self._commands, self._warn = commands, warn
        self._made = SimpleQueue[str | None]()
        self._thread = threading.Thread(target=copy_context().run, args=(self._push_made,), daemon=True)

    def __enter__(self) -> "Sharing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._made.put(None)

    def fetch(self, addresses: Iterable[str]) -> bool:
        """Fetch what is known of other clones' stages, and return whether the remote answered.

        Args:
            addresses: Of the stages that may be taken from them.
        """
        try:
            self._commands.run("Fetching", [sys.executable, str(RUN_CACHE), "pull", *addresses], lambda _: None)
        except CommandError as failure:
            self._warn(f"DVC's remote was not read, so that what other clones made is made again. {failure}")
            return False
        return True

    def made(self, address: str) -> None:
        """Let a stage's results go to the remote, while other stages run."""
        self._made.put(address)

    def finish(self, outcomes: Mapping[str, Outcome]) -> str | None:
        """Push what is not there yet of all that is done; return the sentence on what hinders that."""
        self._made.put(None)
        self._thread.join()
        done = [address for address, outcome in outcomes.items() if outcome.state in DONE]
        if not done:
            return None
        try:
            self._push(done)
        except CommandError as failure:
            return (
                "The results are in this clone, and DVC's remote did not take them all; the next run pushes them, "
                f"`dvc push --run-cache` too. {failure}"
            )
        return None

    def _push_made(self) -> None:
        while (address := self._made.get()) is not None:
            addresses, ended = [address], False
            while not ended:
                try:
                    more = self._made.get_nowait()
                except Empty:
                    break
                ended = more is None
                addresses += [more] if more is not None else []
            try:
                self._push(addresses)
            except CommandError as failure:  # the last push repeats it
                self._warn(str(failure))
            if ended:
                return

    def _push(self, addresses: list[str]) -> None:
        self._commands.run("`dvc push`", ["dvc", "--wait-for-lock", "push", *addresses], lambda _: None)
        self._commands.run("Pushing", [sys.executable, str(RUN_CACHE), "push"], lambda _: None)
