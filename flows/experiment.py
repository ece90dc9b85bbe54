"""The experiment's flow: its cells one after the other, each a task run, then the report and tracking.

`python -m flows.experiment [--checkpoint FILE --corpus FOLDER] [--quick] …` needs no server: without PREFECT_API_URL it
starts a temporary one. What was computed before is not computed again, so the same command goes on after a kill.
"""

import argparse
import sys
import time
from typing import Any, NoReturn

from prefect import Task, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.states import Completed, Failed

from flows.server import configured_server, unreachable
from tasks.common.parameters import Unexpected
from tasks.experiment.cells import Cell, Experiment
from tasks.experiment.settings import Settings, option_of, settings_from, unknown
from tasks.experiment.summary import finish


@flow(name="experiment", description="Compare what each choice of neurons gives, from the same measurements.")
def experiment(options: dict[str, Any]) -> State[str]:
    """Compute the cells that are missing, then write the report and bring tracking up to date.

    Args:
        options: The settings, by name.

    Returns:
        Completed with the place of the report, or failed with one sentence on what went wrong.
    """
    log = get_run_logger().info
    try:
        work = Experiment(settings_from(options, quick=False))
        cells = work.cells()
        missing = [cell for cell in cells if not work.place(cell).is_dir()]
        log(f"{len(cells)} cells, {len(missing)} of them to compute")
        start = time.monotonic()
        for done, cell in enumerate(missing, start=1):
            _task_of(work, cell)()
            left = (time.monotonic() - start) / done * (len(missing) - done)
            log(f"{done}/{len(missing)} cells: {cell.name}; about {left / 60:.0f} min left")
        page, text = finish(work)
        _show(text)
        return Completed(message=f"The report stands in {page}", data=str(page))
    except (ValueError, FloatingPointError) as error:
        return Failed(message=str(error), data="")


def _show(text: str) -> None:
    """Make the report an artifact of the run; a problem with it costs no result."""
    try:
        create_markdown_artifact(markdown=text, key="experiment", description="What each choice of neurons gives.")
    except PrefectException as error:
        get_run_logger().warning(f"The report could not be made an artifact ({error}).")


def _task_of(work: Experiment, cell: Cell) -> Task[[], bool]:
    """Return the task of a cell; Prefect's cache is off, since the cell's files are the cache."""

    def run() -> bool:
        return work.compute(cell)

    return Task(run, name=cell.kind, task_run_name=cell.name, tags=[cell.kind], cache_policy=NO_CACHE)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow and return the exit code: 0, or 1 after one sentence on what was wrong."""
    try:
        settings = _settings(arguments)
        work = Experiment(settings)  # refuses what cannot work before a server is started
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    server = configured_server()
    if server and (problem := unreachable(server)):
        sys.stderr.write(f"{problem}\n")
        return 1
    try:
        with work.alone():
            state = experiment(settings.model_dump(), return_state=True)
    except Unexpected as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on from the finished cells.\n")
        return 130
    sys.stdout.write(f"{state.message}\n")
    return 0 if state.is_completed() else 1


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage of all options."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise Unexpected(f"{message[:1].upper()}{message[1:]}.")


def _settings(arguments: list[str] | None) -> Settings:
    """Return the settings of a command line."""
    parser = _Parser(prog="python -m flows.experiment", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a coarse look at the whole in a few minutes")
    for name, option in Settings.model_fields.items():
        many = isinstance(option.default, list)
        told = " ".join(map(str, option.default)) if many else option.default
        words = f"{option.description} (default: {told})".replace("%", "%%")
        nargs = "*" if many else None
        parser.add_argument(option_of(name), default=argparse.SUPPRESS, metavar="VALUE", nargs=nargs, help=words)
    given, others = parser.parse_known_args(arguments)
    if others:
        raise Unexpected(unknown(others[0]))
    values = vars(given)
    return settings_from(values, quick=values.pop("quick"))


if __name__ == "__main__":
    sys.exit(main())
