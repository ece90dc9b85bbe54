"""What `finetune` in params.yaml says of extra training, for the stages that train beside the dense model."""

from dataclasses import dataclass

from pruning.data.windows import Batches
from pruning.models.base import Measurable
from pruning.training.distillation import Teacher
from pruning.training.loop import Recipe
from tasks.common.job import Job
from tasks.common.windows import read_batches


@dataclass(frozen=True)
class Lessons:
    """How to train, on what, judged by what, and beside which teacher (None: by the labels alone)."""

    recipe: Recipe
    train: Batches
    valid: Batches
    teacher: Teacher | None
    seed: int


def read_lessons(job: Job, dense: Measurable) -> Lessons:
    """Return the extra training that the settings `finetune` ask for, `dense` being the teacher."""
    settings = job.settings("finetune")
    teacher = Teacher.of(dense, share=settings.pop("distillation"), temperature=settings.pop("temperature"))
    shape, seed = {name: settings.pop(name) for name in ("batch", "bptt")}, settings.pop("seed")
    train, valid = (read_batches(job, split, **shape) for split in ("train", "valid"))
    return Lessons(Recipe(**settings), train, valid, teacher, seed)
