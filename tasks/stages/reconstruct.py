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
from tasks.common.tables import read_neurons
from tasks.common.windows import calibration_batches


def run(job: Job) -> None:
    """Write the repaired model; where nothing was removed, there is nothing to repair."""
    model, settings = read_model(job.input("train/model")), job.settings_of_variant("reconstruct")
    retained = read_neurons(job.input("prune/retention"), model.decoupled().layers())
    if not retained["kept"].all():
        dense = model.decoupled(job.settings_of_variant("prune")["tied"])
        model = repaired(job, dense, keep_of(retained), **settings)
    write_model(job.output("model"), model)


def repaired(job: Job, dense: Measurable, keep: Keep, *, repair: str, **settings: Any) -> Measurable:
    """Return the smaller model, repaired and, if it is to imitate, taught by the job's calibration text.

    A built-in family is refitted by the job's covariances, for all readers of a layer read the same; each reader of a
    user's model is on what it reads of the batches.
    """
    closed_form = "ridge" if repair == "imitate" else repair
    if isinstance(dense, LanguageModel):
        covariances = read_covariances(job.input("activations/covariance"), dense.layers())
        smaller: Measurable = reconstruct(dense, keep, covariances, repair=closed_form)
    else:
        batches = calibration_batches(job)
        smaller = reconstruct(dense, keep, data=batches, repair=closed_form, track=job.track)
    if repair != "imitate":
        return smaller
    return imitate(smaller, dense, calibration_batches(job), imitation=Imitation(**settings), track=job.track)
