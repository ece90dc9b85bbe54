"""What MLflow holds after `python -m tasks track`, how often, and what happens without a server or without results."""

import hashlib
import json
import shutil
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pruning.pictures.style import COLOURS
from tasks.commands.tracking import records, sending
from tasks.commands.tracking.identity import differences, identity, named
from tasks.commands.tracking.pipeline import SIZES, evaluated
from tasks.commands.tracking.store import PLACES
from tasks.common.pipeline import flat
from tasks.common.reading import read_yaml
from tests.results import (
    QUIET,
    STEPS,
    VARIANTS,
    artifacts,
    change,
    client,
    evaluation,
    every_run,
    experiment,
    md5,
    parents,
    part_of,
    runs,
    tracked,
    write_results,
)

pytestmark = QUIET


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "project"
    write_results(folder)
    return folder


@pytest.fixture(scope="module")
def logged(results: Path) -> Path:
    code, said = tracked(results, DVC_EXP_NAME="tall-oak")
    assert (code, said.startswith("MLflow: 7 runs logged")) == (0, True), said
    return results


@pytest.fixture
def again(logged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(logged, tmp_path / "project"))


@pytest.fixture
def unlogged(again: Path) -> Path:
    (again / "mlflow.db").unlink()
    return again


def test_the_training_and_each_variant_are_finished_children_of_one_pipeline(logged: Path) -> None:
    found = runs(logged)
    assert set(found) == {"pipeline", "train", *VARIANTS}
    whole = found.pop("pipeline")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {whole.info.run_id}
    assert {run.info.status for run in (whole, *found.values())} == {"FINISHED"}


def test_each_run_says_what_computed_it(logged: Path) -> None:
    used = {name: run.data.tags["device"] for name, run in runs(logged).items()}
    assert used == {"pipeline": "a GPU (cuda:0)", "train": "a GPU (cuda:0)", **dict.fromkeys(VARIANTS, "cpu")}


def test_the_pipeline_holds_every_setting_the_comparison_and_the_plots(logged: Path) -> None:
    whole = runs(logged)["pipeline"].data
    assert whole.params["train.widths"] == "[128, 128]"
    assert whole.params["variants.random.by"] == "random"
    assert whole.metrics["perplexity_dense_test"] == 20
    assert whole.metrics["perplexity_finetuned_test/random"] == 36
    assert whole.metrics["seconds_hessian"] == 7
    assert artifacts(logged, "pipeline") >= {"comparison.json", "comparison.parquet", "params.yaml", "dvc.lock"}
    assert "plots/plot.png" in artifacts(logged, "pipeline", "plots")


def test_a_variant_holds_its_effective_settings_its_final_numbers_and_its_tables(logged: Path) -> None:
    dense, random = runs(logged)["dense"].data, runs(logged)["random"].data
    sections = {name: read_yaml(logged / "params.yaml")[name] for name in ("prune", "reconstruct", "finetune")}
    settings = {name: str(value) for name, value in flat(sections).items() if value is not None}
    assert dense.params == {**settings, "by": "fused", "prune.retain": "1.0"}
    assert random.params["prune.retain"] == "0.5"
    assert random.params["finetune.learning_rate"] != random.params["reconstruct.learning_rate"]
    measured: dict[str, Any] = {
        "retention": 0.5,
        "neurons": 4,
        "parameters": 40,
        "multiply_adds": 20,
        "synaptic_operations": 1,
        "energy": 92,
        "finetuned_change": 1,
    }
    measured |= {
        "perplexity_reconstructed_test": 38,
        "perplexity_pruned_test": 40,
        "perplexity_finetuned_test": 36,
        "perplexity_finetuned_valid": 37,
    }
    measured |= {"latency_ms_batch_1": 0.5, "latency_ms_batch_32": 2, "latency_ms_batch_32_error": 0.1}
    measured |= {"speed_up_batch_1": 2, "speed_up_batch_32": 2, "speed_up_batch_1_error": 0.1, "waited_batch_1": 0.2}
    measured |= {"seconds_prune": 7, "seconds_finetune": 7, "seconds_evaluate": 7}
    assert {name: random.metrics[name] for name in measured} == pytest.approx(measured)
    assert "waited_batch_32" not in random.metrics
    assert "the measurement waited 20% for a core" in random.tags["machine"]
    assert dense.metrics["perplexity_pruned_test"] == 20
    assert {dense.metrics[f"latency_ms_batch_{batch}"] for batch in (1, 32)} == {1, 4}
    assert artifacts(logged, "random") == {"evaluation.json", "retention.json", "config.json", "plots"}


def test_curves_go_by_step_and_a_long_one_is_thinned_to_points_that_end_with_its_last(logged: Path) -> None:
    train = runs(logged)["train"]

    def steps(name: str) -> list[int]:
        return [point.step for point in client(logged).get_metric_history(train.info.run_id, name)]

    assert len(steps("curves/train_loss")) == records.POINTS
    assert (min(steps("curves/train_loss")), max(steps("curves/train_loss"))) == (1, STEPS)
    assert sorted(steps("curves/valid_loss")) == sorted(steps("curves/valid_perplexity")) == [STEPS - 2, STEPS]
    assert train.data.metrics["curves/valid_perplexity"] == 7.3891
    assert runs(logged)["enhanced"].data.metrics["curves/train_loss"] == 0.25


def test_runs_name_the_corpus_the_commit_the_experiment_and_the_hashes_of_their_models(logged: Path) -> None:
    run = runs(logged)["random"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=logged, capture_output=True, text=True, check=True).stdout
    recorded = json.dumps(read_yaml(logged / "dvc.lock")["stages"], sort_keys=True)  # in whatever order they ended
    expected = {
        "dvc.lock": hashlib.sha256(recorded.encode()).hexdigest(),
        "dvc.experiment": "tall-oak",
        "dvc.model.pruned": md5(Path("data/prune/random/model")),
        "git.dirty": "true",
        "mlflow.source.git.commit": commit.strip(),
    }
    assert run.data.tags.items() >= expected.items()
    data = run.inputs.dataset_inputs[0].dataset
    assert (data.name, data.digest) == ("corpus", md5(logged / "data/prepare/corpus.parquet"))
    assert json.loads(data.profile) == {"num_rows": 2}


def test_a_runs_name_tells_its_experiment_what_differs_in_it_and_the_commit(logged: Path, again: Path) -> None:
    commit = runs(logged)["random"].data.tags["mlflow.source.git.commit"][:7]
    assert runs(logged)["random"].info.run_name == f"random · tall-oak · {commit}"
    assert runs(logged)["pipeline"].info.run_name == f"pipeline · tall-oak · {commit}"
    change(again / "params.yaml", "random: {by: random}", "random: {by: hessian}")
    change(again / "params.yaml", "probes: 60", "probes: 70")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(again)
        differing = differences(read_yaml(Path("params.yaml")))
    assert differing == {"hessian.probes": 70, "variants.random.by": "hessian"}
    tags = {"mlflow.source.git.commit": commit}
    assert (
        named("random", tags, differing, "random")
        == f"random · hessian.probes=70, variants.random.by=hessian · {commit}"
    )
    assert named("dense", tags, differing, "dense") == f"dense · hessian.probes=70 · {commit}"


def test_what_a_clone_differs_in_is_told_also_after_it_was_committed(again: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(again), str(clone)], check=True)
    change(clone / "params.yaml", "probes: 60", "probes: 70")
    commit = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-am", "Probe more"]
    subprocess.run(commit, cwd=clone, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        assert differences(read_yaml(Path("params.yaml"))) == {"hessian.probes": 70}


def test_a_lock_file_that_a_reproduction_wrote_makes_no_tree_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiment").mkdir()
    for path in (Path("dvc.lock"), Path("experiment/dvc.lock"), Path("params.yaml")):
        path.write_text("of before")
    commit = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m"]
    for words in (["git", "init", "--quiet"], ["git", "add", "."], commit):
        subprocess.run(words, check=True)
    for path in (Path("dvc.lock"), Path("experiment/dvc.lock")):
        path.write_text("of now")
    assert identity()["git.dirty"] == "false"
    Path("params.yaml").write_text("of now")
    assert identity()["git.dirty"] == "true"


def test_the_list_of_runs_shows_what_matters_of_each_variant_rounded(logged: Path) -> None:
    tags = runs(logged)["random"].data.tags
    shown = {
        "retention": "50%",
        "perplexity by phase": "40.0 → 38.0 → 36.0",
        "speed-up": "2.00 ± 0.10 ×",
        "parameters": "40 (50%)",
        "chosen by": "fused",
    }
    assert tags.items() >= shown.items()
    assert tags["mlflow.note.content"] == (
        "50% of the neurons stay (chosen by: fused). On the test text 40.0 → 38.0 → 36.0 once pruned, repaired, "
        "fine-tuned; 2.00 ± 0.10 × as fast as dense; 40 (50%) parameters."
    )
    view = json.loads(experiment(logged).tags["mlflow.sharedViewState.variants"])
    assert view["selectedColumns"][:5] == [f"tags.`{name}`" for name in shown]
    found = client(logged).search_runs([experiment(logged).experiment_id], view["searchFilter"])
    assert {run.data.tags["variant"] for run in found} == set(VARIANTS)


def test_the_experiment_says_what_its_metrics_mean(logged: Path) -> None:
    about = experiment(logged).tags["mlflow.note.content"]
    assert "pJ/token" in about
    assert "`retention` | share of the neurons that stayed" in about


def test_a_folder_that_moves_keeps_its_artifacts_also_one_whose_database_is_older(again: Path, tmp_path: Path) -> None:
    assert experiment(again).artifact_location == "mlartifacts"
    assert runs(again)["random"].info.artifact_uri.startswith("mlartifacts/")
    place = (again / "mlartifacts").as_uri()
    with closing(sqlite3.connect(again / "mlflow.db")) as database, database:  # as MLflow writes it by itself
        for table, column in PLACES:
            database.execute(f"UPDATE {table} SET {column} = replace({column}, 'mlartifacts', ?)", (place,))  # noqa: S608
    assert tracked(again)[0] == 0
    moved = again.rename(tmp_path / "moved")
    assert artifacts(moved, "random") >= {"evaluation.json", "config.json"}
    assert runs(moved)["random"].info.artifact_uri.startswith("mlartifacts/")


def test_a_variants_run_holds_its_own_picture_and_the_pipelines_those_of_all(logged: Path) -> None:
    assert artifacts(logged, "random", "plots") == {"plots/importance-random.png"}
    assert artifacts(logged, "pipeline", "plots") == {"plots/plot.png"}


def test_the_machines_load_while_a_stage_ran_is_in_its_run(again: Path) -> None:
    (again / "mlflow.db").unlink()
    samples = again / f".dvc/tmp/samples/{md5(again / 'data/train/timing.parquet')}.samples"
    samples.parent.mkdir(parents=True)
    samples.write_text("".join(f'{{"timestamp": {when}, "cpu_utilization_percentage": {when}.5}}\n' for when in (1, 3)))
    assert tracked(again)[0] == 0
    points = client(again).get_metric_history(runs(again)["train"].info.run_id, "system/cpu_utilization_percentage")
    assert [(point.timestamp, point.step, point.value) for point in points] == [(1, 0, 1.5), (3, 1, 3.5)]
    assert "system/cpu_utilization_percentage" not in runs(again)["random"].data.metrics


def test_a_state_is_the_same_before_its_own_tracking_is_written_down_and_after(again: Path) -> None:
    with (again / "dvc.lock").open("a") as lock:
        lock.write(
            "  track:\n    cmd: exec python -m tasks track\n    deps:\n    - path: data/train\n      md5: x.dir\n"
        )
    assert "already logged" in tracked(again)[1]


def test_a_state_is_the_same_in_a_clone_whose_stages_ended_in_another_order(again: Path) -> None:
    yaml, path = YAML(), again / "dvc.lock"
    lock = yaml.load(path)
    lock["stages"] = dict(reversed(list(lock["stages"].items())))
    yaml.dump(lock, path)
    assert "already logged" in tracked(again)[1]


def test_a_state_is_logged_only_once(again: Path) -> None:
    code, said = tracked(again)
    assert (code, said) == (0, f"MLflow: this state is already logged (run {parents(again)[0].info.run_id})\n")
    assert len(every_run(again)) == 2 + len(VARIANTS)


def test_another_lock_makes_another_parent_whose_variants_have_colours_of_their_own(again: Path) -> None:
    first = runs(again)
    assert [first[variant].data.tags["mlflow.runColor"] for variant in sorted(VARIANTS)] == [*COLOURS[:5]]
    assert "mlflow.runColor" not in first["pipeline"].data.tags
    with (again / "dvc.lock").open("a") as lock:
        lock.write("  another:\n    cmd: exec another\n")
    assert tracked(again)[0] == 0
    assert (len(every_run(again)), len(parents(again))) == (2 * (2 + len(VARIANTS)), 2)
    known = {run.info.run_id for run in first.values()}
    later = {part_of(run): run for run in every_run(again) if run.info.run_id not in known}
    assert [later[variant].data.tags["mlflow.runColor"] for variant in sorted(VARIANTS)] == [*COLOURS[5:], COLOURS[0]]


def test_a_parent_left_by_a_kill_is_replaced(unlogged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, done = sending._log, []

    def killed(*arguments: Any) -> str:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(log(*arguments))
        return str(done[-1])

    monkeypatch.setattr(sending, "_log", killed)
    assert tracked(unlogged)[0] == 130
    assert parents(unlogged)[0].info.status == "RUNNING"
    monkeypatch.undo()
    assert tracked(unlogged)[0] == 0
    assert len(runs(unlogged)) == 2 + len(VARIANTS)
    assert parents(unlogged)[0].info.run_id != done[0]


def test_a_server_that_is_down_costs_seconds_and_no_result(results: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    code, said = tracked(results, MLFLOW_TRACKING_URI=f"http://joe:secret@127.0.0.1:{port}")
    assert time.monotonic() - start < 60
    assert code == 0
    assert said.startswith(f"MLflow at http://127.0.0.1:{port} could not be reached")
    assert said.endswith("All results are safe in data/; `python -m tasks track` logs them later.\n")
    assert (said.count("\n"), "secret" in said) == (1, False)


def test_a_broken_store_costs_no_result(unlogged: Path) -> None:
    (unlogged / "mlflow.db").write_text("no database")
    code, said = tracked(unlogged)
    assert (code, "file is not a database" in said) == (0, True)


def test_without_a_lock_there_is_nothing_to_log(unlogged: Path) -> None:
    (unlogged / "dvc.lock").unlink()
    code, said = tracked(unlogged)
    assert (code, said.startswith("Expected dvc.lock in the current folder, got none")) == (1, True)


def test_without_a_comparison_there_is_nothing_to_log(unlogged: Path) -> None:
    (unlogged / "data/compare/comparison.parquet").unlink()
    code, said = tracked(unlogged)
    assert (code, said.startswith("Expected the table data/compare/comparison.parquet")) == (1, True)


def test_results_of_other_settings_than_those_in_params_yaml_are_refused(unlogged: Path) -> None:
    change(unlogged / "params.yaml", "random: {by: random}", "random: {by: random, retain: 0.4}")
    code, said = tracked(unlogged)
    assert (code, "the change of variants.random.retain" in said) == (1, True)


def test_results_of_an_earlier_model_are_refused(unlogged: Path) -> None:
    lock = YAML().load(unlogged / "dvc.lock")
    lock["stages"]["train"]["outs"][0]["md5"] = "trained anew"
    YAML().dump(lock, unlogged / "dvc.lock")
    code, said = tracked(unlogged)
    assert (code, "the change of data/train/model" in said) == (1, True)


def test_a_table_that_is_not_the_one_in_the_lock_is_refused(unlogged: Path) -> None:
    shutil.copy(unlogged / "data/evaluate/dense/evaluation.parquet", unlogged / "data/evaluate/random")
    code, said = tracked(unlogged)
    assert (code, "as dvc.lock records it, got another" in said) == (1, True)


def test_a_model_without_perplexity_is_tracked_by_its_loss_and_its_own_metrics() -> None:
    rows = evaluation("evaluate", "random").assign(perplexity=float("nan"), metrics='{"worst": [0.5, "lower"]}')
    found = evaluated(rows)
    assert {name for name in found if name not in SIZES} == {
        f"{name}_{phase}_{split}"
        for name in ("loss", "worst")
        for phase in ("pruned", "reconstructed", "finetuned")
        for split in ("valid", "test")
    }
    assert (found["loss_finetuned_test"], found["worst_pruned_valid"]) == (3.0, 0.5)
