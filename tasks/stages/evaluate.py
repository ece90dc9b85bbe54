"""The stage `evaluate`, once for each variant: loss, metrics, size and latency after each phase."""

import dataclasses
import json

import pandas as pd

from pruning.data.windows import Batches
from pruning.evaluation.energy import energy_of
from pruning.evaluation.latency import latencies
from pruning.evaluation.measures import Loss, loss_of, size_of
from pruning.evaluation.schemas import EVALUATION
from pruning.models.base import Measurable
from tasks.common.job import Job, seconds
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import read_batches

PHASES = {"pruned": "prune", "reconstructed": "reconstruct", "finetuned": "finetune"}
"""Phases of a variant, and the stage that writes the model of each; what keeps everything has only the last."""
BATCHES = (1, 32)
"""How many sequences run side by side when latency is measured."""


def run(job: Job) -> pd.DataFrame:
    """Write the evaluation; return the latency of the variant and, in the same run, of the dense model."""
    settings = job.settings("evaluate")
    repeats = settings.pop("repeats")
    dense = read_model(job.input("train/model"))
    models = {phase: read_model(job.input(f"{stage}/model")) for phase, stage in PHASES.items()}
    if size_of(models["pruned"]).neurons == size_of(dense).neurons:
        models = {"dense": dense, "finetuned": models["finetuned"]}
    windows = {split: read_batches(job, split, **settings) for split in ("valid", "test")}
    rows = [_row(job, phase, split, model, windows[split]) for split in windows for phase, model in models.items()]
    write_table(job.output("evaluation"), pd.DataFrame(rows), EVALUATION)
    return _latencies(job, {"dense": dense, "finetuned": models["finetuned"]}, repeats)


def _row(job: Job, phase: str, split: str, model: Measurable, windows: Batches) -> dict[str, object]:
    what = f"{job.stage.variant}, {phase}, {split}"
    loss = loss_of(model, windows, track=job.track, what=what)
    return {
        "variant": job.stage.variant,
        "phase": phase,
        "split": split,
        "loss": loss.mean,
        "perplexity": loss.perplexity,
        "accuracy": loss.accuracy,
        "metrics": further_metrics(loss),
        "tokens": loss.tokens,
        **dataclasses.asdict(size_of(model)),
        **dataclasses.asdict(energy_of(model, windows, track=job.track, what=f"{what}, spikes")),
    }


def further_metrics(loss: Loss) -> str:
    """Return the metrics beside the accuracy as JSON: name → [value, which numbers are better]."""
    beside = {name: [value, loss.better[name]] for name, value in loss.metrics.items() if name != "accuracy"}
    return json.dumps(beside, sort_keys=True)


def _latencies(job: Job, models: dict[str, Measurable], repeats: int) -> pd.DataFrame:
    rows = []
    for batch in BATCHES:
        for phase, found in latencies(models, batch=batch, repeats=repeats, track=job.track).items():
            rows.append(seconds(job, "latency", found.seconds, phase=phase, batch=batch, spread=found.spread))
    return pd.concat(rows, ignore_index=True)
