"""The flow that names a champion, run as a person runs it, with a stand-in for `tasks`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flow_project import make_project

SAID = "surgeon, version 1 of neuron-pruning, is now champion"


@pytest.mark.parametrize("problem", ["", "Expected a variant within 5.0% of dense, got none."])
def test_the_flow_tracks_then_judges_and_ends_as_the_gate_says(
    tmp_path: Path, watched: dict[str, str], problem: str
) -> None:
    root = make_project(tmp_path / "project")
    if problem:
        (root / "promote.problem").write_text(problem)
    command = [sys.executable, "-m", "flows.promotion", "--within", "3", "--cost", "latency"]
    done = subprocess.run(command, env=watched, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == (1 if problem else 0), done.stdout + done.stderr
    assert (problem or SAID) in done.stdout
    assert (root / "commands.txt").read_text().split() == ["track", "promote"]
    assert (root / "words.txt").read_text().split() == ["promote", "--within", "3.0", "--cost", "latency"]
