"""What a pull request is told: `make review` pulls, reproduces and says what became of the metrics, as Markdown."""

import shutil
import subprocess
from pathlib import Path

from tests.flow_project import make_project, make_repository
from tests.projects import ROOT, copy, run, warmed

SUMMARY = """
  compare:
    cmd: python summary.py
    deps: [alone.txt, summary.py]
    params: [prune]
    metrics: [data/compare/summary.json]
"""
PROGRAM = """
import json, pathlib
from ruamel.yaml import YAML
retain = YAML(typ="safe").load(pathlib.Path("params.yaml"))["prune"]["retain"]
pathlib.Path("data/compare").mkdir(parents=True, exist_ok=True)
pathlib.Path("data/compare/summary.json").write_text(json.dumps({"enhanced": 100 + 20 * (1 - retain)}))
"""


def test_a_clone_pulls_what_there_is_reproduces_the_rest_and_says_what_became_of_the_metrics(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        copy(ROOT / name, root / name)
    (root / "summary.py").write_text(PROGRAM)
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text() + SUMMARY)
    run(["dvc", "repro"], root)
    make_repository(root)
    copy(ROOT / ".dvc/config.local.example", root / ".dvc/config.local")
    (root / ".dvc/config.local").write_text(_of(root / ".dvc/config.local", tmp_path / "store"))
    run(["dvc", "push"], root)
    run(["git", "checkout", "--quiet", "-b", "change"], root)
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("0.5", "0.25"))
    run(["git", "commit", "--quiet", "-a", "-m", "less"], root)

    clone = tmp_path / "clone"
    run(["git", "clone", "--quiet", str(root), str(clone)], tmp_path)
    run(["git", "fetch", "--quiet", "origin", "main:main"], clone)
    shutil.copy(root / ".dvc/config.local", clone / ".dvc/config.local")
    done = _review(clone)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "summary" in line]
    assert rows == [["data/compare/summary.json", "enhanced", "110.0", "115.0", "5.0"]]
    assert done.stdout.splitlines()[-1] == "variant  perplexity"  # what stands in for the report
    assert "3 files fetched" not in done.stdout
    assert "Running stage 'compare'" in done.stderr
    assert "Running stage 'top'" not in done.stderr

    (clone / ".dvc/config.local").unlink()
    assert _review(clone).stdout == done.stdout  # without a remote, from the cache


def _of(example: Path, store: Path) -> str:
    text = example.read_text()
    assert "url = ~/neuron-pruning-store\n" in text
    return text.replace("~/neuron-pruning-store", str(store))


def _review(clone: Path) -> "subprocess.CompletedProcess[str]":
    """Run `make review` where everything is installed already."""
    command = ["make", "-o", ".venv/.run", "review"]
    done = subprocess.run(command, cwd=clone, env=warmed(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done
