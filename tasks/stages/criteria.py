"""The stage `criteria`."""

from pruning.signals.criteria import criteria
from pruning.signals.schemas import CRITERIA_TABLE
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import labelled_batches


def run(job: Job) -> None:
    """Write the field's criteria, side by side."""
    model = read_model(job.input("train/model")).decoupled()
    measured = criteria(model, labelled_batches(job), **job.settings("criteria"), track=job.track, map=job.map)
    write_table(job.output("criteria"), measured, CRITERIA_TABLE)
