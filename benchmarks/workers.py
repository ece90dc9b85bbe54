"""Two workers beside one and beside none, in turns in one run: the oracle, and cells of the experiment.

`python -m benchmarks.workers`. Every process computes on one thread. Workers have imported the code and seen a first
call before the clock starts. Seconds by the clock are what counts on a machine that has nothing else to do. Where
others compute too, it is what the cores spent: the seconds of the worker that worked longest, and for none those of
this process. What is computed must be the same bytes each time.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from pruning.ablation.oracle import Ablation, oracle
from pruning.core.workers import Map, in_turn
from pruning.data.windows import Windows
from pruning.experiment.measured import Calibration
from pruning.experiment.measuring import USUAL, calibrate
from pruning.experiment.trials import Selection, Texts, Treatment, prune_and_train
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation
from pruning.training.loop import Recipe
from tasks.common.workers import Pool

TYPES, WIDTHS, COLUMNS = 6000, (256, 256), 10
ABLATION = Ablation(neurons="all", tokens=1000, words=64, seed=1)
CHOICES = ("random", "weights", "simple", "adaptive")
KEEP = (0.75, 0.5)
SIGNALS = ("weights", "hessian", "activations", "gradients", "cooperative")
EFFORT: dict[str, dict[str, Any]] = {
    **USUAL,
    "hessian": {"probes": 2, "stability": 0.0},
    "activations": {"activation_samples": 4, "bins": 8},
    "gradients": {"batches": 4},
}
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


def jobs(windows: int) -> dict[str, Callable[[Map], Any]]:
    """Return what is measured: each takes a `map` and gives what must not depend on it."""
    torch.manual_seed(1)
    model = build(
        "lstm", vocabulary=TYPES, embedding=WIDTHS[-1], widths=list(WIDTHS), decoder="untied", dropout=0.1
    ).eval()
    read = text(32 * 35 * 4, batch=32, bptt=35, seed=1)
    calibration = calibrate(model, read, SIGNALS, effort=EFFORT, seed=1)
    training, judged = text(20 * 35 * windows, batch=20, bptt=35, seed=2), text(2000, batch=COLUMNS, bptt=100, seed=3)
    cells = partial(cell, model, Texts(calibration=read, training=training, judged=judged), calibration)
    removed = text(2 * ABLATION.tokens, batch=COLUMNS, bptt=50, seed=4)
    chosen = [(variant, retain) for retain in KEEP for variant in CHOICES]

    def measured(map: Map) -> pd.DataFrame:
        return oracle(model, removed, ABLATION, map=map)

    return {"oracle": measured, "experiment": lambda map: list(map(cells, chosen))}


def warmed(_: int) -> None:
    """Take an optimizer's first step, for which PyTorch imports its compiler."""
    weight = torch.nn.Parameter(torch.ones(1))
    weight.sum().backward()
    torch.optim.AdamW([weight], fused=True).step()
    time.sleep(1)  # so that each worker gets one


def spent(map: Map) -> list[float]:
    """Return the seconds that cores have spent on each worker, or on this process if there is none."""
    return [*map._client.run(time.process_time).values()] if isinstance(map, Pool) else [time.process_time()]


def timed(job: Callable[[Map], Any], map: Map) -> tuple[Any, float, float]:
    """Return what a job gives, its seconds by the clock, and those that the cores spent on the busiest worker."""
    before, start = spent(map), time.perf_counter()
    result = job(map)
    seconds, after = time.perf_counter() - start, spent(map)
    return result, seconds, max(late - early for early, late in zip(before, after, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each job and number of workers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers")
    parser.add_argument("--rounds", type=int, default=2, help="turns of which the fastest is taken")
    parser.add_argument("--windows", type=int, default=12, help="training steps of a cell")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pools = {"none": in_turn, "1": Pool("1"), "2": Pool("2")}
    work, rows = jobs(given.windows), []
    try:
        for pool in pools.values():
            list(pool(warmed, range(2 * pool.workers)))
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for name, job in work.items():
            times: dict[str, list[tuple[float, float]]] = {each: [] for each in pools}
            results = []
            for _ in range(given.rounds):
                for each, pool in pools.items():
                    result, seconds, busiest = timed(job, pool)
                    times[each].append((seconds, busiest))
                    results.append(result)
            assert all(_same(results[0], other) for other in results[1:]), f"{name} depends on who computes"
            best = {each: [min(column) for column in zip(*seen, strict=True)] for each, seen in times.items()}
            rows += [
                {
                    "job": name, "workers": each, "seconds": clock, "core_seconds": core,
                    "ratio": best["1"][0] / clock, "core_ratio": best["1"][1] / core,
                    "ratio_to_none": best["none"][0] / clock, "core_ratio_to_none": best["none"][1] / core,
                }
                for each, (clock, core) in best.items()
            ]  # fmt: skip
    finally:
        for pool in pools.values():
            if isinstance(pool, Pool):
                pool.close()
    print(f"load after: {os.getloadavg()[0]:.1f}")
    print(pd.DataFrame(rows).round(2).to_string(index=False))


def _same(one: Any, other: Any) -> bool:
    return bool(one.equals(other) if isinstance(one, pd.DataFrame) else one == other)


if __name__ == "__main__":
    main()
