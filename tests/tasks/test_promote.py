"""Which variant becomes champion, and that a logged model is one for whoever has MLflow and PyTorch alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.commands.tracking.promotion import Candidate, Gate
from tests.results import QUIET, asked, client, runs, write_results

pytestmark = QUIET
GATE = Gate(tolerance=0.05, cost="parameters", at_most=0.8)
KEPT = ("enhanced", "surgeon")
"""The variants whose models are logged here, as each takes seconds."""


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promoted") / "project"
    write_results(folder)
    code, said = asked(folder, "promote", "--within", "200")
    assert (code, "random, version 1 of neuron-pruning, is now champion" in said) == (0, True), said
    return folder


@pytest.fixture
def again(promoted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(promoted, tmp_path / "project"))


def champion(folder: Path) -> Any:
    return client(folder).get_model_version_by_alias("neuron-pruning", "champion")


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([Candidate("good", 101, 0.01, 0.7), Candidate("better", 100, 0.0, 0.9)], "good"),
        ([Candidate("cheap", 106, 0.06, 0.1), Candidate("good", 105, 0.05, 0.8)], "good"),
        ([Candidate("dear", 101, 0.01, 0.7), Candidate("cheap", 101, 0.01, 0.6)], "cheap"),
        ([Candidate("nan", float("nan"), float("nan"), 0.6)], None),
        ([Candidate("bad", 120, 0.2, 0.1)], None),
    ],
)
def test_the_best_within_the_tolerance_that_is_cheap_enough_passes(
    candidates: list[Candidate], expected: str | None
) -> None:
    best = GATE.best(candidates)
    assert (best and best.variant) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--within", "-1"], "Expected --within from 0 to 1,000 percent, got -1.\n"),
        (["--at-most", "0"], "Expected --at-most above 0 and at most 1,000 percent, got 0.\n"),
        (["--at-most", "nan"], "Expected --at-most above 0 and at most 1,000 percent, got nan.\n"),
    ],
)
def test_a_gate_that_cannot_be_is_refused_in_percent(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["promote", *words]) == 1
    assert capsys.readouterr().err == sentence


def test_the_champion_is_the_logged_model_of_the_best_variant(promoted: Path) -> None:
    version, run = champion(promoted), runs(promoted)["random"]
    assert (version.version, version.run_id, version.tags["variant"]) in {
        ("1", run.info.run_id, "random"),
        (1, run.info.run_id, "random"),
    }
    assert float(version.tags["loss"]) == 37


def test_promoting_the_same_results_again_changes_nothing(again: Path) -> None:
    code, said = asked(again, "promote", "--within", "200")
    assert (code, "random, version 1 of neuron-pruning, is still champion" in said) == (0, True), said
    assert len(client(again).search_model_versions("name = 'neuron-pruning'")) == 1


def test_a_gate_that_nothing_passes_says_what_came_nearest_and_leaves_the_champion(again: Path) -> None:
    code, said = asked(again, "promote", "--within", "3", "--cost", "latency", "--at-most", "60")
    expected = (
        "Expected a variant within 3.0% of dense at no more than 60% of its latency, got none; version 1 stays "
        "champion. The nearest is random: +94.7% at 50%."
    )
    assert (code, said.splitlines()[-1]) == (1, expected)
    assert champion(again).tags["variant"] == "random"


def test_a_program_is_told_how_each_variant_was_judged(again: Path) -> None:
    code, said = asked(again, "promote", "--within", "200", "--json")
    answer = json.loads(said[said.index("{") :])
    assert (code, answer["alias"], answer["champion"]["variant"]) == (0, "champion", "random")
    assert {candidate["variant"] for candidate in answer["candidates"]} >= {"surgeon", "traditional", "enhanced"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cost", "latncy"], "cost"),
        (["--within", "-1"], "within"),
        (["--within", "much"], "within"),
    ],
)
def test_words_that_say_nothing_are_refused_in_a_sentence(again: Path, words: list[str], expected: str) -> None:
    code, said = asked(again, "promote", *words)
    assert (code, said.count("\n")) == (1, 1)
    assert expected in said


def test_without_mlflow_nothing_is_promoted(again: Path) -> None:
    code, said = asked(again, "promote", "--within", "200", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert (code, said.splitlines()[-1].endswith("Nothing was promoted.")) == (1, True)
