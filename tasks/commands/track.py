"""`python -m tasks track [experiment]`: what MLflow is told of results, from files alone, once for each dvc.lock."""

import hashlib
import importlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pruning.evaluation.comparison import COSTS, PHASES, measure_of
from tasks.commands.lock import expect_recorded, read_lock
from tasks.common.latency import busy, in_milliseconds
from tasks.common.parameters import Unexpected, settings_of
from tasks.common.pipeline import EXPERIMENT, LOCK, PARAMETERS, PIPELINE, Stage, flat, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import checked
from tasks.shown.asking import Words
from tasks.shown.console import say

STORE, ARTIFACTS = Path("mlflow.db"), Path("mlartifacts")
PROJECT, STATE, PARENT = "neuron-pruning", "dvc.lock", "mlflow.parentRunId"
SHOWN = ("retention", "parameters", *(f"perplexity_{phase}_test" for phase in PHASES), "speed_up_batch_1")
VARIANTS = {
    "searchFilter": "tags.kind = 'variant'",
    "orderByKey": "metrics.`perplexity_finetuned_test`",  # any order but by date shows children without their parents
    "orderByAsc": True,
    "selectedColumns": ["params.`by`", *(f"metrics.`{name}`" for name in SHOWN)],
}
"""What MLflow's list of runs shows under `…/runs?viewStateShareKey=variants`: a ranking of all variants."""
SIZES = ("neurons", *COSTS)
POINTS = 2000
"""Steps of a curve at most; more cannot be seen and take a server minutes."""
DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # the making of a new database is told in thirty lines otherwise
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # a server that is down is given up after seconds, not after MLflow's minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


@dataclass(frozen=True)
class Record:
    """All that one MLflow run holds; `curves` is a `history` table."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step"]))
    likelihood: bool = True  # whether losses have a perplexity
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # to be read in the browser
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)  # by the folder that they go to


class State:
    """The results of the pipeline, or of what stands in another folder, as dvc.lock records them.

    Whatever has changed since is refused.
    """

    def __init__(self, folder: str = "") -> None:
        lock, self.folder = folder / LOCK, folder
        if not lock.is_file():
            again = f"dvc repro {folder / PIPELINE}" if folder else "dvc repro"
            raise Unexpected(f"Expected {lock} in the current folder, got none; run `{again}` to make the results.")
        self.values = read_yaml(folder / PARAMETERS)
        every = read_yaml(PARAMETERS)
        self.parameters, self._settings = checked(every), flat({**every, **self.values})
        self.digest = hashlib.sha256(lock.read_bytes()).hexdigest()
        self.lock: dict[str, Any] = read_lock(lock)
        stages = (stage for path in {LOCK, lock} if path.is_file() for stage in read_lock(path).values())
        outputs = (output for stage in stages for output in stage.get("outs", []))
        self.hashes = {Path(output["path"]): str(output["md5"]) for output in outputs}

    def stage(self, name: str, variant: str | None = None) -> Stage:
        """Return a stage that has run with its present parameters and inputs."""
        stage = read_stage(name, variant, self.values, self.folder)
        if stage.address not in self.lock:
            raise Unexpected(f"Expected results of stage {stage.address}, got none; run `dvc repro` to make them.")
        ran, sections = self.lock[stage.address], tuple(f"{section}." for section in stage.sections)
        known = self._settings.items()
        now = {name: value for name, value in known if name in stage.sections or name.startswith(sections)}
        then = {
            name: value for parameters in ran.get("params", {}).values() for name, value in flat(parameters).items()
        }
        changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        changed += [dep["path"] for dep in ran["deps"] if self.hashes.get(Path(dep["path"]), dep["md5"]) != dep["md5"]]
        if changed:
            raise Unexpected(f"Expected {stage.address} to follow the change of {changed[0]}; run `dvc repro`.")
        return stage

    def table(self, stage: Stage, name: str) -> pd.DataFrame:
        """Return a table that a stage wrote."""
        path = stage.outputs[name]
        if path.is_file():
            expect_recorded(path, self.hashes)
        return read_table(path)

    def seconds(self, *stages: Stage) -> dict[str, float]:
        """Return how long each stage took, as metrics."""
        timing = pd.concat([self.table(stage, "timing") for stage in stages]).query("measure == 'stage'")
        return {f"seconds_{row['stage']}": row["seconds"] for row in timing.to_dict("records")}

    def device(self, *stages: Stage) -> dict[str, str]:
        """Return the tag that says what computed the stages: `cpu`, or the accelerators' names."""
        used = pd.concat([self.table(stage, "timing") for stage in stages])["device"]
        return {"device": ", ".join(sorted(set(used) - {"cpu"}) or ["cpu"])}


def run(words: Sequence[str]) -> None:
    """Log the results to MLflow, unless that was done; without a server, say how to make it up later.

    Args:
        words: `experiment`, or nothing for the pipeline.

    Raises:
        Unexpected: If there are no results, or others than dvc.lock and params.yaml say.
    """
    parser = Words("track", answers=False)
    parser.add_argument(
        "words", nargs="*", metavar=EXPERIMENT, help="the experiment's results, in place of the pipeline's"
    )
    words = parser.read(words).words
    if list(words) not in ([], [EXPERIMENT]):
        raise Unexpected(f"Expected {EXPERIMENT!r} or nothing after 'track', got {' '.join(words)!r}.")
    command, state = " ".join(["python -m tasks track", *words]), State(*words)
    source = importlib.import_module(f"tasks.{EXPERIMENT}.tracking").records if words else _records
    records, tags = source(state), {"mlflow.source.name": command, **identity()}
    _send(records, state, tags, f"All results are safe in data/; `{command}` logs them later.")


def _records(state: State) -> list[Record]:
    """Return the whole, the training, and each variant."""
    return [_pipeline(state), _training(state), *(_variant(state, name) for name in state.parameters.variants)]


def _send(records: Sequence[Record], state: State, tags: Mapping[str, str], later: str) -> None:
    """Log a parent and its children to MLflow unless that was done; whatever goes wrong there costs no result.

    Args:
        records: The parent first.
        state: The results; a finished parent with their digest is not logged again.
        tags: What every run is tagged with beside.
        later: What to say beside the reason if MLflow cannot be reached.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow.store.db.utils as databases  # two seconds, and only here
    from mlflow import MlflowClient

    databases.MAX_RETRY_COUNT = 2  # ten, the default, are two minutes
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE.resolve()}"
    try:
        say(_log_once(MlflowClient(store), store, records, {**tags, STATE: state.digest}, [_corpus(state)]))
    except Exception as error:  # whatever a server, a database or its driver raises: the results stay
        reason = str(error).partition("\n")[0][-100:]  # the cause stands last in its chain
        sentence = f"MLflow at {store} could not be reached or refused (… {reason}). "
        say(re.sub(r"//[^/@\s]*@", "//", sentence) + later)


def _pipeline(state: State) -> Record:
    """Return the record of the whole: every setting, the comparison, the pictures, what identifies the state."""
    compare, stages = state.stage("compare"), read_yaml(PIPELINE)["stages"]
    comparison = state.table(compare, "comparison")
    ran = [state.stage(name) for name in stages if name in state.lock]
    metrics = _dense(state) | state.seconds(*ran)
    for row in comparison.to_dict("records"):
        measure = measure_of(comparison, "finetuned_{}")
        for phase in PHASES:
            metrics[f"{measure}_{phase}_test/{row['variant']}"] = row[f"{phase}_{measure}"]
    files = {"": [compare.outputs["comparison"], PARAMETERS, LOCK], "plots": sorted(compare.outputs["plots"].glob("*"))}
    tables, tags = {"comparison": comparison}, {"kind": "pipeline", **state.device(*ran)}
    return Record("pipeline", flat(state.values), metrics, tags=tags, tables=tables, files=files)


def _training(state: State) -> Record:
    stage = state.stage("train")
    return Record(
        name=stage.name,
        params=flat({stage.name: state.values[stage.name]}),
        metrics=_dense(state) | state.seconds(stage),
        tags={"kind": "training", "dvc.model": state.hashes[stage.outputs["model"]], **state.device(stage)},
        curves=state.table(stage, "history"),
        likelihood=any(name.startswith("perplexity") for name in _dense(state)),
        files={"": [stage.outputs["history"], stage.outputs["model"] / "config.json"]},
    )


def _variant(state: State, variant: str) -> Record:
    stages = [state.stage(name, variant) for name in ("prune", "reconstruct", "finetune", "evaluate")]
    prune, reconstruct, finetune, evaluate = stages
    parameters, own = state.parameters, state.parameters.variants[variant].model_dump()
    sections = (parameters.prune.model_dump(), parameters.reconstruct.model_dump())
    settings = {name: value for section in sections for name, value in settings_of(section, own).items()}
    tables = {"evaluation": state.table(evaluate, "evaluation"), "retention": state.table(prune, "retention")}
    compared = state.table(state.stage("compare"), "comparison").set_index("variant")
    changes = {name: float(compared[name][variant]) for name in ("retention", *(f"{phase}_change" for phase in PHASES))}
    latency, perplexity = _latency(state, variant), _evaluated(tables["evaluation"])
    models = {phase: made.outputs["model"] for phase, made in zip(PHASES, (prune, reconstruct, finetune), strict=True)}
    return Record(
        name=variant,
        params={"by": own["by"], **{name: value for name, value in settings.items() if value is not None}},
        metrics=changes | perplexity | latency | state.seconds(*stages),
        tags={
            "kind": "variant",
            **{f"dvc.model.{phase}": state.hashes[path] for phase, path in models.items()},
            **state.device(*stages),
            "machine": " ".join(busy(state.table(state.stage("timing"), "latency")))
            or "quiet while latency was measured",
        },
        curves=state.table(finetune, "history"),
        likelihood=measure_of(tables["evaluation"]) == "perplexity",
        tables=tables,
        files={"": [finetune.outputs["model"] / "config.json"]},
    )


def _dense(state: State) -> dict[str, float]:
    """Return perplexities and sizes of the dense model as it was trained."""
    evaluation = state.table(state.stage("evaluate", state.parameters.compare.control), "evaluation")
    return _evaluated(evaluation[evaluation["phase"] == "dense"], before="dense")


def _evaluated(evaluation: pd.DataFrame, before: str = "pruned") -> dict[str, float]:
    """Return perplexities (or losses), metrics and sizes; what precedes fine-tuning has one name, as if removed."""
    metrics: dict[str, float] = {}
    measure = measure_of(evaluation)
    for row in evaluation.to_dict("records"):
        phase = before if row["phase"] == "dense" else row["phase"]
        further = {name: value for name, (value, _) in json.loads(row["metrics"]).items()}
        known = {measure: row[measure], **further}
        metrics |= {f"{name}_{phase}_{row['split']}": value for name, value in known.items()}
        metrics |= {size: row[size] for size in SIZES}
    return metrics


def _latency(state: State, variant: str) -> dict[str, float]:
    """Return how many times as fast as dense the variant is, milliseconds relative to dense, and whether it waited."""
    control = state.parameters.compare.control
    measured = state.table(state.stage("timing"), "latency")
    rows, metrics = in_milliseconds(measured, measured, control), dict[str, float]()
    for row in rows[rows["model"] == variant].to_dict("records"):
        batch = f"batch_{row['batch']}"
        metrics |= {f"latency_ms_{batch}": row["milliseconds"], f"latency_ms_{batch}_error": row["milliseconds_error"]}
        metrics |= {f"speed_up_{batch}": row["speed_up"], f"speed_up_{batch}_error": row["error"]}
        metrics |= {f"waited_{batch}": row["waited"]}
    return {name: value for name, value in metrics.items() if value == value}  # NaN: not known


def _log_once(
    client: Any,
    store: str,
    records: Sequence[Record],
    tags: Mapping[str, str],
    datasets: Sequence[Any],
) -> str:
    """Log a parent run and its children unless a finished parent has this state; return what to say."""
    experiment = _experiment(client, store)
    made = client.search_runs([experiment], f"tags.`{STATE}` = '{tags[STATE]}'")
    for run in made:
        if PARENT not in run.data.tags and run.info.status == "FINISHED":
            return f"MLflow: this state is already logged (run {run.info.run_id})"
    for run in made:  # left by a run that was killed
        client.delete_run(run.info.run_id)
    whole, *parts = records
    parent = _log(client, experiment, whole, tags, datasets)
    for part in reversed(parts):  # the newest run stands first in MLflow's list
        client.set_terminated(_log(client, experiment, part, {**tags, PARENT: parent}, datasets))
    client.set_terminated(parent)
    return f"MLflow: {len(records)} runs logged (run {parent})"


def _experiment(client: Any, store: str) -> str:
    experiment = client.get_experiment_by_name(PROJECT)
    if experiment is None:
        tags = {"mlflow.experimentKind": "custom_model_development"}
        tags["mlflow.sharedViewState.variants"] = json.dumps(VARIANTS)
        here = None if store.startswith("http") else ARTIFACTS.resolve().as_uri()
        return str(client.create_experiment(PROJECT, artifact_location=here, tags=tags))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def identity() -> dict[str, str]:
    """Return the tags that say which state of the code the runs belong to."""
    tags = {"mlflow.source.type": "LOCAL"}
    if "DVC_EXP_NAME" in os.environ:
        tags["dvc.experiment"] = os.environ["DVC_EXP_NAME"]
    command = ["git", "status", "--porcelain=v2", "--branch"]  # the first line names the commit, the last ones changes
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return tags
    dirty = any(not line.startswith("#") for line in lines)
    return tags | {"mlflow.source.git.commit": lines[0].split()[-1], "git.dirty": str(dirty).lower()}


def _log(client: Any, experiment: str, record: Record, tags: Mapping[str, str], datasets: Sequence[Any]) -> str:
    """Make a run, log all that it holds, and return its id; ending it is left to the caller."""
    from mlflow.entities import Param

    run = str(client.create_run(experiment, tags={**record.tags, **tags}, run_name=record.name).info.run_id)
    metrics, params = list(_metrics(record)), [Param(name, str(value)) for name, value in record.params.items()]
    if datasets:
        client.log_inputs(run, datasets=list(datasets))
    for start in range(0, len(metrics), 1000):  # more at once are refused; likewise below
        client.log_batch(run, metrics=metrics[start : start + 1000])
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])
    for name, table in record.tables.items():
        client.log_table(run, table, f"{name}.json")
    for folder, file in ((folder, file) for folder, files in record.files.items() for file in files):
        client.log_artifact(run, str(file), folder or None)
    return run


def _metrics(record: Record) -> Iterator[Any]:
    """Yield final values, and of each curve at most `POINTS` points, the last among them."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for name, value in record.metrics.items():
        yield Metric(name, float(value), now, 0)
    for name in ("train_loss", "valid_loss", "learning_rate") if len(record.curves) else ():
        known = record.curves.dropna(subset=name)
        for index in np.unique(np.linspace(0, len(known) - 1, min(len(known), POINTS)).round().astype(int)):
            step, value = int(known["step"].iloc[index]), float(known[name].iloc[index])
            yield Metric(name, value, now, step)
            if name.endswith("_loss") and record.likelihood:
                yield Metric(name.replace("loss", "perplexity"), float(np.exp(value)), now, step)


def _corpus(state: State) -> Any:
    """Return the corpus as a logged data set: its place, hash and number of tokens, none of its rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path = state.stage("prepare").outputs["corpus"]
    place, profile = json.dumps({"uri": str(path)}), json.dumps({"num_rows": pq.read_metadata(path).num_rows})
    dataset = Dataset(path.stem, state.hashes[path], source_type="local", source=place, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
