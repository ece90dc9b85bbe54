"""Two workers beside one and beside none, in turns in one run: the oracle, cells of the experiment, and signals.

`python -m benchmarks.workers`, four minutes on two quiet cores. Every process computes on one thread. Workers have
imported the code and seen a first call before the clock starts. Seconds by the clock are what counts on a machine that
has nothing else to do. Where others compute too, it is what the cores spent: the seconds of the worker that worked
longest, or of this process if those are more. `overhead` is what all processes spent beside what one does without
workers, `longest_share` how much of it the busiest did: their product is what a core still has to do. What is computed
must be the same bytes each time.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import asked
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.workers import Map, in_turn
from pruning.data.windows import Windows
from pruning.experiment.measured import Calibration
from pruning.experiment.measuring import USUAL, calibrate, measure
from pruning.experiment.trials import Selection, Texts, Treatment, prune_and_train
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation
from pruning.training.recipes import Recipe
from tasks.common.devices import compute_on
from tasks.common.workers import Pool

TYPES, WIDTHS, COLUMNS = 6000, (256, 256), 10
ABLATION = Ablation(neurons="all", tokens=4000, words=64, seed=1)
CHOICES = ("random", "weights", "simple", "adaptive")
KEEP = (0.8, 0.7, 0.6, 0.5)
SIGNALS = ("weights", "hessian", "activations", "gradients", "cooperative")
EFFORT: dict[str, Any] = {
    **USUAL,
    "hessian": {"probes": 2, "stability": 0.0},
    "activations": {"activation_samples": 4, "bins": 8},
    "gradients": {"batches": 4},
}
READ: dict[str, dict[str, Any]] = {
    "activations": {"activation_samples": 32, "bins": 32},
    "gradients": {"batches": 32},
    "hessian": {"probes": 16, "stability": 1.0},
    "criteria": {"batches": 16, "bins": 8, "classes": 8, "ridge": 1e-4},
}
"""What of the signals is measured by itself; of a text of as many windows."""
RECIPE = Recipe(epochs=1, portion=1.0, learning_rate=1e-3, warmup=0.1, weight_decay=0.01, clip=0.5, patience=1)
TREATMENT = Treatment(
    scope="layer",
    floor=8,
    repair="ridge",
    imitation=Imitation(tokens=1000, learning_rate=1e-3, warmup=0.1, clip=1.0),
    recipe=RECIPE,
    distillation=0.5,
)


def text(tokens: int, *, batch: int, bptt: int, seed: int) -> Windows:
    """Return text in which nothing follows from anything: what it takes to read it is the same."""
    numbers = torch.randint(TYPES, (tokens,), generator=torch.Generator().manual_seed(seed))
    return Windows(numbers, first=0, batch=batch, bptt=bptt)


def cell(
    model: LanguageModel, texts: Texts, calibration: Calibration, chosen: tuple[str, float]
) -> dict[str, dict[str, list[float]]]:
    """Return the losses of one choice at one share, after each phase."""
    variant, retain = chosen
    done = prune_and_train(
        model, texts, calibration, Selection(variant=variant, retain=retain), treatment=TREATMENT, seed=1
    )
    return {phase: {"sums": losses.sums.tolist()} for phase, losses in done.losses.items()}


def jobs(steps: int, names: Sequence[str]) -> dict[str, Callable[[Map], Any]]:
    """Return what is measured: each takes a `map` and gives what must not depend on it.

    Args:
        steps: Training steps of a cell.
        names: Which of all.
    """
    torch.manual_seed(1)
    model = build(
        "lstm", vocabulary=TYPES, embedding=WIDTHS[-1], widths=list(WIDTHS), decoder="untied", dropout=0.1
    ).eval()
    removed = text(2 * ABLATION.tokens, batch=COLUMNS, bptt=50, seed=4)
    read = text(32 * 35 * 32, batch=32, bptt=35, seed=1)
    work: dict[str, Callable[[Map], Any]] = {
        "oracle": lambda map: oracle(model, removed, ABLATION, map=map),
        **{name: partial(_signal, name, model, read) for name in READ},
    }
    if "experiment" in names:
        short = text(32 * 35 * 4, batch=32, bptt=35, seed=1)
        calibration = calibrate(model, short, SIGNALS, effort=EFFORT, seed=1)
        training, judged = text(20 * 35 * steps, batch=20, bptt=35, seed=2), text(2000, batch=COLUMNS, bptt=100, seed=3)
        cells = partial(cell, model, Texts(calibration=short, training=training, judged=judged), calibration)
        chosen = [(variant, retain) for retain in KEEP for variant in CHOICES]
        work["experiment"] = lambda map: list(map(cells, chosen))
    return {name: work[name] for name in names}


def _signal(name: str, model: LanguageModel, read: Windows, map: Map) -> pd.DataFrame:
    return measure(name, model, read, {}, effort=READ, seed=1, map=map)[0]


def warmed(_: int) -> None:
    """Take an optimizer's first step, for which PyTorch imports its compiler."""
    weight = torch.nn.Parameter(torch.ones(1))
    weight.sum().backward()
    torch.optim.AdamW([weight], fused=True).step()
    time.sleep(1)  # so that each worker gets one


def spent(map: Map) -> list[float]:
    """Return the seconds that cores have spent on this process and on each worker."""
    there = map._client.run(time.process_time).values() if isinstance(map, Pool) else ()
    return [time.process_time(), *there]


def timed(job: Callable[[Map], Any], map: Map) -> tuple[Any, tuple[float, float, float]]:
    """Return what a job gives, and its seconds: by the clock, of cores on the busiest process, and on all."""
    before, start = spent(map), time.perf_counter()
    result = job(map)
    seconds, after = time.perf_counter() - start, spent(map)
    cores = [late - early for early, late in zip(before, after, strict=True)]
    return result, (seconds, max(cores), sum(cores))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each job and number of workers."""
    names = ("oracle", "experiment", *READ)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--jobs", nargs="+", default=names, choices=names, metavar="JOB", help=", ".join(names))
    parser.add_argument("--workers", nargs="+", default=["1", "2"], metavar="N", help="numbers of workers")
    parser.add_argument("--rounds", type=asked.count, default=1, help="turns of which the fastest is taken")
    parser.add_argument("--steps", type=asked.count, default=12, help="training steps of a cell")
    parser.add_argument("--into", type=asked.file, help="a file that the table is also written into")
    given = parser.parse_args(arguments)
    compute_on("cpu", float32="highest")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    begin = time.perf_counter()
    pools: dict[str, Map] = {"none": in_turn, **{asked: Pool(asked) for asked in given.workers}}
    try:
        for pool in pools.values():
            list(pool(warmed, range(2 * pool.workers)))
        work, rows = jobs(given.steps, given.jobs), []
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        for name, job in work.items():
            times: dict[str, list[tuple[float, float, float]]] = {each: [] for each in pools}
            results = []
            for _ in range(given.rounds):
                for each, pool in pools.items():
                    result, seconds = timed(job, pool)
                    times[each].append(seconds)
                    results.append(result)
            assert all(_same(results[0], other) for other in results[1:]), f"{name} depends on who computes"
            best = {each: [min(column) for column in zip(*seen, strict=True)] for each, seen in times.items()}
            rows += [
                {
                    "job": name, "workers": each, "seconds": clock, "ratio_to_none": best["none"][0] / clock,
                    "core_seconds": core, "core_ratio_to_none": best["none"][1] / core,
                    "overhead": every / best["none"][2], "longest_share": core / every,
                    **{f"ratio_to_{one}": best[one][0] / clock for one in best if one == "1"},
                }
                for each, (clock, core, every) in best.items()
            ]  # fmt: skip
            print(pd.DataFrame(rows[-len(best) :]).round(2).to_string(index=False), flush=True)
    finally:
        for pool in pools.values():
            if isinstance(pool, Pool):
                pool.close()
    print(f"load after: {os.getloadavg()[0]:.1f}; {time.perf_counter() - begin:.0f} s in all")
    if given.into:
        Path(given.into).write_text(pd.DataFrame(rows).round(2).to_csv(index=False), encoding="utf-8")


def _same(one: Any, other: Any) -> bool:
    return bool(one.equals(other) if isinstance(one, pd.DataFrame) else one == other)


if __name__ == "__main__":
    main()
