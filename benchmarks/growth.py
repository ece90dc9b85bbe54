"""How processor time and memory of every signal, choice and repair grow with width and depth, beside the mathematics.

`python -m benchmarks.growth` prints a table: the exponent of each part between models of some widths and between models
of some depths, from the two largest of each, and what the largest took. Each measurement is a process of its own,
forked, on one thread: processor seconds, and the memory that it took beyond what was there. A model is `--depth` or
more layers of tanh neurons and 64 word types; the text is 8 windows of 256 tokens. An exponent near the mathematics' or
below is what small sizes give, where calls weigh more than numbers; above it something grows that need not.
`oracle` removes 64 of the neurons, and `intervention` all of them on 64 tokens. Rows come as they are measured: to have
the parts in processes side by side, ask for some of them in each by `--parts`.
"""

import argparse
import logging
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks import asked
from pruning.ablation.intervention import Intervention, intervention
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import select
from pruning.data.windows import Windows
from pruning.discovery import discover
from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import USUAL, measure
from pruning.fusion.fused import fusion
from pruning.fusion.fusing import Fusing
from pruning.models import build
from pruning.models.base import LanguageModel, Measurable
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import budget_of
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances
from pruning.signals.schemas import SIGNALS

TYPES, TOKENS = 64, 2048
KIND = {"nonlinearity": "tanh", "dropout": 0.0}
EFFORT = {**USUAL, "hessian": {"probes": 16, "stability": 0.0}, "criteria": {**USUAL["criteria"], "batches": 4}}
ABLATED = Ablation(neurons=64, tokens=TOKENS, words="all", seed=1)
IMITATION = Imitation(tokens=TOKENS, learning_rate=1e-3, warmup=0.1, clip=1.0)
CHOICES = ("retention", "parameters", "multiply_adds", "memory")
PROMISED: dict[str, tuple[str, str]] = {
    "activations": ("w² a token, its covariances", "l"),
    "weights": ("w², a number for each weight", "l"),
    "hessian": ("w² a token and probe", "l"),
    "gradients": ("w² a token", "l"),
    "cooperative": ("w³, paths of two edges and one inverse", "l"),
    "surgeon": ("w³, one inverse updated w times", "l"),
    "criteria": ("w² a token, w³ one inverse", "l"),
    "intervention": ("w³ a token, each neuron removed", "l², each neuron through the layers after it"),
    "oracle": ("w² a token and neuron", "l a neuron, the layers after it"),
    "fusion": ("w", "l"),
    "retention": ("w log w", "l"),
    "parameters": ("w² at most: steps, and the widths compared in each", "l² steps and layers compared"),
    "multiply_adds": ("w²", "l²"),
    "memory": ("w²", "l² and l log l to count"),
    "select": ("w²", "l"),
    "ridge": ("w³, one Cholesky for each penalty", "l"),
    "imitate": ("w² a token", "l"),
    "discover": ("w², proved on the weights", "l², each layer proved on the whole network"),
}
"""Part → what it takes by its formula, in the width w and the number of layers l."""


def text(tokens: int = TOKENS, batch: int = 8, bptt: int = 32) -> Windows:
    """Return the same windows for every model."""
    numbers = torch.randint(TYPES, (tokens,), generator=torch.Generator().manual_seed(1))
    return Windows(numbers, first=0, batch=batch, bptt=bptt)


def table_of(model: Measurable) -> pd.DataFrame:
    """Return the columns that fusion and choices read of a signal's table."""
    rows = [(layer.name, neuron) for layer in model.layers() for neuron in range(layer.width)]
    frame = pd.DataFrame(rows, columns=["layer", "neuron"])
    random = np.random.default_rng(1).random(len(frame))
    return frame.assign(importance=random, standard_error=0.1, samples=9)


def work_of(part: str, width: int, depth: int, rank: int | None = None) -> Callable[[], object]:
    """Return what is to be measured of a part, all that it reads being made, covariances exact or of some rank."""
    effort = {**EFFORT, "activations": {**EFFORT["activations"], "rank": rank}}
    if part == "discover":
        layers: list[torch.nn.Module] = []
        for _ in range(depth + 1):
            layers += [torch.nn.Linear(width, width), torch.nn.ReLU()]
        network = torch.nn.Sequential(*layers)
        return lambda: discover(network, torch.ones(2, width))
    model = build("rnn", vocabulary=TYPES, embedding=64, widths=(width,) * depth, decoder="untied", **KIND)
    windows, frame = text(), table_of(model)
    covariances: Covariances = {}
    if part in ("cooperative", "surgeon", "ridge"):
        _, covariances = measure("activations", model, windows, {}, effort=effort, seed=1)
    if part == "oracle":
        return lambda: oracle(model, windows, ABLATED)
    if part == "intervention":
        few = text(64, 2, 8)
        return lambda: intervention(model, few, few, Intervention(tokens=64, words="all", seed=1))
    if part in MEASURED:
        return lambda: measure(part, model, windows, covariances, effort=effort, seed=1)
    return chosen(part, model, windows, covariances, frame)


def chosen(
    part: str, model: LanguageModel, windows: Windows, covariances: Covariances, frame: pd.DataFrame
) -> Callable[[], object]:
    """Return the same of what follows the signals."""
    if part == "fusion":
        return lambda: fusion(dict.fromkeys(SIGNALS, frame), Fusing(strategy="simple", seed=1))
    allocation: dict[str, Any] = {"retain": 0.5, "floor": 1, "scope": "global"}
    if part in CHOICES[1:]:
        whole = budget_of(model, kind=part, value=1.0)
        most = float(whole.costs(np.array([model.widths()]))[0])
        return lambda: retention(
            frame,
            Allocation(**allocation, budget=budget_of(model, kind=part, value=most / 2)),
            variant="half",
            by="importance",
        )
    if part == "retention":
        return lambda: retention(frame, Allocation(**allocation), variant="half", by="importance")
    keep = keep_of(retention(frame, Allocation(**allocation), variant="half", by="importance"))
    if part == "select":
        return lambda: select(model, keep)
    if part == "imitate":
        student = select(model, keep)
        return lambda: imitate(student, model, windows, imitation=IMITATION)
    return lambda: reconstruct(model, keep, covariances, repair="ridge")


def _measured(part: str, width: int, depth: int, rank: int | None, line: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    work_of(part, 64, 2)()  # what is imported and set up by the first call
    do = work_of(part, width, depth, rank)
    before, start = _peak(), time.process_time()
    do()
    line.send((time.process_time() - start, _peak() - before))


def _peak() -> float:
    """Return the most memory that the process held so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measured(part: str, width: int, depth: int, rank: int | None = None) -> tuple[float, float]:
    """Return a part's processor seconds and the MB by which it raised the process's peak."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    process = context.Process(target=_measured, args=(part, width, depth, rank, far))
    process.start()
    far.close()
    try:
        seconds, memory = near.recv()
    finally:
        process.join()
    return float(seconds), float(memory)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the power of its size by which a value grew from the last but one to the last.

    >>> exponent([2, 4, 8], [1.0, 2.0, 16.0])
    3.0
    """
    return math.log(max(values[-1], 1e-3) / max(values[-2], 1e-3)) / math.log(sizes[-1] / sizes[-2])


def main() -> None:
    """Print a row for each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--widths",
        type=asked.count,
        nargs="+",
        default=[512, 1024, 2048],
        help="units of a layer, of models of --depth layers",
    )
    parser.add_argument("--depth", type=asked.count, default=2, help="layers of the models of different widths")
    parser.add_argument(
        "--depths", type=asked.count, nargs="+", default=[12, 24], help="layers, of models of --width units"
    )
    parser.add_argument("--width", type=asked.count, default=256, help="units of the models of different depths")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=list(PROMISED),
        default=list(PROMISED),
        metavar="PART",
        help=f"of {', '.join(PROMISED)}",
    )
    given = parser.parse_args()
    logging.getLogger("pruning").addHandler(logging.NullHandler())  # that rankings are not stable is known
    wide, deep = f"{given.depth} × {given.widths[-1]}", f"{given.depths[-1]} × {given.width}"
    print(f"| part | by width | measured | {wide}, s | MB | by depth | measured | {deep}, s | MB |")
    print("|---|---|---:|---:|---:|---|---:|---:|---:|", flush=True)
    for part in given.parts:
        cells = [part]
        sizes = [(given.widths, [(width, given.depth) for width in given.widths[-2:]])]
        sizes += [(given.depths, [(given.width, depth) for depth in given.depths[-2:]])]
        for (axis, pairs), what in zip(sizes, PROMISED[part], strict=True):
            seconds, memory = zip(*(measured(part, *pair) for pair in pairs), strict=True)
            cells += [what, f"{exponent(axis[-2:], seconds):.1f}", f"{seconds[-1]:.2f}", f"{memory[-1]:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
