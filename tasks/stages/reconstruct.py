"""The stage `reconstruct`, once for each variant: the pruned model, its readers refitted on what is left."""

from typing import Any

from pruning.core.neurons import Keep
from pruning.models.base import LanguageModel, Measurable
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.retention import keep_of
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.models import read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_neurons
from tasks.common.windows import read_windows


def run(job: Job) -> None:
    """Write the repaired model; where nothing was removed, there is nothing to repair."""
    model, settings = read_model(job.input("train/model")), job.settings_of_variant("reconstruct")
    retained = read_neurons(job.input("prune/retention"), model.decoupled().layers())
    if not retained["kept"].all():
        dense = model.decoupled(job.settings_of_variant("prune")["tied"])
        model = repaired(job, dense, keep_of(retained), **settings)
    write_model(job.output("model"), model)


def repaired(job: Job, dense: Measurable, keep: Keep, *, repair: str, **settings: Any) -> Measurable:
    """Return the smaller model, repaired with the job's covariances and, if it is to imitate, its calibration text."""
    covariances = read_covariances(job.input("activations/covariance"), dense.layers())
    smaller = reconstruct(dense, keep, covariances, repair="ridge" if repair == "imitate" else repair)
    if repair != "imitate":
        return smaller
    if not (isinstance(smaller, LanguageModel) and isinstance(dense, LanguageModel)):
        raise Unexpected("Expected repair none, mean or ridge for a model of your own, got imitate.")
    windows = read_windows(job, "train", **job.settings("calibration"))
    return imitate(smaller, dense, windows, imitation=Imitation(**settings), track=job.track)
