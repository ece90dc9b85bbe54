"""The stage `oracle`: what neurons are really worth, for fusion to learn from and importance to be judged by."""

from dataclasses import replace
from functools import partial

from pruning.ablation.joint_removal import Repair, joint_removal, removal_sets
from pruning.ablation.oracle import Ablation, oracle
from pruning.ablation.schemas import JOINT_REMOVAL, ORACLE
from pruning.core.progress import Track, silently
from pruning.core.workers import in_turn
from pruning.models.base import LanguageModel, Measurable
from pruning.repair.reconstruction import reconstruct
from pruning.training.loop import train
from tasks.common.covariances import read_covariances
from tasks.common.job import Job
from tasks.common.lessons import Lessons, read_lessons
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import calibration_batches, read_batches


def run(job: Job) -> None:
    """Write what removing neurons costs on the validation split: one alone, and several together, repaired, trained."""
    dense = read_model(job.input("train/model"))
    model, batches = dense.decoupled(), read_batches(job, "valid", **job.settings("calibration"))
    settings = job.settings("oracle")
    shares, portion = settings.pop("joint"), settings.pop("portion")
    measured = oracle(model, batches, Ablation(**settings), track=job.track, map=job.map)
    write_table(job.output("oracle"), measured, ORACLE)
    joint = joint_removal(
        model,
        batches,
        measured,
        sets=removal_sets(measured, shares=shares, seed=settings["seed"]),
        tokens=settings["tokens"],
        repair=_repair_of(job, model),
        finetune=partial(_finetuned, read_lessons(job, dense), portion, job.track if job.map is in_turn else silently),
        track=job.track,
        map=job.map,
    )
    write_table(job.output("joint_removal"), joint, JOINT_REMOVAL)


def _repair_of(job: Job, model: Measurable) -> Repair:
    """Return what gives the smaller model with the standard repair, its readers refitted in closed form."""
    if not isinstance(model, LanguageModel):
        return partial(reconstruct, data=calibration_batches(job), repair="ridge")
    return partial(
        reconstruct, covariances=read_covariances(job.input("activations/covariance"), model.layers()), repair="ridge"
    )


def _finetuned(lessons: Lessons, portion: float, track: Track, model: Measurable) -> Measurable:
    """Return the model after fine-tuning as `finetune` does it, on a portion of the text of its own."""
    recipe, model = replace(lessons.recipe, portion=portion, epochs=1), lessons.begun(model)
    learning = train(
        model,
        lessons.train,
        lessons.valid,
        recipe=recipe,
        seed=lessons.seed,
        teacher=lessons.teacher,
        track=track,
    )
    list(learning)  # one epoch, in place
    return model
