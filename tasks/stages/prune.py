"""The stage `prune`, once for each variant."""

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import pandas as pd

from pruning.core.avoiding import avoided_in
from pruning.core.neurons import select
from pruning.core.options import FIRING
from pruning.models.base import Measurable
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import Budget, budget_of
from pruning.selection.costs import measured_latency
from pruning.selection.retention import keep_of, retention
from pruning.selection.schemas import RETENTION
from pruning.selection.spending import met
from tasks.common.devices import on_one_thread
from tasks.common.job import Job
from tasks.common.models import read_model, write_model
from tasks.common.tables import read_neurons, write_table
from tasks.common.windows import calibration_batches

logger = logging.getLogger(__name__)


class _Cut(NamedTuple):
    """A smaller model, and the table that says which neurons it kept."""

    model: Measurable
    retained: pd.DataFrame


def run(job: Job) -> None:
    """Write which neurons the variant keeps and the model without the others."""
    variant = str(job.stage.variant)
    settings, by = job.settings_of_variant("prune"), job.settings(f"variants.{variant}")["by"]
    model = read_model(job.input("train/model"))
    separate = model.decoupled(settings.pop("tied"))
    wanted = settings.pop("budget")
    importance = read_neurons(job.input("fuse/importance"), separate.layers())
    kinds = {layer.name: layer.kind for layer in separate.layers()}

    def made(budget: Budget | None) -> _Cut:
        allocation = Allocation(**settings, budget=budget)
        how: dict[str, Any] = {"kinds": kinds, "avoided": avoided_in(separate)}
        retained = retention(importance, allocation, variant=variant, by=by, **how)
        return _Cut(model if retained["kept"].all() else select(separate, keep_of(retained)), retained)

    if wanted is None:
        smaller, retained = made(None)
    elif wanted["kind"] in FIRING:
        text = list(islice(calibration_batches(job), wanted["windows"]))
        budget = budget_of(separate, kind=wanted["kind"], value=wanted["value"], data=text)
        smaller, retained = met(made, budget, text)
    else:
        smaller, retained = made(_budget(job, separate, wanted))
    write_model(job.output("model"), smaller)
    write_table(job.output("retention"), retained, RETENTION)


def _budget(job: Job, model: Measurable, wanted: Mapping[str, Any]) -> Budget:
    """Return the budget that params.yaml asks for; a latency is measured here and now."""
    kind, value = wanted["kind"], wanted["value"]
    if kind != "latency":
        return budget_of(model, kind=kind, value=value, target=wanted["target"] or "float32")
    how = {name: wanted[name] for name in ("batch", "repeats", "points")}
    with on_one_thread():
        costs, misfit = measured_latency(model, **how, track=job.track)
    logger.warning("Latency is measured to within %.1f%% (RMS); another run may choose other widths.", 100 * misfit)
    return budget_of(model, kind=kind, value=value, latency=costs)
