"""The stage `evaluate`, once for each variant: loss, metrics and size after each phase."""

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import partial

import pandas as pd

from pruning.core.progress import Track
from pruning.core.workers import computed
from pruning.data.windows import Batches
from pruning.evaluation.energy import energy_of
from pruning.evaluation.measures import Loss, loss_of, size_of
from pruning.evaluation.schemas import EVALUATION
from pruning.models.base import Measurable
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.tables import write_table
from tasks.common.windows import read_batches, words_of

PHASES = {"pruned": "prune", "reconstructed": "reconstruct", "finetuned": "finetune"}
"""Phases of a variant, and the stage that writes the model of each; what keeps everything has only the last."""


def run(job: Job) -> None:
    """Write the evaluation of the variant's models."""
    settings = job.settings("evaluate")
    dense = read_model(job.input("train/model"))
    models = {phase: read_model(job.input(f"{stage}/model")) for phase, stage in PHASES.items()}
    if size_of(models["pruned"]).neurons == size_of(dense).neurons:
        models = {"dense": dense, "finetuned": models["finetuned"]}
    windows = {split: read_batches(job, split, **settings) for split in ("valid", "test")}
    words = {split: words_of(job, split) for split in windows}
    parts = [(phase, split) for split in windows for phase in models]
    row = partial(_row, job.stage.variant, models, windows, words)
    rows = computed(job.map, row, parts, track=job.track, what=f"{job.stage.variant}, models by split")
    write_table(job.output("evaluation"), pd.DataFrame([*rows]), EVALUATION)


def _row(
    variant: str | None,
    models: Mapping[str, Measurable],
    texts: Mapping[str, Batches],
    words: Mapping[str, int | None],
    part: tuple[str, str],
    *,
    track: Track,
) -> dict[str, object]:
    """Return the row of one phase's model on one split."""
    phase, split = part
    model, windows, what = models[phase], texts[split], f"{phase}, {split}"
    loss = loss_of(model, windows, track=track, what=what)
    return {
        "variant": variant,
        "phase": phase,
        "split": split,
        "loss": loss.mean,
        "perplexity": loss.perplexity,
        "accuracy": loss.accuracy,
        "metrics": further_metrics(loss, words[split]),
        "tokens": loss.tokens,
        **dataclasses.asdict(size_of(model)),
        **dataclasses.asdict(energy_of(model, windows, track=track, what=f"{what}, spikes")),
    }


def further_metrics(loss: Loss, words: int | None = None) -> str:
    """Return the metrics beside the accuracy as JSON: name → [value, which numbers are better].

    Args:
        loss: Over a split.
        words: How many words and ends of lines that has, where its tokens are sub-words, whose perplexity says nothing
            beside that of words: then the perplexity for each word, exp(nat of all tokens / words), is there too.
    """
    beside: dict[str, list[object]] = {
        name: [value, loss.better[name]] for name, value in loss.metrics.items() if name != "accuracy"
    }
    if words is not None:
        beside["word_perplexity"] = [math.exp(min(loss.total / words, 700.0)), "lower"]
    return json.dumps(beside, sort_keys=True)
