"""What second derivatives cost beside PyTorch's own: an exact probe of the Hessian, and a window of the criteria.

`python -m benchmarks.second` takes turns in one process on random tokens, in processor seconds: a step of training by
AdamW with clipped gradients, then a probe and a window of evidence, each with recurrent layers unrolled and losses
differentiated as `twice_differentiable` has them, and as PyTorch differentiates its own (oneDNN's LSTM, log-softmax).
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from statistics import median
from unittest.mock import patch

import torch

from benchmarks import asked
from pruning.data.windows import Windows
from pruning.models import build
from pruning.models.base import Measurable
from pruning.signals.curvature import Curvature
from pruning.signals.evidence import gather_evidence, partition

NETWORKS: dict[str, dict[str, int | str]] = {
    "LSTM, 2 × 128, 6,000 types": {"family": "lstm", "width": 128, "depth": 2, "types": 6000, "batch": 32, "bptt": 35},
    "GRU, 2 × 128, 6,000 types": {"family": "gru", "width": 128, "depth": 2, "types": 6000, "batch": 32, "bptt": 35},
    "Elman, 2 × 128, 6,000 types": {"family": "rnn", "width": 128, "depth": 2, "types": 6000, "batch": 32, "bptt": 35},
    "LSTM, 2 × 256, 10,000 types": {
        "family": "lstm",
        "width": 256,
        "depth": 2,
        "types": 10_000,
        "batch": 32,
        "bptt": 35,
    },
    "LSTM, 3 × 128, 1,000 types": {"family": "lstm", "width": 128, "depth": 3, "types": 1000, "batch": 16, "bptt": 160},
    "GRU, 3 × 128, 1,000 types": {"family": "gru", "width": 128, "depth": 3, "types": 1000, "batch": 16, "bptt": 160},
    "LSTM, 3 × 64, 100 types": {"family": "lstm", "width": 64, "depth": 3, "types": 100, "batch": 16, "bptt": 160},
}
"""Networks by name: the default run's size, a published checkpoint's, and long sequences with few types."""


@contextlib.contextmanager
def pytorchs_own() -> Iterator[None]:
    """Within the context, PyTorch differentiates its own recurrent layers and its own log-softmax twice."""
    with (
        patch("pruning.core.devices._Unrolling", contextlib.nullcontext),
        patch("pruning.models.likelihood.differentiated_twice", lambda: False),
    ):
        yield


def model_of(network: dict[str, int | str]) -> tuple[Measurable, Windows]:
    """Return a new network and random text."""
    torch.manual_seed(1)
    shape = {"vocabulary": network["types"], "embedding": network["width"]}
    shape["widths"] = [network["width"]] * int(network["depth"])  # type: ignore[assignment]
    more = {"nonlinearity": "tanh"} if network["family"] == "rnn" else {}
    model = build(str(network["family"]), **shape, decoder="untied", dropout=0.0, **more)
    batch, bptt = int(network["batch"]), int(network["bptt"])
    tokens = torch.randint(int(network["types"]), (batch * bptt,))
    return model, Windows(tokens, first=0, batch=batch, bptt=bptt)


def seconds(model: Measurable, windows: Windows, rounds: int) -> dict[str, float]:
    """Return the median processor seconds of each of the things compared."""
    parameters, layers, window = list(model.parameters()), model.layers(), windows[0]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)

    def step() -> None:
        torch.autograd.backward(model.loss(*window)[0])
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    generator = torch.Generator().manual_seed(1)
    curvature = Curvature(model, layers, method="exact", generator=generator)
    parts = partition(model, window, bins=8, classes=8)

    def probe() -> None:
        curvature.estimate(*window, None)

    def evidence() -> None:
        gather_evidence(model, layers, window, None, partition=parts, generator=generator)

    def own(do: Callable[[], None]) -> Callable[[], None]:
        return pytorchs_own()(do)

    does = {"step": step, "probe": probe, "own probe": own(probe), "evidence": evidence, "own evidence": own(evidence)}
    turns: dict[str, list[float]] = {name: [] for name in does}
    for turn in range(rounds + 1):
        for name, do in does.items():
            start = time.process_time()
            do()
            if turn:
                turns[name].append(time.process_time() - start)
    return {name: median(each) for name, each in turns.items()}


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=asked.count, default=5, help="turns that count")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    print("| network | steps | probe, own | probe | × | criteria, own | criteria | × |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for name, network in NETWORKS.items():
        took = seconds(*model_of(network), given.rounds)
        cells = [name, str(network["bptt"])]
        for what in ("probe", "evidence"):
            before, now = took[f"own {what}"], took[what]
            cells += [f"{before / took['step']:.2f}", f"{now / took['step']:.2f}", f"**{before / now:.2f}**"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
