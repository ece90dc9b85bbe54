"""What `finetune` in params.yaml says of extra training, for the stages that train beside the dense model."""

from dataclasses import dataclass
from typing import Any

from pruning.data.windows import Batches
from pruning.models import describe, rebuild
from pruning.models.base import LanguageModel, Measurable
from pruning.training.distillation import Teacher
from pruning.training.recipes import Recipe
from tasks.common.job import Job
from tasks.common.windows import read_batches

AS_TRAINED = ("type", "softmax", "sampled")
"""Settings of `train` that `finetune` has too, and that are as there where it says nothing."""


@dataclass(frozen=True)
class Lessons:
    """How to train, on what, judged by what, and beside which teacher (None: by the labels alone).

    Attributes:
        dropout: Of what is trained; None: its own.
    """

    recipe: Recipe
    train: Batches
    valid: Batches
    teacher: Teacher | None
    seed: int
    dropout: float | None = None

    def begun(self, model: Measurable) -> Measurable:
        """Return the model as it is to be trained, with the dropout that is asked for."""
        if self.dropout is None or not isinstance(model, LanguageModel):
            return model
        config, tensors = describe(model)
        return rebuild(config | {"dropout": self.dropout}, tensors).to(model.device)


def read_lessons(job: Job, dense: Measurable) -> Lessons:
    """Return the extra training that the settings `finetune` ask for, `dense` being the teacher."""
    settings = learning(job) if isinstance(dense, LanguageModel) else learning(job, softmax="full")
    teacher = Teacher.of(dense, share=settings.pop("distillation"), temperature=settings.pop("temperature"))
    shape, seed = {name: settings.pop(name) for name in ("batch", "bptt")}, settings.pop("seed")
    train, valid = (read_batches(job, split, **shape) for split in ("train", "valid"))
    dropout = settings.pop("dropout")
    return Lessons(Recipe(**settings), train, valid, teacher, seed, dropout)


def learning(job: Job, **usual: object) -> dict[str, Any]:
    """Return the settings `finetune`; where it leaves one to `train`, as that has it, unless another is usual."""
    settings = job.settings("finetune")
    trained = {name: job.setting(f"train.{name}") for name in AS_TRAINED} | usual
    return settings | {name: value for name, value in trained.items() if settings[name] is None}
