"""The stages on files: alone, killed, with wrong files and wrong values, and what makes which of them stale."""

import functools
import json
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grimp
import numpy as np
import pytest
from ruamel.yaml import YAML

from pruning.ablation.intervention import Intervention, intervention
from pruning.core.progress import silently
from pruning.core.workers import Spread
from pruning.models import build
from pruning.signals.schemas import BESIDE, SIGNALS
from tasks.__main__ import main
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.pipeline import Stage, read_stage
from tasks.common.tables import read_table, write_table
from tasks.common.windows import calibration_batches, held_out_batches
from tasks.settings.parameters import checked
from tests.projects import (
    ENVIRONMENT,
    ROOT,
    copy,
    digests,
    kill,
    run,
    sent,
    set_parameters,
    stage,
    started,
    tiny_project,
    wait_for_none,
)
from tests.schemas import TABLES

YAML_FILE = YAML(typ="safe")
STAGES = [name for name in YAML_FILE.load(ROOT / "dvc.yaml")["stages"] if name != "track"]  # which writes nothing
WITH_VARIANTS = ("prune", "reconstruct", "finetune", "evaluate")
WITHOUT_VARIANTS = [name for name in STAGES if name not in WITH_VARIANTS]
PRUNED = {"prune@dense", "prune@enhanced"}
REPAIRED = {"reconstruct@dense", "reconstruct@enhanced", "path"}
"""Stages that refit readers, from the covariances and, to imitate, from the text."""
PAIRS = [(name, None) for name in WITHOUT_VARIANTS] + [(name, "enhanced") for name in WITH_VARIANTS]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_project(tmp_path_factory.mktemp("finished") / "project")
    run(["dvc", "repro"], folder)
    return folder


@pytest.fixture
def touched(finished: Path, tmp_path: Path) -> Path:
    copy(finished, tmp_path / "project")
    return tmp_path / "project"


def described(folder: Path, name: str, variant: str | None, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(folder)
    return read_stage(name, variant, YAML_FILE.load(Path("params.yaml")))


@functools.cache
def refusing() -> list[Path]:
    """Return the modules that what refuses wrong values imports."""
    modules = grimp.build_graph("pruning", "tasks").find_upstream_modules("tasks.settings.parameters")
    return [path for module in modules if (path := Path(module.replace(".", "/") + ".py")) and (ROOT / path).is_file()]


def alone(finished: Path, folder: Path, found: Stage) -> Path:
    """Copy only what dvc.yaml says the stage depends on, and what changes no result."""
    inits = [path.relative_to(finished) for path in finished.glob("[pt]*/**/__init__.py*")]
    inits += [Path("tasks/settings"), Path("tasks/shown"), Path("tasks/__main__.py")]
    for path in (*found.dependencies, *inits, *refusing(), Path("dvc.yaml"), Path("params.yaml")):
        copy(finished / path, folder / path)
    return folder


def sentence_of(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command refuses, as `python -m tasks` runs it, here in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def stale(folder: Path) -> set[str]:
    status = json.loads(run(["dvc", "status", "--json", "dvc.yaml"], folder).stdout)
    return set(status)


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_a_stage_needs_only_its_declared_inputs_and_repeats_its_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variant: str | None
) -> None:
    found = described(finished, name, variant, monkeypatch)
    folder = alone(finished, tmp_path / "alone", found)
    before = digests(folder)
    stage(folder, name, *([variant] if variant else []))
    made = {path: digest for path, digest in digests(folder).items() if path not in before}
    expected = digests(finished)
    assert {path: expected[path] for path in made} == made
    assert all((folder / path).exists() for path in found.outputs.values())
    assert not list(folder.rglob("*partial*")), "something half-written was left behind"


def test_stages_whose_parts_go_to_workers_write_the_same_bytes(touched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(touched)
    monkeypatch.chdir(touched)
    monkeypatch.setattr("tasks.__main__.workers", lambda _: nullcontext(Spread(over=sent, workers=3)))
    signals = ("activations", "gradients", "hessian", "criteria", "surgeon", "intervention")
    for words in (*((name,) for name in signals), ("oracle",), ("path",), ("evaluate", "enhanced")):
        for path in described(touched, words[0], words[1] if len(words) > 1 else None, monkeypatch).outputs.values():
            path.unlink()
        assert main([*words]) == 0
    assert digests(touched) == before


def test_labels_held_out_from_training_are_weighed_beside_those_of_the_text_that_was_read(
    touched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touched)
    set_parameters(touched, {"corpus": {"calibration": 0.25}})
    for name in ("prepare", "train", "intervention"):
        assert main([name]) == 0
    found = described(touched, "intervention", None, monkeypatch)
    job = Job(found, checked(YAML_FILE.load(Path("params.yaml"))), silently)
    model, settings = read_model(job.input("train/model")).decoupled(), Intervention(**job.settings("intervention"))
    read, held_out = calibration_batches(job), held_out_batches(job)
    written = read_table(job.output("intervention"))
    beside, without = (intervention(model, held_out, held_out, settings, trained=text) for text in (read, None))
    assert np.allclose(written["importance"], beside["importance"])
    assert not np.allclose(written["importance"], without["importance"])


def test_pictures_of_all_and_of_each_variant_stand_beside_the_comparison(finished: Path) -> None:
    shared = {"training", "finetuning", "retention", "removal", "correlations", "cooperation"}
    of_variants = {f"importance-{variant}" for variant in ("dense", "enhanced")}
    plots = list((finished / "data/compare/plots").iterdir())
    assert {path.name for path in plots} == {f"{name}.png" for name in shared | of_variants}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


def test_a_neurons_card_says_what_the_tables_say_and_is_written_as_a_picture(finished: Path, tmp_path: Path) -> None:
    before = digests(finished)
    picture = tmp_path / "card.svg"
    said = stage(finished, "neuron", "lstm.0", "3", "--picture", str(picture), "--json").stdout
    found = json.loads(said)
    kept = read_table(finished / "data/prune/enhanced/retention.parquet").set_index(["layer", "neuron"])
    assert found["kept"]["enhanced"] == {
        "kept": bool(kept["kept"]["lstm.0", 3]),
        "rank": int(kept["rank"]["lstm.0", 3]),
    }
    scores = {row["signal"]: row for row in found["scores"]}
    importance = read_table(finished / "data/fuse/importance.parquet").set_index(["layer", "neuron"])
    assert scores["fused"]["importance"] == importance["fused"]["lstm.0", 3]
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    assert "kept by: " in stage(finished, "neuron", "0", "3").stdout
    for words, sentence in (
        (("lstm.0", "99"), "Expected a neuron of lstm.0 from 0 to 9, got 99.\n"),
        (("lstm.7", "0"), "Unknown layer 'lstm.7'; known: ['lstm.0', 'lstm.1'].\n"),
        (
            ("0", "0", "--picture", "card.gif"),
            "Expected a file that ends in .png or .svg for --picture, got 'card.gif'.\n",
        ),
    ):
        assert stage(finished, "neuron", *words, fails=True).stderr.endswith(sentence)
    assert digests(finished) == before


def test_a_second_repro_does_nothing(finished: Path) -> None:
    assert "Data and pipelines are up to date." in run(["dvc", "repro"], finished).stdout


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prune": {"retain": 0.7}}, {*PRUNED, *REPAIRED}),
        ({"hessian": {"probes": 11}}, {"hessian"}),
        ({"reconstruct": {"repair": "mean"}}, REPAIRED),
        ({"finetune": {"epochs": 2}}, {"oracle", "finetune@dense", "finetune@enhanced"}),
        (
            {"calibration": {"batch": 5}},
            {"hessian", "activations", "gradients", *BESIDE, "criteria", "oracle", "fuse", *PRUNED, *REPAIRED},
        ),
    ],
)
def test_a_changed_value_makes_stale_the_stages_that_read_it(
    touched: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    set_parameters(touched, changes)
    assert stale(touched) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "pruning/signals/jackknife.py",
            {*SIGNALS, *BESIDE, "criteria", "oracle", "fuse", "compare", *REPAIRED},
        ),
        ("pruning/fusion/fused.py", {"fuse"}),
        ("pruning/selection/retention.py", {"compare", *PRUNED, *REPAIRED}),
        ("pruning/pictures/importance.py", {"compare"}),
        ("tasks/stages/hessian.py", {"hessian"}),
        ("tasks/stages/plots.py", {"compare"}),
    ],
)
def test_an_edited_module_makes_stale_the_stages_that_need_its_room(
    touched: Path, module: str, expected: set[str]
) -> None:
    with (touched / module).open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert stale(touched) == expected


def test_what_only_refuses_or_is_shown_makes_nothing_stale(touched: Path) -> None:
    for module in (
        "tasks/settings/sections.py",
        "tasks/settings/signals.py",
        "tasks/shown/console.py",
        "tasks/shown/wording.py",
        "tasks/__main__.py",
    ):
        with (touched / module).open("a", encoding="utf-8") as file:
            file.write("# edited\n")
    assert stale(touched) == set()


def test_an_edited_variant_leaves_the_path_and_the_other_variants_alone(touched: Path) -> None:
    variants = {"dense": {"by": "fused", "retain": 1.0}, "enhanced": {"by": "fused", "retain": 0.6}}
    set_parameters(touched, {"variants": variants}, replace=("variants",))
    assert stale(touched) == {"prune@enhanced", "reconstruct@enhanced", "timing", "compare"}


def test_a_model_of_ones_own_needs_no_corpus(touched: Path) -> None:
    (touched / "own/example.py").write_text("def model():\n    return None\n")
    set_parameters(touched, {"model": {"source": "own.example:model"}, "reconstruct": {"repair": "ridge"}})
    for path in (touched / "text").iterdir():
        path.unlink()
    stage(touched, "prepare")
    stage(touched, "sotu")
    assert read_table(touched / "data/prepare/corpus.parquet").empty
    assert read_table(touched / "data/prepare/vocabulary.parquet").empty
    assert list((touched / "data/sotu/speeches").iterdir()) == []


def test_fewer_neurons_reach_every_stage_after_the_decision(touched: Path) -> None:
    before = digests(touched)
    set_parameters(touched, {"prune": {"retain": 0.3}})
    run(["dvc", "repro"], touched)
    changed = {path.split("/")[1] for path, digest in digests(touched).items() if before[path] != digest}
    assert changed == {"prune", "reconstruct", "finetune", "evaluate", "compare"}


def test_a_budget_is_kept_by_every_variant_that_names_no_share_of_its_own(touched: Path) -> None:
    set_parameters(touched, {"prune": {"budget": {"kind": "multiply_adds", "value": 1400}}})
    sizes = {}
    for variant in ("dense", "enhanced"):
        stage(touched, "prune", variant)
        sizes[variant] = build(
            **json.loads((touched / f"data/prune/{variant}/model/config.json").read_text())
        ).multiply_adds()
    assert sizes["enhanced"] <= 1400 < sizes["dense"]
    assert sizes["enhanced"] > 1200


def test_a_budget_that_cannot_be_met_says_what_is_possible(touched: Path) -> None:
    set_parameters(touched, {"prune": {"budget": {"kind": "parameters", "value": 10}}})
    said = stage(touched, "prune", "enhanced", fails=True).stderr
    assert said.startswith("Expected a budget of at least ")
    assert said.count("\n") == 1


def test_latency_is_a_budget_that_is_measured(touched: Path) -> None:
    measured = {"kind": "latency", "value": 10.0, "batch": 1, "repeats": 10, "points": 2}
    set_parameters(touched, {"prune": {"budget": measured}})
    assert "Latency is measured to within" in stage(touched, "prune", "enhanced").stdout


def test_weights_that_are_kept_are_applied_and_make_the_fusion_stale_when_they_change(touched: Path) -> None:
    weights = json.loads((touched / "data/fuse/weights.json").read_text(encoding="utf-8"))
    weights["shares"] = {"all": {"gradients": 1.0}}
    (touched / "learned/kept.json").write_text(json.dumps(weights), encoding="utf-8")
    assert stale(touched) == {"fuse"}
    set_parameters(touched, {"fuse": {"weights": "learned/kept.json"}})
    stage(touched, "fuse")
    assert (
        json.loads((touched / "data/fuse/weights.json").read_text(encoding="utf-8"))["shares"]["all"]["gradients"] == 1
    )
    (touched / "learned/kept.json").write_text("[", encoding="utf-8")
    assert "in learned/kept.json, got something else" in stage(touched, "fuse", fails=True).stderr


def test_a_fusion_calibrated_by_removal_is_ranked_over_all_layers(touched: Path) -> None:
    set_parameters(touched, {"fuse": {"calibration": "removal", "batches": 3}, "prune": {"scope": "absolute"}})
    before = digests(touched)["data/fuse/importance.parquet"]
    stage(touched, "fuse")
    stage(touched, "prune", "enhanced")
    assert digests(touched)["data/fuse/importance.parquet"] != before


def test_learned_fusion_is_fitted_to_measured_removals_of_enough_neurons(touched: Path) -> None:
    signals = ["weights", "gradients", "gate_fisher"]
    set_parameters(touched, {"fuse": {"strategy": "learned", "signals": signals, "folds": 3}})
    said = stage(touched, "fuse", fails=True).stderr
    assert said == "Expected at least 6 measured neurons in lstm.0 for 3 folds, got 3.\n"
    set_parameters(touched, {"oracle": {"neurons": "all"}})
    stage(touched, "oracle")
    stage(touched, "fuse")
    report = read_table(touched / "data/fuse/fusion.parquet")
    assert set(report["signal"]) == set(signals)
    assert set(report.loc[report["layer"] == "all", "measured"]) == {18}
    assert report["held_out"].between(-1, 1).all()


def test_a_pipeline_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(
    finished: Path, tmp_path: Path
) -> None:
    folder = tiny_project(tmp_path / "project")
    command = ["dvc", "repro", "fuse"]  # what comes after it no kill would meet
    for patience in (1.0, 2.5, 4.0):
        process = started(command, folder)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            kill(process, folder)
        stage(folder, "check")
    run(command, folder)
    made, whole = digests(folder), digests(finished)
    assert "data/fuse/importance.parquet" in made
    assert made == {path: whole[path] for path in made}


@pytest.mark.parametrize("size", [0, 5, 300, 1500])
def test_a_half_written_lock_file_is_mended_and_every_result_restored(touched: Path, size: int) -> None:
    before, lock = digests(touched), touched / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:size])
    stage(touched, "check")
    said = run(["dvc", "repro"], touched).stdout
    assert "Running stage" not in said
    assert digests(touched) == before


def test_a_lock_file_that_lost_its_last_hash_reruns_that_stage_to_the_same_bytes(touched: Path) -> None:
    before, lock = digests(touched), touched / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:-30])
    run(["dvc", "repro"], touched)
    assert digests(touched) == before
    assert "Data and pipelines are up to date." in run(["dvc", "repro"], touched).stdout


def test_a_whole_lock_file_is_left_alone(touched: Path) -> None:
    before = (touched / "dvc.lock").read_bytes()
    assert "half-written" not in stage(touched, "check").stdout
    assert (touched / "dvc.lock").read_bytes() == before


def test_training_killed_after_an_epoch_goes_on_from_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = alone(finished, tmp_path / "alone", described(finished, "train", None, monkeypatch))
    set_parameters(folder, {"train": {"epochs": 12, "patience": 12}})
    copy(folder, tmp_path / "undisturbed")
    process = started(["python", "-m", "tasks", "train"], folder)
    while not list((folder / "data").glob(".partial/train-*/tensors.safetensors")):
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.01)
    kill(process, folder)
    assert not (folder / "data/train/model").exists()
    assert "going on after" in stage(folder, "train").stdout
    stage(tmp_path / "undisturbed", "train")
    assert digests(folder) == digests(tmp_path / "undisturbed")
    assert not (folder / "data/.partial").exists()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_dies_with_the_dvc_that_started_it(touched: Path, shell: str) -> None:
    set_parameters(touched, {"train": {"epochs": 500, "patience": 500}})
    process = subprocess.Popen(
        ["dvc", "repro", "--single-item", "train"], cwd=touched, env={**ENVIRONMENT, "SHELL": shell}
    )
    while not list(touched.glob("data/.partial/train-*/tensors.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_for_none(touched)


def test_a_swapped_table_is_refused_by_name(touched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(touched / "data/weights/weights.parquet", touched / "data/gradients/gradients.parquet")
    said = sentence_of(touched, ["fuse"], capsys)
    assert said == "Expected the table 'gradients' in data/gradients/gradients.parquet, got 'weights'.\n"


def test_a_file_that_is_no_table_is_refused(touched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (touched / "data/weights/weights.parquet").write_text("no table")
    assert "Expected a Parquet file at data/weights/weights.parquet, got a damaged one or" in sentence_of(
        touched, ["fuse"], capsys
    )


def test_a_damaged_model_is_refused(touched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (touched / "data/train/model/model.safetensors").write_bytes(b"damaged")
    assert "Expected weights in data/train/model/model.safetensors, got a damaged" in sentence_of(
        touched, ["weights"], capsys
    )


def test_a_missing_input_is_named(touched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (touched / "data/weights/weights.parquet").unlink()
    assert "Expected the table data/weights/weights.parquet" in sentence_of(touched, ["fuse"], capsys)


def test_a_failed_stage_leaves_the_earlier_result_whole(touched: Path) -> None:
    before = digests(touched)
    (touched / "data/weights/weights.parquet").write_text("no table")
    stage(touched, "fuse", fails=True)
    assert digests(touched)["data/fuse/importance.parquet"] == before["data/fuse/importance.parquet"]


def test_the_report_shows_every_variant_and_where_to_look(finished: Path) -> None:
    said = stage(finished, "report").stdout
    assert all(word in said for word in ("dense", "enhanced", "make mlflow", "make prefect", "dvc metrics"))
    assert "nJ/token" not in said


def test_the_report_gives_energy_beside_multiply_adds_where_there_are_spikes(touched: Path) -> None:
    place = touched / "data/compare/comparison.parquet"
    rows = read_table(place).assign(synaptic_operations=1.0, energy=123_456_000.0)
    write_table(place, rows, TABLES[place.stem])
    said = stage(touched, "report").stdout
    assert "nJ/token" in said
    assert "123,456" in said


@pytest.mark.parametrize(
    "budget",
    [("--within", "1000"), ("--latency", "1000", "--batch", "32"), ("--memory", "1MiB", "--target", "int8")],
)
def test_a_budget_chooses_a_model_on_the_path_and_writes_it(touched: Path, budget: tuple[str, ...]) -> None:
    said = stage(touched, "choose", *budget, "--to", "chosen").stdout
    assert "ms a step at batch" in said
    assert "the path" in said or "the next point, " in said
    assert (" of memory in int8, " in said) == ("--memory" in budget)
    chosen, dense = (
        json.loads((touched / folder / "config.json").read_text()) for folder in ("chosen", "data/train/model")
    )
    assert sum(chosen["widths"]) <= sum(dense["widths"])


def test_a_budget_that_nothing_meets_gets_one_sentence_and_leaves_no_file(
    touched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = sentence_of(touched, ["choose", "--latency", "1e-9", "--to", "chosen"], capsys)
    assert said.startswith("Expected --latency of at least ")
    assert not (touched / "chosen").exists()


@pytest.mark.parametrize("place", ["data", ".", "data/train/model", "own", "params.yaml"])
def test_a_choice_never_takes_the_place_of_anything_else(
    touched: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    before = {path: path.read_bytes() for path in touched.rglob("*") if path.is_file()}
    said = sentence_of(touched, ["choose", "--within", "1000", "--to", place], capsys)
    assert said.startswith("Expected a ")
    assert {path: path.read_bytes() for path in touched.rglob("*") if path.is_file()} == before


def test_dvc_shows_the_metrics(finished: Path) -> None:
    shown = json.loads(run(["dvc", "metrics", "show", "--json"], finished).stdout)
    metrics = shown[""]["data"]["data/compare/summary.json"]["data"]
    every = json.loads((finished / "data/compare/metrics.json").read_text())
    assert list(metrics) == ["dense", "enhanced", "change", "multiply_adds"]
    for name in ("dense", "enhanced"):
        assert metrics[name] == pytest.approx(every[name]["finetuned_perplexity"], rel=5e-5)
        assert metrics["change"][name] == pytest.approx(every[name]["finetuned_change"], rel=5e-5)
        assert metrics["multiply_adds"][name] == every[name]["multiply_adds"]
    assert every["enhanced"]["retention"] == pytest.approx(0.5)
    assert every["dense"]["pruned_change"] == 0


def test_metrics_are_there_in_every_commit_in_experiments_and_in_a_fresh_clone(touched: Path, tmp_path: Path) -> None:
    copy(ROOT / ".gitignore", touched / ".gitignore")
    (touched / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    committing = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "--quiet"]
    run(["dvc", "config", "core.no_scm", "false"], touched)
    run(["dvc", "config", "core.autostage", "false"], touched)
    run(["git", "init", "--quiet", "--initial-branch=main"], touched)
    run(["git", "config", "user.name", "a"], touched)
    run(["git", "config", "user.email", "a@b"], touched)
    run(["git", "add", "."], touched)
    run(["git", *committing, "-m", "one"], touched)
    assert not run(["git", "ls-files", "data", ".dvc/cache"], touched).stdout

    # What a change of a value did, before it is committed and after.
    run(["dvc", "exp", "run", "-S", "compare.control=enhanced"], touched)
    for revisions in ([], ["HEAD~1"]):
        diff = json.loads(run(["dvc", "metrics", "diff", "--json", *revisions], touched).stdout)
        changed = diff["data/compare/summary.json"]["change.enhanced"]
        assert changed["old"] != 0
        assert changed["new"] == 0
        run(["git", *committing, "--allow-empty", "-a", "-m", "two"], touched)
        if not revisions:
            assert json.loads(run(["dvc", "metrics", "diff", "--json"], touched).stdout) == {}

    # Experiments beside each other.
    run(["dvc", "exp", "run", "--name", "more", "-S", "compare.control=dense"], touched)
    shown = json.loads(run(["dvc", "exp", "show", "--json"], touched).stdout)
    found = [
        one for row in shown for one in [row, *(rev for exp in row.get("experiments") or [] for rev in exp["revs"])]
    ]
    changes = {one["name"] or one["rev"]: _change(one) for one in found}
    assert changes["more"] == changes["workspace"] == changed["old"]
    assert changes["main"] == 0

    # A fresh clone of what was committed and pushed.
    run(["git", "checkout", "--quiet", "."], touched)
    run(["dvc", "checkout", "--quiet", "dvc.yaml"], touched)
    run(["dvc", "remote", "add", "--default", "local", str(tmp_path / "remote")], touched)
    run(["git", *committing, "-a", "-m", "remote"], touched)
    run(["dvc", "push", "--quiet"], touched)
    run(["git", "clone", "--quiet", str(touched), str(tmp_path / "clone")], tmp_path)
    clone = tmp_path / "clone"
    run(["dvc", "pull", "--quiet", "dvc.yaml"], clone)
    said = run(["dvc", "repro"], clone).stdout
    assert "Data and pipelines are up to date." in said
    assert digests(clone) == digests(touched)
    shown = json.loads(run(["dvc", "metrics", "show", "--json"], clone).stdout)
    assert shown[""]["data"]["data/compare/summary.json"]["data"]["change"]["enhanced"] == 0
    stage(clone, "report")


def _change(shown: dict[str, Any]) -> float:
    """Return how `enhanced` compares with the control, of one row of `dvc exp show`."""
    metrics = shown["data"]["metrics"]["data/compare/summary.json"]["data"]
    return float(metrics["change"]["enhanced"])


@pytest.mark.parametrize(
    ("section", "field", "value", "sentence"),
    [
        (
            "corpus",
            "vocabulary",
            0,
            "Expected corpus.vocabulary in params.yaml to be a whole number from 3 to 2147483647, got 0.",
        ),
        ("corpus", "source", "nowhere", "Expected a folder or a text file at corpus.source, got 'nowhere', which"),
        ("prune", "retain", 1.5, "Expected prune.retain in params.yaml to be a number above 0 and at most 1, got 1.5."),
        ("prune", "scope", "globl", "got 'globl'. Did you mean 'global'?"),
        ("hessian", "probs", 3, "Unknown parameter 'hessian.probs' in params.yaml; known here: ['probes',"),
        (
            "train",
            "learning_rate",
            "fast",
            "Expected train.learning_rate in params.yaml to be a number from 1e-08 to 1, got 'fast'",
        ),
        ("train", "widths", [10, 9], "Expected train.widths to end with train.embedding (8) for a tied decoder, got 9"),
        ("train", "family", "lstn", "got 'lstn'. Did you mean 'lstm'?"),
        ("train", "leak", 1.0, "Expected train.leak in params.yaml to be a number above 0 and below 1, got 1.0."),
        ("variants", "best", {"by": "hesian"}, "Did you mean 'hessian'?"),
        ("compare", "control", "none", "Expected compare.control to be one of ['dense', 'enhanced'], got 'none'"),
    ],
)
def test_a_wrong_value_gets_one_sentence_before_any_work(
    touched: Path, capsys: pytest.CaptureFixture[str], section: str, field: str, value: Any, sentence: str
) -> None:
    set_parameters(touched, {section: {field: value}})
    assert sentence in sentence_of(touched, ["check"], capsys)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "got text with none of them."),
        ({"train.txt": b"a b\n", "valid.txt": b"a\n"}, "without ['test']"),
        ({"train.txt": b"a b\n", "valid.txt": b"\xff\xfe", "test.txt": b"a"}, "Expected UTF-8 text in text/valid.txt"),
        (
            {"train.txt": b"a b\n", "valid.txt": b"", "test.txt": b"a"},
            "Expected text in the valid split, got none; give",
        ),
    ],
)
def test_a_wrong_corpus_gets_one_sentence(
    touched: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], sentence: str
) -> None:
    for path in (touched / "text").iterdir():
        path.unlink()
    for name, content in files.items():
        (touched / "text" / name).write_bytes(content)
    assert sentence in sentence_of(touched, ["prepare"], capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hesian"], "Unknown stage 'hesian'; known: ['sotu', 'prepare'"),
        (["prune"], "Expected a variant for stage prune, one of ['dense', 'enhanced'], got none."),
        (["prune", "enhancd"], "got 'enhancd'. Did you mean 'enhanced'?"),
        (["fuse", "dense"], "Expected no variant for stage fuse, got 'dense'."),
        (["prune", "dense", "too"], "Expected no more words after 'prune', got 'dense too'."),
        (["report", "dense"], "Expected no more words after 'report', got 'dense'."),
    ],
)
def test_a_wrong_command_gets_one_sentence(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in sentence_of(finished, words, capsys)


def test_outside_the_project_the_sentence_says_where_to_go(finished: Path, tmp_path: Path) -> None:
    copy(finished / "tasks", tmp_path / "tasks")
    copy(finished / "pruning", tmp_path / "pruning")
    assert "run from the repository's root" in stage(tmp_path, "fuse", fails=True).stderr


def test_one_text_file_is_a_corpus(tmp_path: Path) -> None:
    folder = tiny_project(tmp_path / "project", corpus={"source": "book.txt", "valid": 0.2, "test": 0.2})
    (folder / "book.txt").write_text("It's late, she said.\n\nIt is late.\n" * 20, encoding="utf-8")
    stage(folder, "prepare")
    assert (folder / "data/prepare/corpus.parquet").exists()
