"""The flow: DVC's graph, watched; each stage is a task run that starts as soon as what it needs is done.

`python -m flows.pipeline [targets] [--jobs N] [--force]` needs no server: without PREFECT_API_URL it starts a
temporary one.
"""

import argparse
import base64
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import Task, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from pydantic import Field

from flows.execution import UP_TO_DATE, CommandError, Commands, CommandTimeoutError, changed, reproduce
from flows.server import configured_server, unreachable
from flows.stages import GraphStage, read_stages

FAILED, NOT_STARTED = "Failed", "Not started"


@dataclass(frozen=True)
class Outcome:
    """How one stage ended."""

    stage: str
    state: str
    seconds: float
    description: str
    problem: str = ""


@flow(name="pipeline", description="Reproduce the stages of dvc.yaml that changed, in order, side by side.")
def pipeline(
    targets: list[str] | None = None, jobs: Annotated[int, Field(ge=1)] = 2, force: bool = False
) -> State[list[Outcome]]:
    """Let DVC reproduce the stages, then show the comparison and bring tracking up to date.

    Args:
        targets: Stages, or files of stages such as `experiment/dvc.yaml`, to run with all that they need; dvc.yaml by
            default. `prune` stands for all `prune@...`.
        jobs: How many stages run side by side.
        force: Run also what did not change.

    Returns:
        Completed, or failed with a message that names each failed stage; its data are the stages' outcomes.
    """
    root = Path(Repo.find_root())
    commands = Commands(root)
    try:
        if problem := _check(commands):
            return Failed(message=problem, data=list[Outcome]())
        stages = read_stages(root, targets)
        stale = set(stages) if force else changed(commands, stages)
        outcomes = _run_all(stages, jobs, _task_maker(commands, stale, force=force))
        _show(commands, stages, outcomes)
        return _final_state(outcomes)
    except (ValueError, DvcException) as error:
        return Failed(message=str(error), data=list[Outcome]())
    finally:
        commands.end()  # also when the run is cancelled or crashes: nothing writes on


def _check(commands: Commands) -> str | None:
    """Return the sentence on what is wrong with the parameters, None if they are fine."""
    lines: list[str] = []
    try:
        commands.run("Check", ["python", "-m", "tasks", "check"], lines.append)
    except CommandError as failure:
        return lines[-1] if lines else str(failure)
    return None


def _task_maker(commands: Commands, stale: set[str], *, force: bool) -> Callable[[GraphStage], Task[[], State[str]]]:
    """Return the function that makes a stage's task; Prefect's cache is off, since DVC's is the one cache.

    Args:
        commands: Where commands run.
        stale: The stages that a command is started for.
        force: Run also what did not change.
    """

    def task_of(stage: GraphStage) -> Task[[], State[str]]:
        def run() -> State[str]:
            log = get_run_logger().info
            did = reproduce(commands, stage, log, force=force) if stage.address in stale else UP_TO_DATE
            return Completed(name=did, message=f"{did}: {stage.description or stage.address}", data=did)

        # No timeout here: Prefect's does not interrupt a waiting thread, so `reproduce` keeps the stage's limit.
        return Task(
            run,
            name=stage.address,
            task_run_name=stage.address,
            description=stage.description,
            tags=stage.tags,
            retries=stage.retries,
            cache_policy=NO_CACHE,
        )

    return task_of


def _run_all(
    stages: dict[str, GraphStage], jobs: int, task_of: Callable[[GraphStage], Task[[], State[str]]]
) -> dict[str, Outcome]:
    """Run each stage when all that it needs is done, at most `jobs` at once; a failed stage holds up its dependents."""
    order = TopologicalSorter({address: stage.needs for address, stage in stages.items()})
    order.prepare()
    waiting, ended = deque(order.get_ready()), SimpleQueue[str]()
    futures: dict[str, PrefectFuture[Any]] = {}
    started: dict[str, float] = {}
    outcomes: dict[str, Outcome] = {}
    while waiting or len(outcomes) < len(futures):
        while waiting and len(futures) - len(outcomes) < jobs:
            address = waiting.popleft()
            started[address] = time.monotonic()
            needed = [futures[other] for other in stages[address].needs]  # done: for the drawing of the graph
            futures[address] = task_of(stages[address]).submit(wait_for=needed, return_state=False)
            futures[address].add_done_callback(partial(_put, ended, address))
        address = ended.get()
        outcomes[address] = _outcome(stages[address], futures[address], time.monotonic() - started[address])
        if not outcomes[address].problem:
            order.done(address)
            waiting.extend(order.get_ready())
    never = {address: Outcome(address, NOT_STARTED, 0.0, stages[address].description) for address in stages}
    return never | outcomes


def _put(ended: SimpleQueue[str], address: str, _: PrefectFuture[Any]) -> None:
    ended.put(address)


def _outcome(stage: GraphStage, future: PrefectFuture[Any], seconds: float) -> Outcome:
    result = future.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        known = isinstance(result, (CommandError, CommandTimeoutError))
        problem = str(result) if known else f"Stage '{stage.address}' failed: {result!r}"
        return Outcome(stage.address, FAILED, round(seconds, 1), stage.description, problem)
    return Outcome(stage.address, str(result), round(seconds, 1), stage.description)


def _final_state(outcomes: dict[str, Outcome]) -> State[list[Outcome]]:
    counts = Counter(outcome.state for outcome in outcomes.values())
    message = ", ".join(f"{number} {state.lower()}" for state, number in counts.items())
    problems = [outcome.problem for outcome in outcomes.values() if outcome.problem]
    if problems:
        return Failed(message="\n".join([*problems, message]), data=list(outcomes.values()))
    return Completed(message=message, data=list(outcomes.values()))


def _show(commands: Commands, stages: dict[str, GraphStage], outcomes: dict[str, Outcome]) -> None:
    """Make the run's artifacts and bring tracking up to date; a problem with either costs no result."""
    create_table_artifact(
        key="stages",
        table=[_row(outcome) for outcome in outcomes.values()],
        description="What DVC did with each stage.",
    )
    done = [stage for stage in stages.values() if outcomes[stage.address].state not in (FAILED, NOT_STARTED)]
    if plots := [picture for stage in done for plot in stage.plots for picture in _pictures(plot)]:
        report = "\n".join(_try(commands, "report"))
        create_markdown_artifact(key="comparison", markdown=f"```text\n{report}\n```", description="All variants.")
        create_markdown_artifact(key="plots", markdown="\n\n".join(map(_embedded, plots)), description="All plots.")
    for page in (page for stage in done for page in stage.pages):
        create_markdown_artifact(key=page.stem, markdown=page.read_text("utf-8"), description="The whole report.")
    if len(done) == len(stages):
        needed = {address for stage in stages.values() for address in stage.needs}
        for folder in sorted({stage.folder for stage in done if stage.address not in needed}):
            _try(commands, "track", *filter(None, [folder]))


def _row(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in asdict(outcome).items() if name != "problem"}


def _try(commands: Commands, *words: str) -> list[str]:
    """Return the output of `python -m tasks …`; a failure is a warning."""
    logger, command = get_run_logger(), ["python", "-m", "tasks", *words]
    try:
        return commands.run(f"`{' '.join(command)}`", command, logger.info)
    except CommandError as failure:
        logger.warning("%s", failure)
        return [str(failure)]


def _pictures(plot: Path) -> list[Path]:
    return sorted(plot.glob("*.png")) if plot.is_dir() else [plot]


def _embedded(picture: Path) -> str:
    """Return a picture as Markdown that holds its bytes, since the server cannot read this machine's files."""
    return f"![{picture.stem}](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"


def main(arguments: list[str] | None = None) -> int:
    """Run the flow and return the exit code: 0, or 1 after a summary that names what failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run what changed, watched.")
    parser.add_argument(
        "targets", nargs="*", help="stages, or files of stages, with all that they need; dvc.yaml by default"
    )
    parser.add_argument("--jobs", type=int, default=2, choices=range(1, 65), metavar="N", help="stages side by side")
    parser.add_argument("--force", action="store_true", help="run also what did not change")
    given = parser.parse_args(arguments)
    server = configured_server()
    if server and (problem := unreachable(server)):
        sys.stderr.write(f"{problem}\n")
        return 1
    try:
        state = pipeline(given.targets or None, given.jobs, given.force, return_state=True)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; its stages were ended, and the same command goes on from the finished ones.\n")
        return 130
    sys.stdout.write(_summary(state))
    return 0 if state.is_completed() else 1


def _summary(state: State[Any]) -> str:
    outcomes: Any = state.result(raise_on_failure=False)
    lines = [f"{outcome.state:12}{outcome.seconds:9.1f} s  {outcome.stage}\n" for outcome in outcomes]
    return "".join([*lines, f"{state.message}\n"])


if __name__ == "__main__":
    sys.exit(main())
