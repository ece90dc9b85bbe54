"""What MLflow holds after `python -m tasks track`, how often, and what happens without a server or without results."""

import hashlib
import io
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pruning.evaluation.comparison import compare
from tasks.__main__ import main
from tasks.commands import track
from tasks.common.pipeline import read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import write_table
from tests.projects import ROOT
from tests.schemas import TABLES as SCHEMAS

pytestmark = pytest.mark.filterwarnings(
    "ignore:For backward compatibility, 'str' dtypes are included",  # MLflow's log_table, with pandas 3
)
VARIANTS = {"dense": 1.0, "random": 0.5, "traditional": 0.5, "enhanced": 0.5, "surgeon": 0.5}
STEPS = 2500


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


def write_results(folder: Path) -> None:
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m"]
    for words in (["git", "init", "--quiet"], ["git", "add", "."], command):
        subprocess.run(words, cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        values = read_yaml(Path("params.yaml"))
        stages = list(stages_of(values))
        for stage in stages:
            for path in stage.outputs.values():
                write_output(path, stage.name, stage.variant)
        write_lock(stages, values)


def stages_of(values: Mapping[str, Any]) -> Iterator[Any]:
    for name, entry in read_yaml(Path("dvc.yaml"))["stages"].items():
        for variant in VARIANTS if "foreach" in entry else [None]:
            yield read_stage(name, variant, values)


def write_output(path: Path, stage: str, variant: str | None) -> None:
    if path.suffix == ".parquet" and path.stem in TABLES:
        write_table(path, TABLES[path.stem](stage, variant), SCHEMAS[path.stem])
    elif path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path}, which tracking never reads")
    else:
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"widths": [3]}))
        (path / "plot.png").write_bytes(b"a picture")


def write_lock(stages: list[Any], values: Mapping[str, Any]) -> None:
    lock: dict[str, Any] = {}
    for stage in stages:
        used = {name: values[name.partition(".")[0]] for name in stage.sections}
        used |= {name: values["variants"][name.partition(".")[2]] for name in used if "." in name}
        inputs = [path for path in stage.inputs.values() if path.suffix or path.name == "model"]
        lock[stage.address] = {
            "deps": [{"path": str(path), "md5": md5(path)} for path in inputs],
            "params": {"params.yaml": used},
            "outs": [{"path": str(path), "md5": md5(path)} for path in stage.outputs.values()],
        }
    YAML().dump({"schema": "2.0", "stages": lock}, Path("dvc.lock"))


def md5(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else str(path).encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def timing(stage: str, variant: str | None) -> pd.DataFrame:
    frame = pd.DataFrame([("", "stage", 0, 7.0, 0.0)], columns=["phase", "measure", "batch", "seconds", "spread"])
    frame.insert(0, "variant", variant or "")
    frame.insert(0, "stage", stage)
    return frame.assign(device="a GPU (cuda:0)" if stage == "train" else "cpu")


def latency(_stage: str, _variant: str | None) -> pd.DataFrame:
    rows = [
        {"model": variant, "batch": batch, "seconds": seconds * kept, "speed_up": 1 / kept, "error": 0.1 * (kept < 1)}
        for variant, kept in VARIANTS.items()
        for batch, seconds in ((1, 0.001), (32, 0.004))
    ]
    waited = pd.Series([0.2, float("nan")] * len(VARIANTS))
    return pd.DataFrame(rows).assign(spread=0.1, repeats=10, device="cpu", waited=waited)


def history(stage: str, _variant: str | None) -> pd.DataFrame:
    steps = range(1, (STEPS if stage == "train" else 4) + 1)
    frame = pd.DataFrame({"phase": stage, "step": steps, "tokens": [10 * step for step in steps]})
    valid = [2.0 if step % 2 == 0 and step > steps[-1] - 4 else None for step in steps]
    frame["train_loss"], frame["valid_loss"] = [1 / step for step in steps], pd.Series(valid, dtype=float)
    return frame.assign(learning_rate=0.5)


def evaluation(_stage: str, variant: str | None) -> pd.DataFrame:
    kept = VARIANTS[str(variant)]
    before = "dense" if kept == 1 else "pruned"
    repaired = {} if kept == 1 else {"reconstructed": 19 / kept}
    perplexity = {before: 20 / kept, **repaired, "finetuned": 18 / kept}
    sizes = {
        "accuracy": 0.2,
        "metrics": "{}",
        "tokens": 9,
        "neurons": int(8 * kept),
        "parameters": int(80 * kept),
        "multiply_adds": int(40 * kept),
    }
    sizes |= {"synaptic_operations": 2.0 * kept, "energy": 184.0 * kept}
    rows = [
        {"variant": variant, "phase": phase, "split": split, "loss": 3.0, "perplexity": value + (split == "valid")}
        for phase, value in perplexity.items()
        for split in ("valid", "test")
    ]
    return pd.DataFrame(rows).assign(**sizes)


def retention(_stage: str, variant: str | None) -> pd.DataFrame:
    row = {"variant": variant, "layer": "lstm.0", "neuron": 0, "importance": 0.5, "rank": 1, "kept": True}
    return pd.DataFrame([row])


def comparison(_stage: str, _variant: str | None) -> pd.DataFrame:
    evaluations = pd.concat([evaluation("evaluate", variant) for variant in VARIANTS])
    return compare(evaluations, dict.fromkeys(VARIANTS, "fused"), control="dense")


def corpus(_stage: str, _variant: str | None) -> pd.DataFrame:
    return pd.DataFrame({"split": ["train", "test"], "position": [0, 0], "token": [1, 0]})


TABLES = {
    "timing": timing,
    "latency": latency,
    "history": history,
    "evaluation": evaluation,
    "retention": retention,
    "comparison": comparison,
    "corpus": corpus,
}


def tracked(folder: Path, **environment: str) -> tuple[int, str]:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
            patch.delenv(name, raising=False)
        for name, value in {**track.DEFAULTS, **environment}.items():
            patch.setenv(name, value)
        return main(["track"]), said.getvalue()


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> dict[str, Any]:
    found = every_run(folder)
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def every_run(folder: Path) -> list[Any]:
    experiment = client(folder).get_experiment_by_name("neuron-pruning")
    return list(client(folder).search_runs([experiment.experiment_id]))


def parents(folder: Path) -> list[Any]:
    return [run for run in every_run(folder) if "mlflow.parentRunId" not in run.data.tags]


def artifacts(folder: Path, name: str, within: str | None = None) -> set[str]:
    return {file.path for file in client(folder).list_artifacts(runs(folder)[name].info.run_id, within)}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


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
    usual = {"floor": "8", "multiple": "8", "rate": "fixed", "scope": "global", "tied": "project"}
    repair = read_yaml(logged / "params.yaml")["reconstruct"]
    expected = {"by": "fused", "retain": "1.0", **usual, **{name: str(value) for name, value in repair.items()}}
    assert dense.params == expected
    assert random.params["retain"] == "0.5"
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
    assert artifacts(logged, "random") == {"evaluation.json", "retention.json", "config.json"}


def test_curves_go_by_step_and_a_long_one_is_thinned_to_points_that_end_with_its_last(logged: Path) -> None:
    train = runs(logged)["train"]

    def steps(name: str) -> list[int]:
        return [point.step for point in client(logged).get_metric_history(train.info.run_id, name)]

    assert len(steps("train_loss")) == track.POINTS
    assert (min(steps("train_loss")), max(steps("train_loss"))) == (1, STEPS)
    assert sorted(steps("valid_loss")) == sorted(steps("valid_perplexity")) == [STEPS - 2, STEPS]
    assert train.data.metrics["valid_perplexity"] == pytest.approx(7.389056)
    assert runs(logged)["enhanced"].data.metrics["train_loss"] == 0.25


def test_runs_name_the_corpus_the_commit_the_experiment_and_the_hashes_of_their_models(logged: Path) -> None:
    run = runs(logged)["random"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=logged, capture_output=True, text=True, check=True).stdout
    expected = {
        "dvc.lock": hashlib.sha256((logged / "dvc.lock").read_bytes()).hexdigest(),
        "dvc.experiment": "tall-oak",
        "dvc.model.pruned": md5(Path("data/prune/random/model")),
        "git.dirty": "true",
        "mlflow.source.git.commit": commit.strip(),
    }
    assert run.data.tags.items() >= expected.items()
    data = run.inputs.dataset_inputs[0].dataset
    assert (data.name, data.digest) == ("corpus", md5(logged / "data/prepare/corpus.parquet"))
    assert json.loads(data.profile) == {"num_rows": 2}


def test_a_state_is_logged_only_once(again: Path) -> None:
    code, said = tracked(again)
    assert (code, said) == (0, f"MLflow: this state is already logged (run {parents(again)[0].info.run_id})\n")
    assert len(every_run(again)) == 2 + len(VARIANTS)


def test_another_lock_makes_another_parent(again: Path) -> None:
    with (again / "dvc.lock").open("a") as lock:
        lock.write("# another state\n")
    assert tracked(again)[0] == 0
    assert (len(every_run(again)), len(parents(again))) == (2 * (2 + len(VARIANTS)), 2)


def test_a_parent_left_by_a_kill_is_replaced(unlogged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, done = track._log, []

    def killed(*arguments: Any) -> str:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(log(*arguments))
        return str(done[-1])

    monkeypatch.setattr(track, "_log", killed)
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
    assert time.monotonic() - start < 15
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
    found = track._evaluated(rows)
    assert {name for name in found if name not in track.SIZES} == {
        f"{name}_{phase}_{split}"
        for name in ("loss", "worst")
        for phase in ("pruned", "reconstructed", "finetuned")
        for split in ("valid", "test")
    }
    assert (found["loss_finetuned_test"], found["worst_pruned_valid"]) == (3.0, 0.5)
