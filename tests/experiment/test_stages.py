"""The experiment as stages: computed once, killed and gone on with, to tables, a report and runs in MLflow."""

import base64
import html
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from flows.stages import read_stages
from pruning.core.progress import silently
from pruning.core.workers import Spread
from pruning.experiment.judging import compare_pruning_results
from pruning.experiment.trials import Selection, prune_and_train
from pruning.experiment.verdict import verdict
from tasks.common.job import Job
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.experiment import calibrate, costs, joint, prepare, prune, report, settings
from tasks.experiment.inputs import DividedText, read_calibration, read_dense
from tasks.experiment.tracking import TABLES
from tasks.settings.parameters import checked as checked_parameters
from tests.flow_project import prefect_home
from tests.projects import (
    ROOT,
    TINY_EXPERIMENT,
    copy,
    digests,
    kill,
    run,
    sent,
    set_parameters,
    stage,
    started,
    tiny_project,
    warmed,
)
from tests.tasks.test_published import stacked

REPRO = ["dvc", "repro", "experiment/dvc.yaml"]
CHOICES = TINY_EXPERIMENT["choices"]
UNTIED = {"decoder": "untied", "widths": [12, 11], "epochs": 1}
WORK = {"experiment/dvc.yaml:prune@0.75", "experiment/dvc.yaml:prune_text@0"}
# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A tiny project whose experiment `kill -9` ended after some prunings of a stage."""
    folder = tiny_project(tmp_path_factory.mktemp("experiment") / "project", train=UNTIED)
    process = started(REPRO, folder)
    deadline = time.monotonic() + 600
    while len(list(folder.glob("data/experiment/.partial/prune_text@0-*/*.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill(process, folder)
    stage(folder, "check")
    return folder


@pytest.fixture(scope="module")
def finished(killed, tmp_path_factory):
    """The same project after the same command went on; beside it, what that command said and what it had found."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    copy(killed, folder)
    return folder, run(REPRO, folder).stdout


@pytest.fixture
def here(finished, monkeypatch):
    monkeypatch.chdir(finished[0])
    return finished[0]


@pytest.fixture
def touched(finished, tmp_path):
    copy(finished[0], tmp_path / "project")
    return tmp_path / "project"


def job(name, variant=None):
    """Return the job of a stage of the project in the current folder."""
    values = read_yaml(Path("experiment/params.yaml"))
    parameters = checked_parameters(read_yaml(Path("params.yaml")))
    return Job(read_stage(name, variant, values, "experiment"), parameters, silently, settings.checked(values))


def stale(folder):
    return set(json.loads(run(["dvc", "status", "--json", "experiment/dvc.yaml"], folder).stdout))


def test_a_killed_experiment_goes_on_from_its_finished_stages_and_prunings(killed, finished):
    folder, said = finished
    done = {path.parts[-3] for path in killed.glob("data/experiment/*/text0/timing.parquet")}
    assert "calibrate" in done
    assert "Stage 'experiment/dvc.yaml:calibrate_text@0' didn't change, skipping" in said
    assert "Running stage 'experiment/dvc.yaml:prune_text@0'" in said
    assert not (folder / "data/experiment/.partial").exists()
    before, after = digests(killed), digests(folder)
    assert {path: after[path] for path in before if "partial" not in path} == {
        path: digest for path, digest in before.items() if "partial" not in path
    }


def test_prunings_that_a_killed_stage_left_are_not_computed_again(killed, finished, tmp_path, monkeypatch):
    copy(killed, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    computed = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        computed.append(args[3].variant)
        return prune_and_train(*args, **kwargs)

    monkeypatch.setattr(prune, "prune_and_train", counted)
    left = {path.stem for path in Path("data/experiment/.partial").glob("prune_text@0-*/*.json")}
    assert left >= {"dense", "random"}
    own = job("prune_text", "0")
    prune.run(own)
    assert computed == [name for name in CHOICES if name not in left]
    path = "data/experiment/prune/text0/outcomes.json"
    assert Path(path).read_bytes() == (finished[0] / path).read_bytes()


@pytest.mark.parametrize(("name", "variant", "output"), [("prune_text", "0", "outcomes"), ("joint", None, "joint")])
def test_what_others_compute_is_the_same_bytes(touched, monkeypatch, name, variant, output):
    monkeypatch.chdir(touched)
    shared = replace(job(name, variant), map=Spread(over=sent, workers=2))
    (path,) = (path for stem, path in shared.stage.outputs.items() if stem.startswith(output))
    before = path.read_bytes()
    {"prune_text": prune, "joint": joint}[name].run(shared)
    assert path.read_bytes() == before


def test_a_second_run_computes_nothing(here):
    assert "Data and pipelines are up to date." in run(REPRO, here).stdout


def test_the_pipeline_does_not_run_the_experiment_and_the_experiment_runs_what_it_needs_of_the_pipeline(here):
    assert not [address for address in read_stages(here, None) if "experiment" in address]
    needed = read_stages(here, ["experiment/dvc.yaml"])
    assert {address for address, stage in needed.items() if not stage.folder} == {"prepare", "train"}
    assert "train" in needed["experiment/dvc.yaml:prepare"].needs
    assert len(needed) == 10


def test_a_half_written_lock_file_of_the_experiment_is_mended_and_every_result_restored(touched):
    before, lock = digests(touched), touched / "experiment/dvc.lock"
    whole = lock.read_bytes()
    stage(touched, "check")
    lock.write_bytes(whole[:-300])
    assert "experiment/dvc.lock: " in stage(touched, "check").stdout
    assert "Running stage" not in run(REPRO, touched).stdout
    assert (digests(touched), lock.read_bytes()) == (before, whole)


def test_a_stage_that_fails_leaves_nothing_behind(touched, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise FloatingPointError("Expected a finite loss, got nan.")

    monkeypatch.chdir(touched)
    monkeypatch.setattr(prune, "prune_and_train", fails)
    before = digests(touched)
    with pytest.raises(FloatingPointError):
        prune.run(job("prune", "0.75"))
    assert digests(touched) == before
    assert not list(touched.rglob("*partial*"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"treatment": {"portion": 0.5}}, WORK),
        ({"effort": {"probes": 9}}, {"experiment/dvc.yaml:calibrate_text@0"}),
        ({"removal": {"neurons": 22}}, {f"experiment/dvc.yaml:{name}" for name in ("prepare", "oracle")}),
        ({"joint": {"sets": 4}}, {"experiment/dvc.yaml:joint"}),
        ({"keep": []}, set()),
        ({"keep": [0.75, 0.6]}, {"experiment/dvc.yaml:prune@0.6"}),
    ],
)
def test_a_stage_is_computed_anew_only_where_something_that_determines_it_changed(touched, change, expected):
    set_parameters(touched, change, replace=("keep",), within="experiment")
    assert stale(touched) == {*expected, "experiment/dvc.yaml:report"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("pruning/experiment/measuring.py", {"calibrate_text@0"}),
        ("pruning/experiment/verdict.py", {"report"}),
        ("pruning/experiment/trials.py", {"prune@0.75", "prune_text@0"}),
    ],
)
def test_an_edited_module_makes_stale_only_what_it_computes(touched, module, expected):
    with (touched / module).open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert {address.partition(":")[2] for address in stale(touched)} - {"report"} == expected - {"report"}


def test_the_tables_are_those_of_the_outcomes_and_an_outcome_is_the_librarys(here):
    outcomes = list(report._outcomes(job("report"), [0]))
    tables = {name: read_table(here / f"data/experiment/report/{name}.parquet") for name in TABLES}
    plain = compare_pruning_results(outcomes)
    pd.testing.assert_frame_equal(tables["progressive"], plain["progressive"], check_exact=True)
    assert len(tables["progressive"]) == 3 * (1 + 2 * len(CHOICES))
    own = job("prune", "0.75")
    calibration = read_calibration(own.input("calibrate/signals"), 0)
    weights = json.loads(own.input("fuse/weights").read_text())
    texts, treated = prune.texts_of(own), prune.treatment(own)
    for name in ("simple", "learned"):
        found = prune_and_train(
            read_dense(own), texts, calibration, Selection(variant=name, retain=0.75, weights=weights),
            treatment=treated, seed=1,
        )  # fmt: skip
        (same,) = (result for result in outcomes if (result.variant, result.retain) == (name, 0.75))
        assert prune.plain(same) == prune.plain(found)


def test_the_cost_of_each_signal_is_measured_with_its_passes(here):
    rows = read_table(here / "data/experiment/calibrate/text0/cost.parquet").set_index("score")
    assert rows.loc["weights", ["forward_passes", "backward_passes"]].tolist() == [0, 0]
    assert rows.loc["gradients", ["forward_passes", "backward_passes"]].tolist() == [8, 8]
    assert (rows[["seconds", "peak_memory"]] >= 0).all(axis=None)
    cost = read_table(here / "data/experiment/report/cost.parquet").set_index("score")
    assert cost["runs"].to_dict() == dict.fromkeys([*rows.index, "oracle"], 1)


def targets_of(windows):
    return torch.cat([window.targets for window in windows])


@pytest.mark.usefixtures("here")
def test_text_that_perplexity_is_judged_on_is_not_text_that_removals_were_measured_on():
    text = DividedText(job("prune", "0.75"))
    corpus = read_table(Path("data/prepare/corpus.parquet"))
    valid = corpus.loc[corpus["split"] == "valid", "token"].to_numpy()
    judged, removal = targets_of(text.judged), targets_of(text.removal)
    assert text.cut == min(200, len(valid) // 2)
    assert sorted(judged[judged >= 0].tolist()) == sorted(valid[text.cut : text.cut + 160].tolist())
    assert sorted(removal[removal >= 0].tolist()) == sorted(valid[: text.cut].tolist())
    assert len(text.removal) >= 2


@pytest.mark.usefixtures("here")
def test_calibration_seeds_read_other_stretches_of_text():
    text = DividedText(job("calibrate_text", "0"))
    one, other = (targets_of(text.calibration(seed)) for seed in (0, 1))
    assert sorted(one[one >= 0].tolist()) == sorted(other[other >= 0].tolist())
    assert not torch.equal(one[:50], other[:50])


def test_a_published_checkpoint_and_its_corpus_are_read_in_its_own_vocabulary(touched, monkeypatch):
    monkeypatch.chdir(touched)
    path, _ = stacked(touched)
    words = ["<eos>", "<unk>", *"abcdefg"]
    Path("words.txt").write_text("".join(f"{word}\n" for word in words))
    Path("corpus").mkdir()
    for split, lines in (("train", 300), ("valid", 80), ("test", 10)):
        Path(f"corpus/ptb.{split}.txt").write_text("a b z\n" * lines)
    source = {"model": path.name, "vocabulary": "words.txt", "corpus": "corpus"}
    set_parameters(touched, {"source": source}, within="experiment")
    own = job("prepare")
    with pytest.raises(Unexpected, match=r"Expected at least 10 measured neurons in each layer, got 4 in lstm\.0"):
        prepare.run(own)
    monkeypatch.setattr(prepare, "FOLDS", 2)
    prepare.run(own)
    calibrated = job("calibrate_text", "0")
    assert read_dense(calibrated).widths() == (4, 4)
    assert DividedText(calibrated).valid[:5].tolist() == [2, 3, 1, 0, 2]
    vocabulary = read_table(own.output("vocabulary"))
    assert vocabulary["text"].tolist() == words
    assert vocabulary["count"].tolist() == [300, 300, 300, 300, 0, 0, 0, 0, 0]
    assert {*own.stage.dependencies} >= {Path(path.name), Path("words.txt"), Path("corpus")}


def test_a_dense_model_of_another_seed_is_trained_measured_and_pruned_with_the_weights_of_the_given_one(touched):
    set_parameters(touched, {"models": [1], "choices": ["learned"]}, replace=("models", "choices"), within="experiment")
    for words in (["train", "1"], ["calibrate_model", "1"], ["prune_model", "1"]):
        stage(touched, f"experiment.{words[0]}", words[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(touched)
        given, other = job("prune", "0.75"), job("prune_model", "1")
        assert given.input("fuse/weights") == other.input("fuse/weights")
        first, second = read_dense(given), read_dense(other)
        assert first.widths() == second.widths()
        assert not torch.equal(first.encoder.weight, second.encoder.weight)
    outcomes = json.loads((touched / "data/experiment/prune/model1/outcomes.json").read_text())
    assert [(found["variant"], found["training"], found["retain"]) for found in outcomes] == [
        ("dense", 1, 1.0),
        ("learned", 1, 0.5),
    ]


def test_a_signal_that_cannot_be_measured_ends_the_stage_and_leaves_nothing(touched, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("Expected a tanh, got a guess.")

    monkeypatch.chdir(touched)
    monkeypatch.setattr(calibrate, "measure", fails)
    before = digests(touched)
    with pytest.raises(Unexpected, match="Expected activations to be measured, got exit code 1; see above"):
        calibrate.run(job("calibrate_text", "0"))
    assert digests(touched) == before
    assert not list(touched.rglob("*partial*"))


@pytest.mark.parametrize(("kind", "same"), [("cpu", False), ("cuda", True)])
def test_costs_are_measured_in_processes_of_their_own_where_a_device_survives_a_fork(monkeypatch, kind, same):
    monkeypatch.setattr(costs, "device", lambda: torch.device(kind))
    found = costs.measured_apart(["one", "two"], lambda: lambda _: {"seconds": float(os.getpid())})
    assert ((found["seconds"] == os.getpid()) == same).all()
    assert found["seconds"].nunique() == (1 if same else 2)


def test_the_report_holds_every_table_every_plot_and_the_verdict(here):
    folder = here / "data/experiment/report"
    tables = {name: read_table(folder / f"{name}.parquet") for name in TABLES}
    said = verdict(tables)
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "summary.md"))
    assert all(f"(plots/{name}.svg)" in markdown for name in TABLES)
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == len(TABLES)
    assert all(b"</svg>" in base64.b64decode(picture) for picture in pictures)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert 1 <= len(said) <= 6
    assert all(f"{number}. {sentence}" in markdown for number, sentence in enumerate(said, 1))
    assert all(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(sentence)) in page for sentence in said)
    for row in tables["progressive"].to_dict("records"):
        shown = f"{row['perplexity']:.1f} ± {row['perplexity'] * row['loss_error']:.1f}"
        assert shown in page
        assert shown in markdown
    assert page.count('<div class="wide"><table>') == markdown.count("\n### ")
    assert "- `treatment.portion` 0.05" in markdown


def test_without_sets_the_report_leaves_joint_removal_out(touched):
    set_parameters(touched, {"joint": {"sets": 0}}, within="experiment")
    stage(touched, "experiment.joint")
    stage(touched, "experiment.report")
    assert read_table(touched / "data/experiment/report/precision.parquet")["joint"].isna().all()


def test_the_flow_finds_all_up_to_date_and_logs_one_parent_and_a_child_for_each_choice(touched, tmp_path_factory):
    environment = {**warmed(), "PREFECT_HOME": str(prefect_home(tmp_path_factory))}
    environment = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "flows.experiment"]
    before = digests(touched)
    done = subprocess.run(command, cwd=touched, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 up to date" in done.stdout
    assert digests(touched) == before
    assert f"MLflow: {1 + 1 + len(CHOICES)} runs logged" in done.stdout + done.stderr
    with closing(sqlite3.connect(touched / "mlflow.db")) as store:
        children = store.execute("SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'").fetchone()
        query = "SELECT value FROM metrics JOIN runs USING (run_uuid) WHERE name = ? AND key = ?"
        (logged,) = store.execute(query, ("learned", "perplexity_finetuned/keep_50")).fetchone()
    assert children == (1 + len(CHOICES),)
    tables = read_table(touched / "data/experiment/report/progressive.parquet")
    found = tables.set_index(["variant", "retain", "phase"])["perplexity"]
    assert logged == pytest.approx(found["learned", 0.5, "finetuned"], rel=1e-4)  # MLflow is given five digits


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kep": [0.5]}, "Unknown parameter 'kep' in experiment/params.yaml; known here: [.*]. Did you mean 'keep'?"),
        ({"keep": [1.5]}, "Expected keep.0 in experiment/params.yaml to be a number above 0 and below 1, got 1.5."),
        ({"keep": [0.7, 0.7]}, r"Expected different values for keep, got \[0.7, 0.7\] (experiment/params.yaml)."),
        ({"keep": [0.5]}, r"Expected keep to hold other shares than middle (0.5), got \[0.5\] .*"),
        ({"choices": []}, "Expected choices in experiment/params.yaml to be a list of one or more entries, .*"),
        ({"choices": ["lerned"]}, "Expected choices.0 in experiment/params.yaml .* Did you mean 'learned'?"),
        ({"texts": [1]}, "Expected 0 among texts, .*"),
        ({"texts": [0, 7]}, "Expected texts.1 in experiment/params.yaml to be a whole number from 0 to 6, got 7."),
        ({"treatment": {"repair": "rigde"}}, "Expected treatment.repair .*, got 'rigde'. Did you mean 'ridge'?"),
        ({"source": {"model": "some.safetensors"}, "models": [1]}, "Expected models: .* beside a published model.*"),
    ],
)
def test_a_wrong_value_is_one_sentence(change, sentence):
    values = read_yaml(ROOT / "experiment/params.yaml")
    for name, value in change.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    pattern = sentence.replace("?", r"\?").replace("(", r"\(").replace(")", r"\)").replace("[.*]", r"\[.*\]")
    with pytest.raises(Unexpected) as refused:
        settings.checked(values)
    assert re.fullmatch(pattern, str(refused.value)), str(refused.value)


def test_a_wrong_value_is_told_before_any_work(touched):
    set_parameters(touched, {"keep": [1.5]}, replace=("keep",), within="experiment")
    said = stage(touched, "check", fails=True).stderr
    assert said == "Expected keep.0 in experiment/params.yaml to be a number above 0 and below 1, got 1.5.\n"


@pytest.mark.usefixtures("here")
def test_a_sample_too_small_to_learn_from_is_refused_before_any_work():
    own = job("prepare")
    values = {**read_yaml(Path("experiment/params.yaml")), "removal": {"neurons": 12}}
    few = Job(own.stage, own.parameters, silently, settings.checked(values))
    with pytest.raises(Unexpected, match=r"got 6 in lstm\.0; raise removal\.neurons in experiment/params\.yaml"):
        prepare.run(few)


def test_the_quick_look_is_valid_and_names_only_parameters_that_there_are():
    yaml = YAML(typ="safe")
    values = read_yaml(ROOT / "experiment/params.yaml")
    for line in (ROOT / "experiment/quick").read_text().splitlines():
        name, _, value = line.removeprefix("-S experiment/params.yaml:").partition("=")
        *sections, last = name.split(".")
        place = values
        for section in sections:
            place = place[section]
        assert last in place
        place[last] = yaml.load(value)
    assert settings.checked(values).texts == [0, 1]


def test_the_environment_lets_idle_threads_sleep():
    said = run([sys.executable, "-c", "import tasks.__main__, os; print(os.environ['OMP_WAIT_POLICY'])"], ROOT).stdout
    assert said == "PASSIVE\n"
