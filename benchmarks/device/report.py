"""What the parts share: where to compute, how much, text and models made here, and the report."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPIKING = {"recurrent": True, "leak": 0.5, "threshold": 1.0, "slope": 2.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {},
    "rnn": {"nonlinearity": "tanh"},
    "snn": SPIKING,
    "mixed": {"cell": "lstm", **SPIKING},
}


@dataclass
class Report:
    """What the parts share: where to compute, how much, and what was found so far.

    Attributes:
        device: Where to compute.
        quick: Whether models are tiny, to try the script.
        end: When the part's time is over.
        sizes: Of throughput's models, as (units of a layer, columns of text).
        families: Of throughput's models.
        alone: Whether throughput leaves out the CPU.
        lines: What was said.
        models: Trained ones that parts share.
    """

    device: torch.device
    quick: bool
    end: float = 0.0
    sizes: Sequence[tuple[int, int]] = ((256, 20), (1024, 64))
    families: Sequence[str] = ("lstm", "snn")
    alone: bool = False
    lines: list[str] = field(default_factory=list)
    models: dict[Any, Any] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        """Whether the part's time is over."""
        return time.perf_counter() > self.end

    def say(self, *lines: str) -> None:
        """Add lines to the report, and show them."""
        self.lines += lines
        print(*lines, sep="\n", flush=True)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a Markdown table."""
        body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
        self.say("", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body, "")

    def wait(self, device: torch.device | None = None) -> None:
        """Wait until the device has done what it was told."""
        where = device or self.device
        if where.type != "cpu":
            torch.accelerator.synchronize(where)

    def seconds(self, work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
        """Return the median of how long some work takes, after a first time that does not count."""
        found = []
        for round_ in range(repeats + 1):
            self.wait(device)
            start = time.perf_counter()
            work()
            self.wait(device)
            if round_:
                found.append(time.perf_counter() - start)
            if self.late:
                break
        return statistics.median(found or [time.perf_counter() - start])


def text(tokens: int, vocabulary: int, seed: int = 1) -> Tensor:
    """Return a text that can be learnt: words of Zipf's frequencies, six of ten told by the word before."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, vocabulary + 1)
    drawn = random.choice(vocabulary, size=tokens, p=shares / shares.sum())
    follows = np.random.default_rng(0).choice(vocabulary, size=vocabulary, p=shares / shares.sum())
    told = random.random(tokens) < 0.6
    for place in range(1, tokens):
        if told[place]:
            drawn[place] = follows[drawn[place - 1]]
    return torch.from_numpy(drawn)


def windows_of(tokens: int, vocabulary: int, *, batch: int = 16, bptt: int = 20, seed: int = 1) -> Any:
    """Return a text as windows."""
    from pruning.data.windows import Windows

    return Windows(text(tokens, vocabulary, seed), first=0, batch=batch, bptt=bptt)


def made(family: str, *, vocabulary: int, width: int, decoder: str = "untied", dropout: float = 0.0) -> Any:
    """Return a new model of a family, always the same, on the CPU."""
    from pruning.models import build

    widths = (width, width)
    more = dict(FAMILIES[family], **({"snn_widths": widths} if family == "mixed" else {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build(
            family, vocabulary=vocabulary, embedding=width, widths=widths, decoder=decoder, dropout=dropout, **more
        )


def recipe(epochs: int, portion: float, rate: float = 4e-3) -> Any:
    """Return how to train."""
    from pruning.training.recipes import Recipe

    return Recipe(
        epochs=epochs, portion=portion, learning_rate=rate, warmup=0.05, weight_decay=0.01, clip=0.5, patience=9
    )


def trained(report: Report, family: str, dtype: torch.dtype) -> Any:
    """Return a model of a family after a little training on the CPU, on the CPU; the same for all parts."""
    from pruning.training.loop import train

    if family not in report.models:
        model = made(family, vocabulary=300, width=16 if report.quick else 48)
        windows = windows_of(16 * 20 * (12 if report.quick else 60), 300)
        for _ in train(model, windows, windows_of(2000, 300, seed=2), recipe=recipe(1, 1.0), seed=1):
            pass
        report.models[family] = model
    return copy.deepcopy(report.models[family]).to(dtype).eval()
