"""`python -m tasks choose`: the fastest model that is good enough, or the best that is fast or small enough."""

import argparse
from collections.abc import Mapping, Sequence
from math import isnan
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from pruning.core.options import Numbers
from pruning.core.units import byte_count, in_bytes
from pruning.evaluation.measures import size_of
from pruning.evaluation.memory import NUMBERS, memory_of
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
from tasks.stages.path import DENSE, dense_of, kept_at, model_at

Row = Mapping[Any, float]
Rows = Sequence[Row]
"""Rows of the table `path`, with `milliseconds` for one step and bytes of `memory`."""


def run(words: Sequence[str]) -> Answer:
    """Choose a model on the path by validation perplexity (or loss), measured latency or memory, and write it.

    Raises:
        Unexpected: With one sentence, if nothing on the path is good, fast or small enough, or the folder is not its
            own.
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
    if wanted.target is not None:
        path = path.assign(memory=_memory(job, path["retain"].tolist(), wanted.target))
    rows: list[dict[Any, float]] = path.to_dict("records")
    dense = next(row for row in rows if row["retain"] == DENSE)
    if wanted.within is not None:
        row = fastest_within(rows, dense, wanted.within)
    elif wanted.latency is not None:
        row = best_within(rows, wanted.latency)
    else:
        row = best_in(rows, wanted.memory, wanted.target)
    retain = row["retain"]
    model = read_model(job.input("train/model")) if retain == DENSE else model_at(job, retain)
    with replacing_folder(wanted.to, "choice") as aside:
        write_model(aside, model)
    return _answer(rows, row, dense, wanted, model)


def _answer(rows: Rows, row: Row, dense: Row, wanted: argparse.Namespace, model: Measurable) -> Answer:
    by = "memory" if wanted.memory is not None else "milliseconds"
    above = next_above(rows, row, by) if wanted.within is None else next_faster(rows, row)
    size, pruned = size_of(model), "" if row["retain"] != DENSE else ", nothing pruned"
    measure, shown = ("loss", ".4g") if isnan(row["valid_perplexity"]) else ("perplexity", ".1f")
    one, other = (_valued(own, dense) if own else None for own in (row, above))
    values = {
        "folder": str(wanted.to),
        "batch": wanted.batch,
        "target": wanted.target,
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
    if "memory" in row:
        share = row["memory"] / dense["memory"]
        said.append(f"{in_bytes(row['memory'])} of memory in {wanted.target}, {share:.0%} of dense")
    if above is None:
        limit = "better" if wanted.within is None else "faster"
        return Answer(
            values, [*said, f"nothing on the path is {limit}; path.retain in params.yaml says how far it goes"]
        )
    price = f"{digits(above['milliseconds'])} ms, {_faster(above)}" if by == "milliseconds" else in_bytes(above[by])
    costs = f"{_worse(above, dense):+.1%} {measure} for {price}"
    return Answer(values, [*said, f"the next point, {above['retain']:.0%} of the neurons, would be {costs}"])


def _valued(row: Row, dense: Row) -> dict[str, float]:
    return {**row, "change": _worse(row, dense)}


def _faster(row: Row) -> str:
    return f"{row['speed_up']:.2f} ± {row['error']:.2f}×"


def next_faster(rows: Rows, chosen: Row) -> Row | None:
    """Return, of the rows that are faster than the chosen one, that of least validation perplexity, or loss."""
    faster = [row for row in rows if row["milliseconds"] < chosen["milliseconds"]]
    return min(faster, key=_valid, default=None)


def next_above(rows: Rows, chosen: Row, by: str = "milliseconds") -> Row | None:
    """Return, of the rows that are better than the chosen one, that of least latency, or of least memory."""
    better = [row for row in rows if _valid(row) < _valid(chosen)]
    return min(better, key=itemgetter(by), default=None)


def fastest_within(rows: Rows, dense: Row, percent: float) -> Row:
    """Return the row of least latency whose validation perplexity is at most `percent` % above the dense model's.

    Where there is none, the loss is.
    """
    above = [100 * _worse(row, dense) for row in rows]
    if not min(above) <= percent:  # nor where it is no number
        raise Unexpected(f"Expected --within of at least {min(above):.2f}, the best on the path, got {percent:g}.")
    return min(
        (row for row, worse in zip(rows, above, strict=True) if worse <= percent), key=itemgetter("milliseconds")
    )


def best_within(rows: Rows, milliseconds: float) -> Row:
    """Return the row of least validation perplexity, or loss, whose latency is at most `milliseconds`."""
    fastest = min(row["milliseconds"] for row in rows)
    if not fastest <= milliseconds:
        raise Unexpected(f"Expected --latency of at least {fastest:.3f} ms, the fastest, got {milliseconds:g}.")
    return min((row for row in rows if row["milliseconds"] <= milliseconds), key=_valid)


def best_in(rows: Rows, most: float, target: str) -> Row:
    """Return the row of least validation perplexity, or loss, that needs at most so many bytes of memory."""
    least = min(row["memory"] for row in rows)
    if least > most:
        raise Unexpected(
            f"Expected --memory of at least {in_bytes(least)} ({least:.0f} bytes), the least on the path in {target}, "
            f"got {in_bytes(most)}; path.retain in params.yaml says how far it goes."
        )
    return min((row for row in rows if row["memory"] <= most), key=_valid)


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
    budget.add_argument("--memory", type=_bytes, metavar="BYTES", help="the best in so much memory, as 512KiB")
    parser.add_argument("--target", choices=NUMBERS, help="count the memory with weights in this")
    parser.add_argument("--batch", type=int, choices=BATCHES, default=min(BATCHES), help="sequences side by side")
    parser.add_argument("--to", type=Path, default=DATA / "choice", metavar="FOLDER", help="where the model goes")
    given = parser.read(words)
    if given.memory is not None and given.target is None:
        given.target = "float32"
    return given


def _bytes(word: str) -> float:
    """Return what `byte_count` does, its refusal as argparse wants it."""
    try:
        return byte_count(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None


def _memory(job: Job, shares: Sequence[float], target: Numbers) -> list[int]:
    """Return the bytes that each model on the path needs; see `memory_of`."""
    dense = dense_of(job)
    widths = {layer.name: layer.width for layer in dense.layers()}

    def smaller(share: float) -> Measurable:
        if share == DENSE:
            return read_model(job.input("train/model"))
        kept = {name: len(neurons) for name, neurons in kept_at(job, dense, share).items()}
        return dense.resized(list((widths | kept).values()))

    return [memory_of(smaller(share), numbers=target).total for share in shares]


def _with_latency(path: pd.DataFrame, job: Job, values: Mapping[str, Any], batch: int) -> pd.DataFrame:
    """Return the path with the speed-up of each point, its error, and milliseconds relative to the report's figure."""
    dense = read_table(read_stage("timing", None, values).outputs["latency"])
    latency = in_milliseconds(read_table(job.output("latency")), dense, job.parameters.compare.control)
    rows = latency[latency["batch"] == batch].set_index("model").loc[[f"{share:g}" for share in path["retain"]]]
    return path.assign(**{name: rows[name].to_numpy() for name in ("milliseconds", "speed_up", "error")})
