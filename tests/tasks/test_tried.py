"""What DVC's experiments reached: beside each other, and the front of all, from a sweep that DVC's queue ran."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tests.projects import run
from tests.tried_project import make_tried

Said = pytest.CaptureFixture[str]
# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which DVC's queue ran a sweep over retention, criterion and repair."""
    root = tmp_path_factory.mktemp("swept")
    make_tried(root)
    swept = ["prune.retain=0.25,0.5", "variants.enhanced.by=fused,surgeon", "reconstruct.repair=none,ridge"]
    run(["dvc", "exp", "run", "--queue", *(word for values in swept for word in ("-S", values))], root)
    run(["dvc", "exp", "run", "--run-all"], root)
    return root


@pytest.fixture
def here(swept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(swept)
    return swept


def test_experiments_stand_beside_each_other_with_the_values_that_differ(here: Path, capsys: Said) -> None:
    found = _answer(["experiments"], capsys)
    commit = run(["git", "rev-parse", "HEAD"], here).stdout[:7]
    assert [row["name"] for row in found[:2]] == ["workspace", commit]
    assert len(found) == 2 + 8
    names = {"prune.retain", "variants.enhanced.by", "reconstruct.repair"}
    assert all(set(row["parameters"]) == names for row in found)
    for row in found:
        retain, by, repair = (
            row["parameters"][name] for name in ("prune.retain", "variants.enhanced.by", "reconstruct.repair")
        )
        lost = {"fused": 20, "surgeon": 12}[by] * {"none": 2, "ridge": 1}[repair]
        assert row["variants"]["enhanced"]["quality"] == pytest.approx(100 + lost * (1 - retain))
        assert row["variants"]["dense"]["quality"] == 100


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.usefixtures("here")
def test_experiments_and_their_front_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Said, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("experiments", "front"):
        assert main([command]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)


def test_the_front_is_what_looking_at_every_pair_finds(here: Path, capsys: Said) -> None:
    points = _answer(["front"], capsys)
    assert len(points) == 1 + 8  # the dense one once, and each other once, the workspace and the commit being one
    for point in points:
        better = [
            other
            for other in points
            if other["perplexity"] <= point["perplexity"]
            and other["multiply_adds"] <= point["multiply_adds"]
            and (other["perplexity"], other["multiply_adds"]) != (point["perplexity"], point["multiply_adds"])
        ]
        assert point["on_front"] == (not better)
    assert [point["settings"]["by"] for point in points if point["on_front"]] == ["surgeon", "surgeon", "fused"]
    assert (here / "data/front/front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("here")
def test_the_front_of_parameters_is_asked_for_by_name(capsys: Said) -> None:
    assert main(["front", "--cost", "parameters"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["front", "--to", "front.gif"]) == 1
    assert capsys.readouterr().err == "Expected a file that ends in .png or .svg for --to, got 'front.gif'.\n"
    assert main(["front", "--cost", "weight"]) == 1
    assert "weight" in capsys.readouterr().err


def test_a_result_of_other_values_is_none_of_these(here: Path, capsys: Said) -> None:
    values = (here / "params.yaml").read_text()
    (here / "params.yaml").write_text(values.replace("retain: 0.5", "retain: 0.6"))
    try:
        workspace = _answer(["experiments"], capsys)[0]
        assert workspace["stale"] == ["dense", "enhanced"]
        assert workspace["variants"] == {}
        assert main(["experiments"]) == 0
        assert "–: no result with these values" in capsys.readouterr().out
    finally:
        (here / "params.yaml").write_text(values)


def test_where_nothing_was_tried_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["experiments"]) == 1
    assert capsys.readouterr().err.startswith("Expected a git repository with experiments of DVC's, got '")
    run(["git", "init", "--quiet"], tmp_path)
    run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "a"], tmp_path)
    run(["dvc", "init", "--quiet"], tmp_path)
    assert main(["front"]) == 1
    assert capsys.readouterr().err == "Expected results of experiments, got none; run `dvc repro` or `dvc exp run`.\n"


def _answer(words: list[str], capsys: Said) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
