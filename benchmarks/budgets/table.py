"""What the jobs have come to, as tables: perplexities over the seeds, beside the dense model's."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.budgets.jobs import NEW, Job, Plan, done, totals_of
from benchmarks.resumable import replaced

TITLES = {
    "surgeon": "pruned (surgeon), repaired",
    "random": "pruned (random), repaired",
    "magnitude": "single weights, as many parameters",
    "scratch": "the same widths from new weights",
    "taught": "the same widths from new weights, taught by the dense model",
    "dense more": "dense, more epochs",
}
REPAIRS = ("none", "ridge", "imitate", "outputs")


def written(listed: Sequence[Job], plan: Plan, path: Path, where: str) -> None:
    """Write what is known as Markdown, and every model's numbers beside it as CSV."""
    known = {job: facts["rows"] for job in listed if (facts := done(plan.state, job))}
    keeps = sorted({job.keep for job in listed if job.way == "surgeon"}, reverse=True)
    tuned = sorted({job.epochs for job in listed if job.way == "surgeon" and job.epochs})
    lines = [where, "", _dense(known), "", "Before training, test perplexity (and its ratio to the dense model's):", ""]
    lines += _repairs(known, keeps)
    lines += ["", "After E epochs, test perplexity (and its ratio to the dense model's):", ""]
    lines += _epochs(known, keeps, tuned, plan.epochs)
    path.parent.mkdir(parents=True, exist_ok=True)
    replaced(path, "\n".join(lines) + "\n")
    rows = ["way,seed,keep,epochs,phase,units,parameters,valid,test"]
    for job, phases in known.items():
        for phase, row in phases.items():
            units = "+".join(map(str, row["widths"]))
            numbers = f"{row['parameters']},{row['valid']!r},{row['test']!r}"
            epochs = plan.epochs if job.way == "dense" else job.epochs
            rows.append(f"{job.way},{job.seed},{job.keep},{epochs},{phase},{units},{numbers}")
    replaced(path.with_suffix(".csv"), "\n".join(rows) + "\n")


Known = dict[Job, dict[str, dict[str, Any]]]


def _dense(known: Known) -> str:
    tests, valids = ([phases["trained"][split] for job, phases in known.items() if job.way == "dense"]
                     for split in ("test", "valid"))  # fmt: skip
    if not tests:
        return "No dense model is trained yet."
    return f"Dense: test {spread(tests)}, valid {spread(valids)}; {len(tests)} seed(s)."


def _cell(known: Known, jobs: Iterable[Job], phase: str) -> str:
    """Return mean ± half the range over seeds, and the mean ratio to the same seed's dense model."""
    numbers, ratios = [], []
    for job in jobs:
        row, dense = known.get(job, {}).get(phase), known.get(Job("dense", job.seed))
        if row and dense:
            numbers.append(row["test"])
            ratios.append(row["test"] / dense["trained"]["test"])
    return f"{spread(numbers)} ({statistics.mean(ratios):.3f})" if numbers else "–"


def spread(numbers: Sequence[float]) -> str:
    """Return the mean and the largest deviation from it.

    >>> spread([1.0, 2.0])
    '1.50 ± 0.50'
    """
    middle = statistics.mean(numbers)
    return f"{middle:.2f}" + (f" ± {max(abs(number - middle) for number in numbers):.2f}" if len(numbers) > 1 else "")


def _repairs(known: Known, keeps: Sequence[float]) -> list[str]:
    seeds = sorted({job.seed for job in known})
    lines = ["| keep | chosen by | " + " | ".join(REPAIRS) + " |", "|---|---|" + "---:|" * len(REPAIRS)]
    for keep in keeps:
        for way in ("surgeon", "random", "magnitude"):
            cells = [_cell(known, [Job(way, seed, keep) for seed in seeds], phase) for phase in REPAIRS]
            lines.append(f"| {keep:.0%} | {way} | " + " | ".join(cells) + " |")
    return lines


def _epochs(known: Known, keeps: Sequence[float], tuned: Sequence[int], dense_epochs: int) -> list[str]:
    seeds = sorted({job.seed for job in known})
    totals = totals_of(tuned, dense_epochs)
    lines = [
        "| keep | model | " + " | ".join(f"E = {epochs}" for epochs in tuned) + " |",
        "|---|---|" + "---:|" * len(tuned),
    ]
    for keep in [*keeps, 1.0]:
        for way in ("surgeon", "random", "magnitude", *NEW) if keep < 1 else ("dense more",):
            cells = []
            for epochs in tuned:
                total = next((total for total in totals if total >= dense_epochs + epochs), totals[-1])
                which = [Job(way, seed, keep, total if way in NEW else epochs) for seed in seeds]
                cells.append(_cell(known, which, "trained") + (f", {total} epochs" if way in NEW else ""))
            lines.append(f"| {keep:.0%} | {TITLES[way]} | " + " | ".join(cells) + " |")
    return lines
