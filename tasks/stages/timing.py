"""The stage `timing`: how fast every variant is beside the dense one, all in turns."""

from pruning.evaluation.schemas import LATENCY
from tasks.common.job import Job
from tasks.common.latency import measured
from tasks.common.models import read_model
from tasks.common.tables import write_table


def run(job: Job) -> None:
    """Write the latency of each variant's fine-tuned model, compared with the control's."""
    finetuned, control = job.input("finetune"), job.settings("compare")["control"]
    models = {variant: read_model(finetuned / variant / "model") for variant in job.setting("variants")}
    write_table(job.output("latency"), measured(job, models, to=control, **job.settings("timing")), LATENCY)
