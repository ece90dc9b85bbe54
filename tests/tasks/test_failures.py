"""What a stage leaves that fails, is killed or ends well: its last lines in MLflow, the machine's load, or nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import psutil
import pytest

from tasks import __main__ as program
from tasks.__main__ import main
from tasks.commands.tracking import journal
from tasks.commands.tracking.failures import log_failures
from tasks.commands.tracking.journal import left_behind, watched
from tests.projects import ENVIRONMENT, language_project, run, tiny_project
from tests.results import client, every_run

Said = pytest.CaptureFixture[str]
STAGE = "import sys, time; from tasks.commands.tracking.journal import watched; from tasks.shown.console import say"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = language_project(tmp_path / "project", {})
    (folder / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_STAGE", "train")
    return folder


def text_of(folder: Path, run: Any, file: str) -> str:
    return Path(client(folder).download_artifacts(run.info.run_id, file)).read_text(encoding="utf-8")


def test_a_stage_that_refuses_leaves_a_failed_run_with_its_last_lines(project: Path, capsys: Said) -> None:
    assert main(["sotu"]) == 0
    (project / "data/prepare/corpus.parquet").unlink()
    assert main(["train"]) == 1
    (run,) = every_run(project)
    assert run.info.status == "FAILED"
    assert run.info.run_name.startswith("train failed")
    tags = run.data.tags
    assert (tags["kind"], tags["stage"], tags["listed"]) == ("failed stage", "train", "yes")
    assert tags["last line"].startswith("Expected the table data/prepare/corpus.parquet")
    assert "train: stage 3 of " in tags["mlflow.note.content"]
    assert text_of(project, run, "last_lines.txt").splitlines()[-1] == tags["last line"]
    said = capsys.readouterr()
    assert f"the last lines of train are in run {run.info.run_id}" in said.out
    assert said.err.splitlines()[-1] == tags["last line"]
    assert not list((project / ".dvc/tmp/running").iterdir())


def test_the_sentence_stands_there_before_mlflow_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    said: list[str] = []
    (project / "data/prepare/corpus.parquet").unlink()
    monkeypatch.setattr(program, "_tell", lambda: said.append(capsys.readouterr().err))
    assert main(["train"]) == 1
    assert said == ["Expected the table data/prepare/corpus.parquet, got no such file; run `dvc repro` to make it.\n"]


def test_the_load_is_measured_also_while_another_thread_still_imports_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert journal._load(psutil.Process())["process_memory_megabytes"] > 0


def test_a_reproduction_without_prefect_leaves_a_failed_run_too(tmp_path: Path) -> None:
    project = tiny_project(tmp_path / "project", corpus={"source": "text", "vocabulary": 1})
    run(["dvc", "repro", "--single-item", "prepare"], project, fails=True)
    (made,) = every_run(project)
    assert (made.info.status, made.data.tags["stage"]) == ("FAILED", "prepare")
    assert "corpus.vocabulary" in made.data.tags["last line"]


def test_an_error_that_nobody_foresaw_is_told_with_its_traceback(project: Path) -> None:
    with pytest.raises(RuntimeError), watched("prune@random", log_failures):
        raise RuntimeError("a tensor too many")
    (run,) = every_run(project)
    assert run.data.tags["last line"] == "RuntimeError: a tensor too many"
    assert "Traceback" in text_of(project, run, "last_lines.txt")


def test_a_stage_that_was_killed_is_told_of_by_whoever_tracks_next(project: Path) -> None:
    code = f"{STAGE}\nwith watched('train', print): say('half of it'); time.sleep(600)"
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=project, env=ENVIRONMENT)
    for _ in range(600):
        assert stage.poll() is None
        if any("half of it" in path.read_text() for path in (project / ".dvc/tmp/running").glob("*.journal")):
            break
        time.sleep(0.1)
    assert left_behind() == []  # it is at work
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    assert main(["track", "--failed"]) == 0
    (run,) = every_run(project)
    assert (run.info.status, run.data.tags["last line"]) == ("KILLED", "half of it")
    assert run.info.run_name.startswith("train was killed")
    assert main(["track", "--failed"]) == 0
    assert len(every_run(project)) == 1


def test_a_store_that_is_down_keeps_the_lines_and_hides_no_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(ValueError, match="no such thing"), watched("train", log_failures):
        raise ValueError("no such thing")
    assert "`python -m tasks track --failed` tells of train later" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    log_failures()
    assert every_run(project)[0].data.tags["last line"] == "no such thing"


def test_an_interruption_is_no_failure(project: Path) -> None:
    with pytest.raises(KeyboardInterrupt), watched("train", log_failures):
        raise KeyboardInterrupt
    assert left_behind() == []
    assert not (project / "mlflow.db").exists()


def test_what_ends_well_leaves_the_load_that_its_results_are_found_with_and_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "EVERY", 0.001)
    assert main(["sotu"]) == 0
    (samples,) = (project / ".dvc/tmp/samples").iterdir()
    assert samples.stem == journal.hash_of(project / "data/sotu/timing.parquet")
    rows = pd.DataFrame([json.loads(line) for line in samples.read_text().splitlines()])
    assert len(rows)
    assert rows["process_memory_megabytes"].between(1, 1e6).all()
    assert rows["timestamp"].is_monotonic_increasing
    assert not list((project / ".dvc/tmp/running").iterdir())
    assert not (project / "mlflow.db").exists()


def test_where_nobody_reproduces_nothing_is_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    assert main(["sotu"]) == 0
    assert not os.listdir(project / ".dvc/tmp") or os.listdir(project / ".dvc/tmp") == ["checked"]
