"""The stage `train`: a dense model beside the given one, trained as the pipeline's was, from another seed."""

import pandas as pd

from tasks.common.checkpoints import forget
from tasks.common.job import Job
from tasks.common.models import write_model
from tasks.stages.train import trained


def run(job: Job) -> pd.DataFrame | None:
    """Write the model; return how long a training token took."""
    _, model, timing = trained(job, int(str(job.stage.variant)))
    write_model(job.output("model"), model)
    forget(job)
    return timing
