"""What a Transformer of half a billion parameters takes: found by `discover`, every signal, choice and repair.

`python -m benchmarks.large` builds 24 layers of 1,280 units, 20 heads and 5,120 units between (493 M parameters, 2 GB
in float32, untrained) with PyTorch's own modules, discovers it, and prints a row for each part: processor seconds and
what it held at most on top of the network, of which `discover` itself keeps a copy. Each part is a process of its own,
forked from one that holds the discovered network; states that it reads (covariances, of `--rank` directions) are made
there before. Signals read `--batches` batches of 2 × 128 tokens. `oracle` and `intervention`, which read the network
anew for each neuron, remove two of each layer, on the first 64 tokens of each batch.
"""

import argparse
import logging
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import asked
from benchmarks.growth import table_of
from benchmarks.scale import own_memory, watched
from pruning.ablation.intervention import Intervention, intervention
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import select
from pruning.discovery import Discovered, discover
from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import USUAL, measure
from pruning.fusion.fused import fusion
from pruning.fusion.fusing import Fusing
from pruning.models.adapted import Adapted
from pruning.models.adapting import adapt
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import budget_of
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances
from pruning.signals.schemas import SIGNALS

TYPES, STEPS, EXAMPLES = 8_000, 128, 2
EACH, FEW = 2, 64
"""Neurons of each layer that are removed, and tokens of each batch that this is measured on."""
REMOVING = ("oracle", "intervention")
SIGNALS_OF_IT = tuple(name for name in MEASURED if name not in REMOVING)
PARTS = (
    "discover",
    *SIGNALS_OF_IT,
    "fusion",
    "retention",
    "parameters",
    "select",
    "ridge",
    "ridge, a layer",
    "imitate",
    *REMOVING,
)


class Transformer(nn.Module):
    """A language model of PyTorch's own Transformer layers."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TYPES, width)
        self.places = nn.Parameter(torch.randn(STEPS, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, TYPES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next word, (examples, types, steps)."""
        steps = tokens.shape[1]
        earlier = nn.Transformer.generate_square_subsequent_mask(steps)
        hidden: Tensor = self.layers(self.embedding(tokens) + self.places[:steps], mask=earlier)
        logits: Tensor = self.head(hidden)
        return logits.transpose(1, 2)


def work_of(part: str, model: Adapted, data: list[tuple[Tensor, Tensor]], rank: int) -> Callable[[], object]:
    """Return what is to be measured of a part, all that it reads being made."""
    effort: dict[str, dict[str, Any]] = {name: dict(settings) for name, settings in USUAL.items()}
    effort["activations"]["rank"] = effort["criteria"]["rank"] = rank
    effort["hessian"] = {"probes": 2, "stability": 0.0}
    frame = table_of(model)
    allocation = Allocation(retain=0.5, floor=1, scope="global")
    if part == "fusion":
        return lambda: fusion(dict.fromkeys(SIGNALS, frame), Fusing(strategy="simple", seed=1))
    if part == "retention":
        return lambda: retention(frame, allocation, variant="half", by="importance")
    if part == "parameters":
        half = sum(parameter.numel() for parameter in model.parameters()) / 2

        def chosen() -> object:
            budget = budget_of(model, kind="parameters", value=half)
            limited = Allocation(retain=0.5, floor=1, scope="global", budget=budget)
            return retention(frame, limited, variant="half", by="importance")

        return chosen
    keep = keep_of(retention(frame, allocation, variant="half", by="importance"))
    if part == "select":
        return lambda: select(model, keep)
    if part == "ridge, a layer":
        middle = model.layers()[len(model.layers()) // 2]
        whole = {layer.name: torch.arange(layer.width) for layer in model.layers()}
        one = {**whole, middle.name: keep[middle.name]}
        return lambda: reconstruct(model, one, data=data, repair="ridge", rank=rank)
    if part == "imitate":
        how = Imitation(tokens=len(data) * EXAMPLES * STEPS, learning_rate=1e-4, warmup=0.1, clip=1.0)
        student = select(model, keep)
        return lambda: imitate(student, model, data, imitation=how)
    covariances: Covariances = {}
    if part in ("cooperative", "surgeon", "ridge"):
        _, covariances = measure("activations", model, data, {}, effort=effort, seed=1)
    if part == "ridge":
        return lambda: reconstruct(model, keep, covariances, repair="ridge")
    return lambda: measure(part, model, data, covariances, effort=effort, seed=1)


def removing(part: str, model: Adapted, data: list[tuple[Tensor, Tensor]]) -> Callable[[], object]:
    """Return the same of what removes some neurons, each alone."""
    few = [(inputs[:1, :FEW], targets[:1, :FEW]) for inputs, targets in data]
    neurons, tokens = EACH * len(model.layers()), len(few) * FEW
    if part == "oracle":
        return lambda: oracle(model, few, Ablation(neurons=neurons, tokens=tokens, seed=1))
    return lambda: intervention(model, few, few, Intervention(neurons=neurons, tokens=tokens, seed=1))


def on_top(work: Callable[[], object]) -> tuple[float, float, object]:
    """Return the processor seconds of some work, the MB that the process held at most on top, and what it gave."""
    before = own_memory()
    seconds, most, given = watched(work)
    return seconds, most - before, given


def _measured(
    part: str, found: Discovered, data: list[tuple[Tensor, Tensor]], given: argparse.Namespace, line: Connection
) -> None:
    torch.set_num_threads(given.threads)
    try:
        model = adapt(found, data[0][0], loss=nn.CrossEntropyLoss())
        start = time.perf_counter()
        work = removing(part, model, data) if part in REMOVING else work_of(part, model, data, given.rank)
        seconds, memory, _ = on_top(work)
        line.send((seconds, memory, time.perf_counter() - start, ""))
    except Exception as error:  # one part that fails leaves the others their rows
        line.send((0.0, 0.0, 0.0, f"{type(error).__name__}: {error}"))


def main() -> None:
    """Print a row for each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--layers", type=asked.count, default=24, help="layers of the Transformer")
    parser.add_argument("--width", type=asked.count, default=1280, help="units of a layer")
    parser.add_argument("--heads", type=asked.count, default=20, help="heads of each attention")
    parser.add_argument("--batches", type=asked.count, default=2, help="batches of 2 × 128 tokens that signals read")
    parser.add_argument("--rank", type=asked.count, default=32, help="directions of the covariances")
    parser.add_argument("--threads", type=asked.count, default=1, help="threads of PyTorch")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    given = parser.parse_args()
    logging.getLogger("pruning").addHandler(logging.NullHandler())
    torch.set_num_threads(1)  # no pool of threads before the forks
    torch.manual_seed(1)
    network = Transformer(given.layers, given.width, given.heads)
    weights = sum(parameter.numel() for parameter in network.parameters())
    tokens = torch.randint(TYPES, (given.batches, EXAMPLES, STEPS + 1))
    data = [(part[:, :-1], part[:, 1:]) for part in tokens]
    discover(Transformer(1, 16, 2), data[0][0][:, :8])  # what is imported and set up by the first call
    seconds, memory, found = on_top(partial(discover, network, data[0][0][:1, :16]))
    assert isinstance(found, Discovered)
    widths = sorted({(layer.kind, layer.width) for layer in found.layers()})
    print(f"{weights / 1e6:.0f} M parameters, {weights * 4 / 1e6:.0f} MB; {len(found.layers())} layers of {widths}\n")
    print("| part | processor s | MB on top | of the weights |\n|---|---:|---:|---:|")
    if "discover" in given.parts:
        print(f"| discover | {seconds:.1f} | {memory:.0f} | {memory * 1e6 / weights / 4:.2f} |", flush=True)
    del network
    context = multiprocessing.get_context("fork")
    for part in (part for part in given.parts if part != "discover"):
        near, far = context.Pipe()
        process = context.Process(target=_measured, args=(part, found, data, given, far))
        process.start()
        far.close()
        try:
            seconds, memory, _, failure = near.recv()
        except EOFError:
            failure = "the process ended, perhaps for want of memory"
        process.join()
        cells = failure or f"{seconds:.1f} | {memory:.0f} | {memory * 1e6 / weights / 4:.2f}"
        print(f"| {part} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
