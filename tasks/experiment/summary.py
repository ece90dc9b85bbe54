"""The end of the experiment: from all cells to the report, and what MLflow is told."""

from pathlib import Path

from pruning.experiment.verdict import verdict
from tasks.commands.folders import adding
from tasks.common.console import say
from tasks.experiment.cells import CELLS, EXPERIMENT, Experiment
from tasks.experiment.report import REPORT, write_report
from tasks.experiment.tracking import log


def finish(experiment: Experiment) -> tuple[Path, str]:
    """Write the report, log it, and say the verdict; return the page and its text in Markdown."""
    tables = experiment.tables()
    sentences = verdict(tables)
    with adding(experiment.folder, EXPERIMENT, growing=CELLS) as aside:
        written = write_report(aside, tables, sentences, experiment.settings)
    page, *others = (experiment.folder / path.relative_to(aside) for path in written)
    log(experiment.folder, tables, experiment.settings, [page, *others])
    for sentence in sentences:
        say(sentence)
    return page, (experiment.folder / REPORT).read_text(encoding="utf-8")
