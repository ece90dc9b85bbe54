"""The stage `fuse`."""

from pruning.fusion import fuse
from pruning.tables import BESIDE, SIGNALS
from tasks.common.job import Job
from tasks.common.tables import read_table, write_table


def run(job: Job) -> None:
    """Write the fused importance of every neuron."""
    signals = {name: read_table(job.input(f"{name}/{name}")) for name in (*SIGNALS, *BESIDE)}
    criteria = read_table(job.input("criteria/criteria"))
    write_table(job.output("importance"), fuse(signals, criteria, **job.settings("fuse")))
