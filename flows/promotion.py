"""The flow that names the champion: `python -m flows.promotion`, with `--within 3 --cost latency` for another gate."""

import argparse
import sys
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.execution import CommandError, Commands
from flows.server import configured_server, unreachable


@flow(name="promotion", description="Name the best variant that is good and cheap enough MLflow's champion.")
def promotion(within: float | None = None, cost: str | None = None, at_most: float | None = None) -> State[list[str]]:
    """Bring tracking up to date, judge every variant, and let the best that passes bear the alias `champion`.

    Args:
        within: Percent that perplexity may be above dense's; `promotion.tolerance` of params.yaml by default.
        cost: What is to be cheap: neurons, parameters, multiply_adds or latency; `promotion.cost` by default.
        at_most: Percent of dense's cost; `promotion.at_most` by default.

    Returns:
        Completed with the lines that say how each variant was judged, or failed with the reason; who was champion
        before then stays so.
    """
    given = {"--within": within, "--cost": cost, "--at-most": at_most}
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    commands = Commands(Path(Repo.find_root()))
    try:
        tracked(commands)
        lines = judged(commands, words)
        create_markdown_artifact(key="promotion", markdown=_as_text(lines), description="How each variant was judged.")
        return Completed(message=lines[-1], data=lines)
    except CommandError as failure:
        return Failed(message=str(failure), data=list[str]())
    finally:
        commands.end()


@task(name="track", cache_policy=NO_CACHE)
def tracked(commands: Commands) -> list[str]:
    """Let MLflow have the present results and models."""
    return commands.run("`python -m tasks track`", ["python", "-m", "tasks", "track"], get_run_logger().info)


@task(name="judge", cache_policy=NO_CACHE)
def judged(commands: Commands, words: list[str]) -> list[str]:
    """Judge the variants, and move the alias."""
    command = ["python", "-m", "tasks", "promote", *words]
    return commands.run(f"`{' '.join(command)}`", command, get_run_logger().info)


def _as_text(lines: list[str]) -> str:
    return "```text\n" + "\n".join(lines) + "\n```"


def main(arguments: list[str] | None = None) -> int:
    """Run the flow and return the exit code: 0, or 1 after what stopped it."""
    parser = argparse.ArgumentParser(prog="python -m flows.promotion", description="Name the champion, watched.")
    parser.add_argument("--within", type=float, metavar="PERCENT", help="above dense's perplexity")
    parser.add_argument("--cost", metavar="NAME", help="neurons, parameters, multiply_adds or latency")
    parser.add_argument("--at-most", type=float, metavar="PERCENT", help="of dense's cost")
    given = parser.parse_args(arguments)
    server = configured_server()
    if server and (problem := unreachable(server)):
        sys.stderr.write(f"{problem}\n")
        return 1
    state: State[Any] = promotion(given.within, given.cost, given.at_most, return_state=True)
    lines: Any = state.result(raise_on_failure=False)
    sys.stdout.write("".join(f"{line}\n" for line in lines or [str(state.message)]))
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
