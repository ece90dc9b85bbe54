"""`python -m tasks <stage> [variant]`: run one stage on the files that dvc.yaml lists for it."""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

import pandas as pd

from tasks.common.blame import blaming
from tasks.common.devices import compute_on
from tasks.common.interruption import INTERRUPTED
from tasks.common.job import TIMING, Job, end_with_parent, seconds
from tasks.common.parameters import Unexpected, checked
from tasks.common.pipeline import PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.sections import Compute
from tasks.common.tables import write_table
from tasks.shown.console import log_to_console, say, track

# Threads that wait by spinning starve whatever else runs: two trainings side by side then crawl at a tenth of their
# speed. Read when torch is first imported; it changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# With it cuBLAS gives the same bytes each time; read when CUDA is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ON_CPU = Compute(device="cpu", float32="highest")
"""Where stages compute whose numbers come from weights and tables alone, whatever the device of the others."""
ELSEWHERE = ("check", "choose", "export", "report", "track")
"""Commands that are no stages: they read results and change none; `WITH_WORDS` read the words after them."""
WITH_WORDS = ("choose", "export", "track")


def main(arguments: list[str] | None = None) -> int:
    """Run a stage or a command and return the exit code: 0, or 1 after one sentence on what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tasks", description="Run one stage, or another command.")
    parser.add_argument("stage", help=f"a stage of dvc.yaml, or one of {', '.join(ELSEWHERE)}")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="a variant for stages that have them; `choose --help`")
    given = parser.parse_args(arguments)
    log_to_console()
    try:
        _run(given.stage, given.words)
    except (ValueError, FloatingPointError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"Expected files and a disk that can be used, got {error}.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return 130
    return 0


def _run(name: str, words: Sequence[str]) -> None:
    if name in WITH_WORDS:
        importlib.import_module(f"tasks.commands.{name}").run(words)
        return
    if len(words) > (name not in ELSEWHERE):
        raise Unexpected(f"Expected no more words after {name!r}, got {' '.join(words)!r}.")
    if name in ELSEWHERE:
        importlib.import_module(f"tasks.commands.{name}").run()
        return
    folder, _, stage = name.rpartition(".")
    every = read_yaml(PARAMETERS)
    values = read_yaml(folder / PARAMETERS) if folder else every
    parameters, own = checked(every), None
    if folder:
        own = importlib.import_module(f"tasks.{folder}.settings").checked(values)
    job = Job(read_stage(stage, words[0] if words else None, values, folder), parameters, track, own)
    if os.environ.get("DVC_STAGE"):
        end_with_parent()
        # By name, for the check only refuses, and no result depends on its code.
        importlib.import_module("tasks.commands.check").check_once(every, parameters)
    _run_stage(job)


def _run_stage(job: Job) -> None:
    """Run the stage's function and write how long it took beside what it returns of its own timings."""
    start = time.perf_counter()
    compute_on(job.parameters.compute if "compute" in job.stage.sections else ON_CPU)
    source = job.parameters.model.source
    with blaming(f"stage {job.stage.address} to run with the model of {source}") if source else nullcontext():
        measured = importlib.import_module(job.stage.module).run(job)
    whole = seconds(job, "stage", time.perf_counter() - start)
    times = whole if measured is None else pd.concat([whole, measured], ignore_index=True)
    write_table(job.output("timing"), times, TIMING)
    say(f"{job.stage.address}: {whole['seconds'].iloc[0]:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
