"""A forked program is one like any other: what it sees, says and leaves behind, how it ends, and with whom."""

import json
import signal
import subprocess
from pathlib import Path
from typing import IO

import pytest
from dvc.utils.serialize import _yaml

from flows.execution import CommandError, Commands
from flows.warm import FOLDER, read_sooner
from tests.flow_project import alive
from tests.flows.serving import hearing, wait_for
from tests.projects import warmed

PROGRAM = """
import json, os, signal, subprocess, sys, time
what, *more = sys.argv[1:]
print(json.dumps([os.getcwd(), os.environ.get("ASKED"), more, __name__, "torch" in sys.modules]))
print(os.getpid())
if what == "leave":
    print(subprocess.Popen(["sleep", "600"]).pid)
if what == "end":
    import atexit, tempfile, weakref
    atexit.register(print, "at the end")
    folder = tempfile.TemporaryDirectory()
    print(folder.name)
    print(sum(one.atexit for one in weakref.finalize._registry))
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "fail":
    sys.exit("the disk is full")
if what == "break":
    raise ZeroDivisionError("too few")
if what == "sleep":
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which `python -m tasks` is a program of the test's."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/__main__.py").write_text(PROGRAM)
    return tmp_path


def asked(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the program warm and return it."""
    command, environment = ["python", "-m", "tasks", *words], {**warmed(), "ASKED": "yes"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_program_runs_in_its_folder_with_its_words_and_its_environment_and_imports_are_made(folder: Path) -> None:
    done = asked(folder, "say", "a b", "-c")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[0]) == [str(folder), "yes", ["a b", "-c"], "__main__", True]


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [("fail", 1, "the disk is full\n"), ("killed", -signal.SIGKILL, ""), ("break", 1, "ZeroDivisionError: too few\n")],
)
def test_a_program_ends_as_it_would_by_itself(folder: Path, what: str, code: int, said: str) -> None:
    done = asked(folder, what)
    assert done.returncode == code
    assert done.stderr.endswith(said)


def test_what_a_program_leaves_behind_is_ended_with_it(folder: Path) -> None:
    done = asked(folder, "leave")
    assert done.returncode == 0
    assert not alive(int(done.stdout.splitlines()[-1]))


def test_at_its_end_a_program_does_what_it_asked_for_and_nothing_that_imports_did(folder: Path) -> None:
    done = asked(folder, "end")
    *_, left, finalizers, last = done.stdout.splitlines()
    assert (done.returncode, finalizers, last) == (0, "1", "at the end")
    assert not Path(left).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_who_asks_ends_what_was_asked_for(folder: Path, number: signal.Signals) -> None:
    with hearing(signal.SIGINT), subprocess.Popen(
        ["python", "-m", "tasks", "sleep"], cwd=folder, env={**warmed(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as asking:  # fmt: skip
        pid = _pid(asking.stdout)
        assert alive(pid)
        asking.send_signal(number)
        assert asking.wait() != 0
        wait_for(lambda: not alive(pid), 60)


def test_another_program_and_one_that_finds_no_warm_process_run_by_themselves(folder: Path) -> None:
    for answered, words in ((True, ["-c", PROGRAM, "say"]), (False, ["-m", "tasks", "say"])):
        python = Path(warmed()[FOLDER], "python").read_text()
        if not answered:
            python = python.replace("/socket", "/nobody")
        (folder / "python").write_text(python)
        (folder / "python").chmod(0o755)
        done = subprocess.run([folder / "python", *words], cwd=folder, env=warmed(), capture_output=True, text=True)
        assert done.returncode == 0
        assert json.loads(done.stdout.splitlines()[0])[-1] is False


LOCK = """\
schema: '2.0'
stages:
  train:
    cmd: exec python -m tasks train
    deps:
    - path: data/prepare/corpus.parquet
      hash: md5
      md5: 523097653699db2318362fb4a9818ccf.dir
      size: 175331
    params:
      params.yaml:
        train:
          learning_rate: 0.001
          weight_decay: 1e-05
          clip: 1e+20
          widths:
          - 10
          - 8
          source:
          tied: true
          decoder: no
          version: '1.10'
          none: []
          empty: {}
          text: 'one: two'
          quoted: "a\\tb"
"""


def test_a_warm_dvc_reads_a_lock_file_sooner_and_writes_the_same_bytes() -> None:
    def written(text: str) -> str:
        data = _yaml.parse_yaml_for_update(text, "experiment/dvc.lock")
        data["stages"]["train"]["outs"] = [{"path": "data/train", "size": 1}]
        return _yaml.dumps_yaml(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_yaml, "parse_yaml_for_update", _yaml.parse_yaml_for_update)
        noted = LOCK + "# which a lock file of DVC's has not\n"
        before = [written(text) for text in (LOCK, noted)]
        read_sooner(_yaml)
        assert [written(text) for text in (LOCK, noted)] == before
        assert type(_yaml.parse_yaml_for_update(LOCK, "dvc.lock")) is dict
        assert type(_yaml.parse_yaml_for_update(LOCK, "dvc.yaml")) is not dict  # which holds comments
    assert LOCK.splitlines() == before[0].splitlines()[: LOCK.count("\n")]
    assert "# which" in before[1]


def test_what_a_flow_starts_is_warm_from_then_on_and_the_warm_process_ends_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER)
    commands = Commands(folder)
    try:
        commands.warm_up(2)  # what is asked before the imports are made waits for them
        lines = commands.run("Stage 'say'", ["python", "-m", "tasks", "say"], lambda _: None)
        assert json.loads(lines[0])[-1] is True
        assert commands._warm
        pid = commands._warm._process.pid
        with pytest.raises(CommandError, match=r"failed with exit code 1; its last lines:\n.*\n.*\nthe disk is full"):
            commands.run("Stage 'fail'", ["python", "-m", "tasks", "fail"], lambda _: None)
    finally:
        commands.end()
    assert not alive(pid)


def _pid(lines: IO[str] | None) -> int:
    assert lines
    lines.readline()
    return int(lines.readline())
