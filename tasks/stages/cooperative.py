"""The stage `cooperative`."""

from pruning.signals.cooperative import cooperative
from pruning.signals.schemas import COOPERATIVE
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table


def run(job: Job) -> None:
    """Write importance from the graph of neurons."""
    model = read_model(job.input("train/model")).decoupled()
    covariances = read_covariances(job.input("activations/covariance"), model.layers())
    write_table(job.output("cooperative"), cooperative(model, covariances, **job.settings("cooperative")), COOPERATIVE)
