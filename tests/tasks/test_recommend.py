"""What is recommended for a budget of training: settings that params.yaml takes, for every budget there is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.common.reading import read_yaml
from tasks.settings.parameters import checked
from tasks.settings.recipes import RECIPES, recommended
from tests.projects import ROOT, copy, set_parameters

Said = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys: Said, *words: str) -> dict[str, Any]:
    assert main(["recommend", *words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_every_recipe_is_settings_that_the_pipeline_takes_and_names_a_page_that_there_is() -> None:
    values = read_yaml(ROOT / "params.yaml")
    for trained in (0.35, 30.0):
        for epochs in (0.01, 0.5, 1.0, 3.0):
            set_to = {section: dict(fields) for section, fields in values.items()}
            for name, value in recommended(0.4, epochs, trained).items():
                section, field = name.split(".")
                assert field in set_to[section]
                set_to[section][field] = value
            assert checked(set_to).prune.retain == 0.4
    assert all((ROOT / recipe.page).is_file() for recipe in RECIPES)


def test_the_page_tells_what_the_code_recommends() -> None:
    page = (ROOT / "docs/results/while-training.md").read_text(encoding="utf-8")
    for recipe in RECIPES:
        repair, rate, share, dropout = recipe.settings.values()
        written = "null" if dropout is None else dropout
        assert f"| `{repair}` | {1000 * rate:g}e-3 | {share} | {written} |" in page
    assert page.count("e-3 | 0.") == len(RECIPES)


def test_one_epoch_is_no_epochs(here: Path, capsys: Said) -> None:
    said = {epochs: main(["recommend", "--epochs", epochs]) or capsys.readouterr().out for epochs in ("1", "0.5")}
    assert "with 1 epoch of training" in said["1"]
    assert "with 0.5 epochs of training" in said["0.5"]
    assert here.is_dir()


def test_a_brief_budget_is_that_share_of_an_epoch_and_a_long_one_whole_epochs(here: Path, capsys: Said) -> None:
    brief, long = asked(capsys, "--epochs", "0.25"), asked(capsys, "--epochs", "3", "--keep", "0.25")
    assert (brief["settings"]["finetune.epochs"], brief["settings"]["finetune.portion"]) == (1, 0.25)
    assert brief["settings"]["reconstruct.repair"] == "imitate"
    assert brief["changes"] == {"finetune.portion": 0.25}
    assert (long["settings"]["finetune.epochs"], long["settings"]["finetune.portion"]) == (3, 1.0)
    assert long["changes"]["prune.retain"] == 0.25
    assert here.is_dir()


def test_what_a_dense_model_trained_to_the_end_teaches_is_learnt_at_a_high_rate_without_dropout(
    here: Path, capsys: Said
) -> None:
    set_parameters(here, {"train": {"epochs": 30, "portion": 1.0, "dropout": 0.45}})
    settings = asked(capsys, "--epochs", "3")["settings"]
    assert [settings[f"finetune.{name}"] for name in ("epochs", "dropout", "learning_rate")] == [3, 0.0, 8e-3]
    assert main(["recommend", "--epochs", "0.25"]) == 0
    assert re.search(r"finetune\.dropout +null +0\.0", capsys.readouterr().out)
    set_parameters(here, {"train": {"epochs": 1, "portion": 0.35}, "finetune": {"dropout": 0.0}})
    assert main(["recommend", "--epochs", "1"]) == 0
    assert "-S finetune.dropout=null" in capsys.readouterr().out


def test_a_model_of_the_users_own_says_its_dropout_itself(here: Path, capsys: Said) -> None:
    (here / "own").mkdir()
    (here / "own/net.py").write_text("def model(): ...\n", encoding="utf-8")
    set_parameters(here, {"model": {"source": "own.net:model"}})
    assert asked(capsys, "--epochs", "3")["settings"]["finetune.dropout"] is None
    assert main(["recommend", "--epochs", "3"]) == 0
    assert "fine-tuned without dropout; what yours has is in its code" in capsys.readouterr().out
    set_parameters(here, {"finetune": {"dropout": 0.0}})
    assert main(["recommend"]) == 1
    assert "Expected finetune.dropout: null with model.source" in capsys.readouterr().err


def test_the_command_is_said_that_tries_it_and_a_missing_variant_is_named(here: Path, capsys: Said) -> None:
    variants = {"dense": {"by": "fused", "retain": 1.0}}
    set_parameters(here, {"variants": variants}, replace=("variants",))
    assert main(["recommend", "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert "try it: dvc exp run -S finetune.portion=1.0 -S reconstruct.repair=ridge" in said
    assert "add `surgeon: {by: surgeon, scope: absolute}`" in said


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--keep", "0"), "Expected --keep in (0, 1], got 0.\n"),
        (("--keep", "1.5"), "Expected --keep in (0, 1], got 1.5.\n"),
        (("--epochs", "0"), "Expected --epochs of part of an epoch (0.25) or of whole ones (1, 3), got 0.\n"),
        (("--epochs", "1.5"), "Expected --epochs of part of an epoch (0.25) or of whole ones (1, 3), got 1.5.\n"),
        (("--epochs", "nan"), "Expected --epochs of part of an epoch (0.25) or of whole ones (1, 3), got nan.\n"),
        (("--epoch", "x"), "Expected a number for --epochs, got 'x'.\n"),
    ],
)
def test_a_budget_that_there_is_not_is_refused_in_a_sentence(
    capsys: Said, words: tuple[str, ...], sentence: str
) -> None:
    assert main(["recommend", *words]) == 1
    assert capsys.readouterr().err.startswith(sentence)
