"""What `make` installs into .venv, by which tool, and what it says before it downloads gigabytes."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.projects import ROOT

RECORDING = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$*" in *"-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
"""
"""A stand-in that writes down how it was called."""
LINUX = pytest.mark.skipif(os.uname().sysname != "Linux", reason="PyPI's torch brings CUDA's libraries on Linux alone")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that installing needs, and a folder of stand-ins for programs."""
    for name in ("install.sh", "Makefile", "pyproject.toml", "constraints.txt", "uv.lock", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin/python3")
    return tmp_path


def stand_in(path: Path) -> None:
    path.write_text(RECORDING.format(log=path.parents[1] / "log"), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(clone: Path, *words: str, **environment: str) -> tuple[str, list[str]]:
    """Run a command in the clone; return what it printed, and how stand-ins were called."""
    log, whole = clone / "log", {"PATH": f"{clone / 'bin'}:/usr/bin:/bin", **environment}
    log.unlink(missing_ok=True)
    done = subprocess.run(words, cwd=clone, env=whole, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout, log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_uv_installs_what_the_lock_has_where_it_is_there(clone: Path) -> None:
    stand_in(clone / "bin/uv")
    said, calls = run(clone, "./install.sh", "pipeline", "check")
    assert calls == ["uv sync --quiet --frozen --inexact --extra pipeline --extra check"]
    assert "neuron-pruning[pipeline,check] into .venv, with uv." in said


def test_uv_takes_the_build_of_torch_that_was_chosen(clone: Path) -> None:
    stand_in(clone / "bin/uv")
    said, calls = run(clone, "./install.sh", "pipeline", "check", UV_TORCH_BACKEND="cpu")
    assert calls == [
        "uv venv --quiet",
        "uv pip install --quiet --constraint constraints.txt --editable .[pipeline,check]",
    ]
    assert "CUDA" not in said


def test_pip_installs_the_pinned_versions_where_there_is_no_uv(clone: Path) -> None:
    said, calls = run(clone, "./install.sh", "dev")
    install = "python -m pip install --quiet --disable-pip-version-check --no-compile"
    assert calls == [
        "python3 -m venv .venv",
        "python -m pip --version",
        f"{install} --constraint constraints.txt --editable .[dev]",
    ]
    assert "neuron-pruning[dev] into .venv, with pip." in said


@LINUX
def test_gigabytes_are_announced_with_the_way_around_them_unless_torch_is_there(clone: Path) -> None:
    assert "export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" in run(clone, "./install.sh", "dev")[0]
    chosen = {"PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cpu"}
    assert "CUDA" not in run(clone, "./install.sh", "dev", **chosen)[0]
    stand_in(clone / "bin/uv")
    assert "export UV_TORCH_BACKEND=cpu" in run(clone, "./install.sh", "dev")[0]
    (clone / ".venv/lib/python3.11/site-packages/torch").mkdir(parents=True)
    assert "CUDA" not in run(clone, "./install.sh", "dev")[0]


def test_each_target_installs_what_it_needs_once_and_all_again_when_the_pins_change(clone: Path) -> None:
    for name in ("ruff", "mypy", "lint-imports", "python", "pytest", "dvc", "uv"):
        stand_in(clone / "bin" / name)

    def installed(target: str) -> list[str]:
        (clone / ".venv").mkdir(exist_ok=True)
        return [call for call in run(clone, "make", target)[1] if call.startswith("uv ")]

    sync = "uv sync --quiet --frozen --inexact --extra"
    assert installed("run") == [f"{sync} pipeline"]
    assert installed("run") == []
    assert installed("test") == [f"{sync} dev"]
    assert installed("check") == installed("run") == []
    for stamp in (clone / ".venv").glob(".[a-z]*"):
        os.utime(stamp, (1, 1))
    assert installed("check") == [f"{sync} pipeline --extra check"]
    assert run(clone, "make", "install", "EXTRA=export")[1] == [f"{sync} export"]
