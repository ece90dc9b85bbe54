"""The stage `oracle`: what neurons are really worth, for fusion to learn from and importance to be judged by."""

from dataclasses import replace
from functools import partial

from pruning.ablation.joint_removal import joint_removal, removal_sets
from pruning.ablation.oracle import Ablation, oracle
from pruning.ablation.schemas import JOINT_REMOVAL, ORACLE
from pruning.core.neurons import Keep
from pruning.models.base import LanguageModel, Measurable
from pruning.repair.reconstruction import reconstruct
from pruning.training.loop import train
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.lessons import read_lessons
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import calibration_batches, read_batches


def run(job: Job) -> None:
    """Write what removing neurons costs on the validation split: one alone, and several together, repaired, trained."""
    dense = read_model(job.input("train/model"))
    model, batches = dense.decoupled(), read_batches(job, "valid", **job.settings("calibration"))
    settings = job.settings("oracle")
    shares, portion = settings.pop("joint"), settings.pop("portion")
    measured = oracle(model, batches, Ablation(**settings), track=job.track)
    write_table(job.output("oracle"), measured, ORACLE)
    joint = joint_removal(
        model,
        batches,
        measured,
        sets=removal_sets(measured, shares=shares, seed=settings["seed"]),
        tokens=settings["tokens"],
        repair=partial(_repaired, job),
        finetune=partial(_finetuned, job, dense, portion),
        track=job.track,
    )
    write_table(job.output("joint_removal"), joint, JOINT_REMOVAL)


def _repaired(job: Job, model: Measurable, keep: Keep) -> Measurable:
    """Return the smaller model with the standard repair, its readers refitted in closed form."""
    if not isinstance(model, LanguageModel):
        return reconstruct(model, keep, data=calibration_batches(job), repair="ridge")
    covariances = read_covariances(job.input("activations/covariance"), model.layers())
    return reconstruct(model, keep, covariances, repair="ridge")


def _finetuned(job: Job, dense: Measurable, portion: float, model: Measurable) -> Measurable:
    """Return the model after fine-tuning as `finetune` does it, on a portion of the text of its own."""
    lessons = read_lessons(job, dense)
    recipe = replace(lessons.recipe, portion=portion, epochs=1)
    learning = train(
        model,
        lessons.train,
        lessons.valid,
        recipe=recipe,
        seed=lessons.seed,
        teacher=lessons.teacher,
        track=job.track,
    )
    list(learning)  # one epoch, in place
    return model
