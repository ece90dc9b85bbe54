"""The stage `weights`."""

from pruning.signals.schemas import WEIGHTS
from pruning.signals.weights import weights
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table


def run(job: Job) -> None:
    """Write importance from the weights."""
    model = read_model(job.input("train/model")).decoupled()
    write_table(job.output("weights"), weights(model, **job.settings("weights")), WEIGHTS)
