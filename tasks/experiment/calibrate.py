"""The stage `calibrate`: every signal of a dense model from one stretch of text, and what each costs."""

from collections.abc import Callable
from pathlib import Path

from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import measure
from pruning.experiment.schemas import COST
from pruning.signals.activations import Covariances
from pruning.signals.schemas import TABLES
from tasks.common.covariances import read_covariances, write_covariances
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.common.writing import replacing
from tasks.experiment.costs import Cost, costed, measured_apart
from tasks.experiment.inputs import Case, DividedText, effort, labelled, read_dense


def run(job: Job) -> None:
    """Write the signals' tables, the covariances, and the costs."""
    with replacing(job.output("signals")) as folder:
        folder.mkdir()
        write_table(job.output("cost"), measured_apart(MEASURED, lambda: _prepared(job, folder)), COST)


def _prepared(job: Job, folder: Path) -> Callable[[str], Cost]:
    model, seed = read_dense(job).decoupled(), Case(job).text
    windows, settings = DividedText(job).calibration(seed), effort(job)
    judged = labelled(job)
    known = folder / "covariance.safetensors"

    def measured(name: str) -> Cost:
        """Write a signal's table; `activations` leaves its covariances to those after it."""
        states: Covariances = read_covariances(known) if known.is_file() else {}
        (table, states), cost = costed(
            model,
            lambda: measure(name, model, windows, states, effort=settings, seed=seed, labelled=judged, track=job.track),
        )
        write_table(folder / f"{name}.parquet", table, TABLES[name])
        if name == "activations":
            write_covariances(known, states)
        return cost

    return measured
