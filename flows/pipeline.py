"""The flow: DVC's graph, watched; each stage is a task run that starts as soon as what it needs is done.

`python -m flows.pipeline [targets] [--jobs N] [--workers N] [--force] [--share] [-S prune.retain=0.3]` needs no
server: without PREFECT_API_URL it starts a temporary one.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import Task, flow, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from flows.changes import Changed, Changes, changed_copy, differing, experiment_name, parsed
from flows.execution import (
    FAILED,
    UP_TO_DATE,
    CommandError,
    Commands,
    CommandTimeoutError,
    FlowError,
    Outcome,
    changed,
    reproduce,
)
from flows.naming import call_run, counted, read_values, subject, title
from flows.order import job_count, run_in_order
from flows.server import configured_server, unreachable
from flows.sharing import Sharing
from flows.showing import show, show_changes
from flows.stages import GraphStage, read_stages
from tasks.common.workers import asked_of

NO_CHANGES = Changes()


@flow(name="pipeline", description="Reproduce the stages of dvc.yaml that changed, in order, side by side.")
def pipeline(
    targets: list[str] | SkipJsonSchema[None] = None,
    jobs: Annotated[int, Field(ge=1)] = 2,
    force: bool = False,
    changes: Changes = NO_CHANGES,
    share: bool = False,
    workers: str = "",
) -> State[Any]:
    """Let DVC reproduce the stages, then show the comparison and bring tracking up to date.

    Args:
        targets: Stages, or files of stages such as `experiment/dvc.yaml`, to run with all that they need; dvc.yaml by
            default. `prune` stands for all `prune@...`.
        jobs: How many stages run side by side.
        force: Run also what did not change.
        changes: Values in place of those of params.yaml, which stays as it is; an empty field leaves what stands
            there. Such a run is kept as an experiment of DVC's.
        share: Fetch what another clone made of the same from DVC's remote, and push what is made here.
        workers: How many processes of this machine compute what is independent within the stages, for all of them
            together, or a Dask scheduler's address; empty for none. No result depends on it.

    Returns:
        Completed, or failed with a message that names each failed stage; `outcomes_of` tells how each ended.
    """
    root, about = Path(Repo.find_root()), ""
    try:
        different = differing(root, changes.named())
        about = subject(targets, different)
        copied = changed_copy(root, different) if different else nullcontext(root)
        with asked_of(workers or None) as variables, copied as folder:
            return _reproduced(folder, different, about, targets, jobs, variables, force=force, share=share)
    except (ValueError, DvcException, CommandError) as error:
        call_run(about, "failed")
        return _failed(str(error))


def _reproduced(
    root: Path,
    different: Changed,
    about: str,
    targets: list[str] | None,
    jobs: int,
    variables: Mapping[str, str],
    *,
    force: bool,
    share: bool,
) -> State[Any]:
    """Let DVC reproduce the stages in a folder, and keep a run with values of its own as an experiment of DVC's."""
    commands, log = Commands(root, variables), get_run_logger().info
    try:
        for name, (old, new) in different.items():
            log("%s is %s in this run; params.yaml has %s, and stays as it is", name, new, old)
        if problem := _check(commands):
            call_run(about, "refused")
            return _failed(problem)
        if different:
            commands.run("`dvc checkout`", ["dvc", "checkout", "--quiet", "--allow-missing"], log)
        stages, values = read_stages(root, targets), read_values(root)
        with Sharing(commands, get_run_logger().warning) if share else nullcontext() as sharing:
            pull = sharing is not None and sharing.fetch(stages)
            stale = set(stages) if force else changed(commands, stages)
            commands.warm_up(len(stale))
            call_run(about, f"{len(stale)} of {len(stages)} stages to run")
            ran = sharing.made if sharing else None
            task_of = _task_maker(commands, stale, values, force=force, pull=pull)

            def start(stage: GraphStage, needed: Sequence[Any], ended: Callable[[object], None]) -> PrefectFuture[Any]:
                # What it waits for is done: for the drawing of the graph.
                future: PrefectFuture[Any] = task_of(stage).submit(wait_for=needed, return_state=False)
                future.add_done_callback(ended)
                return future

            outcomes = run_in_order(stages, jobs, start, _outcome, ran)
            unshared = sharing.finish(outcomes) if sharing else None
        show(commands, stages, outcomes)
        state = _final_state(outcomes, unshared)
        if different and state.is_completed():
            kept = experiment_name(different)
            # It would record whatever lies there as the results of every stage, also of those that were not asked for.
            # One is enough: what the others made is in dvc.lock.
            commands.run("`dvc exp save`", ["dvc", "exp", "save", "--force", "--name", kept, next(iter(stages))], log)
            show_changes(different, kept)
            state = Completed(message=f"{state.message}; kept as the experiment {kept}", data=state.data)
        failed = [title(outcome.stage, values) for outcome in outcomes.values() if outcome.problem]
        call_run(about, f"failed in {', '.join(failed)}" if failed else counted(outcomes))
        return state
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


def _task_maker(
    commands: Commands, stale: set[str], values: Mapping[str, Any], *, force: bool, pull: bool
) -> Callable[[GraphStage], Task[[], State[str]]]:
    """Return the function that makes a stage's task; Prefect's cache is off, since DVC's is the one cache.

    Args:
        commands: Where commands run.
        stale: The stages that a command is started for.
        values: params.yaml, for the names of the task runs.
        force: Run also what did not change.
        pull: Fetch what another clone made.
    """

    def task_of(stage: GraphStage) -> Task[[], State[str]]:
        def run() -> State[str]:
            log = get_run_logger().info
            did = reproduce(commands, stage, log, force=force, pull=pull) if stage.address in stale else UP_TO_DATE
            return Completed(name=did, message=f"{did}: {stage.description or stage.address}", data=did)

        # No timeout here: Prefect's does not interrupt a waiting thread, so `reproduce` keeps the stage's limit.
        return Task(
            run,
            name=stage.address,
            task_run_name=title(stage.address, values),
            description=stage.description,
            tags=stage.tags,
            retries=stage.retries,
            cache_policy=NO_CACHE,
        )

    return task_of


def _outcome(stage: GraphStage, future: PrefectFuture[Any], seconds: float) -> Outcome:
    result = future.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        known = isinstance(result, (CommandError, CommandTimeoutError))
        problem = str(result) if known else f"Stage '{stage.address}' failed: {result!r}"
        return Outcome(stage.address, FAILED, round(seconds, 1), stage.description, problem)
    return Outcome(stage.address, str(result), round(seconds, 1), stage.description)


def _failed(message: str, outcomes: Sequence[Outcome] = ()) -> State[Any]:
    """Return the state of a failed run; a worker raises what it holds."""
    return Failed(message=message, data=FlowError(message, outcomes))


def outcomes_of(state: State[Any]) -> list[Outcome]:
    """Return how each stage of a run ended; nothing for one that failed before any started."""
    result: Any = state.result(raise_on_failure=False)
    return result.outcomes if isinstance(result, FlowError) else list(result)


def _final_state(outcomes: dict[str, Outcome], unshared: str | None) -> State[Any]:
    message = counted(outcomes)
    problems = [problem for problem in (*(outcome.problem for outcome in outcomes.values()), unshared) if problem]
    if problems:
        return _failed("\n".join([*problems, message]), list(outcomes.values()))
    return Completed(message=message, data=list(outcomes.values()))


def main(arguments: list[str] | None = None, module: str = "flows.pipeline") -> int:
    """Run the flow and return the exit code: 0, or 1 after a summary that names what failed."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Run what changed, watched.")
    parser.add_argument(
        "targets", nargs="*", help="stages, or files of stages, with all that they need; dvc.yaml by default"
    )
    parser.add_argument("--jobs", type=job_count, default=2, metavar="N", help="stages side by side")
    parser.add_argument("--force", action="store_true", help="run also what did not change")
    parser.add_argument("--share", action="store_true", help="fetch what other clones made, push what is made here")
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value in place of that in params.yaml, which stays as it is: the run is an experiment of DVC's",
    )
    parser.add_argument("--workers", default="", metavar="N|tcp://host:8786", help="who computes what is independent")
    given = parser.parse_args(arguments)
    try:
        changes = parsed(given.set_param)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    server = configured_server()
    if server and (problem := unreachable(server)):
        sys.stderr.write(f"{problem}\n")
        return 1
    try:
        state = pipeline(
            given.targets or None, given.jobs, given.force, changes, given.share, given.workers, return_state=True
        )
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; its stages were ended, and the same command goes on from the finished ones.\n")
        return 130
    sys.stdout.write(_summary(state))
    return 0 if state.is_completed() else 1


def _summary(state: State[Any]) -> str:
    lines = [f"{outcome.state:12}{outcome.seconds:9.1f} s  {outcome.stage}\n" for outcome in outcomes_of(state)]
    return "".join([*lines, f"{state.message}\n"])


if __name__ == "__main__":
    sys.exit(main())
