"""How often a training step waits for the device, and how fast each kind of work is on it and on the CPU."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.device.report import Report, made, recipe, windows_of
from benchmarks.device.roofline import Roofline


def synchronisations(report: Report) -> None:
    """Count how often one training step waits for the device."""
    from pruning.training.loop import train

    if report.device.type != "cuda":
        report.say("Of CUDA only.")
        return
    rows = []
    for family in ("lstm", "snn"):
        model = made(family, vocabulary=300, width=32).to(report.device)
        counts = []
        for steps in (4, 12):
            corpus = windows_of(16 * 20 * steps, 300)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    for _ in train(model, corpus, windows_of(400, 300), recipe=recipe(1, 1.0), seed=1):
                        pass
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            counts.append([f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)])
        places = pd.Series(counts[1], dtype=str).value_counts() - pd.Series(counts[0], dtype=str).value_counts()
        often = ", ".join(f"{place} {count / 8:.1f}" for place, count in places.dropna().items() if count > 0)
        rows.append((family, f"{(len(counts[1]) - len(counts[0])) / 8:.1f}", often or "–"))
    report.table(("family", "a step", "where"), rows)


@dataclass(frozen=True)
class Load:
    """What is timed: a model on text, and how much of it."""

    model: Any
    corpus: Any
    short: Any
    steps: int
    neurons: int

    @property
    def tokens(self) -> int:
        """Tokens of one window."""
        return int(self.corpus[0].tokens.numel())

    def works(self) -> dict[str, tuple[Callable[[], object], float, str]]:
        """Return what is timed: name → what does it, how much of it, and its unit."""
        from pruning.ablation.oracle import Ablation, oracle
        from pruning.repair.imitation import Imitation, imitate
        from pruning.signals.activations import activations
        from pruning.signals.criteria import criteria
        from pruning.signals.gradients import gradients
        from pruning.signals.hessian import hessian
        from pruning.signals.sensitivity import sensitivities
        from pruning.training.loop import train

        model, corpus, tokens, probes = self.model, self.corpus, self.tokens, max(2, self.steps // 4)
        how = recipe(1, self.steps / len(corpus), 1e-3)
        imitation = Imitation(tokens=self.steps * tokens, learning_rate=1e-4, warmup=0.05, clip=1.0)
        ablation = Ablation(neurons=self.neurons, tokens=2 * tokens, words=64, seed=1)
        samples = max(2, self.steps)
        return {
            "training": (
                lambda: list(train(model, corpus, self.short, recipe=how, seed=1)),
                self.steps * tokens,
                "tokens/s",
            ),
            "Hessian probes": (
                lambda: hessian(model, corpus, probes=probes, stability=0.9, seed=1),
                probes,
                "probes/s",
            ),
            "measured removal": (
                lambda: oracle(model, corpus, ablation),
                self.neurons * 2 * tokens,
                "neurons × tokens/s",
            ),
            "imitation": (
                lambda: imitate(model, model, corpus, imitation=imitation),
                self.steps * tokens,
                "tokens/s",
            ),
            "activations": (
                lambda: activations(model, corpus, activation_samples=samples, bins=32),
                samples * tokens,
                "tokens/s",
            ),
            "gradients": (lambda: gradients(model, corpus, batches=samples), samples * tokens, "tokens/s"),
            "sensitivities": (
                lambda: sensitivities(model, corpus, batches=samples, seed=1),
                samples * tokens,
                "tokens/s",
            ),
            "criteria": (
                lambda: criteria(model, corpus, batches=probes, bins=8, classes=8, ridge=1e-4, seed=1),
                probes * tokens,
                "tokens/s",
            ),
        }


def throughput(report: Report) -> None:
    """Measure training, repair and signals on the device and on the CPU, beside the device's roofline.

    Products of float32 are in TF32 here, where there is that, as cuDNN's layers compute by default.
    """
    torch.set_float32_matmul_precision("high")
    try:
        measured(report)
    finally:
        torch.set_float32_matmul_precision("highest")


def measured(report: Report) -> None:
    """Measure every work on every model, and show the table."""
    sizes = ((300, 32, 8, 10),) if report.quick else tuple((10_000, *size, 35) for size in report.sizes)
    rows: list[tuple[str, str, str, float, str, tuple[str, ...]]] = []
    roofline = Roofline(report, report.device)
    for (vocabulary, width, batch, bptt), family in ((s, f) for s in sizes for f in report.families):
        corpus = windows_of(batch * bptt * 64, vocabulary, batch=batch, bptt=bptt)
        short = windows_of(batch, vocabulary, batch=batch, bptt=1)
        shape = f"{family}, 2 × {width}, {vocabulary:,} words, batch {batch} × {bptt}"
        for device in (report.device,) if report.alone else dict.fromkeys((report.device, torch.device("cpu"))):
            slow = device.type == "cpu" or report.quick
            model = made(family, vocabulary=vocabulary, width=width, dropout=0.2).to(device)
            steps, neurons = ((1 if width > 256 else 4), 8) if slow else (32, 64)
            for name, (work, amount, unit) in Load(model, corpus, short, steps, neurons).works().items():
                if report.late or (slow and width > 256 and name not in ("training", "Hessian probes")):
                    continue
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                seconds = report.seconds(work, device, 1 if slow else 3)
                memory = peak(device)
                share, largest = roofline.share(work, seconds) if device == report.device else (0.0, "–")
                best = f"{share:.0%}" if share else "–"
                rows.append((shape, name, device.type, amount / seconds, unit, (memory, best, largest)))
                print(
                    f"{shape}, {name} on {device}: {amount / seconds:,.1f} {unit}, {best}", flush=True
                )  # if it is killed
    other = {(row[0], row[1]): row[3] for row in rows if row[2] == "cpu"}
    shown = []
    for shape, name, where, speed, unit, more in rows:
        ratio = f"{speed / other[shape, name]:.1f}×" if (shape, name) in other else "–"
        shown.append((shape, name, where, f"{speed:,.1f} {unit}", ratio, *more))
    head = ("model", "work", "on", "speed", "of the CPU's", "peak memory", "of the roofline", "largest product")
    report.table(head, shown)
    report.say(roofline.row())


def peak(device: torch.device) -> str:
    """Return the most memory of the device that was in use."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB" if device.type == "cuda" else "–"
