"""The stage `prune`, once for each variant."""

from pruning.layers import select
from pruning.retention import keep_of, retention
from tasks.common.job import Job
from tasks.common.tables import read_table, write_table
from tasks.models import read_model, write_model


def run(job: Job) -> None:
    """Write which neurons the variant keeps and the model without the others."""
    settings, variant = job.settings_of_variant("prune"), str(job.stage.variant)
    tied, by = settings.pop("tied"), job.settings(f"variants.{variant}")["by"]
    retained = retention(read_table(job.input("fuse/importance")), variant=variant, by=by, **settings)
    model = read_model(job.input("train/model"))
    smaller = model if retained["kept"].all() else select(model.decoupled(tied), keep_of(retained))
    write_model(job.output("model"), smaller)
    write_table(job.output("retention"), retained)
