"""Is a pruned model better than a small one that was trained for as long? On the Penn Treebank, from a strong LSTM.

`python -m benchmarks.budgets --corpus FOLDER --state FOLDER --to FILE`, from the repository's root; the corpus is the
Penn Treebank's published splits. `--quick` tries all of it at toy size on a CPU. Of packages it needs those of the
library alone. A dense 2 × 256 LSTM is trained to the end. Its pruned and repaired models, with E more epochs beside it,
stand beside

- the same widths from new weights, trained for the dense model's epochs and E together;
- as many units chosen at random, with the same repair and epochs;
- single weights set to zero by magnitude, with as many parameters left, and the same epochs;
- the same widths from new weights, with the dense model as a teacher, for the dense model's epochs and some more;
- the dense model with E more epochs.

Every model is a job of its own; `--workers` processes do them side by side, the more important first, one seed after
the other. After `--limit` seconds no epoch begins, what is unfinished is kept, the exit code is 75, and the same
command goes on from there. The table shows what is known, whenever it ends.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks import asked
from benchmarks.budgets.jobs import (
    CALIBRATION,
    TUNINGS,
    WAYS,
    WIDTHS,
    Job,
    Plan,
    Repair,
    Tuning,
    begin,
    done,
    jobs,
    work,
)
from benchmarks.budgets.table import written
from benchmarks.device.report import FAMILIES
from benchmarks.headline import RESUME, commit_of, machine, texts_of
from benchmarks.resumable import Sizes
from pruning.core.options import TrainingType

STRONG = Sizes(width=256, multiple=8, floor=8, batch=32, calibration=CALIBRATION)
QUICK = Sizes(width=24, multiple=4, floor=4, vocabulary=200, batch=8, bptt=10, calibration=4, tokens=3000)


@contextmanager
def shared_gpu(folder: Path, *, wanted: bool) -> Iterator[bool]:
    """Let processes compute on one GPU at the same time, by NVIDIA's multi-process service, where it is there.

    Without it their kernels take turns. It runs for this block alone, as this user, and changes no setting of the GPU.
    """
    control = shutil.which("nvidia-cuda-mps-control")
    if not (wanted and control):
        yield False
        return
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        os.environ[name] = str(folder / name.lower())
        Path(os.environ[name]).mkdir(parents=True, exist_ok=True)
    subprocess.run([control, "-d"], check=True)
    try:
        yield True
    finally:
        subprocess.run([control], input="quit\n", text=True, check=False)


def all_done(listed: Sequence[tuple[Plan, Job]], workers: int, until: float) -> bool:
    """Do what is left to do of the jobs, as far as the time reaches; return whether all is done.

    They are begun in their order, each once the jobs of its plan that it starts from are done; all plans are for one
    device.
    """
    left = [(plan, job) for plan, job in listed if done(plan.state, job) is None]
    finished = {(plan.state, job) for plan, job in listed} - {(plan.state, job) for plan, job in left}
    context = multiprocessing.get_context("spawn")
    running: dict[Future[dict[str, object] | None], tuple[Plan, Job]] = {}
    device = listed[0][0].device if listed else "cpu"
    with ProcessPoolExecutor(workers, mp_context=context, initializer=begin, initargs=(device,)) as pool:
        while left or running:
            in_time = time.time() < until
            ready = [n for n, (plan, job) in enumerate(left)
                     if in_time and finished.issuperset((plan.state, needed) for needed in job.needs)]  # fmt: skip
            for n in reversed(ready[: workers - len(running)]):
                plan, job = left.pop(n)
                running[pool.submit(work, job, plan, until)] = plan, job
            if not running:
                return False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                (plan, job), facts = running.pop(future), future.result()
                name = f"{plan.state.name}/{job.name}"
                if facts is None:
                    left.insert(0, (plan, job))
                    print(f"{name}: kept, to go on", flush=True)
                else:
                    finished.add((plan.state, job))
                    row = list(facts["rows"].values())[-1]  # type: ignore[attr-defined]
                    print(
                        f"{name}: valid {row['valid']:.2f}, test {row['test']:.2f}, {facts['spent']:.0f} s",
                        flush=True,
                    )
    return True


def chosen(listed: Sequence[Job], ways: Sequence[str]) -> list[Job]:
    """Return the jobs of some ways, and those that they start from, in the order of all."""
    wanted = {job for job in listed if job.way in ways}
    while more := {needed for job in wanted for needed in job.needs} - wanted:
        wanted |= more
    return [job for job in listed if job in wanted]


def tuning_of(name: str) -> tuple[dict[int, Tuning], Repair]:
    """Return how to fine-tune and how to repair: by a name, or from a file of `benchmarks.budgets.search`."""
    if name in TUNINGS:
        return TUNINGS[name], Repair()
    known = json.loads(Path(name).read_text(encoding="utf-8"))
    tuning = {int(epochs): Tuning(**settings) for epochs, settings in known["tuning"].items()}
    return TUNINGS["high"] | tuning, Repair(**known["repair"])


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budgets", description=__doc__.split("\n", maxsplit=1)[0]
    )
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument("--corpus", type=asked.splits, required=True, help="folder of published splits")
    parser.add_argument("--state", type=asked.folder, required=True, help="folder of what is known so far")
    parser.add_argument(
        "--to", type=asked.file, required=True, help="Markdown file of the tables; a CSV file beside it"
    )
    parser.add_argument("--epochs", type=asked.count, default=30, help="of the dense model")
    parser.add_argument(
        "--tuned", type=asked.count, nargs="+", default=[1, 3, 10], choices=[1, 3, 10], help="epochs after the repair"
    )
    parser.add_argument(
        "--keep",
        type=asked.share,
        nargs="+",
        default=[0.75, 0.5, 0.35, 0.25],
        choices=[*WIDTHS],
        metavar="SHARE",
        help=f"of units that stay, of {', '.join(map(str, WIDTHS))}",
    )
    parser.add_argument("--seeds", type=asked.count, default=3, help="how many seeds, from 1")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[*WAYS],
        choices=[*WAYS],
        metavar="WAY",
        help=f"what is made, with what it needs, of {', '.join(WAYS)}",
    )
    parser.add_argument("--family", choices=FAMILIES, default="lstm", help="of all models")
    parser.add_argument("--dropout", type=asked.part, default=0.45, help="of the dense model")
    parser.add_argument(
        "--imitation", type=asked.count, default=Repair().tokens, help="tokens that the repair reads, of training text"
    )
    parser.add_argument("--batch", type=asked.count, help="columns of the training text")
    parser.add_argument(
        "--streams", type=asked.count, default=1, help="columns of the text that models are judged by; 1 as published"
    )
    parser.add_argument(
        "--rate", type=asked.amount, default=4e-3, help="highest learning rate of what is trained from new weights"
    )
    parser.add_argument(
        "--tuning",
        default="high",
        help=f"how to fine-tune: {', '.join(TUNINGS)}, or a file of benchmarks.budgets.search",
    )
    parser.add_argument(
        "--type", choices=get_args(TrainingType), default="float32", help="of products in learning from the dense one"
    )
    parser.add_argument(
        "--softmax", choices=["full", "chunked"], default="full", help="there; chunked is faster on processors"
    )
    parser.add_argument(
        "--limit", type=asked.amount, default=math.inf, help="seconds of this process after which it stops"
    )
    parser.add_argument("--workers", type=asked.count, default=1, help="processes side by side")
    parser.add_argument("--alone", action="store_true", help="on a GPU: without NVIDIA's multi-process service")
    parser.add_argument("--quick", action="store_true", help="toy size, to try the script")
    parser.add_argument("--device", type=asked.device, default=str(there or "cpu"), help="where models are trained")
    parser.add_argument("--commit", default=None, help="of this code; by default git's")
    return parser.parse_args(arguments)


def planned(given: argparse.Namespace) -> tuple[Plan, list[Job]]:
    """Return what all jobs of a command line share, and the jobs."""
    sizes = replace(QUICK if given.quick else STRONG, streams=given.streams)
    sizes = replace(sizes, batch=given.batch) if given.batch else sizes
    texts, end_of_line, types = texts_of(given.corpus, sizes)
    tuning, repair = tuning_of(given.tuning)
    plan = Plan(
        sizes, texts, end_of_line, types, given.device, given.state, given.epochs, given.rate,
        repair._replace(tokens=given.imitation), tuning, given.family, given.dropout, given.type, given.softmax,
    )  # fmt: skip
    return plan, chosen(jobs(given.seeds, given.keep, sorted(given.tuned), given.epochs), given.ways)


def run(asked_for: Sequence[tuple[argparse.Namespace, str]], workers: int, until: float, commit: str | None) -> None:
    """Do what is left to do of some command lines for one device, write their tables, and exit with 75 if any is left.

    Args:
        asked_for: What each says, and itself; what one has in common with an earlier one of the same state is done
            once, and what goes to one file stands in one table.
        workers: Processes side by side.
        until: The time (of `time.time`) after which no epoch begins.
        commit: Of this code; None asks git.
    """
    listed: dict[tuple[Path, Job], Plan] = {}
    tables: dict[Path, tuple[list[Job], Plan, list[str]]] = {}
    for given, command in asked_for:
        plan, own = planned(given)
        given.state.mkdir(parents=True, exist_ok=True)
        for job in own:
            listed.setdefault((given.state, job), plan)
        shown, _, commands = tables.setdefault(given.to, ([], plan, []))
        shown += [job for job in own if job not in shown]
        commands.append(f"`python -m benchmarks.budgets {command}`")
    first = asked_for[0][0]
    with shared_gpu(first.state, wanted=first.device.startswith("cuda") and not first.alone) as shared:
        print(f"{len(listed)} jobs, {workers} workers, shared: {shared}", flush=True)
        try:
            whole = all_done([(plan, job) for (_, job), plan in listed.items()], workers, until)
        finally:
            where = f"commit `{commit or commit_of()}`, on {machine(torch.device(first.device))}."
            for to, (shown, plan, commands) in tables.items():
                written(shown, plan, to, f"{'; '.join(commands)}, {where}")
                print(to.read_text(encoding="utf-8"), flush=True)
    if not whole:
        print("out of time; run the same command again")
        sys.exit(RESUME)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is left to do, and exit with 75 if that was not all."""
    start = time.time()
    given = options(arguments)
    run([(given, " ".join(arguments or sys.argv[1:]))], given.workers, start + given.limit, given.commit)


if __name__ == "__main__":
    main()
