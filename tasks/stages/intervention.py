"""The stage `intervention`."""

from pruning.ablation.intervention import Intervention, intervention
from pruning.signals.schemas import INTERVENTION
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import calibration_batches, held_out_batches


def run(job: Job) -> None:
    """Write what the removal of each neuron does to the answers, and what labels say of it."""
    model = read_model(job.input("train/model")).decoupled()
    settings = Intervention(**job.settings("intervention"))
    read, held_out = calibration_batches(job), held_out_batches(job)
    labelled, trained = (read, None) if held_out is None else (held_out, read)
    measured = intervention(model, labelled, labelled, settings, trained=trained, track=job.track, map=job.map)
    write_table(job.output("intervention"), measured, INTERVENTION)
