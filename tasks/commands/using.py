"""Which model the words of a command mean: a variant after one of its phases, or a folder with a model in it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pruning.data.corpus import END_OF_LINE
from pruning.models.adapted import Adapted
from pruning.models.base import LanguageModel
from tasks.commands.plain_text import REPORT, Reading, read_exported, read_reading
from tasks.commands.settled import settled
from tasks.common.devices import compute_on
from tasks.common.job import Job
from tasks.common.models import CONFIG, read_language_model, read_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS, expect_variant, read_stage
from tasks.common.reading import read_yaml
from tasks.settings.parameters import checked
from tasks.shown.asking import Words
from tasks.shown.console import track
from tasks.shown.wording import nearest

PHASES = {"pruned": "prune/model", "reconstructed": "reconstruct/model", "finetuned": "finetune/model"}
"""Phase → the model that it left."""


@dataclass(frozen=True)
class Used:
    """A model that is used, and how it reads.

    Attributes:
        name: What it is called in an answer.
        model: On the device, in evaluation mode.
        reading: How text becomes its tokens.
        job: Where the pipeline's settings and progress are.
    """

    name: str
    model: LanguageModel
    reading: Reading
    job: Job

    @property
    def first(self) -> int:
        """The number of `<eos>`, after which a line begins."""
        return self.reading.numbers[END_OF_LINE]


def add_model(parser: Words) -> None:
    """Let a command's words say which model is meant."""
    parser.add_argument("model", help="a variant of params.yaml, or a folder that `choose` or `export` wrote")
    parser.add_argument("--phase", default="finetuned", help=f"of a variant: one of {', '.join(PHASES)}")


def used(given: argparse.Namespace) -> Used:
    """Return the model that the words name.

    Raises:
        Unexpected: If there is no such variant, phase or model, or it is none of text.
    """
    values = read_yaml(PARAMETERS)
    parameters, folder = checked(values), Path(given.model)
    compute_on(**parameters.compute.model_dump())
    in_folder = (folder / CONFIG).is_file()
    if folder.exists() and not in_folder and given.model not in parameters.variants:
        raise Unexpected(
            f"Expected a folder that `choose` or `export` wrote, or a variant, one of {list(parameters.variants)}, "
            f"got {given.model}, in which there is no {CONFIG}."
        )
    if not in_folder:
        check_words(given.model, given.phase, list(parameters.variants))
    variant = next(iter(parameters.variants)) if in_folder else given.model
    job = Job(read_stage("evaluate", variant, values), parameters, track)
    name = str(folder) if in_folder else f"{given.model}, {given.phase}"
    model = read_language_model(folder) if in_folder else model_of(job, given.phase)
    reading = read_exported(folder) if in_folder and (folder / REPORT).is_file() else read_reading(job)
    types = model.encoder.num_embeddings
    if types != len(reading.words):
        raise Unexpected(
            f"Expected a model of the {len(reading.words)} tokens there are, got one of {types} in {name}."
        )
    return Used(name, model, reading, job)


def check_words(variant: str | None, phase: str, variants: list[str]) -> None:
    """Refuse a variant or a phase that there is not."""
    expect_variant(variant, variants)
    if phase not in PHASES:
        raise Unexpected(f"Unknown phase {phase!r}; known: {list(PHASES)}.{nearest(phase, PHASES)}")


def model_of(job: Job, phase: str) -> LanguageModel:
    """Return what a phase left of the job's variant.

    Raises:
        Unexpected: If there is none, or a reproduction is replacing it.
    """
    with _settled(job, phase) as path:
        return read_language_model(path)


def own_model_of(job: Job, phase: str) -> Adapted:
    """Return what a phase left of the job's variant of a model of the user's own; likewise."""
    with _settled(job, phase) as path:
        found = read_model(path)
    if not isinstance(found, Adapted):
        raise Unexpected(
            f"Expected a model of your own in {path}, as `model.source` says, got another; run `dvc repro`."
        )
    return found


@contextmanager
def _settled(job: Job, phase: str) -> Iterator[Path]:
    """Yield the folder of the model that a phase left, which is to stay the same within the context."""
    path, made = job.input(PHASES[phase]), PHASES[phase].partition("/")[0]
    if not path.is_dir():
        raise Unexpected(f"Expected the {phase} model of {job.stage.variant} in {path}, got none; run `dvc repro`.")
    values = read_yaml(PARAMETERS)
    with settled(read_stage(made, job.stage.variant, values), read_stage("prepare", None, values)):
        yield path


def unknown_words(reading: Reading, lines: list[list[str]]) -> list[str]:
    """Return the sentence on words that the model does not know, if there are some."""
    missing = reading.unknown(lines)
    return [f"read as <unk>: {', '.join(missing)}"] if missing else []
