"""Results are read where they are what dvc.lock records, and a queued experiment says what it lacks."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from tasks.__main__ import main
from tasks.commands.lock import hash_of
from tasks.commands.settled import settled
from tasks.commands.untracked import unseen
from tasks.common.models import write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import Stage, read_stage
from tasks.common.reading import read_yaml
from tests.projects import ROOT, copy, language_project, run, set_parameters
from tests.results import setting
from tests.tiny import tiny

Said = pytest.CaptureFixture[str]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose fine-tuned model and corpus are as its dvc.lock records them."""
    folder = language_project(tmp_path / "project", {"enhanced": tiny(dtype=torch.float32)})
    monkeypatch.chdir(folder)
    write_model(Path("data/train/model"), tiny(dtype=torch.float32))
    write_model(Path("data/reconstruct/enhanced/model"), tiny(dtype=torch.float32))
    values, lock = read_yaml(Path("params.yaml")), {}
    for stage in (of("prepare"), of("train"), of("reconstruct"), of("finetune")):
        params = {name: setting(values, name) for name in stage.sections}
        files = {kind: [entry(path) for path in paths.values()] for kind, paths in files_of(stage).items()}
        lock[stage.address] = {"cmd": "x", **files, "params": {"params.yaml": params}}
    YAML().dump({"schema": "2.0", "stages": lock}, Path("dvc.lock"))
    return folder


def of(name: str) -> Stage:
    variant = "enhanced" if name in ("prune", "reconstruct", "finetune") else None
    return read_stage(name, variant, read_yaml(Path("params.yaml")))


def files_of(stage: Stage) -> dict[str, dict[str, Path]]:
    return {
        "deps": {name: path for name, path in stage.inputs.items() if path.exists()},
        "outs": {name: path for name, path in stage.outputs.items() if path.exists()},
    }


def entry(path: Path) -> dict[str, str]:
    return {"path": str(path), "md5": hash_of(path)}


@pytest.mark.usefixtures("recorded")
def test_what_is_recorded_is_read_and_without_a_lock_so_is_all() -> None:
    with settled(of("finetune"), of("prepare")):
        pass
    Path("dvc.lock").unlink()
    shutil.rmtree("data/train/model")
    with settled(of("finetune")):
        pass


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("place", ["data/finetune/enhanced/model", "data/reconstruct/enhanced/model"])
def test_what_a_reproduction_has_removed_or_replaced_is_refused_before_and_after(place: str) -> None:
    sentence = rf"Expected {place} as dvc\.lock records it, got another; run `dvc repro` or `dvc checkout`\."
    with pytest.raises(Unexpected, match=sentence), settled(of("finetune")):
        write_model(Path(place), tiny(dtype=torch.float32, seed=7))
    with pytest.raises(Unexpected, match=sentence), settled(of("finetune")):
        raise AssertionError("this is not to be reached")
    shutil.rmtree(place)
    with pytest.raises(Unexpected, match=sentence.replace("another", "none")), settled(of("finetune")):
        raise AssertionError("this is not to be reached")


@pytest.mark.parametrize("words", [["export", "enhanced"], ["generate", "enhanced"], ["score", "enhanced", "w1"]])
def test_a_model_that_is_half_replaced_is_neither_exported_nor_used(
    recorded: Path, words: list[str], capsys: Said
) -> None:
    capsys.readouterr()
    (recorded / "data/finetune/enhanced/model/config.json").unlink()
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("Expected data/finetune/enhanced/model as dvc.lock records it, got another;")
    assert said.count("\n") == 1
    assert not (recorded / "data/export").exists()


@pytest.mark.usefixtures("recorded")
def test_a_model_of_earlier_settings_is_refused() -> None:
    set_parameters(Path(), {"finetune": {"temperature": 3.0}})
    sentence = r"Expected finetune@enhanced to follow the change of finetune\.temperature; run `dvc repro`\."
    with pytest.raises(Unexpected, match=sentence), settled(of("finetune")):
        raise AssertionError("this is not to be reached")


def test_a_folder_has_the_hash_that_dvc_gives_it(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in ("b/x", "a-b/y", "a/z", "c"):
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_text(name, encoding="utf-8")
    run(["dvc", "init", "--no-scm", "--quiet"], folder)
    run(["dvc", "add", "--quiet", "out"], folder)
    assert read_yaml(folder / "out.dvc")["outs"][0]["md5"] == hash_of(folder / "out")


@pytest.fixture
def queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queued experiment's copy of a project, in which nothing is that git does not track."""
    folder = tmp_path / "project"
    for name in ("dvc.yaml", "params.yaml", "learned", "own"):
        copy(ROOT / name, folder / name)
    (folder / ".gitignore").write_text("/.dvc\n", encoding="utf-8")
    set_parameters(folder, {"model": {"source": "own.mine:build"}, "reconstruct": {"repair": "ridge"}})
    for words in (["init", "--quiet"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    temporary = folder / ".dvc/tmp/exps/tmp1"
    for name in ("dvc.yaml", "params.yaml", "learned", "own"):
        copy(folder / name, temporary / name)
    (folder / "own/mine.py").write_text("def build(): ...\n", encoding="utf-8")
    monkeypatch.chdir(temporary)
    return folder


def test_a_queued_experiment_that_lacks_an_untracked_file_says_to_add_it(
    queued: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    assert main(["train"]) == 1
    assert "git add" not in capsys.readouterr().err
    monkeypatch.setenv("DVC_STAGE", "train")
    assert main(["train"]) == 1
    said = capsys.readouterr().err
    assert "got 'own.mine'" in said
    assert said.endswith(
        " A queued experiment sees only what git tracks: `git add own/mine.py`, then queue it again.\n"
    )
    assert said.count("\n") == 1
    monkeypatch.delenv("DVC_STAGE")
    assert main(["check"]) == 1  # as a flow asks in a copy
    assert "`git add own/mine.py`" in capsys.readouterr().err
    subprocess.run(["git", "add", "own/mine.py"], cwd=queued, check=True)
    assert unseen() == ""


def test_a_text_that_git_does_not_track_is_named_too_and_nothing_is_said_elsewhere(
    queued: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_parameters(Path(), {"corpus": {"source": "book.txt"}})
    (queued / "book.txt").touch()
    assert "`git add book.txt own/mine.py`" in unseen()
    set_parameters(Path(), {"corpus": {"source": "../../book.txt"}})
    assert "`git add own/mine.py`" in unseen()
    monkeypatch.chdir(queued)
    assert unseen() == ""


@pytest.mark.parametrize("count", [5, 6])
def test_a_sentence_names_five_files_at_most(queued: Path, count: int) -> None:
    for number in range(count - 1):
        (queued / f"own/x{number}.py").touch()
    assert unseen().endswith("x3.py …`, then queue it again." if count > 5 else "x3.py`, then queue it again.")
