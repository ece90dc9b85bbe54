"""The stage `reconstruct`, once for each variant: the pruned model, its readers refitted on what is left."""

from pruning.distillation import Imitation, imitate
from pruning.layers import Keep
from pruning.models.base import LanguageModel
from pruning.reconstruction import reconstruct
from pruning.retention import keep_of
from tasks.common.job import Job
from tasks.common.tables import read_table
from tasks.covariances import read_covariances
from tasks.models import read_model, write_model
from tasks.windows import calibration_windows


def run(job: Job) -> None:
    """Write the repaired model; where nothing was removed, there is nothing to repair."""
    retained = read_table(job.input("prune/retention"))
    model = read_model(job.input("train/model"))
    write_model(job.output("model"), model if retained["kept"].all() else _repaired(job, model, keep_of(retained)))


def _repaired(job: Job, dense: LanguageModel, keep: Keep) -> LanguageModel:
    settings, tied = job.settings_of_variant("reconstruct"), job.settings_of_variant("prune")["tied"]
    repair = settings.pop("repair")
    closed_form = "ridge" if repair == "imitate" else repair
    covariances = read_covariances(job.input("activations/covariance"))
    smaller = reconstruct(dense.decoupled(tied), keep, covariances, repair=closed_form)
    if repair != "imitate":
        return smaller
    return imitate(smaller, dense, calibration_windows(job), imitation=Imitation(**settings), track=job.track)
