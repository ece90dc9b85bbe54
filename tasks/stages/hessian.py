"""The stage `hessian`."""

from pruning.signals.hessian import hessian
from pruning.signals.schemas import HESSIAN
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import labelled_batches


def run(job: Job) -> None:
    """Write the traditional importance."""
    model = read_model(job.input("train/model")).decoupled()
    measured = hessian(model, labelled_batches(job), **job.settings("hessian"), track=job.track, map=job.map)
    write_table(job.output("hessian"), measured, HESSIAN)
