"""The stage `finetune`, once for each variant: the loop of `train` beside a teacher, the same budget for all."""

import pandas as pd

from pruning.training.schemas import HISTORY
from tasks.common.checkpoints import forget, train_to_the_end
from tasks.common.job import Job
from tasks.common.lessons import read_lessons
from tasks.common.models import read_model, write_model
from tasks.common.tables import write_table


def run(job: Job) -> pd.DataFrame | None:
    """Write the fine-tuned model and its history; return how long a training token took."""
    dense = read_model(job.input("train/model"))
    lessons = read_lessons(job, dense)
    model = lessons.begun(read_model(job.input("reconstruct/model")))
    given = (lessons.train, lessons.valid, lessons.recipe, lessons.seed, lessons.teacher)
    last, timing = train_to_the_end(job, model, *given)
    if not job.writes:
        return None
    write_model(job.output("model"), model)
    write_table(job.output("history"), last.history.assign(phase="finetune")[["phase", *last.history.columns]], HISTORY)
    forget(job)
    return timing
