"""A tiny DVC project for the flow's tests: a diamond, a foreach stage, a plot, and a stand-in for `tasks`."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.projects import ROOT, copy, run

PYTHON_STAGE = """
import os, pathlib, sys, time
name, *needed = sys.argv[1:]
behaviour = pathlib.Path(f"{name}.behaviour").read_text().strip()
log = open("log.txt", "a")
print("start", name, time.monotonic(), file=log, flush=True)
pathlib.Path(f"{name}.pid").write_text(str(os.getpid()))
if behaviour.startswith("sleep"):
    time.sleep(float(behaviour.split()[1]))
if behaviour.startswith("fail"):
    print("before the end")
    sys.exit(f"the disk of {name} is full")
text = "".join(pathlib.Path(path).read_text() for path in needed)
pathlib.Path(f"{name}.txt").write_text(f"{name} {behaviour} ({text})")
if name == "bottom":
    pathlib.Path("plots").mkdir(exist_ok=True)
    pathlib.Path("plots/one.png").write_bytes(b"a picture")
print("end", name, time.monotonic(), file=log, flush=True)
"""

DVC_YAML = """
stages:
  top:
    desc: The first
    cmd: python stage.py top
    deps: [top.behaviour]
    outs: [top.txt]
    meta: {prefect: {tags: [first], retries: 1, timeout_seconds: 60}}
  side:
    foreach: [left, right]
    do:
      cmd: python stage.py ${item} top.txt
      deps: ['${item}.behaviour', top.txt]
      outs: ['${item}.txt']
      meta: {prefect: {timeout_seconds: 20}}
  bottom:
    cmd: python stage.py bottom left.txt right.txt
    deps: [bottom.behaviour, left.txt, right.txt]
    outs: [bottom.txt]
    plots: [plots]
  alone:
    cmd: python stage.py alone
    deps: [alone.behaviour]
    params: [prune]
    outs: [alone.txt]
    meta: {prefect: {timeout_seconds: 10}}
"""

TASKS = """
import pathlib, sys
command = sys.argv[1]
with open("commands.txt", "a") as log:
    print(command, file=log)
if command == "report":
    print("variant  perplexity")
if command == "promote":
    pathlib.Path("words.txt").write_text(" ".join(sys.argv[1:]))
    print("surgeon, version 1 of neuron-pruning, is now champion")
problem = pathlib.Path(f"{command}.problem")
if problem.exists():
    sys.exit(problem.read_text())
"""


PARAMS_YAML = """
prune: {retain: 0.5}  # a comment
variants: {right: {by: fused}}
"""

DVC_CONFIG = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"

STAGES = ("top", "left", "right", "bottom", "alone")


def make_project(root: Path) -> Path:
    """Write the project into a new folder and return it."""
    files = {"stage.py": PYTHON_STAGE, "dvc.yaml": DVC_YAML, "params.yaml": PARAMS_YAML, ".dvc/config": DVC_CONFIG}
    files["tasks/__main__.py"] = TASKS
    copy(ROOT / "tasks", root / "tasks")  # what flows import of it
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in STAGES:
        behave(root, name, "quick")
    return root


def make_repository(root: Path) -> Path:
    """Make a project that ran a git repository with one commit and another pipeline that never ran, and return it."""
    (root / "experiment").mkdir()
    (root / "experiment/dvc.yaml").write_text("stages: {never: {cmd: exit 1, outs: [never]}}\n")
    (root / ".gitignore").write_text("*.txt\n*.pid\n*.problem\n/data\n/plots\n__pycache__\n")
    copy(ROOT / ".dvc/.gitignore", root / ".dvc/.gitignore")
    run(["dvc", "config", "core.no_scm", "false"], root)
    run(["git", "init", "--quiet", "--initial-branch=main"], root)
    for name, value in {"user.name": "a", "user.email": "a@b", "commit.gpgsign": "false"}.items():
        run(["git", "config", name, value], root)
    run(["git", "add", "."], root)
    run(["git", "commit", "--quiet", "-m", "one"], root)
    return root


def prefect_home(temporary: pytest.TempPathFactory) -> Path:
    """Return a new home of Prefect's, its database's tables made where a server of this run of tests has made them."""
    home = temporary.mktemp("prefect")
    if (tables := _tables(temporary)).exists():
        shutil.copy(tables, home / "prefect.db")
    return home


def keep_tables(home: Path, temporary: pytest.TempPathFactory) -> None:
    """Keep the database that a server has just made by a hundred migrations, which take seconds."""
    tables = _tables(temporary)
    if tables.exists():
        return
    aside = tables.with_suffix(f".{os.getpid()}")
    with closing(sqlite3.connect(home / "prefect.db")) as made, closing(sqlite3.connect(aside)) as kept:
        made.backup(kept)
    aside.replace(tables)


def _tables(temporary: pytest.TempPathFactory) -> Path:
    """Return where the database lies that all processes of a run of tests begin with."""
    folder = temporary.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "prefect.db"


def behave(root: Path, stage: str, behaviour: str) -> None:
    """Make a stage stale, and let it `sleep SECONDS`, `fail` or do anything else at once."""
    (root / f"{stage}.behaviour").write_text(behaviour)


def log(root: Path) -> list[tuple[str, str, float]]:
    """Return each start and end of a stage: what, name, seconds on one clock."""
    path = root / "log.txt"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(what, name, float(when)) for what, name, when in lines]


def alive(pid: int) -> bool:
    """Return whether a process lives; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
