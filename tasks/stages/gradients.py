"""The stage `gradients`."""

from pruning.signals.gradients import gradients
from pruning.signals.schemas import GRADIENTS
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import labelled_batches


def run(job: Job) -> None:
    """Write importance from the flow of gradients."""
    model = read_model(job.input("train/model")).decoupled()
    measured = gradients(model, labelled_batches(job), **job.settings("gradients"), track=job.track, map=job.map)
    write_table(job.output("gradients"), measured, GRADIENTS)
