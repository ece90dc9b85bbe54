"""The command `export`: every file gives the model's logits, elsewhere too; and each mistake gets one sentence."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from tasks.__main__ import main
from tasks.commands import export
from tasks.commands.folders import MANIFEST
from tasks.common.models import read_model
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import checked
from tests.projects import ROOT, language_project, spelled_project
from tests.tiny import tiny

KINDS = ("untied", "tied", "projected")
EXACT = ("model.safetensors", "model.pt2", "model.onnx")
Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a corpus, and a model of every kind of decoder as a variant that was only fine-tuned."""
    models = {kind: tiny(kind, dtype=torch.float32) for kind in KINDS}
    models["mixed"] = tiny(dtype=torch.float32, family="lstm + snn")
    return language_project(tmp_path_factory.mktemp("results") / "project", models)


@pytest.fixture(scope="session")
def exported(results: Path) -> dict[str, Path]:
    """The exports of all kinds, where they are written by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(results)
        assert [main(["export", kind]) for kind in KINDS] == [0, 0, 0]
    return {kind: results / f"data/export/{kind}-finetuned" for kind in KINDS}


@pytest.fixture
def here(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(results)


def measured(folder: Path) -> dict[str, dict[str, float]]:
    return {row["file"]: row for row in json.loads((folder / "export.json").read_text())["measured"]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(words: list[str], said: Said) -> str:
    """Run the command, which must fail with one line, and return that line."""
    before = sorted(Path().rglob("*"))
    assert main(words) == 1
    assert sorted(Path().rglob("*")) == before, "something was written or lost"
    sentence = said.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_has_the_perplexity_of_the_model(exported: dict[str, Path], results: Path, kind: str) -> None:
    model, settings = read_model(exported[kind]), checked(read_yaml(results / "params.yaml")).evaluate
    corpus = read_table(results / "data/prepare/corpus.parquet")
    vocabulary = read_table(results / "data/prepare/vocabulary.parquet")
    first = int(vocabulary.loc[vocabulary["text"] == "<eos>", "token"].iloc[0])
    tokens = torch.tensor(corpus.loc[corpus["split"] == "valid", "token"].to_numpy(), dtype=torch.long)
    expected = loss_of(model, Windows(tokens, first=first, batch=settings.batch, bptt=settings.bptt)).perplexity
    found = measured(exported[kind])
    for file in EXACT:
        assert found[file]["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert found["model.int8.onnx"]["perplexity"] == pytest.approx(expected, rel=0.05)
    assert found["model.int8.onnx"]["perplexity"] != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_holds_what_was_checked_and_measured(exported: dict[str, Path], kind: str) -> None:
    found = measured(exported[kind])
    assert list(found) == [*EXACT, "model.int8.onnx"]
    assert all(found[file]["difference"] <= export.TOLERANCE for file in EXACT)
    assert export.TOLERANCE < found["model.int8.onnx"]["difference"] < 0.2
    for file, row in found.items():
        assert row["bytes"] == (exported[kind] / file).stat().st_size
        assert all(seconds > 0 for seconds in row["seconds"].values())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("here")
def test_a_model_with_spiking_neurons_is_exported_and_its_card_says_what_agrees(tmp_path: Path) -> None:
    assert main(["export", "mixed", "--to", str(tmp_path / "mixed")]) == 0
    found = measured(tmp_path / "mixed")
    assert all(found[file]["difference"] <= export.TOLERANCE for file in EXACT)
    for file in EXACT:
        assert found[file]["perplexity"] == pytest.approx(found[EXACT[0]]["perplexity"], rel=1e-3)
    card = (tmp_path / "mixed/README.md").read_text(encoding="utf-8")
    assert "shaped (1, batch, 4) and (1, batch, 4); (batch, 3) and (batch, 3); (1, batch, 3) and" in card
    assert "of the 80% of sequences that differ least" in card


def test_every_file_may_be_read_by_whom_the_others_may(exported: dict[str, Path]) -> None:
    assert len({path.stat().st_mode for path in exported["tied"].iterdir()}) == 1


def test_a_folder_holds_the_files_it_promises_and_a_line_for_each_token(
    exported: dict[str, Path], results: Path
) -> None:
    assert {path.name for path in exported["tied"].iterdir()} == {*export.FILES, MANIFEST}
    text = (exported["tied"] / "vocabulary.txt").read_text(encoding="utf-8")
    words = list(read_table(results / "data/prepare/vocabulary.parquet")["text"])
    assert text.split("\n") == text.splitlines() == words


def lines_of_the_card(folder: Path) -> list[str]:
    """Return the lines that load the model, its program and its graph."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    return [line.replace("folder", str(folder)) for line in re.findall(r"\| `((?:from|import).*)` \|", card)]


def test_another_process_loads_each_model_by_its_cards_line_and_computes_the_same(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    tokens = torch.arange(12).view(4, 3)
    save_file({"tokens": tokens}, tmp_path / "tokens")
    code = "from safetensors.torch import load_file, save_file"
    for kind in KINDS:
        ours, *_ = lines_of_the_card(exported[kind])
        code += f"\n{ours}\nsave_file({{'logits': model(load_file('tokens')['tokens'])[0].detach()}}, {kind!r})"
    elsewhere(code, tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for kind in KINDS:
        with torch.no_grad():
            assert torch.equal(load_file(tmp_path / kind)["logits"], tiny(kind, dtype=torch.float32)(tokens)[0])


def test_program_and_graph_are_loaded_by_the_cards_lines_without_the_library(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    _, program, graph = lines_of_the_card(exported["projected"])
    unaided = "import sys; assert not {'pruning', 'tasks'} & set(sys.modules)"
    state = "[tuple(torch.zeros(1, 3, width) for _ in range(2)) for width in (7, 6)]"
    runs = f"assert model(torch.ones(9, 3).long(), {state})[0].shape == (9, 3, 20)"
    elsewhere(f"{graph}; {unaided}\n{program}; {runs}; {unaided}", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_of_the_card_goes_on_from_a_text_as_the_model_does_with_onnxruntime_alone(
    exported: dict[str, Path], kind: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (exported[kind] / "README.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    report = json.loads((exported[kind] / "export.json").read_text(encoding="utf-8"))
    assert report["text"]["loop"] == program.splitlines()
    assert len(program.splitlines()) == 10
    said = elsewhere(
        f"{program}\nimport sys; assert not {{'pruning', 'tasks', 'torch'}} & set(sys.modules)", exported[kind]
    )
    monkeypatch.chdir(exported[kind].parents[2])
    capsys.readouterr()
    words = ["generate", kind, "my fellow americans", "--temperature", "0", "--tokens", "20", "--json"]
    assert main(words) == 0
    assert said.split() == json.loads(capsys.readouterr().out)["tokens"]


def test_the_loop_of_a_model_of_sub_words_reads_and_goes_on_as_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    folder = spelled_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    assert main(["export", "dense"]) == 0
    program = re.findall(
        r"```python\n(.*?)```", (folder / "data/export/dense-finetuned/README.md").read_text(), re.DOTALL
    )
    said = elsewhere(program[0].replace("my fellow americans", "lower lows"), folder / "data/export/dense-finetuned")
    capsys.readouterr()
    words = ["generate", "dense", "lower lows", "--temperature", "0", "--tokens", "20", "--json"]
    assert main(words) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert said.split() == tokens
    assert main(["generate", "data/export/dense-finetuned", *words[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == tokens


def elsewhere(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("here")
def test_the_command_prints_a_row_for_each_file_and_replaces_an_earlier_export(
    exported: dict[str, Path], tmp_path: Path, capsys: Said
) -> None:
    shutil.copytree(exported["tied"], tmp_path / "chosen")
    capsys.readouterr()
    assert main(["export", "untied", "--to", str(tmp_path / "chosen")]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (*EXACT, "model.int8.onnx", "perplexity", "ms/step", "batch 32"))
    assert [path.name for path in tmp_path.iterdir()] == ["chosen"]
    assert json.loads((tmp_path / "chosen/export.json").read_text())["variant"] == "untied"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Expected a variant, one of ['dense', 'untied', 'tied', 'projected', 'mixed'], got none.\n"),
        (["tyed"], "got 'tyed'. Did you mean 'tied'?"),
        (
            ["tied", "--phase", "prund"],
            "Unknown phase 'prund'; known: ['pruned', 'reconstructed', 'finetuned']. Did you mean 'pruned'?",
        ),
        (["tied", "--phase", "pruned"], "Expected the pruned model of tied in data/prune/tied/model, got none; run"),
        (["dense"], "Expected the finetuned model of dense in data/finetune/dense/model, got none; run `dvc repro`."),
        (["tied", "--to", "text"], "with 'test.txt' in it; move that away, or name"),
        (["tied", "--to", "params.yaml"], "Expected a folder to write to, got the file "),
        (["tied", "--tokens", "100"], "Expected --target beside --tokens, got none; without it all of the validation "),
    ],
)
@pytest.mark.usefixtures("here", "exported")
def test_a_mistake_gets_one_sentence_and_writes_nothing(words: list[str], sentence: str, capsys: Said) -> None:
    capsys.readouterr()
    assert sentence in refused(["export", *words], capsys)


def test_a_missing_corpus_is_named(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    shutil.copytree(results, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    (tmp_path / "project/data/prepare/corpus.parquet").unlink()
    assert "Expected the table data/prepare/corpus.parquet" in refused(["export", "tied", "--to", "new"], capsys)


@pytest.mark.usefixtures("here")
def test_a_file_beside_an_earlier_export_is_not_lost(exported: dict[str, Path], tmp_path: Path, capsys: Said) -> None:
    shutil.copytree(exported["tied"], tmp_path / "chosen")
    (tmp_path / "chosen/notes").write_text("mine")
    capsys.readouterr()
    assert "with 'notes' in it;" in refused(["export", "tied", "--to", str(tmp_path / "chosen")], capsys)
    assert (tmp_path / "chosen/notes").read_text() == "mine"


@pytest.mark.usefixtures("here")
def test_a_file_that_differs_from_the_model_leaves_the_earlier_export_whole(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    before = contents(exported["tied"])
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    capsys.readouterr()
    assert "Expected model.pt2 to give the model's logits within 1e-12, got " in refused(["export", "tied"], capsys)
    assert contents(exported["tied"]) == before


@pytest.mark.usefixtures("here")
def test_missing_packages_get_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    sentence = refused(["export", "tied", "--to", "new"], capsys)
    assert (
        "got no ['onnxscript']; install them with `make install EXTRA=export`, or in an environment of your" in sentence
    )


def test_no_stage_loads_what_only_exporting_needs(tmp_path: Path) -> None:
    stages = [name for name in read_yaml(ROOT / "dvc.yaml")["stages"] if name != "track"]  # which is a command
    code = f"""
import importlib, sys, tasks.__main__
for name in {stages!r}: importlib.import_module("tasks.stages." + name)
assert not {{"onnx", "onnxscript", "onnxruntime", "pruning.export", "tasks.commands.export"}} & set(sys.modules)
"""
    elsewhere(code, tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("exported")
def test_a_target_has_the_variant_beside_the_dense_model_in_float32_and_int8(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    project = tmp_path / "project"
    shutil.copytree(results, project)
    shutil.copytree(project / "data/finetune/untied/model", project / "data/finetune/dense/model")
    monkeypatch.chdir(project)
    assert main(["export", "projected", "--target", "onnx"]) == 0
    folder = project / "data/export/projected-finetuned-onnx"
    files = {"model.onnx", "model.int8.onnx", "beside.png", "README.md", "export.json", "config.json"}
    assert {path.name for path in folder.iterdir()} == files | {MANIFEST, "model.safetensors", "vocabulary.txt"}
    report = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    rows = {(row["model"], row["numbers"]): row for row in report["measured"]}
    assert list(rows) == [(name, numbers) for name in ("dense", "projected") for numbers in ("float32", "int8")]
    assert report["quality"] == "perplexity"
    for numbers, name in (("float32", "model.onnx"), ("int8", "model.int8.onnx")):
        assert rows["projected", numbers]["bytes"] == (folder / name).stat().st_size
    assert rows["dense", "float32"]["quality"] == pytest.approx(
        measured(project / "data/export/untied-finetuned")["model.onnx"]["perplexity"], rel=1e-5
    )
    said = capsys.readouterr().out
    assert max(map(len, said.split("data/export")[0].splitlines()[-7:])) <= 80
    # Where a slow machine's milliseconds take the room of the first column it folds, so no line is looked at whole.
    assert {word for name_and_numbers in rows for word in name_and_numbers} <= set(re.findall(r"\w+", said))
    assert "activations" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("here")
def test_litert_without_its_converter_is_refused_with_how_to_make_it(capsys: Said) -> None:
    sentence = refused(["export", "tied", "--target", "litert"], capsys)
    assert "Expected the Python of LiteRT's converter at .venv-litert/bin/python, got none; " in sentence
    assert "`python -m venv .venv-litert && .venv-litert/bin/python -m pip install torch==" in sentence
