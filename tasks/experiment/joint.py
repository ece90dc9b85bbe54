"""The stage `joint`: what removing sets of a layer's neurons together costs."""

import pandas as pd

from pruning.ablation.joint_removal import joint_removal, joint_sets
from pruning.ablation.schemas import JOINT_REMOVAL
from pruning.core.tables import empty
from tasks.common.job import Job
from tasks.common.tables import read_table, write_table
from tasks.experiment.inputs import DividedText, read_dense
from tasks.experiment.settings import SEED

TOKENS, SHARE = 8_000, 0.3
"""How much text a set's joint removal is measured on at most, and which share of a layer it is."""


def run(job: Job) -> None:
    """Write the loss increase of each set."""
    removals = read_table(job.input("oracle/oracle"))
    model, text = read_dense(job).decoupled(), DividedText(job).removal
    sets = sets_of(job, removals)
    removed = empty(JOINT_REMOVAL)
    if sets:
        removed = joint_removal(model, text, removals, sets=sets, tokens=TOKENS, track=job.track, map=job.map)
    write_table(job.output("joint_removal"), removed, JOINT_REMOVAL)


def sets_of(job: Job, removals: pd.DataFrame) -> dict[str, dict[str, list[int]]]:
    """Return the sets that the experiment asks for: name → layer → neurons."""
    return joint_sets(removals, sets=job.setting("joint").sets, share=SHARE, seed=SEED)
