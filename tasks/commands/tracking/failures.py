"""The runs of stages that failed or were killed, with their last lines."""

from collections.abc import Mapping
from typing import Any

from tasks.commands.tracking.identity import differences, identity, named
from tasks.commands.tracking.journal import Journal, left_behind
from tasks.commands.tracking.records import system_metrics
from tasks.commands.tracking.sending import log_metrics
from tasks.commands.tracking.store import DESCRIPTION, FAILED, LISTED, opened, unreachable
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml
from tasks.shown.console import say

SHOWN = 12
"""Lines on a run's page; the artifact has more."""
FILE = "last_lines.txt"


def log_failures() -> None:
    """Tell MLflow of every stage that ended badly and is not told of yet; whatever goes wrong there hides no error."""
    journals = left_behind()
    if not journals:
        return
    try:
        known = [(journal, identity(), _differing(journal.address)) for journal in journals]
        with opened() as (client, experiment):
            for journal, tags, differing in known:
                run = _log(client, experiment, journal, tags, differing)
                journal.forget()
                say(f"MLflow: the last lines of {journal.address} are in run {run}")
    except Exception as error:  # whatever a server, a database or its driver raises
        say(f"{unreachable(error)} `python -m tasks track --failed` tells of {journals[-1].address} later.")


def _differing(address: str) -> dict[str, Any]:
    """Return the parameters that differ from the default ones; nothing where they cannot be read."""
    folder = address.partition("@")[0].rpartition(".")[0]
    try:
        return differences(read_yaml(folder / PARAMETERS), folder)
    except Unexpected:
        return {}


def _log(client: Any, experiment: str, journal: Journal, tags: Mapping[str, str], differing: Mapping[str, Any]) -> str:
    """Make the run of one stage and return its id."""
    ended, variant = "failed" if journal.failed else "was killed", journal.address.partition("@")[2]
    lines = "\n".join(journal.lines[-SHOWN:]) or "It said nothing."
    every = {
        **tags,
        "kind": FAILED,
        **LISTED,
        "stage": journal.address,
        "last line": journal.lines[-1] if journal.lines else "",
        DESCRIPTION: f"The stage {ended}. Its last lines:\n\n```text\n{lines}\n```",
    }
    name = named(f"{journal.address} {ended}", tags, differing, variant)
    start, end = int(journal.started * 1000), int(journal.ended * 1000)
    run = str(client.create_run(experiment, start_time=start, tags=every, run_name=name).info.run_id)
    client.log_text(run, "\n".join([*journal.lines, ""]), FILE)
    log_metrics(client, run, system_metrics(journal.samples))
    client.set_terminated(run, "FAILED" if journal.failed else "KILLED", end)
    return run
