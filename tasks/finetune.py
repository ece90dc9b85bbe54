"""The stage `finetune`, once for each variant: the loop of `train` beside a teacher, the same budget for all."""

import pandas as pd

from pruning.distillation import Teacher
from pruning.training import Recipe
from tasks.checkpoints import forget, train_to_the_end
from tasks.common.job import Job
from tasks.common.tables import write_table
from tasks.models import read_model, write_model
from tasks.windows import read_batches


def run(job: Job) -> pd.DataFrame | None:
    """Write the fine-tuned model and its history; return how long a training token took."""
    settings = job.settings("finetune")
    share, temperature = settings.pop("distillation"), settings.pop("temperature")
    shape = {name: settings.pop(name) for name in ("batch", "bptt")}
    seed = settings.pop("seed")
    model, dense = read_model(job.input("reconstruct/model")), read_model(job.input("train/model"))
    teacher = Teacher(model=dense, share=share, temperature=temperature) if share else None
    windows, valid = read_batches(job, "train", **shape), read_batches(job, "valid", **shape)
    last, timing = train_to_the_end(job, model, windows, valid, Recipe(**settings), seed, teacher)
    write_model(job.output("model"), model)
    write_table(job.output("history"), last.history.assign(phase="finetune")[["phase", *last.history.columns]])
    forget(job)
    return timing
