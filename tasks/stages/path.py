"""The stage `path`: how good and how fast models are along one order of removal, from all neurons to few."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import pandas as pd

from pruning.core.avoiding import avoided_in
from pruning.core.neurons import Keep
from pruning.core.progress import Track
from pruning.core.workers import computed
from pruning.data.windows import Batches
from pruning.evaluation.measures import loss_of, size_of
from pruning.evaluation.schemas import LATENCY, PATH
from pruning.models.base import Measurable
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from tasks.common.job import Job
from tasks.common.latency import measured
from tasks.common.models import read_model
from tasks.common.tables import read_neurons, write_table
from tasks.common.windows import read_batches
from tasks.stages.reconstruct import repaired

DENSE = 1.0


def run(job: Job) -> None:
    """Write loss, perplexity, size and latency of the model at each share of neurons kept."""
    settings = job.settings("path")
    models = {DENSE: read_model(job.input("train/model"))}
    models |= {retain: model_at(job, retain) for retain in sorted(settings["retain"], reverse=True)}
    protocol = {name: job.settings("evaluate")[name] for name in ("batch", "bptt")}
    windows = {split: read_batches(job, split, **protocol) for split in ("valid", "test")}
    rows = computed(job.map, partial(_judged, windows), [*models.items()], track=job.track, what="path, models")
    write_table(job.output("path"), pd.DataFrame([*rows]), PATH)
    named = {f"{retain:g}": model for retain, model in models.items()}
    latency = measured(job, named, to=f"{DENSE:g}", repeats=settings["repeats"])
    write_table(job.output("latency"), latency, LATENCY)


def _judged(windows: Mapping[str, Batches], shared: tuple[float, Measurable], *, track: Track) -> dict[str, object]:
    """Return the row of a model at its share of neurons."""
    retain, model = shared
    what = f"keep {retain:g}"
    losses = {split: loss_of(model, text, track=track, what=f"{what}, {split}") for split, text in windows.items()}
    worth = {f"{split}_perplexity": loss.perplexity for split, loss in losses.items()}
    worth |= {f"{split}_loss": loss.mean for split, loss in losses.items()}
    return {"retain": retain, **asdict(size_of(model)), **worth}


def model_at(job: Job, retain: float) -> Measurable:
    """Return the repaired model that keeps this share of all neurons by the path's order of removal."""
    dense = dense_of(job)
    repair = job.settings("reconstruct") | {"repair": job.settings("path")["repair"]}
    return repaired(job, dense, kept_at(job, dense, retain), **repair)


def dense_of(job: Job) -> Measurable:
    """Return the dense model, each layer of which has readers of its own."""
    return read_model(job.input("train/model")).decoupled(job.settings("prune")["tied"])


def kept_at(job: Job, dense: Measurable, retain: float) -> Keep:
    """Return which neurons are this share of all by the path's order of removal."""
    importance = read_neurons(job.input("fuse/importance"), dense.layers())
    by = "surgeon" if importance["surgeon"].notna().all() else "fused"
    scope = "absolute" if by == "surgeon" else "global"
    allocation = Allocation(retain=retain, floor=job.settings("prune")["floor"], scope=scope)
    return keep_of(retention(importance, allocation, variant=f"{retain:g}", by=by, avoided=avoided_in(dense)))
