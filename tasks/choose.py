"""`python -m tasks choose`: the fastest model that is good enough, or the best one that is fast enough."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pruning.evaluation import size_of
from tasks.common.console import say, track
from tasks.common.job import Job
from tasks.common.parameters import Unexpected, checked
from tasks.common.stages import DATA, PARAMETERS, read_stage, read_yaml
from tasks.common.tables import read_table
from tasks.evaluate import BATCHES
from tasks.models import read_model, write_model
from tasks.path import DENSE, model_at


def run(words: Sequence[str]) -> None:
    """Choose a model on the path by validation perplexity and measured latency, and write it.

    Raises:
        Unexpected: With one sentence, if nothing on the path is good or fast enough.
    """
    wanted = _parsed(words)
    values = read_yaml(PARAMETERS)
    job = Job(read_stage("path", None, values), checked(values), track)
    path = read_table(job.output("path"))
    path = path.assign(milliseconds=_milliseconds(read_table(job.output("timing")), path["retain"], wanted.batch))
    dense = path[path["retain"] == DENSE].iloc[0]
    row = best_within(path, wanted.latency) if wanted.within is None else fastest_within(path, wanted.within)
    retain = float(row["retain"])
    model = read_model(job.input("train/model")) if retain == DENSE else model_at(job, retain)
    write_model(wanted.to, model)
    change = row["valid_perplexity"] / dense["valid_perplexity"] - 1
    say(f"{wanted.to}: {retain:.0%} of the neurons, {size_of(model).parameters:,} parameters")
    say(f"perplexity {row['valid_perplexity']:.1f} on valid ({change:+.1%} of dense), {row['test_perplexity']:.1f} on test")
    faster = dense["milliseconds"] / row["milliseconds"]
    say(f"{row['milliseconds']:.2f} ms a step at batch {wanted.batch} ({faster:.2f}× as fast as dense)")


def fastest_within(path: pd.DataFrame, percent: float) -> pd.Series:
    """Return the row of least latency whose validation perplexity is at most `percent` % above the dense model's."""
    dense = path.loc[path["retain"] == DENSE, "valid_perplexity"].iloc[0]
    enough = path[path["valid_perplexity"] <= dense * (1 + percent / 100)]
    if enough.empty:
        least = path["valid_perplexity"].min() / dense - 1
        raise Unexpected(f"Expected --within of at least {100 * least:.2f} %, the best on the path, got {percent:g}.")
    return enough.loc[enough["milliseconds"].idxmin()]


def best_within(path: pd.DataFrame, milliseconds: float) -> pd.Series:
    """Return the row of least validation perplexity whose latency is at most `milliseconds`."""
    enough = path[path["milliseconds"] <= milliseconds]
    if enough.empty:
        fastest = path["milliseconds"].min()
        raise Unexpected(f"Expected --latency of at least {fastest:.3f} ms, the fastest, got {milliseconds:g}.")
    return enough.loc[enough["valid_perplexity"].idxmin()]


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tasks choose", description="Choose a model on the path.")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--within", type=float, metavar="PERCENT", help="the fastest at most this much above dense")
    budget.add_argument("--latency", type=float, metavar="MS", help="the best that takes at most this long a step")
    parser.add_argument("--batch", type=int, choices=BATCHES, default=min(BATCHES), help="sequences side by side")
    parser.add_argument("--to", type=Path, default=DATA / "choice", metavar="FOLDER", help="where the model goes")
    return parser.parse_args(words)


def _milliseconds(timing: pd.DataFrame, shares: pd.Series, batch: int) -> list[float]:
    rows = timing[(timing["measure"] == "latency") & (timing["batch"] == batch)]
    seconds = dict(zip(rows["variant"], rows["seconds"], strict=True))
    return [1000 * seconds[f"{share:g}"] for share in shares]
