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
from tasks.commands.settled import settled
from tasks.common.devices import compute_on
from tasks.common.job import Job
from tasks.common.latency import BATCHES, in_milliseconds
from tasks.common.models import read_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import DATA, PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import checked
from tasks.shown.asking import Answer, Words
from tasks.shown.console import track
from tasks.shown.tables import digits
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
    with settled(job.stage, read_stage("timing", None, values)):
        return _chosen(job, values, wanted)


def _chosen(job: Job, values: Mapping[str, Any], wanted: argparse.Namespace) -> Answer:
    path = _with_latency(read_table(job.output("path")), job, values, wanted.batch)
    rows: list[dict[Any, float]] = path.to_dict("records")
    dense = next(row for row in rows if row["retain"] == DENSE)
    row = best_within(rows, wanted.latency) if wanted.within is None else fastest_within(rows, dense, wanted.within)
    retain = row["retain"]
    model = read_model(job.input("train/model")) if retain == DENSE else model_at(job, retain)
    with replacing_folder(wanted.to, "choice") as aside:
        write_model(aside, model)
    return _answer(rows, row, dense, wanted, model)


def _answer(rows: Rows, row: Row, dense: Row, wanted: argparse.Namespace, model: Measurable) -> Answer:
    above = next_above(rows, row) if wanted.within is None else next_faster(rows, row)
    size, pruned = size_of(model), "" if row["retain"] != DENSE else ", nothing pruned"
    measure, shown = ("loss", ".4g") if isnan(row["valid_perplexity"]) else ("perplexity", ".1f")
    one, other = (_valued(own, dense) if own else None for own in (row, above))
    values = {
        "folder": str(wanted.to),
        "batch": wanted.batch,
        "parameters": size.parameters,
        "chosen": one,
        "next": other,
    }
    said = [
        f"{wanted.to}: {row['retain']:.0%} of the neurons, {size.parameters:,} parameters{pruned}",
        f"{measure} {row[f'valid_{measure}']:{shown}} on valid ({_worse(row, dense):+.1%}), "
        f"{row[f'test_{measure}']:{shown}} on test",
        f"{digits(row['milliseconds'])} ms a step at batch {wanted.batch}, {_faster(row)} as fast as dense",
    ]
    if above is None:
        limit = "better" if wanted.within is None else "faster"
        return Answer(
            values, [*said, f"nothing on the path is {limit}; path.retain in params.yaml says how far it goes"]
        )
    costs = f"{_worse(above, dense):+.1%} {measure} for {digits(above['milliseconds'])} ms, {_faster(above)}"
    return Answer(values, [*said, f"the next point, {above['retain']:.0%} of the neurons, would be {costs}"])


def _valued(row: Row, dense: Row) -> dict[str, float]:
    return {**row, "change": _worse(row, dense)}


def _faster(row: Row) -> str:
    return f"{row['speed_up']:.2f} ± {row['error']:.2f}×"


def next_faster(rows: Rows, chosen: Row) -> Row | None:
    """Return, of the rows that are faster than the chosen one, that of least validation perplexity, or loss."""
    faster = [row for row in rows if row["milliseconds"] < chosen["milliseconds"]]
    return min(faster, key=_valid, default=None)


def next_above(rows: Rows, chosen: Row) -> Row | None:
    """Return, of the rows that are better than the chosen one, that of least latency."""
    better = [row for row in rows if _valid(row) < _valid(chosen)]
    return min(better, key=itemgetter("milliseconds"), default=None)


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


def _with_latency(path: pd.DataFrame, job: Job, values: Mapping[str, Any], batch: int) -> pd.DataFrame:
    """Return the path with the speed-up of each point, its error, and milliseconds relative to the report's figure."""
    dense = read_table(read_stage("timing", None, values).outputs["latency"])
    latency = in_milliseconds(read_table(job.output("latency")), dense, job.parameters.compare.control)
    rows = latency[latency["batch"] == batch].set_index("model").loc[[f"{share:g}" for share in path["retain"]]]
    return path.assign(**{name: rows[name].to_numpy() for name in ("milliseconds", "speed_up", "error")})
