"""The stage `oracle`."""

from pruning.oracle import joint_removal, oracle, removal_sets
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.models import read_model
from tasks.windows import read_windows


def run(job: Job) -> None:
    """Write what removing neurons costs, one alone and several together, on the validation split."""
    model = read_model(job.input("train/model")).decoupled()
    windows = read_windows(job, "valid", **job.settings("calibration"))
    settings = job.settings("oracle")
    shares = settings.pop("joint")
    measured = oracle(model, windows, **settings, track=job.track)
    write_table(job.output("oracle"), measured)
    sets = removal_sets(measured, shares=shares, seed=settings["seed"])
    joint = joint_removal(model, windows, measured, sets=sets, tokens=settings["tokens"], track=job.track)
    write_table(job.output("joint_removal"), joint)
