"""The stage `surgeon`."""

import logging

from pruning.models.base import Untappable
from pruning.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.tables import unmeasured
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.covariances import read_covariances
from tasks.models import read_model
from tasks.windows import calibration_batches

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Write the order in which neurons are best removed when what is left is repaired."""
    settings = job.settings("surgeon")
    damping = settings.pop("damping")
    model = read_model(job.input("train/model")).decoupled()
    states = read_covariances(job.input("activations/covariance"))
    try:
        measured = sensitivities(model, calibration_batches(job), **settings, track=job.track)
        order = surgeon(states, measured, damping=damping)
    except Untappable as reason:
        logger.warning("Not measured: %s", reason)
        order = unmeasured("surgeon", [(layer.name, layer.width) for layer in model.layers()])
    write_table(job.output("surgeon"), order)
