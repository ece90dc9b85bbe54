"""The stage `oracle`: what removing each neuron really costs, and what measuring it does."""

from collections.abc import Callable

from pruning.ablation.oracle import Ablation, oracle
from pruning.ablation.schemas import ORACLE
from pruning.experiment.schemas import COST
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.experiment.costs import Cost, costed, measured_apart
from tasks.experiment.inputs import DividedText, read_dense
from tasks.experiment.settings import SEED


def run(job: Job) -> None:
    """Write measured removals and their cost."""
    write_table(job.output("cost"), measured_apart(["oracle"], lambda: _prepared(job)), COST)


def _prepared(job: Job) -> Callable[[str], Cost]:
    model, text = read_dense(job).decoupled(), DividedText(job)
    neurons, tokens = job.setting("removal").neurons, min(job.setting("validation").removed, text.cut)
    ablation = Ablation(neurons=neurons, tokens=tokens, words=64, seed=SEED)

    def measured(_: str) -> Cost:
        table, cost = costed(model, lambda: oracle(model, text.removal, ablation, track=job.track))
        write_table(job.output("oracle"), table, ORACLE)
        return cost

    return measured
