"""`python -m tasks <stage> [variant] [--workers 4]`: run one stage on the files of dvc.yaml; `--help` lists all."""

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import pandas as pd

from pruning.core.progress import silently
from tasks import VARIABLES
from tasks.common.blame import blaming
from tasks.common.devices import compute_on
from tasks.common.interruption import INTERRUPTED
from tasks.common.job import TIMING, Job, end_with_parent, seconds
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS, Stage, read_stage, read_stages
from tasks.common.reading import read_yaml
from tasks.common.tables import write_table
from tasks.common.together import joined, placed, rank, said
from tasks.common.workers import asked_for, workers
from tasks.common.writing import what_the_disk_says
from tasks.settings.parameters import checked
from tasks.shown.asking import COMMANDS, HELP, answer
from tasks.shown.console import log_to_console, say, track
from tasks.shown.wording import nearest

for _name, _value in VARIABLES.items():
    os.environ.setdefault(_name, _value)

ON_CPU = {"device": "cpu", "float32": "highest"}
"""Where stages compute whose numbers come from weights and tables alone, whatever the device of the others."""


def main(arguments: list[str] | None = None) -> int:
    """Run a stage or a command and return the exit code: 0, or 1 after one sentence on what was wrong."""
    words = sys.argv[1:] if arguments is None else arguments
    with ExitStack() as afterwards:
        return _ended(words, partial(afterwards.callback, _tell))


def _ended(words: Sequence[str], tell: Callable[[], object]) -> int:
    """Run what the words say and return the exit code; `tell` is called where a stage of DVC's fails."""
    try:
        with _watched(words, tell):
            _run(words)
    except (ValueError, FloatingPointError) as error:
        # By name, as whatever only refuses; it says what a queued experiment lacks, and nothing elsewhere.
        asked = os.environ.get("DVC_STAGE") or list(words[:1]) == ["check"]
        lacking = importlib.import_module("tasks.commands.untracked").unseen() if asked else ""
        sys.stderr.write(said(f"{error}{lacking}\n"))
        return 1
    except OSError as error:
        sys.stderr.write(f"{what_the_disk_says(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return 130
    return 0


def _watched(words: Sequence[str], tell: Callable[[], object]) -> AbstractContextManager[None]:
    """Return the context in which what a stage of DVC's says is kept, for MLflow if it fails; it changes no result."""
    if not os.environ.get("DVC_STAGE") or not words or words[0] in COMMANDS:
        return nullcontext()
    watched = importlib.import_module("tasks.commands.tracking.journal").watched
    context: AbstractContextManager[None] = watched("@".join(words), tell)
    return context


def _tell() -> None:
    """Tell MLflow of what failed, once the sentence that says why stands there: it takes seconds, or minutes."""
    importlib.import_module("tasks.commands.tracking.failures").log_failures()


def _run(words: Sequence[str]) -> None:
    if not words or words[0] in HELP:
        say(_help().usage())
        return
    if words[0] in COMMANDS:
        answer(words[0], words[1:])
        return
    log_to_console()
    asked, (name, *more) = asked_for(words)
    folder, _, stage = name.rpartition(".")
    every = read_yaml(PARAMETERS)
    values = read_yaml(folder / PARAMETERS) if folder else every
    stages = read_stages(values, folder)
    known = {each.name for each in stages}
    hint = "" if folder or stage in known else nearest(name, [*known, *COMMANDS])
    if any(repr(command) in hint for command in COMMANDS):
        raise Unexpected(f"Unknown command {name!r}; known: {list(COMMANDS)}.{hint}")
    if more and more[0] in HELP:
        say(_help().usage_of(stage, folder))
        return
    if len(more) > 1:
        raise Unexpected(f"Expected no more words after {name!r}, got {' '.join(more)!r}.")
    parameters, own = checked(every), None
    if folder:
        own = importlib.import_module(f"tasks.{folder}.settings").checked(values)
    described = read_stage(stage, more[0] if more else None, values, folder)
    if os.environ.get("DVC_STAGE"):
        end_with_parent()
        # By name, for the check only refuses, and no result depends on its code.
        importlib.import_module("tasks.commands.check").check_once(every, parameters)
    with workers(asked) as spread, joined(name, parameters.compute.device) as together:
        _say_which(described, [each.address for each in stages])
        job = Job(described, parameters, silently if rank() else track, own, spread, together)
        _run_stage(job, parameters.model.source)


def _help() -> Any:
    """Return what knows what there is to run; by name, for no result depends on it."""
    return importlib.import_module("tasks.commands.usage")


def _say_which(stage: Stage, stages: Sequence[str]) -> None:
    """Say what starts, and how far it is: DVC runs stages in the order in which they stand in dvc.yaml."""
    place = stages.index(stage.address) + 1
    say(f"{stage.address}: stage {place} of {len(stages)}, {stage.description[:1].lower()}{stage.description[1:]}")


def _run_stage(job: Job, source: str | None) -> None:
    """Run the stage's function and write how long it took beside what it returns of its own timings."""
    start = time.perf_counter()
    compute_on(**(placed(job.settings("compute")) if "compute" in job.stage.sections else ON_CPU))
    with blaming(f"stage {job.stage.address} to run with the model of {source}") if source else nullcontext():
        measured = importlib.import_module(job.stage.module).run(job)
    if not job.writes:
        return
    whole = seconds(job, "stage", time.perf_counter() - start)
    times = whole if measured is None else pd.concat([whole, measured], ignore_index=True)
    write_table(job.output("timing"), times, TIMING)
    say(f"{job.stage.address}: {whole['seconds'].iloc[0]:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
