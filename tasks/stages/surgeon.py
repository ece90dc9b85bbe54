"""The stage `surgeon`."""

from pruning.core.sketches import rank_of
from pruning.signals.schemas import SURGEON
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import calibration_batches


def run(job: Job) -> None:
    """Write the OBS order: that in which neurons are best removed when what is left is repaired."""
    settings = job.settings("surgeon")
    damping = settings.pop("damping")
    model = read_model(job.input("train/model")).decoupled()
    states = read_covariances(job.input("activations/covariance"), model.layers())
    measured = sensitivities(
        model, calibration_batches(job), **settings, rank=rank_of(states), track=job.track, map=job.map
    )
    write_table(job.output("surgeon"), surgeon(states, measured, damping=damping), SURGEON)
