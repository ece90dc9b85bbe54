"""`python -m deploy start | stop | status`: the pipeline's stores and servers on this machine, without containers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.processes import Service, log_of, process_of, say, start, stop, wait_for
from deploy.services import check_packages, services_of
from deploy.settings import SERVERS, STATE, Settings, Unexpected, made_settings, read_settings

MOST = 64
"""Workers on one machine: each holds PyTorch and a clone."""


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked and return the exit code: 0, or 1 where something is not up, after a sentence that says what."""
    parser = argparse.ArgumentParser(prog="python -m deploy", description="The pipeline's stores and servers.")
    parser.add_argument("action", choices=("start", "stop", "status"), help="what to do with them")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(SERVERS)}, worker-1, …: these alone, with what they need"
    )
    parser.add_argument("--state", type=Path, default=STATE, help="the folder that keeps all; default: deploy/state")
    parser.add_argument("--workers", type=int, help="how many clones, each with a worker; at first 2, then as before")
    parser.add_argument(
        "--port", action="append", default=[], metavar="NAME=NUMBER", help="of a server; at first a free one"
    )
    parser.add_argument("--repository", help="what workers clone; at first this one, its last commit")
    given = parser.parse_args(arguments)
    try:
        ports = _ports(given.port)
        check_packages()
        state = given.state.resolve()
        if state.exists() and not state.is_dir():
            raise Unexpected(f"Expected a folder at {state}, got a file; name another one with --state.")
        workers = _workers(state, given.workers)
        settings = made_settings(state, ports, given.repository) if given.action == "start" else _settings(state)
        services = _chosen(services_of(settings, workers), given.names, given.action)
        return {"start": _start, "stop": _stop, "status": _status}[given.action](services, state)
    except Unexpected as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _start(services: Sequence[Service], state: Path) -> int:
    """Start what does not run, all that need the same side by side, and wait until everything answers."""
    up: set[str] = set()
    while waiting := [service for service in services if service.name not in up]:
        ready = [service for service in waiting if up.issuperset(service.needs)]
        for service in ready:
            if process_of(state, service.name) is None:
                say(f"{service.name:10} starts, log in {log_of(state, service.name)}")
                start(service, state)
        for service in ready:
            wait_for(service, state)
        up.update(service.name for service in ready)
    say(f"Use them: `. {state / 'environment'}`, and `cp {state / 'config.local'} .dvc/config.local` for DVC.")
    return 0


def _stop(services: Sequence[Service], state: Path) -> int:
    for service in reversed(services):
        say(f"{service.name:10} {'ended' if stop(service, state) else 'was not running'}")
    return 0


def _status(services: Sequence[Service], state: Path) -> int:
    well = True
    for service in services:
        process = process_of(state, service.name)
        what = "down" if process is None else "up" if service.healthy() else "no answer"
        well &= what == "up"
        about = f"process {process.pid}" if process else f"log in {log_of(state, service.name)}"
        say(f"{service.name:10} {what:10} {service.address}, {about}")
    return 0 if well else 1


def _settings(state: Path) -> Settings:
    settings = read_settings(state)
    if settings is None:
        raise Unexpected(
            f"Expected a deployment in {state}, got none; make one with `python -m deploy start`, or name its folder "
            "with --state."
        )
    return settings


def _workers(state: Path, wanted: int | None) -> int:
    """Return how many workers there are: as many as wanted, or as there are clones; two at first."""
    if wanted is not None and not 0 <= wanted <= MOST:
        raise Unexpected(f"Expected --workers from 0 to {MOST}, each with a clone of its own, got {wanted}.")
    clones = len([path for path in (state / "clones").glob("worker-*") if not path.suffix])
    return wanted if wanted is not None else clones or 2


def _ports(words: Sequence[str]) -> dict[str, int]:
    ports = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in SERVERS or not number.isdecimal() or not 0 < int(number) < 2**16:
            raise Unexpected(f"Expected a server's port, such as --port mlflow=5000, got {word!r}; servers: {SERVERS}.")
        ports[name] = int(number)
    if len(set(ports.values())) < len(ports):
        raise Unexpected(f"Expected a port of its own for each server, got {' '.join(words)}.")
    return ports


def _chosen(services: Sequence[Service], names: Sequence[str], action: str) -> list[Service]:
    """Return the services of these names, all for none; to start them takes what they need."""
    known = {service.name: service for service in services}
    if unknown := [name for name in names if name not in known]:
        raise Unexpected(f"Unknown service '{unknown[0]}'; known: {list(known)}.")
    wanted = set(names or known)
    if action == "start":
        for service in reversed(services):
            if service.name in wanted:
                wanted.update(service.needs)
    return [service for service in services if service.name in wanted]


if __name__ == "__main__":
    sys.exit(main())
