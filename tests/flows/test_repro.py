"""What starts when, by a clock of its own, and `python -m flows.repro` on a tiny project."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows import repro
from flows.execution import FAILED, NOT_STARTED, RAN, UP_TO_DATE, CommandError, Outcome, reproduce
from flows.order import run_in_order
from flows.stages import GraphStage
from tests.flow_project import STAGES, behave, log, make_project

# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


def stage(name: str, needs: str = "", *, alone: bool = False, first: bool = False) -> GraphStage:
    """Return a stage that needs others, each of one letter."""
    return GraphStage(
        address=name, folder="", description="", needs=frozenset(needs), plots=(), pages=(), alone=alone, first=first
    )


def order_of(stages: Sequence[GraphStage], jobs: int, failing: str = "") -> tuple[list[str], dict[str, Outcome]]:
    """Return which stages ran beside each other whenever one started, and how each ended: the oldest ends first."""
    running: list[tuple[str, Callable[[object], None]]] = []
    seen = []

    def start(stage: GraphStage, needed: Sequence[str], ended: Callable[[object], None]) -> str:
        assert {*needed} == stage.needs
        running.append((stage.address, ended))
        seen.append("".join(address for address, _ in running))
        if len(running) == 1:
            ended(None)
        return stage.address

    def outcome(stage: GraphStage, _: str, seconds: float) -> Outcome:
        assert running.pop(0)[0] == stage.address
        if running:
            running[0][1](None)
        bad = stage.address in failing
        return Outcome(stage.address, FAILED if bad else RAN, seconds, "", "it is broken" if bad else "")

    return seen, run_in_order({each.address: each for each in stages}, jobs, start, outcome)


def test_stages_start_when_what_they_need_is_done_and_the_first_before_others() -> None:
    stages = [stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "a", first=True), stage("e", "bcd")]
    seen, outcomes = order_of(stages, jobs=1)
    assert seen == ["a", "d", "b", "c", "e"]
    assert {outcome.state for outcome in outcomes.values()} == {RAN}


def test_a_stage_that_measures_times_runs_when_nothing_else_can_and_nothing_beside_it() -> None:
    stages = [stage("a", alone=True), stage("b"), stage("c", "b"), stage("d", "a")]
    seen, _ = order_of(stages, jobs=2)
    assert seen.index("a") == len(seen) - 2
    assert seen[-1] == "d"


@pytest.mark.parametrize("word", ["0", "65", "many", "1.5", "-1"])
def test_so_many_stages_side_by_side_are_refused_in_one_sentence(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        repro.main(["--jobs", word])
    assert f"error: argument --jobs: expected a whole number from 1 to 64, got '{word}'\n" in capsys.readouterr().err


def test_what_needs_a_failed_stage_never_starts_and_the_rest_does() -> None:
    _, outcomes = order_of([stage("a"), stage("b", "a"), stage("c")], jobs=1, failing="a")
    assert [outcomes[name].state for name in "abc"] == [FAILED, NOT_STARTED, RAN]


def test_a_project_is_reproduced_once_and_what_fails_then_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    assert repro.main([]) == 0
    first = capsys.readouterr().out
    assert first.splitlines()[-1] == "5 ran"
    assert not [
        words for words in ("git add", "Updating lock", "dvc push", "autostage", "Running stage") if words in first
    ]
    assert sorted(name for what, name, _ in log(root) if what == "end") == sorted(STAGES)
    behave(root, "left", "fail")
    assert repro.main(["bottom", "alone", "--jobs", "1"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "3 up to date, 1 failed, 1 not started"
    assert "side@left | before the end" in said.out
    assert "the disk of left is full" in said.err
    assert repro.main(["nonsense"]) == 1
    assert capsys.readouterr().err.startswith("Unknown stage 'nonsense'")


def test_dvc_does_not_say_which_command_runs_where_the_stage_says_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for line in ("Running stage 'train':", "> exec python -m tasks train", "train: stage 3 of 37, train the model"):
        repro._say(stage("train"), line)
    repro._say(stage("mine"), "> python mine.py")
    assert capsys.readouterr().out.splitlines() == ["train: stage 3 of 37, train the model", "mine | > python mine.py"]


BLOCKED = ["ERROR: failed to reproduce 'a': 'a.txt' is busy, it is being blocked by:", "  (PID 7): dvc repro"]


class Blocked:
    """Commands of which the first ones find their files busy."""

    def __init__(self, times: int) -> None:
        self.left = times

    def run(self, name: str, _: object, log: Callable[[str], None], **__: object) -> list[str]:
        for line in ["Restoring", *(BLOCKED if self.left else ["Stage 'a' didn't change, skipping"])]:
            log(line)
        self.left -= 1
        if self.left >= 0:
            raise CommandError("; ".join([name, *BLOCKED]))
        return ["Stage 'a' didn't change, skipping"]

    def wait(self, _: float) -> None:
        pass


def test_a_stage_whose_files_are_busy_says_once_that_it_waits_and_nothing_of_an_error() -> None:
    said: list[str] = []
    commands: Any = Blocked(times=3)
    assert reproduce(commands, stage("a"), said.append, force=False) == UP_TO_DATE
    waits = "Stage 'a' waits for another `dvc` that is at work on the same files"
    assert [line for line in said if line != "Restoring"] == [waits, "Stage 'a' didn't change, skipping"]


class Refused:
    """Commands of which each ends as DVC does on a disk that it cannot write to."""

    def __init__(self, said: str) -> None:
        self.said = said

    def run(self, name: str, *_: object, **__: object) -> list[str]:
        raise CommandError(f"{name} failed with exit code 255; its last lines:\ntrain: 3.0 s\nERROR: {self.said}\nHm")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "failed to transfer '0c' - [Errno 28] No space left on device: 'a' -> 'b'",
            "Expected room for what DVC keeps of stage 'a', got 'No space left on device'; make room on the disk of "
            "data/ and of DVC's cache, then run the same command.",
        ),
        (
            "unexpected error - [Errno 30] Read-only file system: '.dvc/tmp/lock'",
            "Expected a place for what DVC keeps of stage 'a', got 'Read-only file system'; see that data/ and .dvc/ "
            "can be written to, then run the same command.",
        ),
    ],
)
def test_a_disk_that_dvc_cannot_write_to_is_one_sentence(said: str, sentence: str) -> None:
    commands: Any = Refused(said)
    with pytest.raises(CommandError) as refused:
        reproduce(commands, stage("a"), lambda _: None, force=False)
    assert str(refused.value) == sentence


def test_a_folder_that_git_knows_nothing_of_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    (tmp_path / "dvc.yaml").write_text("stages: {top: {cmd: 'true'}}")
    monkeypatch.chdir(tmp_path)
    assert repro.main([]) == 1
    assert capsys.readouterr().err == (
        f"Expected a git repository, got none that DVC can read ({tmp_path} is not a git repository); clone it with "
        "git, or tell DVC to do without: `dvc config core.no_scm true`.\n"
    )
