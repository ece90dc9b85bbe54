"""How records become runs: a parent and its children, once for each state of the results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pruning.pictures.style import COLOURS
from tasks.commands.tracking.identity import differences, identity, named
from tasks.commands.tracking.records import Record, metrics_of
from tasks.commands.tracking.state import State
from tasks.commands.tracking.store import COLOUR, LISTED, opened

DIGEST, PARENT = "dvc.lock", "mlflow.parentRunId"


def log_once(records: Sequence[Record], state: State, command: str, datasets: Sequence[Any]) -> str:
    """Log a parent run and its children unless a finished parent has this state; return what to say.

    Args:
        records: The parent first.
        state: The results; a finished parent with their digest is not logged again.
        command: What every run is said to come from.
        datasets: What the runs read.
    """
    tags = {"mlflow.source.name": command, **identity(), DIGEST: state.digest}
    differing = differences(state.values, state.folder)
    names = [named(record.name, tags, differing, record.tags.get("variant", "")) for record in records]
    records = [_absolute(record) for record in records]
    with opened() as (client, experiment):
        made = client.search_runs([experiment], f"tags.`{DIGEST}` = '{state.digest}'")
        for run in made:
            if PARENT not in run.data.tags and run.info.status == "FINISHED":
                return f"MLflow: this state is already logged (run {run.info.run_id})"
        for run in made:  # left by a run that was killed
            client.delete_run(run.info.run_id)
        records = _coloured(records, beside=len(client.search_runs([experiment], "tags.`listed` = 'yes'")))
        whole, *parts = zip(records, names, strict=True)
        parent = _log(client, experiment, *whole, tags, datasets)
        for part, name in reversed(parts):  # the newest run stands first in MLflow's list
            client.set_terminated(_log(client, experiment, part, name, {**tags, PARENT: parent}, datasets))
        client.set_terminated(parent)
    return f"MLflow: {len(records)} runs logged (run {parent})"


def _coloured(records: Sequence[Record], *, beside: int) -> list[Record]:
    """Return the records, those that are listed in colours that follow those of the runs beside them.

    So no two of nine that were logged one after the other share one. As in the pictures, variants go by their names.
    """
    listed = sorted(record.name for record in records if LISTED.items() <= record.tags.items())
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(listed, beside)}
    return [
        replace(record, tags={**record.tags, COLOUR: colours[record.name]}) if record.name in colours else record
        for record in records
    ]


def _absolute(record: Record) -> Record:
    """Return the record with its files where they are, whatever the current folder is."""
    files = {folder: [path.resolve() for path in paths] for folder, paths in record.files.items()}
    model = record.model and replace(record.model, folder=record.model.folder.resolve())
    return replace(record, files=files, model=model)


def log_metrics(client: Any, run: str, metrics: Iterable[Any]) -> None:
    """Log metrics, as many at once as are taken."""
    every = list(metrics)
    for start in range(0, len(every), 1000):
        client.log_batch(run, metrics=every[start : start + 1000])


def _log(
    client: Any, experiment: str, record: Record, name: str, tags: Mapping[str, str], datasets: Sequence[Any]
) -> str:
    """Make a run, log all that it holds, and return its id; ending it is left to the caller."""
    from mlflow.entities import Param

    run = str(client.create_run(experiment, tags={**record.tags, **tags}, run_name=name).info.run_id)
    params = [Param(setting, str(value)) for setting, value in record.params.items()]
    if datasets:
        client.log_inputs(run, datasets=list(datasets))
    log_metrics(client, run, metrics_of(record))
    for start in range(0, len(params), 100):  # more at once are refused
        client.log_batch(run, params=params[start : start + 100])
    for table, rows in record.tables.items():
        client.log_table(run, rows, f"{table}.json")
    for folder, file in ((folder, file) for folder, files in record.files.items() for file in files):
        client.log_artifact(run, str(file), folder or None)
    if record.model:
        from tasks.commands.tracking.models import log_model  # imports PyTorch

        if refused := log_model(client, client.get_run(run), record.name, record.model):
            client.set_tag(run, "no model", refused)
    return run
