"""`python -m tasks choose`: the fastest model that is good enough, or the best one that is fast enough."""

import argparse
from collections.abc import Mapping, Sequence
from math import isnan
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from pruning.evaluation.measures import size_of
from pruning.models.base import Measurable
from tasks.commands.folders import check_folder, replacing_folder
from tasks.common.devices import compute_on
from tasks.common.job import Job
from tasks.common.models import read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import DATA, PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import checked
from tasks.shown.asking import Answer, Words
from tasks.shown.console import track
from tasks.stages.evaluate import BATCHES
from tasks.stages.path import DENSE, model_at

Row = Mapping[Any, float]
Rows = Sequence[Row]
"""Rows of the table `path`, with `milliseconds` for one step."""


def run(words: Sequence[str]) -> Answer:
    """Choose a model on the path by validation perplexity (or loss) and measured latency, and write it.

    Raises:
        Unexpected: With one sentence, if nothing on the path is good or fast enough, or the folder is not its own.
    """
    wanted = _parsed(words)
    check_folder(wanted.to, "choice")
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    job = Job(read_stage("path", None, values), parameters, track)
    compute_on(**parameters.compute.model_dump())
    path = read_table(job.output("path"))
    path = path.assign(milliseconds=_milliseconds(read_table(job.output("timing")), path["retain"], wanted.batch))
    rows: list[dict[Any, float]] = path.to_dict("records")
    dense = next(row for row in rows if row["retain"] == DENSE)
    row = best_within(rows, wanted.latency) if wanted.within is None else fastest_within(rows, dense, wanted.within)
    retain = row["retain"]
    model = read_model(job.input("train/model")) if retain == DENSE else model_at(job, retain)
    with replacing_folder(wanted.to, "choice") as aside:
        write_model(aside, model)
    return _answer(row, dense, wanted, model)


def _answer(row: Row, dense: Row, wanted: argparse.Namespace, model: Measurable) -> Answer:
    measure, shown = ("loss", ".4g") if isnan(row["valid_perplexity"]) else ("perplexity", ".1f")
    valid, test, change = row[f"valid_{measure}"], row[f"test_{measure}"], _worse(row, dense)
    faster = dense["milliseconds"] / row["milliseconds"]
    size = size_of(model)
    values = {"folder": str(wanted.to), **row, "change": change, "batch": wanted.batch, "speed_up": faster}
    return Answer(
        values,
        [
            f"{wanted.to}: {row['retain']:.0%} of the neurons, {size.parameters:,} parameters",
            f"{measure} {valid:{shown}} on valid ({change:+.1%}), {test:{shown}} on test",
            f"{row['milliseconds']:.2f} ms a step at batch {wanted.batch} ({faster:.2f}× as fast as dense)",
        ],
    )


def fastest_within(rows: Rows, dense: Row, percent: float) -> Row:
    """Return the row of least latency whose validation perplexity is at most `percent` % above the dense model's.

    Where there is none, the loss is.
    """
    above = [100 * _worse(row, dense) for row in rows]
    if min(above) > percent:
        raise Unexpected(f"Expected --within of at least {min(above):.2f}, the best on the path, got {percent:g}.")
    return min(
        (row for row, worse in zip(rows, above, strict=True) if worse <= percent), key=itemgetter("milliseconds")
    )


def best_within(rows: Rows, milliseconds: float) -> Row:
    """Return the row of least validation perplexity, or loss, whose latency is at most `milliseconds`."""
    fastest = min(row["milliseconds"] for row in rows)
    if fastest > milliseconds:
        raise Unexpected(f"Expected --latency of at least {fastest:.3f} ms, the fastest, got {milliseconds:g}.")
    return min((row for row in rows if row["milliseconds"] <= milliseconds), key=_valid)


def _valid(row: Row) -> float:
    """Return what models on the path are chosen by: the validation perplexity, or the loss where there is none."""
    return row["valid_loss"] if isnan(row["valid_perplexity"]) else row["valid_perplexity"]


def _worse(row: Row, dense: Row) -> float:
    """Return by which share a model's validation perplexity, or its loss, lies above the dense one's."""
    if isnan(row["valid_perplexity"]):
        return (_valid(row) - _valid(dense)) / abs(_valid(dense))
    return _valid(row) / _valid(dense) - 1


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = Words("choose")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--within", type=float, metavar="PERCENT", help="the fastest at most this much above dense")
    budget.add_argument("--latency", type=float, metavar="MS", help="the best that takes at most this long a step")
    parser.add_argument("--batch", type=int, choices=BATCHES, default=min(BATCHES), help="sequences side by side")
    parser.add_argument("--to", type=Path, default=DATA / "choice", metavar="FOLDER", help="where the model goes")
    return parser.read(words)


def _milliseconds(timing: pd.DataFrame, shares: pd.Series, batch: int) -> list[float]:
    rows = timing[(timing["measure"] == "latency") & (timing["batch"] == batch)]
    seconds = dict(zip(rows["variant"], rows["seconds"], strict=True))
    return [1000 * seconds[f"{share:g}"] for share in shares]
