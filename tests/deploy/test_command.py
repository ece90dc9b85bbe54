"""What `python -m deploy` refuses, each in one sentence, and what it remembers and ends."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import postgres, processes, services
from deploy.__main__ import main
from deploy.processes import Service, process_of, start, stop, wait_for
from deploy.settings import SERVERS, Unexpected, made_settings

# A server outlives the process that started it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

Said = pytest.CaptureFixture[str]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PACKAGES", ("psutil",))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status"], "Expected a deployment in "),
        (["start", "--port", "mlfow=1"], "Expected a server's port, such as --port mlflow=5000, got 'mlfow=1'; "),
        (["start", "--port", "mlflow=x"], "Expected a server's port, such as --port mlflow=5000, got 'mlflow=x'; "),
        (["start", "--workers", "-1"], "Expected --workers from 0 to 64, each with a clone of its own, got -1."),
        (
            ["start", "--workers", "100000"],
            "Expected --workers from 0 to 64, each with a clone of its own, got 100000.",
        ),
        (
            ["start", "--port", "s3=5000", "--port", "mlflow=5000"],
            "Expected a port of its own for each server, got s3=",
        ),
        (["start", "mlfow"], "Unknown service 'mlfow'; known: ['postgres', 's3', 'mlflow', 'prefect', 'worker-1', "),
    ],
)
def test_a_mistake_ends_in_one_sentence(tmp_path: Path, capsys: Said, words: list[str], sentence: str) -> None:
    if words[-1] == "mlfow" and not postgres.DEBIAN.is_dir():
        pytest.skip("PostgreSQL is not installed")
    assert main([*words, "--state", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"port": 1}'])
def test_settings_that_are_not_as_they_were_written_are_refused(tmp_path: Path, capsys: Said, content: str) -> None:
    (tmp_path / "settings.json").write_text(content, encoding="utf-8")
    assert main(["status", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"Expected {tmp_path}/settings.json as it was written, got a damaged one")


@pytest.mark.usefixtures("installed")
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "file").touch()
    assert main(["start", "--state", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.endswith("/file, got a file; name another one with --state.\n")


def test_packages_that_are_missing_are_named(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PACKAGES", ("psutil", "no_such_package"))
    assert main(["start", "--state", str(tmp_path)]) == 1
    assert (
        "got none of the name no_such_package; install them with `make install EXTRA=deploy`" in capsys.readouterr().err
    )


def test_postgresql_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    with pytest.raises(
        Unexpected, match=r"Expected PostgreSQL's initdb on PATH or in .*, got none; install PostgreSQL"
    ):
        postgres.program("initdb")
    for version in ("9.6", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin/initdb").touch()
    assert postgres.program("initdb").parent.parent.name == "17"


def test_root_without_a_user_for_postgresql_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "USER", "nobody-of-this-name")
    monkeypatch.setattr(postgres.os, "geteuid", lambda: 0)
    with pytest.raises(Unexpected, match="it refuses to run as root, got none"):
        postgres.runs_as()
    monkeypatch.setattr(postgres.os, "geteuid", lambda: 1000)
    assert postgres.runs_as() is None


def test_ports_and_secrets_stay_from_one_start_to_the_next_unless_asked_otherwise(tmp_path: Path) -> None:
    first = made_settings(tmp_path, {"mlflow": 5001})
    assert set(first.ports) == set(SERVERS)
    assert len(set(first.ports.values())) == len(SERVERS)
    assert made_settings(tmp_path, {}) == first
    other = made_settings(tmp_path, {"mlflow": 5002}, "elsewhere")
    assert (other.ports, other.repository) == ({**first.ports, "mlflow": 5002}, "elsewhere")
    assert (other.password, other.key, other.secret) == (first.password, first.key, first.secret)


def service(folder: Path, code: str, **other: Any) -> Service:
    known = {"name": "one", "address": "here", "environment": {}, "healthy": lambda: False}
    return Service(**{**known, "command": [sys.executable, "-c", code], "folder": folder, **other})


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    processes.end_rest(tmp_path, "one")


def test_a_server_that_ends_at_once_is_told_of_with_its_last_lines(state: Path) -> None:
    one = service(state, "raise SystemExit('the disk is full')")
    start(one, state)
    with pytest.raises(Unexpected, match=r"Expected an answer of one, got one that ended; .*\nthe disk is full"):
        wait_for(one, state)


def test_a_port_that_another_process_has_is_refused(state: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(Unexpected, match=f"Expected port {port} to be free for one, got another process at it"):
            start(service(state, "", port=port), state)


def test_the_next_start_ends_what_outlived_a_killed_server_in_a_session_of_its_own(state: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "open('child', 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    there = service(state, code, healthy=lambda: (state / "child").is_file() and (state / "child").read_text() != "")
    start(there, state)
    wait_for(there, state)
    child = psutil.Process(int((state / "child").read_text()))
    leader = process_of(state, "one")
    assert leader
    leader.kill()
    psutil.wait_procs([leader], 10)
    assert child.is_running()
    assert stop(there, state)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not stop(there, state)
