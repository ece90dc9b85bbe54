"""How to repair without labels and how to fine-tune, looked for on validation text with one dense model.

`python -m benchmarks.budgets.search --corpus FOLDER --dense FILE --state FOLDER --to FILE`, from the repository's root.
The dense model is one that `benchmarks.budgets` trained (`dense-100-0-0/made.safetensors` in its folder). Written is a
file for its `--tuning`: what had the best validation perplexity at half of the units, of repairs and for each number of
epochs after the best repair. Each trial is kept; after `--limit` seconds none begins, what is best so far is written,
and the exit code is 75 if any is missing.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks import asked
from benchmarks.budgets.__main__ import QUICK, STRONG
from benchmarks.budgets.jobs import TUNINGS, Job, Plan, Repair, Tuning, begin, done, work
from benchmarks.headline import RESUME, texts_of
from benchmarks.resumable import replaced

KEEP = 0.5
DENSE, REPAIRED = Job("dense", 0), Job("surgeon", 0, KEEP)
REPAIRS = [Repair(outputs=share, outputs_rate=rate) for share in (1.0, 0.5) for rate in (1e-3, 2e-3, 4e-3)]
TUNED = {
    1: [Tuning(rate, *rest) for rate in (2e-3, 4e-3, 8e-3, 1.6e-2) for rest in ((0.0, 0.7), (0.0, 1.0), (0.3, 0.7))],
    3: [Tuning(rate, *rest) for rate in (4e-3, 8e-3, 1.6e-2) for rest in ((0.0, 0.7), (0.0, 1.0), (0.3, 0.7))],
    10: [Tuning(rate, *rest) for rate in (4e-3, 8e-3) for rest in ((0.0, 0.7), (0.0, 0.9), (0.3, 0.7))],
}
"""Epochs → what is tried: the highest learning rate, the share of the dropout, and the share of the dense model."""


def plans_of(plan: Plan, dense: Path) -> list[Plan]:
    """Return a plan for each repair, in a folder of its own that holds the dense model."""
    plans = [replace(plan, repair=repair, state=plan.state / f"repair-{n}") for n, repair in enumerate(REPAIRS)]
    for each in plans:
        given(each.state / DENSE.name, dense)
    return plans


def given(folder: Path, model: Path) -> None:
    """Make a folder look like a finished job's that made a model."""
    if not (folder / "facts.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(model, folder / "made.safetensors")
        replaced(folder / "facts.json", json.dumps({"finished": True}))


def valid_of(plan: Plan, job: Job) -> float:
    """Return the best validation perplexity that a job has come to, infinite where it has not."""
    facts = done(plan.state, job)
    return min(row["valid"] for row in facts["rows"].values()) if facts else math.inf


def search(plan: Plan, dense: Path, pool: Executor, until: float) -> tuple[dict[str, object], bool]:
    """Return what is best so far, for a file, and whether all was tried."""
    repairs = plans_of(plan, dense)
    tried = [pool.submit(attempt, each, REPAIRED, until) for each in repairs]
    ends = [future.result() for future in tried]
    best = min(repairs, key=lambda each: valid_of(each, REPAIRED))
    trials: Mapping[int, Sequence[Plan]] = {
        epochs: [
            replace(best, tuning={epochs: tuning}, state=plan.state / f"tuned-{epochs}-{n}")
            for n, tuning in enumerate(tunings)
        ]
        for epochs, tunings in TUNED.items()
    }
    tried = []
    for epochs, plans in trials.items():
        for each in plans:
            if math.isfinite(valid_of(best, REPAIRED)):
                for job in (DENSE, REPAIRED):
                    given(each.state / job.name, best.state / job.name / "made.safetensors")
                tried.append(pool.submit(attempt, each, tuned(epochs), until))
    ends += [future.result() for future in tried]
    tuning = {}
    for epochs, plans in trials.items():
        top = min(plans, key=lambda each: valid_of(each, tuned(epochs)))
        known = math.isfinite(valid_of(top, tuned(epochs)))
        tuning[str(epochs)] = (top.tuning[epochs] if known else TUNINGS["high"][epochs])._asdict()
    return {"repair": best.repair._asdict(), "tuning": tuning}, all(ends) and len(ends) > len(repairs)


def tuned(epochs: int) -> Job:
    """Return the job that fine-tunes for so many epochs."""
    return Job("surgeon", 0, KEEP, epochs)


def attempt(plan: Plan, job: Job, until: float) -> bool:
    """Do a job unless it is done; return whether it is."""
    if done(plan.state, job) is None and time.time() < until:
        work(job, plan, until)
    return done(plan.state, job) is not None


def table(plan: Plan) -> list[str]:
    """Return what was tried, as Markdown."""
    lines = ["| epochs | tried | valid | test |", "|---:|---|---:|---:|"]
    for n, repair in enumerate(REPAIRS):
        facts = done(plan.state / f"repair-{n}", REPAIRED)
        for phase, row in (facts["rows"] if facts else {}).items():
            what = (
                f"{phase}, {repair.outputs:g} of the tokens at {repair.outputs_rate:g}" if phase == "outputs" else phase
            )
            lines.append(f"| 0 | {what} | {row['valid']:.2f} | {row['test']:.2f} |")
    for epochs, tunings in TUNED.items():
        for n, tuning in enumerate(tunings):
            facts = done(plan.state / f"tuned-{epochs}-{n}", tuned(epochs))
            if facts:
                row = facts["rows"]["trained"]
                what = f"rate {tuning.rate:g}, dropout {tuning.dropout:g}, dense {tuning.share:g}"
                lines.append(f"| {epochs} | {what} | {row['valid']:.2f} | {row['test']:.2f} |")
    return list(dict.fromkeys(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Try what is left to try, write what is best, and exit with 75 if not all was tried."""
    start = time.time()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budgets.search", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--corpus", type=asked.splits, required=True, help="folder of published splits")
    parser.add_argument("--dense", type=asked.there, required=True, help="file of the dense model")
    parser.add_argument("--state", type=asked.folder, required=True, help="folder of what is known so far")
    parser.add_argument(
        "--to", type=asked.file, required=True, help="file for --tuning; a Markdown file of all beside it"
    )
    parser.add_argument("--limit", type=asked.amount, default=math.inf, help="seconds after which nothing begins")
    parser.add_argument("--workers", type=asked.count, default=1, help="processes side by side")
    parser.add_argument("--quick", action="store_true", help="toy size, to try the script")
    parser.add_argument("--device", type=asked.device, default="cpu", help="where models are trained")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else STRONG
    texts, end_of_line, types = texts_of(options.corpus, sizes)
    plan = Plan(sizes, texts, end_of_line, types, options.device, options.state, 0, 0.0, Repair(), {})
    if options.quick:
        REPAIRS[:] = [Repair(tokens=400, outputs=0.5, outputs_rate=rate) for rate in (1e-3, 2e-3)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context, initializer=begin, initargs=(plan.device,)) as pool:
        best, whole = search(plan, options.dense, pool, start + options.limit)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    replaced(options.to, json.dumps(best, indent=1))
    replaced(options.to.with_suffix(".md"), "\n".join(table(plan)) + "\n")
    print("\n".join(table(plan)), flush=True)
    if not whole:
        sys.exit(RESUME)


if __name__ == "__main__":
    main()
