"""The stage `compare`: one table of all variants, metrics for DVC, plots."""

import json

from pruning.evaluation.comparison import compare
from tasks.common.job import Job
from tasks.common.plots import write_plots
from tasks.common.tables import read_table, write_table
from tasks.common.variants import read_variants
from tasks.common.writing import replacing


def run(job: Job) -> None:
    """Write the comparison, `metrics.json` and the plots."""
    evaluation = read_variants(job.input("evaluate"), "evaluation", job.parameters)
    choices = {name: variant.by for name, variant in job.parameters.variants.items()}
    comparison = compare(evaluation, choices, control=job.parameters.compare.control)
    write_table(job.output("comparison"), comparison)
    metrics = {row.pop("variant"): row for row in comparison.drop(columns="importance").to_dict("records")}
    with replacing(job.output("metrics")) as aside:
        aside.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_plots(
        job.output("plots"),
        training=read_table(job.input("train/history")),
        finetuning=read_variants(job.input("finetune"), "history", job.parameters),
        importance=read_table(job.input("fuse/importance")),
        comparison=comparison,
    )
