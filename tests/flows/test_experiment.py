"""The experiment as a command: cells are computed once, a killed run goes on, and the report holds what was found."""

import base64
import html
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import pandas as pd
import pytest
import torch

from flows.experiment import main
from pruning.data.corpus import number
from pruning.data.windows import Windows
from pruning.experiment.judging import compare_pruning_results
from pruning.experiment.verdict import verdict
from pruning.fusion import learned
from pruning.models import build
from pruning.training.loop import train
from tasks.commands.folders import alone, claim
from tasks.common.models import write_model
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table, write_table
from tasks.experiment import inputs
from tasks.experiment.cells import CELLS, COST, EXPERIMENT, OUTCOME, Cell, Experiment, read_outcome
from tasks.experiment.report import PAGE, REPORT, write_report
from tasks.experiment.settings import QUICK, Settings, settings_from
from tests.projects import ENVIRONMENT, ROOT, TINY, set_parameters
from tests.tasks.test_published import stacked
from tests.tiny import recipe
from tests.tiny import text as tokens_of

OPTIONS = {
    "keep": [0.75, 0.5],
    "variants": ["random", "traditional", "simple", "learned", "surgeon"],
    "calibrations": 1,
    "trainings": 1,
    "floor": 2,
    "portion": 0.05,
    "batch": 4,
    "bptt": 8,
    "judged": 300,
    "oracle_tokens": 300,
    "sets": 3,
    "windows": 8,
}
TABLES = ("progressive", "precision", "stability", "cost")
RUN = """
import json, sys
from tasks.experiment.cells import Experiment
from tasks.experiment.settings import Settings
work = Experiment(Settings(**json.loads(sys.argv[1])))
for cell in work.cells():
    work.compute(cell)
"""


def words(options: dict[str, Any]) -> list[str]:
    """Return options as the words of a command line."""
    found = []
    for name, value in options.items():
        many = value if isinstance(value, list) else [value]
        found += [f"--{name.replace('_', '-')}", *map(str, many)]
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with parameters, a corpus and a trained model, and a run of which `kill -9` ended the second half."""
    folder = tmp_path_factory.mktemp("experiment")
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    changes = {name: own for name, own in TINY.items() if name != "variants"}
    changes["train"] = {**TINY["train"], "decoder": "untied", "widths": [12, 11], "epochs": 1}
    set_parameters(folder, changes)
    splits = {"train": tokens_of(2000), "valid": tokens_of(700, seed=3), "test": tokens_of(300, seed=4)}
    lines = {split: [[f"w{token}" for token in tokens.tolist()]] for split, tokens in splits.items()}
    corpus = number(lines, 22)
    rows = [pd.DataFrame({"split": s, "position": range(len(t)), "token": t}) for s, t in corpus.tokens.items()]
    write_table(folder / "data/prepare/corpus.parquet", pd.concat(rows, ignore_index=True))
    write_table(folder / "data/prepare/vocabulary.parquet", corpus.vocabulary)
    model = dense(len(corpus.vocabulary), torch.tensor(corpus.tokens["train"], dtype=torch.long))
    write_model(folder / "data/train/model", model)
    killed(folder)
    return folder


def dense(vocabulary, tokens):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build("lstm", vocabulary=vocabulary, embedding=6, widths=(12, 11), decoder="untied", dropout=0.0)
    windows = Windows(tokens, first=0, batch=8, bptt=10)
    for _ in train(model, windows, windows, recipe=recipe(epochs=1), seed=1):
        pass
    return model


def killed(folder):
    """Compute the cells in another process and kill it once two prunings are there."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, json.dumps(OPTIONS)]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list(folder.glob(f"data/experiment/cells/pruning-*/{OUTCOME}"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="module")
def whole(project):
    """The experiment with all its cells; the cells that the killed run had left, and what was computed after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        work = Experiment(Settings(**OPTIONS))
        left = {work.place(cell): cell for cell in work.cells() if work.place(cell).is_dir()}
        times = {place: place.stat().st_mtime_ns for place in left}
        computed = [cell for cell in work.cells() if work.compute(cell)]
        assert {place: place.stat().st_mtime_ns for place in left} == times
        yield work, list(left.values()), computed


@pytest.fixture(scope="module")
def tables(whole, project):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(learned, "CANDIDATES", learned.CANDIDATES[:2])
        return whole[0].tables()


def test_a_killed_run_goes_on_from_its_finished_cells(whole):
    work, left, computed = whole
    assert len(left) >= 6
    assert computed
    assert {*left} | {*computed} == {*work.cells()}
    assert not {*left} & {*computed}


@pytest.mark.usefixtures("here")
def test_a_second_run_computes_nothing(whole, monkeypatch):
    work, _, _ = whole
    again = Experiment(Settings(**OPTIONS))
    monkeypatch.setattr("tasks.experiment.cells.prune_and_train", None)
    assert not any(again.compute(cell) for cell in again.cells())
    assert [again.place(cell) for cell in again.cells()] == [work.place(cell) for cell in work.cells()]


@pytest.mark.usefixtures("whole")
def test_a_cell_that_fails_leaves_nothing_behind(here, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise FloatingPointError("Expected a finite loss, got nan.")

    monkeypatch.setattr("tasks.experiment.cells.prune_and_train", fails)
    work = Experiment(Settings(**{**OPTIONS, "keep": [0.6, 0.5]}))
    cell = Cell("pruning", variant="simple", retain=0.6)
    with pytest.raises(FloatingPointError):
        work.compute(cell)
    assert not work.place(cell).exists()
    assert not list(here.rglob("*.partial"))


@pytest.mark.usefixtures("here", "whole")
@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"portion": 0.5}, {"dense", "pruning"}),
        ({"probes": 9}, {"calibration", "weights", "pruning"}),
        ({"oracle_neurons": 22}, {"oracle", "weights", "joint"}),
        ({"sets": 4}, {"joint"}),
        ({"keep": [0.75]}, set()),
    ],
)
def test_a_cell_is_computed_anew_only_where_something_that_determines_it_changed(change, kinds):
    other = Experiment(Settings(**{**OPTIONS, **change}))
    missing = [cell for cell in other.cells() if not other.place(cell).is_dir()]
    unlearned = [cell for cell in missing if cell.variant != "learned"]
    assert {cell.kind for cell in unlearned} == kinds


def test_no_cell_precedes_what_it_needs_and_none_is_there_twice(whole):
    work, _, _ = whole
    seen = set()
    for cell in work.cells():
        assert set(work._needs(cell)) <= seen
        assert cell not in seen
        seen.add(cell)
    assert len({cell.slug for cell in seen}) == len(seen)


@pytest.mark.usefixtures("here")
def test_the_tables_are_those_of_the_cells_files(whole, tables):
    work, _, _ = whole
    outcomes = [read_outcome(work.place(c) / OUTCOME) for c in work.cells() if c.kind in ("dense", "pruning")]
    plain = compare_pruning_results(outcomes)
    pd.testing.assert_frame_equal(tables["progressive"], plain["progressive"], check_exact=True)
    assert set(tables) == set(TABLES)
    assert len(tables["progressive"]) == 3 * (1 + 2 * len(OPTIONS["variants"]))
    assert tables["cost"].set_index("score")["runs"].to_dict()["hessian"] == 1
    rows = json.loads((work.place(Cell("calibration")) / COST).read_text())
    passes = {row["score"]: (row["forward_passes"], row["backward_passes"]) for row in rows}
    assert (passes["weights"], passes["gradients"]) == ((0, 0), (8, 8))
    assert all(row["seconds"] >= 0 and row["peak_memory"] >= 0 for row in rows)


@pytest.mark.usefixtures("here")
def test_text_that_perplexity_is_judged_on_is_not_text_that_removals_were_measured_on():
    found = inputs.Inputs(Settings(**OPTIONS))
    corpus = read_table(inputs.CORPUS)
    valid = corpus.loc[corpus["split"] == "valid", "token"].to_numpy()
    texts = found.texts(0)
    assert found.cut == 300
    assert sorted(texts.judged.targets[texts.judged.targets >= 0].tolist()) == sorted(valid[300:600].tolist())
    removal = found.removal_text.targets
    assert sorted(removal[removal >= 0].tolist()) == sorted(valid[:300].tolist())
    assert len(found.removal_text) >= 2


@pytest.mark.usefixtures("here")
def test_a_published_checkpoint_and_its_corpus_are_read_in_its_own_vocabulary(tmp_path, monkeypatch):
    path, _ = stacked(tmp_path)
    (tmp_path / "some-vocabulary.txt").write_text("".join(f"{word}\n" for word in ["<eos>", "<unk>", *"abcdefg"]))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split, lines in (("train", 300), ("valid", 80), ("test", 10)):
        (corpus / f"ptb.{split}.txt").write_text("a b z\n" * lines)
    options = Settings(checkpoint=str(path), corpus=str(corpus))
    with pytest.raises(Unexpected, match=r"Expected at least 10 measured neurons in each layer, got 4 in lstm\.0"):
        inputs.Inputs(options)
    monkeypatch.setattr(inputs, "FOLDS", 2)
    found = inputs.Inputs(options)
    assert found.windows("valid", batch=1, bptt=4)[0].targets.flatten().tolist() == [2, 3, 1, 0]
    assert found.dense.widths() == (4, 4)
    assert {each.name for each in found._files} == {
        "some.safetensors", "some-vocabulary.txt", "ptb.train.txt", "ptb.valid.txt", "ptb.test.txt",
    }  # fmt: skip


@pytest.mark.usefixtures("here")
def test_calibration_seeds_read_other_stretches_of_text():
    found = inputs.Inputs(Settings(**OPTIONS))
    one, other = (found.texts(seed).calibration.targets for seed in (0, 1))
    assert sorted(one[one >= 0].tolist()) == sorted(other[other >= 0].tolist())
    assert not torch.equal(one[:50], other[:50])


@pytest.mark.usefixtures("here", "whole")
def test_a_dense_model_of_another_seed_is_trained_and_pruned_with_the_weights_of_the_given_one():
    work = Experiment(Settings(**{**OPTIONS, "trainings": 2, "variants": ["learned"], "keep": [0.5]}))
    cells = [cell for cell in work.cells() if cell.training]
    assert [cell.kind for cell in cells] == ["model", "calibration", "dense", "pruning"]
    assert Cell("weights") in work._needs(cells[-1])
    work.compute(cells[0])
    first, second = work.model(0), work.model(1)
    assert first.widths() == second.widths()
    assert not torch.equal(first.encoder.weight, second.encoder.weight)


@pytest.mark.usefixtures("here")
def test_the_report_holds_every_table_every_plot_and_the_verdict(tables, tmp_path):
    said = verdict(tables)
    files = write_report(tmp_path, tables, said, Settings(**OPTIONS))
    page, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in (PAGE, REPORT))
    assert [path.name for path in files] == [PAGE, REPORT, *(f"{name}.parquet" for name in tables)]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(read_table(tmp_path / f"{name}.parquet"), table)
        assert f"(plots/{name}.svg)" in markdown
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == len(TABLES)
    assert all(b"</svg>" in base64.b64decode(picture) for picture in pictures)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert all(f"- {sentence}" in markdown for sentence in said)
    assert any("does not win" in sentence for sentence in said)
    assert all(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence)) in page for sentence in said)
    perplexity = tables["progressive"].set_index(["variant", "retain", "phase"])["perplexity"]
    assert all(f"{value:.2f}" in page and f"{value:.2f}" in markdown for value in perplexity)


def test_the_command_reports_logs_and_computes_nothing_that_is_there(whole, here):
    home = here / "prefect"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home)}
    environment = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    before = {path: path.stat().st_mtime_ns for path in here.glob("data/experiment/cells/*/*")}
    command = [sys.executable, "-m", "flows.experiment", *words(OPTIONS)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(whole[0].cells())} cells, 0 of them to compute" in done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in here.glob("data/experiment/cells/*/*")} == before
    assert "does not win" in done.stdout
    assert f"MLflow: {2 + len(OPTIONS['variants'])} runs logged" in done.stdout
    assert all((here / f"data/experiment/{name}.parquet").is_file() for name in TABLES)
    with closing(sqlite3.connect(here / "mlflow.db")) as store:
        children = store.execute("SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'").fetchone()
        query = "SELECT value FROM metrics JOIN runs USING (run_uuid) WHERE name = ? AND key = ?"
        (logged,) = store.execute(query, ("learned", "perplexity_finetuned/keep_50")).fetchone()
    assert children == (1 + len(OPTIONS["variants"]),)
    found = read_table(here / "data/experiment/progressive.parquet").set_index(["variant", "retain", "phase"])
    assert logged == pytest.approx(found["perplexity"]["learned", 0.5, "finetuned"])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--kep", "0.5"], "Unknown option '--kep'; known: [.*]. Did you mean '--keep'?"),
        (["--keep", "1.5"], "Expected --keep to be less than 1, got '1.5'."),
        (["--keep", "0.5", "0.5"], r"Expected different values for --keep, got \[0.5, 0.5\]."),
        (["--keep"], r"Expected different values for --keep, got \[\]."),
        (["--variants", "lerned"], "Unknown variant 'lerned'; known: .* Did you mean 'learned'?"),
        (["--repair", "rigde"], "Expected --repair to be .*, got 'rigde'. Did you mean 'ridge'?"),
        (["--checkpoint", "some"], "Expected --checkpoint and --corpus together, got only one of them."),
        (["--checkpoint", "some", "--corpus", "."], "Expected a file at --checkpoint, got none at 'some'."),
        (["--oracle-neurons", "12"], "Expected at least 10 measured neurons in each layer, got 6 in lstm.0; .*"),
        (["--to"], "Argument --to: expected one argument."),
        (
            ["--to", "data"],
            "Expected a new or empty folder, or an earlier experiment as it .*, got data with '.*' in it; .*",
        ),
        (["--to", "params.yaml"], "Expected a folder to write to, got the file params.yaml."),
    ],
)
def test_a_wrong_option_is_one_sentence_before_any_work(capsys, given, sentence):
    assert main(given) == 1
    said = capsys.readouterr()
    assert re.fullmatch(sentence.replace("?", r"\?").replace("[.*]", r"\[.*\]"), said.err.strip()), said.err
    assert said.out == ""


def test_two_experiments_do_not_write_to_one_folder_at_once(here, capsys):
    claim(here / "new", EXPERIMENT, growing=CELLS)
    with alone(here / "new"):
        assert main([*words(OPTIONS), "--to", "new"]) == 1
    assert "Expected one command at a time to write to new, got another" in capsys.readouterr().err


def test_without_the_pipelines_model_one_sentence_says_what_to_run(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    expected = (
        "Expected the pipeline's data/prepare/corpus.parquet, got none; run `dvc repro train`, or give --checkpoint."
    )
    assert capsys.readouterr().err == f"{expected}\n"


def test_quick_options_are_valid_and_an_option_of_ones_own_counts_more():
    assert settings_from({}, quick=True).model_dump(include=set(QUICK)) == dict(QUICK)
    assert settings_from({"keep": ["0.4"]}, quick=True).keep == [0.4]
    with pytest.raises(Unexpected, match="Unknown option '--nothing'"):
        settings_from({"nothing": 1}, quick=False)


def test_the_environment_lets_idle_threads_sleep():
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
