"""The stage `prepare`: the dense model and its text in the pipeline's formats, refused if nothing can come of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd

from pruning.ablation.oracle import neurons_to_measure
from pruning.core.options import too_few
from pruning.data.corpus import HELD_OUT, SPLITS, Numbers
from pruning.data.schemas import SUBWORDS, VOCABULARY
from pruning.experiment.variants import FOLDS
from pruning.models.base import LanguageModel
from tasks.common.job import Job
from tasks.common.models import read_language_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table, write_table
from tasks.common.tokens import read_tokens, write_tokens
from tasks.experiment.published import read_checkpoint, read_splits, read_words
from tasks.experiment.settings import SEED, Source

Splits = Mapping[str, Numbers]
FEWEST = 200
"""Tokens of the validation split."""


def run(job: Job) -> None:
    """Write the model, its vocabulary and its corpus."""
    source = job.setting("source")
    splits, vocabulary = _published(source) if source.published else _ours(source)
    model = read_checkpoint(Path(source.model)) if source.published else read_language_model(source.model)
    _check(model, len(splits["valid"]), job.setting("removal").neurons)
    write_tokens(job.output("corpus"), splits)
    write_table(job.output("vocabulary"), vocabulary, SUBWORDS if "ends" in vocabulary else VOCABULARY)
    write_model(job.output("model"), model)


def _ours(source: Source) -> tuple[Splits, pd.DataFrame]:
    splits = {split: read_tokens(Path(source.corpus), split) for split in (*SPLITS, HELD_OUT)}
    return splits, read_table(Path(source.vocabulary))


def _published(source: Source) -> tuple[Splits, pd.DataFrame]:
    """Return a folder of published splits, numbered by the model's words, and these as the table `vocabulary`."""
    words = read_words(Path(source.vocabulary))
    splits = read_splits(Path(source.corpus), words)
    counts = splits["train"].bincount(minlength=len(words)).numpy()
    vocabulary = pd.DataFrame({"token": list(words.values()), "text": list(words), "count": counts})
    return {split: tokens.numpy() for split, tokens in splits.items()}, vocabulary


def _check(model: LanguageModel, valid: int, neurons: int | Literal["all"]) -> None:
    """Refuse too little text, and a sample that weights cannot be learned from."""
    if valid < FEWEST:
        raise Unexpected(f"Expected at least {FEWEST} tokens in the validation split, got {valid}.")
    chosen = neurons_to_measure(model.decoupled().layers(), neurons, seed=SEED)
    for layer, count, needed in too_few({name: len(measured) for name, measured in chosen.items()}, FOLDS):
        raise Unexpected(
            f"Expected at least {needed} measured neurons in each layer, got {count} in {layer}; "
            "raise removal.neurons in experiment/params.yaml."
        )
