"""The stage `compare`: one table of all variants, metrics for DVC, plots."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from pruning.evaluation.comparison import compare, measure_of
from pruning.evaluation.schemas import COMPARISON
from pruning.pictures.cooperation import cooperation_edges
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.latency import busy, in_milliseconds
from tasks.common.models import read_model
from tasks.common.tables import read_table, write_table
from tasks.common.variants import read_variants
from tasks.common.writing import replacing
from tasks.stages.plots import write_costs, write_plots


def run(job: Job) -> None:
    """Write the comparison, all its numbers, those of them that DVC sets beside other runs', and the plots."""
    choices = {name: variant.by for name, variant in job.setting("variants").items()}
    evaluation = read_variants(job.input("evaluate"), "evaluation", choices)
    comparison = compare(evaluation, choices, control=job.settings("compare")["control"])
    write_table(job.output("comparison"), comparison, COMPARISON)
    metrics = {str(row.pop("variant")): _numbers(row) for row in comparison.to_dict("records")}
    _write_json(job.output("metrics"), {name: dict(sorted(metrics[name].items())) for name in sorted(metrics)})
    _write_json(job.output("summary"), summary(comparison))
    path, variants = read_table(job.input("path/path")), read_table(job.input("timing/latency"))
    model = read_model(job.input("train/model")).decoupled()
    write_plots(
        job.output("plots"),
        histories={
            "training": read_table(job.input("train/history")),
            "finetuning": read_variants(job.input("finetune"), "history", choices),
        },
        importance=read_table(job.input("fuse/importance")),
        removals=read_table(job.input("oracle/oracle")),
        edges=cooperation_edges(model, read_covariances(job.input("activations/covariance"), model.layers())),
        kept={name: read_table(job.input("prune") / name / "retention.parquet") for name in choices},
        comparison=comparison,
        path=path,
    )
    control = job.settings("compare")["control"]
    along = in_milliseconds(read_table(job.input("path/latency")), variants, control)
    variants = in_milliseconds(variants, variants, control)
    notes = busy(pd.concat([along, variants]))
    curve = _with_latency(path, path["retain"].map("{:g}".format), along)
    write_costs(job.output("costs"), curve, _with_latency(comparison, comparison["variant"], variants), notes)


def summary(comparison: pd.DataFrame) -> dict[str, Any]:
    """Return what `dvc exp show` and `dvc metrics diff` are to show, in five digits, since a person reads it.

    By variant the test perplexity after fine-tuning, or the loss, under a name that leaves room in a row of many runs;
    below them by how much it lies above the control's, and the multiply-adds of a token.
    """
    measure = measure_of(comparison, "finetuned_{}")
    columns = {"change": "finetuned_change", "multiply_adds": "multiply_adds"}
    named = comparison.set_index("variant")
    below = {name: _rounded(named[column]) for name, column in columns.items()}
    return {**_rounded(named[f"finetuned_{measure}"]), **below}


def _rounded(values: pd.Series) -> dict[str, float]:
    """Return numbers by name: whole ones as they are, others in five digits."""
    whole = pd.api.types.is_integer_dtype(values)
    return {str(name): int(value) if whole else float(f"{value:.5g}") for name, value in values.items()}


def _write_json(path: Path, values: Any) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _numbers(row: dict[Any, Any]) -> dict[str, float]:
    """Return the numbers of a row of the comparison that there are, further metrics among them."""
    further = {name: value for name, (value, _) in json.loads(row["metrics"]).items()}
    known = {**row, **further}.items()
    return {name: value for name, value in known if isinstance(value, int | float) and not math.isnan(value)}


def _with_latency(frame: pd.DataFrame, names: pd.Series, latency: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with columns `latency`, ms a step at the smallest batch, and `latency_error`."""
    rows = latency[latency["batch"] == latency["batch"].min()].set_index("model").loc[list(names)]
    measured = rows[["milliseconds", "milliseconds_error"]].to_numpy().T
    return frame.assign(**dict(zip(("latency", "latency_error"), measured, strict=True)))
