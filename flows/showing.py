"""What a run leaves on Prefect's pages: its stages, what it changed, the comparison and its plots, whole reports."""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.changes import Changed
from flows.execution import FAILED, NOT_STARTED, CommandError, Commands, Outcome
from flows.stages import GraphStage


def show(commands: Commands, stages: Mapping[str, GraphStage], outcomes: Mapping[str, Outcome]) -> None:
    """Make the run's artifacts and bring tracking up to date; a problem with either costs no result."""
    create_table_artifact(
        key="stages",
        table=[_row(outcome) for outcome in outcomes.values()],
        description="What DVC did with each stage.",
    )
    done = [stage for stage in stages.values() if outcomes[stage.address].state not in (FAILED, NOT_STARTED)]
    if plots := [picture for stage in done for plot in stage.plots for picture in _pictures(plot)]:
        report = "\n".join(_try(commands, "report", "--markdown"))
        create_markdown_artifact(
            key="comparison", markdown=report, description="What each variant is worth, and what it costs."
        )
        create_markdown_artifact(
            key="plots", markdown="\n\n".join(map(_embedded, plots)), description="The pictures of the comparison."
        )
    for page in (page for stage in done for page in stage.pages):
        create_markdown_artifact(key=page.stem, markdown=page.read_text("utf-8"), description="The whole report.")
    if len(done) == len(stages):
        needed = {address for stage in stages.values() for address in stage.needs}
        for folder in sorted({stage.folder for stage in done if stage.address not in needed}):
            _try(commands, "track", *filter(None, [folder]))
    elif any(outcome.state == FAILED for outcome in outcomes.values()):
        _try(commands, "track", "--failed")  # a stage that was killed, as after its time limit, could tell nothing


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


def show_changes(different: Changed, kept: str) -> None:
    """Make the artifact that says what a run changed.

    Args:
        different: What was other than in params.yaml.
        kept: The experiment's name.
    """
    rows = [f"| `{name}` | {_cell(old)} | {_cell(new)} |" for name, (old, new) in different.items()]
    said = f"Kept as the experiment `{kept}`: `dvc exp apply {kept}` takes it over."
    markdown = "\n".join(["| parameter | params.yaml | this run |", "|---|---|---|", *rows, "", said])
    create_markdown_artifact(key="changes", markdown=markdown, description="What was other than in params.yaml.")


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")
