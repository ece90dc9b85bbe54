"""What each method of the Hessian signal costs, how far it is from the exact traces, and how soon its ranking holds.

`python -m benchmarks.curvature`, after `dvc repro prepare train`: on the dense model and the calibration text of the
default run, in processor seconds. Ranks are compared with those of `--reference` probes by differences of gradients,
whose own reliability is told and taken out of the correlation by its square root (Spearman 1904): "as the Hessian" is
how alike the method's ranking, as it is, and a reference without noise are.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import asked
from pruning.core.modes import carried
from pruning.core.statistics import Moments
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.models.base import Measurable
from pruning.signals.curvature import Curvature
from pruning.signals.hessian import FEWEST_PROBES, GROUPS, mean_squares, rank_reliability
from tasks.common.models import read_model
from tasks.common.tables import read_table
from tasks.common.tokens import read_tokens

METHODS: tuple[Any, ...] = ("exact", "differences", "gauss_newton")


def read(data: Path, columns: int, bptt: int) -> tuple[Measurable, Windows]:
    """Return the dense model of a finished run and its calibration text."""
    words = read_table(data / "prepare/vocabulary.parquet").set_index("text")["token"]
    tokens = read_tokens(data / "prepare/corpus.parquet", "train")
    windows = Windows(tokens, first=int(words[END_OF_LINE]), batch=columns, bptt=bptt)
    return read_model(data / "train/model").cpu().decoupled(), windows


def estimates(model: Measurable, windows: Windows, method: Any, probes: int, seed: int) -> dict[str, Tensor]:
    """Return each layer's traces, (probes, width)."""
    curvature = Curvature(model, model.layers(), method=method, generator=torch.Generator().manual_seed(seed))
    rows: dict[str, list[Tensor]] = {layer.name: [] for layer in model.layers()}
    state = None
    with curvature.running():
        for index in range(probes):
            traces, state = curvature.estimate(*windows[index % len(windows)], carried(state))
            for name, trace in traces.items():
                rows[name].append(trace.double())
    return {name: torch.stack(values) for name, values in rows.items()}


def costs(model: Measurable, windows: Windows, rounds: int) -> dict[str, float]:
    """Return the median processor seconds of a training step by AdamW, and of a probe by each method, in turns."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)

    def step(window: Any) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(*window)[0])
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()

    does: dict[str, Callable[[Any], object]] = {"step": step}
    for method in METHODS:
        generator = torch.Generator().manual_seed(1)
        curvature = Curvature(model, model.layers(), method=method, generator=generator)
        curvature.estimate(*windows[0], None)  # the guarding one
        does[method] = lambda window, curvature=curvature: curvature.estimate(*window, None)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in does}
    for index in range(rounds):
        for name, do in does.items():
            start = time.process_time()
            do(windows[index])
            seconds[name].append(time.process_time() - start)
    optimizer.zero_grad()
    return {name: median(values) for name, values in seconds.items()}


def reliability(traces: Tensor, scale: Tensor) -> float:
    """Return what `hessian` says of the ranking by these probes, (probes, width)."""
    groups = [Moments.empty(len(scale)) for _ in range(GROUPS)]
    for index, trace in enumerate(traces):
        groups[index % GROUPS].update(trace[None])
    return rank_reliability(groups, scale)


def halves(traces: Tensor, scale: Tensor) -> float:
    """Return how alike two runs of as many probes rank, from every other probe (Spearman–Brown)."""
    r = spearmanr(traces[::2].mean(0) * scale, traces[1::2].mean(0) * scale).statistic
    return float(2 * r / (1 + r))


def probes_to(stability: float, traces: Tensor, scale: Tensor) -> str:
    """Return after how many probes the ranking is as stable as that, of those that there are."""
    counts = range(FEWEST_PROBES, len(traces) + 1, GROUPS)
    enough: Callable[[int], bool] = lambda count: reliability(traces[:count], scale) >= stability  # noqa: E731
    return str(next(filter(enough, counts), f"over {len(traces)}"))


def main() -> None:
    """Print a row for each method and layer."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curvature", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=asked.results, default="data", help="what a finished run left")
    parser.add_argument("--columns", type=asked.count, default=32, help="columns of a window")
    parser.add_argument("--bptt", type=asked.count, default=35, help="steps of a window")
    parser.add_argument("--reference", type=asked.count, default=600, help="probes that ranks are compared with")
    parser.add_argument("--rounds", type=asked.count, default=15, help="turns in which costs are measured")
    parser.add_argument("--probes", type=asked.count, default=60, help="probes of each method")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    model, windows = read(given.data, given.columns, given.bptt)
    scales, seconds = mean_squares(model), costs(model, windows, given.rounds)
    reference = estimates(model, windows, "differences", given.reference, seed=2)
    print(f"A training step takes {seconds['step']:.3f} processor seconds. Stable to 0.9, by the reference's probes:")
    for name, scale in scales.items():
        alike = halves(reference[name], scale)
        print(f"- {name}: after {probes_to(0.9, reference[name], scale)}; two runs of all agree to {alike:.3f}")
    exact: dict[str, Tensor] = {}
    print("\n| method | training steps a probe | layer | from exact | stable to | 0.9 after | as the Hessian |")
    print("|---|---:|---|---:|---:|---:|---:|", flush=True)
    for method in METHODS:
        traces = estimates(model, windows, method, given.probes, seed=1)
        exact = exact or traces
        for name, scale in scales.items():
            apart = (traces[name][1:] - exact[name][1:]).norm() / exact[name][1:].norm()
            known = reference[name].mean(0) * scale
            alike = spearmanr(traces[name].mean(0) * scale, known).statistic / halves(reference[name], scale) ** 0.5
            print(
                f"| {method} | {seconds[method] / seconds['step']:.2f} | {name} | {apart:.1e} "
                f"| {reliability(traces[name], scale):.2f} | {probes_to(0.9, traces[name], scale)} | {alike:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
