"""How a server runs on without the terminal that it was started from: its process, its end, its health."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.settings import HOST, Unexpected

PATIENCE_SECONDS = 900.0
"""How long a server that lives may take until it answers: on a busy machine some take minutes."""
TELL_SECONDS = 10.0
GRACE_SECONDS = 20.0
LAST_LINES = 12
MARK = "NEURON_PRUNING_SERVICE"
"""What every process of a service has in its environment."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server or a worker.

    Attributes:
        name: What it is called.
        address: Where it is, in words.
        port: What it listens at; None for what does not listen.
        command: What is run.
        environment: Of the command.
        folder: What the command runs in.
        healthy: Whether it answers.
        prepare: Is called before each start.
        needs: Services that answer before it is started.
        user: Whom it runs as; None for whoever starts it.
        ending: The signal that asks it to end.
        alone: Whether that signal goes to the first of its processes alone, which ends the others.
    """

    name: str
    address: str
    port: int | None = None
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    healthy: Callable[[], bool]
    prepare: Callable[[], None] = lambda: None
    needs: tuple[str, ...] = ()
    user: str | None = None
    ending: signal.Signals = signal.SIGTERM
    alone: bool = False


def say(line: str) -> None:
    """Tell the user at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def process_of(state: Path, name: str) -> psutil.Process | None:
    """Return the living process of a service, None if there is none."""
    try:
        known = json.loads(_record(state, name).read_text())
        process = psutil.Process(known["pid"])
        ours = process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if ours else None


def start(service: Service, state: Path) -> None:
    """Start a service that does not run.

    Raises:
        Unexpected: If another process is at its port, or it cannot be prepared.
    """
    end_rest(state, service.name)
    if service.port and _taken(service.port):
        raise Unexpected(
            f"Expected port {service.port} to be free for {service.name}, got another process at it; "
            f"choose another one with --port {service.name}={service.port + 1}."
        )
    service.prepare()
    log = log_of(state, service.name)
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            list(service.command),
            cwd=service.folder,
            env={**service.environment, MARK: _mark(state, service.name)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=service.user,
            group=service.user,
            extra_groups=[] if service.user else None,
        )
    record = _record(state, service.name)
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({"pid": process.pid, "created": psutil.Process(process.pid).create_time()}))


def wait_for(service: Service, state: Path) -> None:
    """Wait until a service answers, and say how long that takes.

    Raises:
        Unexpected: If it ended, or does not answer within minutes, with the last lines of its log.
    """
    begun = told = time.monotonic()
    while not service.healthy():
        now = time.monotonic()
        ended = process_of(state, service.name) is None
        if ended or now - begun > PATIENCE_SECONDS:
            what = "one that ended" if ended else f"none in {PATIENCE_SECONDS:g} s"
            lines = log_of(state, service.name).read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise Unexpected("\n".join([f"Expected an answer of {service.name}, got {what}; its last lines:", *lines]))
        if now - told > TELL_SECONDS:
            say(f"{service.name:10} does not answer yet, after {now - begun:.0f} s")
            told = now
        time.sleep(0.2)
    say(f"{service.name:10} up      {service.address}")


def stop(service: Service, state: Path) -> bool:
    """End a service with all its processes and return whether there were any."""
    process = process_of(state, service.name)
    if process is None:
        return end_rest(state, service.name)
    with suppress(ProcessLookupError):
        (os.kill if service.alone else os.killpg)(process.pid, service.ending)
    with suppress(psutil.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    end_rest(state, service.name)
    return True


def end_rest(state: Path, name: str) -> bool:
    """Kill what is left of a service's processes and return whether anything was, so that no two of a kind run.

    A worker's flow runs are in sessions of their own and outlive it: they are known by the mark that they inherit.
    """
    record = _record(state, name)
    left = [process for process in psutil.process_iter() if _belongs(process, state, name)]
    if record.is_file():
        known = json.loads(record.read_text())
        pid = known["pid"]
        # No process gets a number that a group of processes still has: so this group is ours, or a later process's own.
        if process_of(state, name) or not psutil.pid_exists(pid):
            left += [process for process in psutil.process_iter() if _group(process) == pid]
        record.unlink()
        left += _dead(pid, known["created"])
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    # Also for those that are dead until somebody has waited for them: PostgreSQL takes such a one for alive.
    psutil.wait_procs(left, GRACE_SECONDS)
    return bool(left)


def log_of(state: Path, name: str) -> Path:
    """Return where a service's lines are."""
    return state / "log" / f"{name}.log"


def _record(state: Path, name: str) -> Path:
    return state / "run" / f"{name}.json"


def _dead(pid: int, created: float) -> list[psutil.Process]:
    """Return the process of this number if it is dead and nobody has waited for it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.create_time() == created and process.status() == psutil.STATUS_ZOMBIE:
            return [process]
    return []


def _mark(state: Path, name: str) -> str:
    return f"{state}:{name}"


def _belongs(process: psutil.Process, state: Path, name: str) -> bool:
    """Return whether a process was started by a service, or by what that started."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # another user's is none of ours
        return bool(process.environ().get(MARK) == _mark(state, name))
    return False


def _group(process: psutil.Process) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid)
    return None


def _taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # what an ended server leaves for a minute is no hindrance
        try:
            one.bind((HOST, port))
        except OSError:
            return True
    return False
