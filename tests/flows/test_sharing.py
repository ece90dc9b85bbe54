"""Clones that share what they make by DVC's remote: what one ran others fetch; a remote that is down costs nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import outcomes_of, pipeline
from tests.flow_project import behave, log, make_project

# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


REMOTE = "[core]\n    remote = store\n['remote \"store\"']\n    url = {}\n"


def states(state: Any) -> dict[str, str]:
    return {outcome.stage: outcome.state for outcome in outcomes_of(state)}


def test_what_one_clone_made_another_one_fetches_and_a_remote_that_is_down_costs_no_result(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_project(tmp_path / "other")
    for clone in (project, other):
        (clone / ".dvc/config.local").write_text(REMOTE.format(tmp_path / "file/remote"))
        for stage in ("left", "right"):
            behave(clone, stage, "sleep 4")  # as when they were run
    (tmp_path / "file").touch()  # where a folder would have to be
    state = pipeline(share=True, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("The results are in this clone, and DVC's remote did not take them all; the next")
    assert "ERROR: " in state.message
    assert set(states(state).values()) == {"Up to date"}
    (tmp_path / "file").unlink()
    assert pipeline(share=True, return_state=True).message == "5 up to date"
    behave(other, "right", "quick")
    lock = (project / "dvc.lock").read_text()
    (top,) = re.findall(r"  top:.*?outs:.*?md5: (\w+)", lock, re.DOTALL)
    (other / "dvc.lock").write_text(lock.replace(top, "f" * 32))  # as committed by whom nobody has the data of
    monkeypatch.chdir(other)
    assert states(pipeline(share=True, return_state=True)) == {
        **dict.fromkeys(("top", "side@left", "alone"), "Restored"),
        **dict.fromkeys(("side@right", "bottom"), "Ran"),
    }
    assert [name for what, name, _ in log(other) if what == "start"] == ["right", "bottom"]
