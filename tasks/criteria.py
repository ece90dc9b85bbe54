"""The stage `criteria`."""

import logging

from pruning.models.base import Untappable
from pruning.signals.criteria import criteria
from pruning.tables import unmeasured
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.models import read_model
from tasks.windows import calibration_batches

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Write the field's criteria, side by side."""
    model = read_model(job.input("train/model")).decoupled()
    try:
        measured = criteria(model, calibration_batches(job), **job.settings("criteria"), track=job.track)
    except Untappable as reason:
        logger.warning("Not measured: %s", reason)
        measured = unmeasured("criteria", [(layer.name, layer.width) for layer in model.layers()])
    write_table(job.output("criteria"), measured)
