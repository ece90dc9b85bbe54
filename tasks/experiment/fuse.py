"""The stage `fuse`: the weights of signals that measured removals teach, for each text."""

import json

from pruning.experiment.choices import fused_by
from pruning.experiment.variants import choice_of
from pruning.fusion.fused import to_plain
from tasks.common.job import Job
from tasks.common.tables import read_table
from tasks.common.writing import replacing
from tasks.experiment.inputs import Case, read_calibration


def run(job: Job) -> None:
    """Write the learned weights."""
    calibration = read_calibration(job.input("calibrate/signals"), Case(job).text)
    learnt = fused_by(calibration, choice_of("learned"), oracle=read_table(job.input("oracle/oracle")))
    with replacing(job.output("weights")) as aside:
        aside.write_text(json.dumps(to_plain(learnt.weighing), indent=2) + "\n", encoding="utf-8")
