"""A variant as files of one target beside the dense model's, in float32 and in int8: checked, measured, with a card."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import pruning
from pruning.export import litert_files
from pruning.export.beside import Beside
from pruning.export.targets import TOLERANCE
from pruning.models.adapted import Adapted
from pruning.models.base import LanguageModel, Measurable
from tasks.commands.folders import replacing_folder
from tasks.commands.plain_text import REPORT, VOCABULARY, read_reading, vocabulary_lines
from tasks.commands.using import model_of, own_model_of
from tasks.common.job import Job
from tasks.common.models import write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.windows import read_batches
from tasks.shown.tables import plain, shown_table

CONVERTER = Path(".venv-litert/bin/python")
"""The Python of LiteRT's converter, which does not fit beside the pinned packages."""
CARD, PICTURE = "README.md", "beside.png"


TOKENS = 20_000
"""Of the validation split, on which files are judged: those of fixed shapes read it step by step."""


def write_target(
    folder: Path, job: Job, phase: str, target: str, *, converter: Path = CONVERTER, tokens: int = TOKENS
) -> tuple[dict[str, Any], list[Any]]:
    """Write a folder, whole or not at all; return what is known of it, and that as it is shown.

    Args:
        folder: Where.
        job: The variant's evaluation.
        phase: Of the variant and of what it stands beside.
        target: One of `TARGETS`.
        converter: Of LiteRT.
        tokens: After how many judging ends, with the batch that reaches them.

    Raises:
        Unexpected: If packages or the converter are missing.
        ValueError: If the target cannot hold a model, or a file gives other numbers.
    """
    if target == "litert" and not converter.is_file():
        raise Unexpected(
            f"Expected the Python of LiteRT's converter at {converter}, got none; its packages do not fit beside the "
            f"pinned ones, so make it once, 2 GB: `python -m venv {CONVERTER.parent.parent} && {CONVERTER} -m pip "
            f"install {' '.join(litert_files.CONVERTER)}`."
        )
    models = _models(job, phase)
    variant: str = str(job.stage.variant)
    batches = read_batches(job, "valid", **{name: job.settings("evaluate")[name] for name in ("batch", "bptt")})
    with replacing_folder(folder, "export") as aside:
        try:
            beside = pruning.side_by_side(
                models,
                target,
                data=batches,
                tokens=tokens,
                repeats=job.parameters.timing.repeats,
                converter=str(converter),
                threads=torch.get_num_threads(),
                track=job.track,
            )
        except ModuleNotFoundError as error:
            raise Unexpected(str(error)) from error
        _write_model(aside, job, models[variant])
        for (model, numbers), made in beside.files.items():
            for name, content in made.files.items() if model == variant else ():
                stem, _, ending = name.partition(".")
                (aside / f"{stem}{'.int8' if numbers == 'int8' else ''}.{ending}").write_bytes(content)
        beside.plot().savefig(aside / PICTURE, metadata={"Software": None})
        report = _report(job, phase, target, beside)
        (aside / REPORT).write_text(json.dumps(plain(report), indent=2) + "\n", encoding="utf-8")
        (aside / CARD).write_text(_card(report, beside), encoding="utf-8")
        names = sorted(path.name for path in aside.iterdir())
    title = f"{variant} beside {next(iter(models))}, {phase}, for {target}; judged on {_judged_on(report)}"
    table = shown_table(title, beside.cells())
    return report, [table, f"{folder}: {', '.join(names)}"]


def _models(job: Job, phase: str) -> dict[str, Measurable]:
    """Return the control's model, dense by default, and the variant's, after the same phase."""
    control, variant = job.parameters.compare.control, str(job.stage.variant)
    found: dict[str, Measurable] = {}
    for name in dict.fromkeys((control, variant)):
        own = (
            job
            if name == variant
            else Job(read_stage("evaluate", name, read_yaml(PARAMETERS)), job.parameters, job.track)
        )
        read = model_of if job.parameters.model.source is None else own_model_of
        found[name] = read(own, phase).cpu()
    return found


def _write_model(folder: Path, job: Job, model: Measurable) -> None:
    """Write the model itself, and of text which tokens there are."""
    if isinstance(model, Adapted):
        pruning.save(model, folder)
        return
    write_model(folder, model)
    if isinstance(model, LanguageModel):
        words = read_reading(job).words
        (folder / VOCABULARY).write_text(vocabulary_lines(words), encoding="utf-8", newline="\n")


def _report(job: Job, phase: str, target: str, beside: Beside) -> dict[str, Any]:
    """Return everything that is known of the export, as plain values."""
    return {
        "variant": job.stage.variant,
        "phase": phase,
        "target": target,
        "tolerance": TOLERANCE,
        "inputs": [list(tensor.shape) for tensor in next(iter(beside.files.values())).fixed.example],
        "quality": beside.quality,
        "judged": "targets" if job.parameters.model.source else "tokens",
        "tokens": int(beside.table["tokens"].iloc[0]),
        "evaluation": job.settings("evaluate"),
        "measured": beside.rows(),
        "made_with": {
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "torch": version("torch"),
        },
    }


def _card(report: Mapping[str, Any], beside: Beside) -> str:
    """Return what the folder is, as Markdown."""
    shapes = ", ".join(f"({', '.join(map(str, shape))})" for shape in report["inputs"])
    return (
        f"# `{report['variant']}`, {report['phase']}, for {report['target']}\n\n{beside.card()}"
        f"- {beside.quality.capitalize()}: on the validation split's first {_judged_on(report)}, the same for all.\n"
        f"- Above {report['tolerance']:g} nothing is written; only int8 may differ by more.\n\n"
        f"Inputs, in order, of these shapes{' at least' if report['target'] == 'onnx' else ''}: {shapes}; outputs in "
        f"the order in which the model gives them, the state last. `{PICTURE}` shows the table.\n"
    )


def _judged_on(report: Mapping[str, Any]) -> str:
    """Return how much each file was judged on."""
    return f"{report['tokens']:,} {report['judged']}"
