"""How one command runs as a process group that never outlives the flow, and what DVC's words say that it did."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import IO

from flows.stages import GraphStage
from flows.warm import FOLDER, Warm
from tasks import VARIABLES
from tasks.common.writing import NO_ROOM, NOT_OURS

RAN, UP_TO_DATE, RESTORED = "Ran", "Up to date", "Restored"
"""What DVC can have done with a stage."""
FAILED, NOT_STARTED = "Failed", "Not started"
"""What else can have become of it."""
DONE = {RAN, UP_TO_DATE, RESTORED}

GUARD = Path(__file__).with_name("guard.py")
LAST_LINES = 12
GRACE_SECONDS = 5.0
"""Between asking a process group to end and killing it."""

BUSY = ("is busy, it is being blocked by", "Unable to acquire lock.")
"""DVC's words where another `dvc` holds its lists of files, which `--wait-for-lock` does not wait for."""
AGAIN_SECONDS = 2.0
PATIENCE_SECONDS = 7200.0
"""Between two tries while files are busy, and in all: no longer than most stages may take (`timeout_seconds`)."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How one stage ended."""

    stage: str
    state: str
    seconds: float
    description: str
    problem: str = ""


class FlowError(Exception):
    """A run failed; the message says why, and `outcomes` how each of its stages ended."""

    def __init__(self, message: str, outcomes: Sequence[Outcome] = ()) -> None:
        super().__init__(message)
        self.outcomes = list(outcomes)


class CommandError(Exception):
    """A command ended with an exit code other than 0, or with the flow; the message says which."""


class CommandTimeoutError(TimeoutError):
    """A command took longer than its limit and was killed; the message ends with its last lines."""


class Commands:
    """The commands that run now, each in a process group of its own, for as long as one flow run lasts.

    Args:
        root: The folder that they run in.
        variables: What they see in their environment beside this process's.
    """

    def __init__(self, root: Path, variables: Mapping[str, str] | None = None) -> None:
        self._root, self._environment = root, _environment(variables or {})
        self._running: set[subprocess.Popen[str]] = set()
        self._warm: Warm | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._ending = threading.Event()

    def warm_up(self, stages: int) -> None:
        """Let what starts from now on begin with the imports made (flows/warm.py), which two stages or more repay."""
        if stages > 1 and sys.platform == "linux" and FOLDER not in self._environment:
            with suppress(OSError):  # no place for a socket; it is a matter of time alone
                self._warm = Warm(self._environment)
                self._environment = _environment({**self._environment, **self._warm.variables})

    def wait(self, seconds: float) -> None:
        """Wait, or until the flow ends."""
        self._ending.wait(seconds)

    def run(self, name: str, command: list[str], log: Log, *, limit: float | None = None) -> list[str]:
        """Run a command to its end and return its lines, each given to `log` as soon as it is written.

        Args:
            name: What to call it in an error, as "Stage 'train'".
            command: The words of the command.
            log: Is called with each line of its output.
            limit: Seconds after which it is killed, with all processes that it started.

        Raises:
            CommandError: If its exit code is not 0, or the flow ends.
            CommandTimeoutError: If it took longer than `limit`.
        """
        process, lines = self._start(command), list[str]()
        context = copy_context()  # Prefect's log needs the run and the settings, which a new thread does not inherit
        reader = threading.Thread(target=context.run, args=(_read, process.stdout, lines, log), daemon=True)
        reader.start()
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            self._end(process)
            raise CommandTimeoutError(f"{name} was killed after {limit:g} s{_last(lines)}") from None
        finally:
            self._end(process)
            reader.join(GRACE_SECONDS)
        if code and self._ended:
            raise CommandError(f"{name} was ended, since the flow ends.")
        if code:
            raise CommandError(f"{name} failed with exit code {code}{_last(lines)}")
        return lines

    def end(self) -> None:
        """End all that runs, and refuse to start more: Prefect would retry what was ended."""
        with self._lock:
            self._ended = True
            self._ending.set()
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)
        for process in running:
            self._end(process)
        if self._warm:
            self._warm.close()

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._ended:
                raise CommandError("The flow is ending and starts nothing more.")
            process = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), *command],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        """End what is left of a process group, also what a finished command left behind."""
        _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while _signal_group(process, 0) and time.monotonic() < deadline:
            process.poll()  # a dead leader that nobody has waited for would count as alive
            time.sleep(0.05)
        _signal_group(process, signal.SIGKILL)
        process.wait()
        if process.stdin:
            process.stdin.close()
        with self._lock:
            self._running.discard(process)


def changed(commands: Commands, stages: Mapping[str, GraphStage]) -> set[str]:
    """Return the stages that DVC may not leave as they are: what differs from its lock files, and what is below that.

    It is asked once, for it takes a second to start, and a moment for each stage. If it does not answer, every stage
    is one of them, and says itself what is wrong with it.
    """
    try:
        lines = commands.run("`dvc status`", ["dvc", "--wait-for-lock", "status", "--json", *stages], lambda _: None)
        stale = set(json.loads(next(line for line in lines if line.startswith("{"))))
    except (CommandError, StopIteration, json.JSONDecodeError):
        return set(stages)
    for address in TopologicalSorter({address: stage.needs for address, stage in stages.items()}).static_order():
        if stages[address].needs & stale:
            stale.add(address)
    return stale


def reproduce(commands: Commands, stage: GraphStage, log: Log, *, force: bool, pull: bool = False) -> str:
    """Let DVC reproduce one stage whose needs are met, and return what it did: ran, up to date or restored.

    Args:
        commands: Where commands run.
        stage: The stage.
        log: Is called with each line that DVC and the stage say.
        force: Run it also if it did not change.
        pull: Let DVC fetch what another clone made of the same, in place of a run.
    """
    options = [*(["--force"] if force else []), *(["--pull"] if pull else [])]
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", *options, stage.address]
    try:
        lines = _when_free(commands, stage, command, log)
    except CommandError as failure:
        if refusal := what_the_disk_refused(stage.address, str(failure)):
            raise CommandError(refusal) from failure
        raise
    return what_dvc_did(stage.address, lines)


def _when_free(commands: Commands, stage: GraphStage, command: list[str], log: Log) -> list[str]:
    """Run DVC's command, again and again while files that it needs are busy in another process of DVC's.

    What DVC says of that is kept back: an error that is none, and the advice to remove its locks by hand.
    """
    deadline, held = time.monotonic() + PATIENCE_SECONDS, list[str]()

    def heard(line: str) -> None:
        if held or is_busy(line):
            held.append(line)
        else:
            log(line)

    told = False
    while True:
        held.clear()
        try:
            lines = commands.run(f"Stage '{stage.address}'", command, heard, limit=stage.timeout_seconds)
        except CommandError as failure:
            if not is_busy(str(failure)):
                raise
            if time.monotonic() > deadline:
                raise CommandError(
                    f"Stage '{stage.address}' waited {PATIENCE_SECONDS:g} s for another `dvc` in vain; {failure}"
                ) from failure
        else:
            for line in held:  # a stage's own words
                log(line)
            return lines
        if not told:
            log(f"Stage '{stage.address}' waits for another `dvc` that is at work on the same files")
            told = True
        commands.wait(AGAIN_SECONDS)


def is_busy(words: str) -> bool:
    """Return whether DVC says that another process of its own holds what it wants.

    >>> is_busy("ERROR: 'data/train/model' is busy, it is being blocked by:")
    True
    >>> is_busy("ERROR: Unable to acquire lock. Most likely another DVC process is running")
    True
    >>> is_busy("ERROR: failed to reproduce 'train': output 'data/train/model' does not exist")
    False
    """
    return any(said in words for said in BUSY)


def what_the_disk_refused(address: str, words: str) -> str:
    """Return the sentence on a disk that DVC itself could not write to; nothing where DVC says of none.

    >>> what_the_disk_refused("train", "ERROR: failed to reproduce 'train': [Errno 28] No space left on device")
    "Expected room for what DVC keeps of stage 'train', got 'No space left on device'; make room on the disk of data/ \
and of DVC's cache, then run the same command."
    >>> what_the_disk_refused("train", "ERROR: failed to reproduce 'train': failed to run: exec python -m tasks train")
    ''
    """
    found = re.search(r"^ERROR: .*?\[Errno (\d+)\] ([^:\n]+)", words, re.MULTILINE)
    if not found or int(found[1]) not in {*NO_ROOM, *NOT_OURS}:
        return ""
    full = int(found[1]) in NO_ROOM
    do = "make room on the disk of data/ and of DVC's cache" if full else "see that data/ and .dvc/ can be written to"
    return (
        f"Expected {'room' if full else 'a place'} for what DVC keeps of stage '{address}', got '{found[2].strip()}'; "
        f"{do}, then run the same command."
    )


def what_dvc_did(address: str, lines: list[str]) -> str:
    """Return what DVC's lines say about a stage.

    >>> what_dvc_did("train", ["Stage 'train' didn't change, skipping"])
    'Up to date'
    >>> what_dvc_did("train", ["Pulling data for stage: 'train'", "Data and pipelines are up to date."])
    'Restored'
    >>> what_dvc_did("train", ["Stage 'train' is cached - skipping run, checking out outputs"])
    'Restored'
    >>> what_dvc_did("train", ["Running stage 'train':", "> python -m tasks train"])
    'Ran'
    """
    if any(line.endswith(f"'{address}' didn't change, skipping") for line in lines):
        return UP_TO_DATE
    if any(line.startswith(f"Stage '{address}' is cached - skipping run") for line in lines):
        return RESTORED
    if f"Pulling data for stage: '{address}'" in lines and "Data and pipelines are up to date." in lines:
        return RESTORED  # as the lock names it, from the remote
    return RAN


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command, with variables of its own.

    It does not divide the cores among stages that run side by side, as by OMP_NUM_THREADS: the order of a sum, and so
    its last bits, depends on the number of threads, and a stage's bytes must not depend on who runs it.
    """
    seen = {**VARIABLES, **os.environ, **variables}
    # `python` in a stage's command is the one that runs this flow, also where its environment is not activated.
    places = [seen.get(FOLDER), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    path = os.pathsep.join(filter(None, places))
    return {**seen, "PATH": path, "PYTHONUNBUFFERED": "1"}  # unbuffered: a line is logged when it is written


def _read(stream: IO[str], lines: list[str], log: Log) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip())
            if lines[-1]:
                log(lines[-1])


def _last(lines: list[str]) -> str:
    words = list(filter(None, lines))
    return "; its last lines:\n" + "\n".join(words[-LAST_LINES:]) if words else ", without a word."


def _signal_group(process: subprocess.Popen[str], number: int) -> bool:
    """Signal all of a process group and return whether there was any of it left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
