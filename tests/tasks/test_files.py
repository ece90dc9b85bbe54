"""Files that a disk, a kill or a hand has changed: each is refused in one sentence that names it."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.compat import files
from pruning.data.schemas import VOCABULARY
from pruning.models import describe, rebuild
from tasks.__main__ import main
from tasks.common.covariances import read_covariances
from tasks.common.models import read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew
from tasks.common.tables import read_table, write_table
from tasks.common.writing import replacing
from tasks.experiment.published import read_checkpoint
from tests.projects import ROOT, TINY, set_parameters, write_text
from tests.schemas import TABLES
from tests.tasks.test_published import stacked
from tests.tiny import FAMILIES, tiny

Said = pytest.CaptureFixture[str]
BEFORE_FUSION = (
    "train",
    "weights",
    "hessian",
    "activations",
    "gradients",
    "cooperative",
    "surgeon",
    "intervention",
    "criteria",
    "oracle",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "project"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("own", "learned"):
        (folder / name).mkdir()
    write_text(folder / "text")
    set_parameters(folder, {**TINY, "reconstruct": {"repair": "ridge"}}, replace=("variants",))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (["prepare"], *([name] for name in BEFORE_FUSION), ["fuse"], ["prune", "enhanced"]):
            assert main(words) == 0
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def refused(words: list[str], said: Said) -> str:
    """Run a command, which must fail with one line and write nothing, and return that line."""
    said.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    assert main(words) == 1
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before
    sentence = said.readouterr().err
    assert sentence.count("\n") == 1, sentence
    return sentence


def flipped(content: bytes) -> list[bytes]:
    """Return the content with one byte changed, for every byte."""
    return [content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :] for place in range(len(content))]


def test_a_table_of_which_any_byte_has_changed_is_refused_by_name_or_the_same(project: Path) -> None:
    path = Path("data/weights/weights.parquet")
    expected, content, sentences = read_table(path), path.read_bytes(), []
    for changed in flipped(content)[::7]:
        path.write_bytes(changed)
        try:
            pd.testing.assert_frame_equal(read_table(path), expected)
        except Unexpected as error:
            sentences.append(str(error))
    assert all(str(path) in sentence and "\n" not in sentence for sentence in sentences)
    assert len(sentences) > len(content) / 14
    assert project.is_dir()


def test_a_table_cut_anywhere_is_refused_by_name(project: Path) -> None:
    path = Path("data/weights/weights.parquet")
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(Unexpected, match=r"Expected a Parquet file at data/weights/weights.parquet, got a damaged"):
            read_table(path)
    assert project.is_dir()


def test_the_older_interface_refuses_a_changed_file_by_name_too(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    rows = pd.DataFrame({"token": range(40), "text": [f"w{n}" for n in range(40)], "count": range(40)})
    files.write_table(path, VOCABULARY, rows, {"model": "one"})
    content, sentences = path.read_bytes(), []
    for changed in flipped(content)[::5]:
        path.write_bytes(changed)
        try:
            pd.testing.assert_frame_equal(files.read_table(path, VOCABULARY, {"model": "one"}), rows)
        except ValueError as error:
            sentences.append(str(error))
    assert len(sentences) > len(content) / 10
    assert all(str(path) in sentence for sentence in sentences)


def test_a_page_whose_numbers_have_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.parquet"
    rows = pd.DataFrame({"token": range(500), "text": [f"w{n}" for n in range(500)], "count": range(500)})
    write_table(path, rows, VOCABULARY)
    content = path.read_bytes()
    end = pq.read_metadata(path).row_group(0).column(0)
    middle = end.data_page_offset + end.total_compressed_size // 2
    path.write_bytes(flipped(content)[middle])
    with pytest.raises(Unexpected, match=r"got a damaged one or something else \(.*(checksum|CRC).*; copy it whole"):
        read_table(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("data/weights/weights.parquet", ["fuse"]),
        ("data/activations/covariance.safetensors", ["cooperative"]),
        ("data/activations/covariance.safetensors", ["reconstruct", "enhanced"]),
        ("data/train/model/model.safetensors", ["weights"]),
        ("data/train/model/config.json", ["weights"]),
        ("data/prepare/vocabulary.parquet", ["train"]),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text", "folder"])
def test_a_stage_refuses_a_damaged_file_in_one_sentence_with_its_name(
    project: Path, capsys: Said, path: str, words: list[str], damage: str
) -> None:
    place = project / path
    content = place.read_bytes()
    changed = {"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content)), "text": b"no such"}
    place.unlink()
    if damage == "folder":
        place.mkdir()
    else:
        place.write_bytes(changed[damage])
    sentence = refused(words, capsys)
    assert sentence.startswith("Expected ")
    assert place.name in sentence


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["gone", "text"])
def test_what_a_stage_wrote_is_to_be_made_anew_and_a_folder_taken_along_to_be_copied_again(
    project: Path, capsys: Said, name: str, damage: str
) -> None:
    shutil.copytree(project / "data/train/model", project / "data/choice")
    for folder in ("data/train/model", "data/choice"):
        path = project / folder / name
        path.unlink()
        if damage == "text":
            path.write_text("no such")
    assert refused(["weights"], capsys).endswith("; run `dvc repro` to make it anew.\n")
    with pytest.raises(Unexpected, match=r"; copy it whole from where it was made, or save it again\.$"):
        read_model("data/choice")


@pytest.mark.parametrize(
    ("path", "do"),
    [
        ("data/prune/enhanced/model", "run `dvc repro` to make it anew"),
        ("data/experiment/train/model", "run `dvc repro experiment/dvc.yaml` to make it anew"),
        ("data/export/enhanced", "copy it whole from where it was made, or save it again"),
        ("learned/weights.json", "copy it whole from where it was made, or save it again"),
    ],
)
def test_dvc_makes_again_what_its_stages_write_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, do: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert anew(Path(path)) == do
    monkeypatch.chdir(tmp_path)  # no pipeline
    assert anew(Path(path)).startswith("copy it whole")


@pytest.mark.parametrize(
    "config",
    [
        [],
        3,
        None,
        "lstm",
        {},
        {"family": "lstm"},
        {"family": "lsmt"},
        {"family": ["lstm"]},
        {"hidden": 3},
        {"vocabulary": "many"},
        {"vocabulary": 10**14},
        {"vocabulary": -1},
        {"widths": 10},
        {"widths": []},
        {"widths": [10, "8"]},
        {"widths": [10, 9]},
        {"widths": [10**9, 8]},
        {"widths": {"lstm.0": 10}},
        {"decoder": 5},
        {"decoder": None},
        {"dropout": "none"},
        {"dropout": 7},
    ],
)
def test_a_configuration_that_makes_no_model_is_refused_in_one_sentence(
    project: Path, capsys: Said, config: object
) -> None:
    path = project / "data/train/model/config.json"
    whole = json.loads(path.read_text())
    partial = isinstance(config, dict) and config and "family" not in config
    path.write_text(json.dumps({**whole, **config} if partial else config))
    sentence = refused(["weights"], capsys)
    assert sentence.startswith("Expected ")
    assert "data/train/model" in sentence
    assert "config.json" in sentence


@pytest.mark.parametrize("text", ["", "{", "NaN", "\ufeff{}", "[" * 100_000, '{"family": "lstm", "widths": NaN}'])
def test_what_is_no_json_is_refused_in_one_sentence(project: Path, capsys: Said, text: str) -> None:
    (project / "data/train/model/config.json").write_text(text, encoding="utf-8")
    assert "config.json" in refused(["weights"], capsys)


def changed_tensors(kind: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = max(tensors, key=lambda name: (tensors[name].ndim, name))
        own = tensors[name]
        other = {
            "missing": {},
            "transposed": {name: own.T.contiguous()},
            "larger": {name: torch.cat([own, own])},
            "scalar": {name: torch.tensor(1.0)},
            "integers": {name: own.long()},
            "unknown": {name: own, "unknown": torch.ones(2)},
        }[kind]
        return {**{key: own for key, own in tensors.items() if key != name}, **other}

    return change


@pytest.mark.parametrize("kind", ["missing", "transposed", "larger", "scalar", "integers", "unknown"])
def test_tensors_that_are_not_the_models_are_refused_in_one_sentence(project: Path, capsys: Said, kind: str) -> None:
    path = project / "data/train/model/model.safetensors"
    save_file(changed_tensors(kind)(load_file(path)), path)
    sentence = refused(["weights"], capsys)
    assert sentence.startswith("Expected a model in data/train/model, got ")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_it_was_written(tmp_path: Path, family: str) -> None:
    model = tiny(family=family, dtype=torch.float32)
    write_model(tmp_path / "model", model)
    again = read_model(tmp_path / "model")
    assert describe(again)[0] == describe(model)[0]
    assert all(torch.equal(describe(again)[1][name], own) for name, own in describe(model)[1].items())
    assert rebuild(*describe(model)).widths() == model.widths()


@pytest.mark.parametrize("kind", ["missing", "scalar", "unknown", "narrower", "layer"])
def test_covariances_that_lack_something_are_refused_in_one_sentence(project: Path, capsys: Said, kind: str) -> None:
    path = project / "data/activations/covariance.safetensors"
    tensors = load_file(path)
    if kind == "narrower":
        for key in [key for key in tensors if key.startswith("lstm.0/")]:
            own = tensors[key]
            tensors[key] = own if not own.ndim else own[:-1, :-1].clone() if own.ndim == 2 else own[:-1].clone()
        save_file(tensors, path)
    elif kind == "layer":
        save_file({key: own for key, own in tensors.items() if not key.startswith("lstm.1/")}, path)
    else:
        save_file(changed_tensors(kind)(tensors), path)
    for words in (["cooperative"], ["surgeon"], ["reconstruct", "enhanced"]):
        assert "data/activations/covariance.safetensors" in refused(words, capsys)
    if kind in ("missing", "scalar", "unknown"):
        with pytest.raises(
            Unexpected, match=r"Expected count, mean and products in .*; run `dvc repro` to make it anew"
        ):
            read_covariances(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("data/fuse/importance.parquet", ["prune", "enhanced"]),
        ("data/prune/enhanced/retention.parquet", ["reconstruct", "enhanced"]),
        ("data/hessian/hessian.parquet", ["fuse"]),
    ],
)
@pytest.mark.parametrize("lacking", ["layer", "neuron", "other", "more"])
def test_a_table_that_is_not_of_the_models_neurons_is_refused(
    project: Path, capsys: Said, path: str, words: list[str], lacking: str
) -> None:
    rows = read_table(project / path)
    if lacking == "layer":
        rows, got = rows[rows["layer"] != "lstm.1"], "none for neuron 0 of layer 'lstm.1'"
    elif lacking == "neuron":
        rows, got = rows[(rows["layer"] != "lstm.0") | (rows["neuron"] != 3)], "none for neuron 3 of layer 'lstm.0'"
    elif lacking == "other":
        rows = rows.assign(layer=rows["layer"].replace("lstm.1", "lstm.2"))
        got = "none for neuron 0 of layer 'lstm.1'"
    else:
        rows = pd.concat([rows, rows.tail(1).assign(neuron=99)])
        got = "one for neuron 99, which there is not, of layer 'lstm.1'"
    write_table(project / path, rows, TABLES[Path(path).stem])
    sentence = f"Expected a row for each neuron of the model in {path}, got {got}; run `dvc repro` to make it anew.\n"
    assert refused(words, capsys) == sentence


@pytest.mark.parametrize("words", [["train"], ["weights"], ["activations"], ["fuse"], ["prune", "enhanced"]])
def test_a_full_disk_is_one_sentence_with_the_files_name_and_leaves_what_was_there(
    project: Path, capsys: Said, words: list[str]
) -> None:
    before = {path: path.read_bytes() for path in (project / "data").rglob("*") if path.is_file()}
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses every write beyond the first kilobyte of a file, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most))
    try:
        assert main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert said.startswith("Expected to write data/"), said
    assert "make room on the disk" in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in (project / "data").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "words", ["No space left on device", "Error writing bytes to file. Detail: [errno 28] No space"]
)
def test_what_cannot_be_written_is_named_and_nothing_is_left_beside_it(tmp_path: Path, words: str) -> None:
    def write() -> None:
        with replacing(tmp_path / "result.txt") as aside:
            aside.write_text("half")
            raise OSError(28, words)

    with pytest.raises(Unexpected, match=r"Expected to write .*result.txt, got No space left on device; make room on"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "text", "architecture", "numbers", "folder"])
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    path, _ = stacked(tmp_path)
    if damage in ("architecture", "numbers"):
        whole = {"embedding": 4, "hidden": [4, 4], "cell": "lstm", "tied": True, "vocabulary": 9}
        text = "{" if damage == "architecture" else json.dumps({**whole, "hidden": "wide"})
        save_file(load_file(path), path, {"architecture": text})
    else:
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"text")
    with pytest.raises(Unexpected, match=r"^Expected a checkpoint in .*some.safetensors, got something else \(.*\)\.$"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "steps.parquet"])
def test_training_that_cannot_be_resumed_says_so_and_starts_anew(
    project: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = (project / "data/train/model/model.safetensors").read_bytes()
    monkeypatch.setattr("tasks.stages.train.forget", lambda _: None)
    assert main(["train"]) == 0
    (kept,) = (project / "data/.partial").iterdir()
    (kept / name).write_bytes((kept / name).read_bytes()[:-20])
    monkeypatch.undo()
    monkeypatch.chdir(project)
    capsys.readouterr()
    assert main(["train"]) == 0
    said = capsys.readouterr().out
    assert f"{name}, got a damaged" in said
    assert "Training starts anew." in said
    assert (project / "data/train/model/model.safetensors").read_bytes() == expected
    assert not (project / "data/.partial").exists()
