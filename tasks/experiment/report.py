"""The stage `report`: from all outcomes to the tables, the verdict and the page."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from pruning.experiment.judging import compare_pruning_results
from pruning.experiment.trials import Pruning
from pruning.experiment.verdict import verdict
from tasks.common.job import Job
from tasks.common.pipeline import flat
from tasks.common.tables import read_table
from tasks.common.writing import read_json
from tasks.experiment.inputs import read_calibration
from tasks.experiment.joint import sets_of
from tasks.experiment.page import write_report
from tasks.experiment.prune import read_outcomes
from tasks.experiment.settings import SEED
from tasks.shown.console import say


def run(job: Job) -> None:
    """Write the report and say the verdict."""
    texts = sorted(job.setting("texts"))
    removals = read_table(job.input("oracle/oracle"))
    joint = (sets_of(job, removals), read_table(job.input("joint/joint_removal")))
    signals = {seed: job.input("calibrate") / f"text{seed}" for seed in texts}
    weights = {seed: job.input("fuse") / f"text{seed}/weights.json" for seed in texts}
    costs = [job.input("oracle/cost"), *(place / "cost.parquet" for place in signals.values())]
    tables = compare_pruning_results(
        list(_outcomes(job, texts)),
        calibrations={seed: read_calibration(place / "signals", seed) for seed, place in signals.items()},
        oracle=removals,
        weights={seed: read_json(path) for seed, path in weights.items()},
        joint=joint if joint[0] else None,
        costs=list(_costs(pd.concat([read_table(path) for path in costs]))),
        seed=SEED,
    )
    sentences = verdict(tables)
    settings = flat(job.own.model_dump()) if job.own else {}
    write_report(job.output("report").parent, tables, sentences, settings)
    for sentence in sentences:
        say(sentence)


def _outcomes(job: Job, texts: list[int]) -> Iterator[Pruning]:
    """Yield what the stages `prune` found: every share with the first text, then the other texts, then other models."""
    middle = job.setting("middle")
    shares = sorted([*job.setting("keep"), middle], reverse=True)
    first = ["text0" if share == middle else f"{share}" for share in shares]
    others = [f"text{seed}" for seed in texts if seed] + [f"model{seed}" for seed in sorted(job.setting("models"))]
    for case in (*first, *others):
        yield from read_outcomes(job.input("prune") / case / "outcomes.json")


def _costs(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows of the `cost` table: the median of measured values, the largest of counts."""
    for score, costs in rows.groupby("score"):
        middle = {name: float(costs[name].median()) for name in ("seconds", "peak_memory")}
        spreads = {"seconds_spread": float(costs["seconds"].std()), "memory_spread": float(costs["peak_memory"].std())}
        most = {name: int(costs[name].max()) for name in ("forward_passes", "backward_passes")}
        yield {"score": str(score), **middle, **spreads, **most, "runs": len(costs)}
