"""The stage `prune`: each choice of neurons at one share, cut, repaired and fine-tuned, and its losses after each."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pruning.evaluation.measures import Size
from pruning.experiment.measured import Calibration
from pruning.experiment.trials import Losses, Pruning, Selection, Texts, Treatment, prune_and_train, run_dense_control
from pruning.experiment.variants import CONTROL
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation
from pruning.training.recipes import Recipe
from tasks.common.checkpoints import forget
from tasks.common.job import Job
from tasks.common.lessons import AS_TRAINED, learning
from tasks.common.parameters import Unexpected
from tasks.common.writing import read_json, replacing
from tasks.experiment.inputs import Case, DividedText, read_calibration, read_dense
from tasks.experiment.settings import SEED


def run(job: Job) -> None:
    """Write the outcomes; those that a killed run left are not computed again.

    The dense control of a model belongs to the stage of its first text at the middle share.
    """
    case, apart = Case(job), job.stage.name != "prune"
    retain = job.setting("middle") if apart else float(str(job.stage.variant))
    dense, texts, treated = read_dense(job), texts_of(job), treatment(job)
    calibration = read_calibration(job.input("calibrate/signals"), case.text)
    weights = read_json(job.input("fuse/weights"))
    control, kept = apart and not case.text, job.partial
    names = [*([CONTROL] if control else []), *job.setting("choices")]
    places = [kept / f"{name}.json" for name in names]
    outcome = partial(_outcome, dense, texts, calibration, weights, treated, retain, case.model)
    left = [name for name, place in zip(names, places, strict=True) if not place.is_file()]
    for name, found in zip(job.track(left, f"{job.stage.address}, choices"), job.map(outcome, left), strict=False):
        with replacing(kept / f"{name}.json") as aside:
            aside.write_text(json.dumps(found), encoding="utf-8")
    outcomes = [place.read_text(encoding="utf-8") for place in places]
    with replacing(job.output("outcomes")) as aside:
        aside.write_text(f"[{','.join(outcomes)}]\n", encoding="utf-8")
    forget(job)


def _outcome(
    dense: LanguageModel,
    texts: Texts,
    calibration: Calibration,
    weights: Mapping[str, Any],
    treated: Treatment,
    retain: float,
    training: int,
    name: str,
) -> dict[str, Any]:
    """Return what became of the dense model by one choice, or of the control, as what JSON can hold."""
    if name == CONTROL:
        return plain(run_dense_control(dense, texts, treatment=treated, seed=SEED, training=training))
    selection = Selection(variant=name, retain=retain, weights=weights)
    return plain(prune_and_train(dense, texts, calibration, selection, treatment=treated, seed=SEED, training=training))


def texts_of(job: Job) -> Texts:
    """Return what is read for what."""
    text = DividedText(job)
    return Texts(calibration=text.calibration(Case(job).text), training=text.training, judged=text.judged)


def treatment(job: Job) -> Treatment:
    """Return what follows each choice."""
    settings, usual = job.setting("treatment"), learning(job)
    same = {name: usual[name] for name in ("warmup", "weight_decay", "clip", "patience", *AS_TRAINED)}
    recipe = Recipe(epochs=1, portion=settings.portion, learning_rate=settings.learning_rate, **same)
    imitation = Imitation(
        **job.setting("reconstruct").model_dump(exclude={"repair", "tokens"}), tokens=settings.imitation
    )
    return Treatment(
        scope=settings.scope, floor=settings.floor, repair=settings.repair, imitation=imitation, recipe=recipe,
        distillation=settings.distillation,
    )  # fmt: skip


def plain(outcome: Pruning) -> dict[str, Any]:
    """Return a pruning without its models as what JSON can hold."""
    return {
        "variant": outcome.variant,
        "retain": outcome.retain,
        "calibration": outcome.calibration,
        "training": outcome.training,
        "keep": {layer: neurons.tolist() for layer, neurons in outcome.keep.items()},
        "losses": {
            phase: {"sums": losses.sums.tolist(), "tokens": losses.tokens.tolist()}
            for phase, losses in outcome.losses.items()
        },
        "size": vars(outcome.size),
    }


def read_outcomes(path: Path) -> list[Pruning]:
    """Return the prunings that a stage wrote, without their models.

    Raises:
        Unexpected: If the file holds something else.
    """
    try:
        return [_pruning(outcome) for outcome in read_json(path)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unexpected(f"Expected prunings with their losses in {path}, got something else ({error}).") from error


def _pruning(outcome: Mapping[str, Any]) -> Pruning:
    losses = {
        phase: Losses(*(torch.tensor(totals[name], dtype=torch.float64) for name in ("sums", "tokens")))
        for phase, totals in outcome["losses"].items()
    }
    keep = {layer: torch.tensor(neurons) for layer, neurons in outcome["keep"].items()}
    return Pruning(**{**outcome, "keep": keep, "losses": losses, "size": Size(**outcome["size"])})
