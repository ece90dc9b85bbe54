"""Where MLflow keeps runs, so that a folder that moves keeps its artifacts, and the views that its pages open with."""

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from pathlib import Path
from typing import Any

from tasks.commands.untracked import checkout

DATABASE, ARTIFACTS = Path("mlflow.db"), Path("mlartifacts")
PROJECT = "neuron-pruning"
GIVEN = "MLFLOW_TRACKING_URI"
"""Where a user says that MLflow is."""
DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # the making of a new database is told in thirty lines otherwise
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # a server that is down is given up after seconds, not after MLflow's minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
for name, value in DEFAULTS.items():  # before MLflow is first imported, which reads some of them then
    os.environ.setdefault(name, value)
PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Tables and columns of MLflow's database that say where files are."""


@contextmanager
def opened() -> Iterator[tuple[Any, str]]:
    """Yield MLflow's client and the experiment's number, in the folder that relative places are relative to.

    Without MLFLOW_TRACKING_URI that is the checkout's own database; an experiment that DVC runs in a copy of the
    checkout tells the same one.
    """
    import mlflow  # two seconds, and only here
    import mlflow.store.db.utils as databases

    databases.MAX_RETRY_COUNT = 2  # ten, the default, are two minutes
    with chdir(checkout()):
        store = address()
        given = os.environ.get(GIVEN)
        mlflow.set_tracking_uri(store)  # which changes the environment too
        try:
            client = mlflow.MlflowClient(store)
            yield client, _experiment(client, store)
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # which unsets it
            if given:
                os.environ[GIVEN] = given


def address() -> str:
    """Return where MLflow's runs are told to."""
    return os.environ.get(GIVEN) or f"sqlite:///{(checkout() / DATABASE).resolve()}"


def unreachable(error: Exception) -> str:
    """Return the sentence on a store that did not take what it was told, without a password."""
    reason = str(error).partition("\n")[0][-100:]  # the cause stands last in its chain
    return re.sub(r"//[^/@\s]*@", "//", f"MLflow at {address()} could not be reached or refused (… {reason}).")


def _experiment(client: Any, store: str) -> str:
    """Return the experiment's number, made if there is none, with the views that its pages open with."""
    experiment = client.get_experiment_by_name(PROJECT)
    tags = {"mlflow.experimentKind": "custom_model_development", DESCRIPTION: ABOUT}
    tags |= {f"mlflow.sharedViewState.{name}": json.dumps(view) for name, view in VIEWS.items()}
    if experiment is None:
        here = None if store.startswith("http") else ARTIFACTS.resolve().as_uri()
        number = str(client.create_experiment(PROJECT, artifact_location=here, tags=tags))
    else:
        number = str(experiment.experiment_id)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(number)
        for name in (name for name, value in tags.items() if experiment.tags.get(name) != value):
            client.set_experiment_tag(number, name, tags[name])
    if store == f"sqlite:///{DATABASE.resolve()}":
        _make_relative(DATABASE)
    return number


def _make_relative(database: Path) -> None:
    """Let the database name artifacts relative to the folder that it lies in, as MLflow itself does not.

    It makes whatever place it is given absolute when an experiment is made, and appends to that for each run. A place
    without a root it takes from the current folder, which is the checkout wherever the project reads its database.
    """
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        (place,) = connection.execute(query, (PROJECT,)).fetchone()
        if place == str(ARTIFACTS):
            return
        for table, column in PLACES:
            # Both are names of this file's.
            change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            connection.execute(change, (str(ARTIFACTS), len(place) + 1, len(place), place))


ABOUT = """One run for the whole pipeline, one for training, one for each variant: cut, repaired, fine-tuned.

| metric | means |
|---|---|
| `perplexity_<phase>_<split>` | e to the loss in nat/token, after each phase |
| `<phase>_change` | of the perplexity, relative to the dense network |
| `retention` | share of the neurons that stayed |
| `parameters`, `multiply_adds` | what they cost, multiply-adds for one token |
| `synaptic_operations`, `energy` | of spikes, for one token; pJ/token |
| `latency_ms_batch_<n>`, `speed_up_batch_<n>` | of one step with so many columns, beside the dense network's |
| `waited_batch_<n>` | share of its time that the measurement waited for a core |
| `seconds_<stage>` | what a stage took |
| `curves/…` | by step: losses in nat/token, the learning rate |
"""
"""What the experiment's page says of itself."""
PIPELINE, TRAINING, VARIANT, FAILED = "pipeline", "training", "variant", "failed stage"
"""What a run's tag `kind` says that it is of."""
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or an experiment."""
COLOUR = "mlflow.runColor"
"""The tag with the colour of a run in MLflow's charts; of runs without, several may have one."""
LISTED = {"listed": "yes"}
"""The tag of what the list of runs shows: variants, and stages that failed."""
COLUMNS = {
    "tags.`retention`": 80,
    "tags.`perplexity by phase`": 185,
    "tags.`speed-up`": 105,
    "tags.`parameters`": 130,
    "tags.`chosen by`": 90,
    "tags.`last line`": 300,
}
"""Columns of the list of runs and how wide they are, in pixels: rounded, with their errors."""
VIEWS = {
    "variants": {
        "searchFilter": "tags.listed = 'yes'",
        "orderByKey": "metrics.`perplexity_finetuned_test`",  # any order but by date shows children without parents
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
    },
}
"""What the pages show under `…/runs?viewStateShareKey=…`: a ranking of all variants, failed stages below them."""
