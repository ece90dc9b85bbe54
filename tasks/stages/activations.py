"""The stage `activations`."""

from pruning.signals.activations import activations
from pruning.signals.schemas import ACTIVATIONS
from tasks.common.covariances import write_covariances
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import calibration_batches


def run(job: Job) -> None:
    """Write importance from activations, and their covariance for later stages."""
    model = read_model(job.input("train/model")).decoupled()
    measured, covariances = activations(
        model, calibration_batches(job), **job.settings("activations"), track=job.track, map=job.map
    )
    write_table(job.output("activations"), measured, ACTIVATIONS)
    write_covariances(job.output("covariance"), covariances)
