"""A tiny copy of the project: the real stages on a text of a few thousand words, in a folder of its own."""

import atexit
import functools
import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.warm import FOLDER, Warm
from tests.tiny import VOCABULARY

ROOT = Path(__file__).parent.parent
CODE = ("pruning", "tasks", "learned", "own", "experiment", "dvc.yaml", "params.yaml", "constraints.txt", ".dvcignore")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "DVC_NO_ANALYTICS": "true",
    "PYTHONPATH": str(ROOT),
}
"""What other processes of a test see: this Python, and the code of stages, which is not installed."""
SHARED = "PRUNING_TESTS_WARM"
"""The variable that names the folder of programs which all processes of a run of tests share: tests/conftest.py."""
TINY: dict[str, dict[str, Any]] = {
    "corpus": {"source": "text", "vocabulary": 60},
    "train": {"embedding": 8, "widths": [10, 8], "decoder": "tied", "batch": 4, "bptt": 8, "epochs": 2},
    "calibration": {"batch": 4, "bptt": 8},
    "hessian": {"probes": 10},
    "activations": {"activation_samples": 10},
    "gradients": {"batches": 10},
    "surgeon": {"batches": 10},
    "criteria": {"batches": 10},
    "oracle": {"neurons": 6, "tokens": 100, "most": 200, "words": 16, "portion": 0.1},
    "prune": {"floor": 2, "multiple": 1},
    "reconstruct": {"tokens": 320},
    "finetune": {"batch": 4, "bptt": 8, "portion": 0.5},
    "timing": {"repeats": 5},
    "path": {"retain": [0.7, 0.4], "repeats": 5},
    "variants": {"dense": {"by": "fused", "retain": 1.0}, "enhanced": {"by": "fused"}},
}

TINY_EXPERIMENT: dict[str, Any] = {
    "choices": ["random", "traditional", "simple", "learned", "surgeon"],
    "keep": [0.75],
    "texts": [0],
    "models": [],
    "treatment": {"floor": 2, "portion": 0.05, "batch": 4, "bptt": 8},
    "validation": {"removed": 200, "judged": 160},
    "joint": {"sets": 3},
    "effort": {"windows": 8},
}


MEASURED = {"timing", "latency", "costs", "cost"}
"""Stems of the files that hold measured times, which never repeat."""


def tiny_project(folder: Path, **changes: dict[str, Any]) -> Path:
    """Write the project with tiny parameters, a DVC cache of its own and no last stage, which only tells of results."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        copy(ROOT / name, folder / name)
    stages, _, last = (ROOT / "dvc.yaml").read_text(encoding="utf-8").partition("\n  track:\n")
    assert "python -m tasks track" in last
    (folder / "dvc.yaml").write_text(stages, encoding="utf-8")
    write_text(folder / "text")
    set_parameters(folder, {**TINY, **changes}, replace=("variants",))
    set_parameters(folder, TINY_EXPERIMENT, replace=("choices", "keep", "texts", "models"), within="experiment")
    run(["dvc", "init", "--no-scm", "--quiet"], folder)
    run(["dvc", "config", "core.analytics", "false"], folder)
    return folder


def language_project(folder: Path, models: Mapping[str, Any]) -> Path:
    """Write a project with a corpus, and a model of its tokens for each variant, which was only fine-tuned."""
    from tasks.__main__ import main
    from tasks.common.models import write_model

    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    write_text(folder / "text")
    corpus = {"source": "text", "vocabulary": VOCABULARY}
    variants = {name: {"by": "fused"} for name in ("dense", *models)}
    set_parameters(folder, {**TINY, "corpus": corpus, "variants": variants}, replace=("variants",))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prepare"]) == 0
    for name, model in models.items():
        write_model(folder / f"data/finetune/{name}/model", model)
    return folder


def spelled_project(folder: Path) -> Path:
    """Write a project whose tokens are sub-words of raw text, and a model of them that was only fine-tuned."""
    import torch

    from pruning.models import build
    from tasks.__main__ import main
    from tasks.common.models import write_model
    from tasks.common.tables import read_table

    language_project(folder, {})
    (folder / "book.txt").write_text("It's lower, she said; the lowest is low.\n" * 40, encoding="utf-8")
    corpus = {"source": "book.txt", "valid": 0.2, "test": 0.2, "tokens": "subwords", "vocabulary": 34}
    set_parameters(folder, {"corpus": corpus})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prepare"]) == 0
        types = len(read_table(Path("data/prepare/vocabulary.parquet")))
        torch.manual_seed(1)
        model = build("lstm", vocabulary=types, embedding=4, widths=[6], decoder="untied", dropout=0.0)
        write_model(Path("data/finetune/dense/model"), model)
    return folder


def write_text(folder: Path) -> None:
    """Write three splits in which words follow each other with some regularity."""
    chance = random.Random(1)  # noqa: S311 - text, not secrets
    words = [f"w{number}" for number in range(50)]
    folder.mkdir(exist_ok=True)
    for split, lines in (("train", 300), ("valid", 40), ("test", 40)):
        starts = [chance.randrange(50) for _ in range(lines)]
        text = "\n".join(" ".join(words[(s + i * chance.choice((1, 1, 2))) % 50] for i in range(8)) for s in starts)
        (folder / f"{split}.txt").write_text(text + "\n", encoding="utf-8")


def set_parameters(folder: Path, changes: Mapping[str, Any], replace: tuple[str, ...] = (), within: str = "") -> None:
    """Change values of params.yaml, or of the one in a folder; sections named in `replace` are replaced whole."""
    path, yaml = folder / within / "params.yaml", YAML()
    values = yaml.load(path)
    for section, fields in changes.items():
        values[section] = fields if section in replace else {**values[section], **fields}
    yaml.dump(values, path)


@functools.cache
def warmed() -> Mapping[str, str]:
    """Return the environment in which stages and DVC begin with PyTorch imported."""
    folder = os.environ.get(SHARED)
    if not folder:
        warm = Warm(ENVIRONMENT)
        atexit.register(warm.close)
        folder = warm.variables[FOLDER]
    return {**ENVIRONMENT, FOLDER: folder, "PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}"}


def run(command: list[str], folder: Path, *, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder and return it; it must succeed, or fail where that is expected."""
    done = subprocess.run(command, cwd=folder, env=warmed(), capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, f"{command} in {folder}:\n{done.stdout}\n{done.stderr}"
    return done


def started(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start a command in the folder that a test is to kill."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=warmed(), start_new_session=True, **quiet)


def kill(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """End what was started there by `kill -9`, and wait for all that it had started to go with it."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_none(folder)


def wait_for_none(folder: Path) -> None:
    """Wait until no stage and no DVC works in the folder, which may be the moment after who asked for it was killed."""
    deadline = time.monotonic() + 10
    while _working(folder):
        assert time.monotonic() < deadline, "a process outlived who asked for it"
        time.sleep(0.05)


def _working(folder: Path) -> list[int]:
    """Return the processes of stages and DVC, warm or not, whose working directory is the folder."""
    processes = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            here, words = link.resolve() == folder.resolve(), (link.parent / "cmdline").read_bytes()
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked, or not ours
        if here and any(word in words for word in (b"tasks", b"dvc", b"warm.py")):
            processes.append(int(link.parent.name))
    return processes


def stage(folder: Path, *words: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `python -m tasks …` in the folder."""
    return run(["python", "-m", "tasks", *words], folder, fails=fails)


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder with its times, so that what Python compiled for it is good for the copy too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        half_compiled = shutil.ignore_patterns("*.pyc.*")  # by a test beside this one
        shutil.copytree(source, target, ignore=half_compiled, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every result below `data`, measured times left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file() and path.suffix in {".parquet", ".safetensors", ".json", ".png"} and path.stem not in MEASURED
    }


def sent(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Apply a function as another process would: to what pickling leaves of both."""
    return (pickle.loads(pickle.dumps((function, item)))[0](item) for item in items)  # noqa: S301 - its own
