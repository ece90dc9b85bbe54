"""`python -m flows.repro [targets] [--jobs N]`: what `dvc repro` does, stages side by side, and without Prefect.

Each stage is a `dvc repro --single-item` of its own, so that results, lock and cache are those of `dvc repro`.
"""

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.execution import (
    FAILED,
    UP_TO_DATE,
    CommandError,
    Commands,
    CommandTimeoutError,
    Outcome,
    changed,
    reproduce,
)
from flows.order import job_count, run_in_order
from flows.stages import GraphStage, read_stages

ADVICE = (
    "Running stage ",
    "> exec python -m tasks ",
    "Updating lock file ",
    "To track the changes with git, run:",
    "\tgit add ",
    "To enable auto staging, run:",
    "\tdvc config core.autostage ",
    "Use `dvc push` to send your updates",
)
"""Lines of DVC's that it says again for every stage, which says itself that it runs; only the flow's log keeps them."""

_SAYING = threading.Lock()


def repro(root: Path, targets: list[str] | None, *, jobs: int, force: bool = False) -> dict[str, Outcome]:
    """Let DVC reproduce the stages that changed, each when all that it needs is done, and return how each ended.

    Args:
        root: The folder that `dvc.yaml` is in.
        targets: See `flows.stages.read_stages`.
        jobs: How many stages run side by side.
        force: Run also what did not change.
    """
    _print("Looking for what changed")
    commands, stages = Commands(root), read_stages(root, targets)
    stale = set(stages) if force else changed(commands, stages)
    commands.warm_up(len(stale))

    def work(stage: GraphStage) -> str:
        return reproduce(commands, stage, lambda line: _say(stage, line), force=force)

    with ThreadPoolExecutor(jobs) as pool:

        def start(stage: GraphStage, _: Sequence[Future[str]], ended: Callable[[object], None]) -> Future[str]:
            future = pool.submit(work if stage.address in stale else _leave, stage)
            future.add_done_callback(ended)
            return future

        try:
            return run_in_order(stages, jobs, start, _outcome)
        finally:
            commands.end()  # also when it is interrupted: nothing writes on


def _leave(_: GraphStage) -> str:
    return UP_TO_DATE


def _outcome(stage: GraphStage, future: Future[str], seconds: float) -> Outcome:
    try:
        return Outcome(stage.address, future.result(), round(seconds, 1), stage.description)
    except (CommandError, CommandTimeoutError) as failure:
        return Outcome(stage.address, FAILED, round(seconds, 1), stage.description, str(failure))


def _say(stage: GraphStage, line: str) -> None:
    """Print a line of a stage's, which stands among those of others: its own lines say so by themselves."""
    if line.startswith(ADVICE):
        return
    name = stage.address
    _print(line if line.startswith(name) else f"{name} | {line}")


def _print(line: str) -> None:
    """Print a line at once, whole also where stages speak side by side."""
    with _SAYING:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Reproduce the pipeline and return the exit code: 0, or 1 after what failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.repro", description="Run what changed, side by side.")
    parser.add_argument("targets", nargs="*", help="stages, or files of stages, with all that they need")
    parser.add_argument("--jobs", type=job_count, default=2, metavar="N", help="stages side by side")
    parser.add_argument("--force", action="store_true", help="run also what did not change")
    given = parser.parse_args(arguments)
    try:
        outcomes = repro(Path(Repo.find_root()), given.targets or None, jobs=given.jobs, force=given.force)
    except (ValueError, DvcException) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; its stages were ended, and the same command goes on from the finished ones.\n")
        return 130
    problems = [outcome.problem for outcome in outcomes.values() if outcome.problem]
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    states = [outcome.state.lower() for outcome in outcomes.values()]
    sys.stdout.write(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + "\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
