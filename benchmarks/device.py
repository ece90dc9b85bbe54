"""A device beside the CPU in one command: the pipeline's main job, every number against the CPU's, then throughput.

`python -m benchmarks.device`, from the repository's root, on whatever device PyTorch finds; `--device cpu --quick`
tries the script itself. It takes at most five minutes on a GPU and needs no file: text is made here. Of packages it
needs those of the library alone: torch, numpy, pandas, scipy and scikit-learn (`--packages FOLDER` for more of them,
which `pip install --no-deps --target FOLDER` made).

A part that fails shows its traceback and hides no other; the exit code is then 1. Each part has its share of the time,
and what it leaves out it names. `--to FILE` is written again after each part.
"""

import argparse
import contextlib
import copy
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bytes each time with it alone

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

LIMIT = 270.0
"""Seconds after which no further measurement is begun; each part has its own share of them, see `PARTS`."""
SPIKING = {"recurrent": True, "leak": 0.5, "threshold": 1.0, "slope": 2.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {},
    "rnn": {"nonlinearity": "tanh"},
    "snn": SPIKING,
    "mixed": {"cell": "lstm", **SPIKING},
}
CLOSE = {torch.float64: 1e-6, torch.float32: 0.05}
"""Largest difference from the CPU's values, relative to the column's largest, that passes."""
ALIKE = 0.9
"""Rank correlation that passes in float32 for standard errors: those of graphs whose edges a threshold chooses jump
with the last digit of an edge."""


@dataclass
class Bench:
    """What the parts share: where to compute, how much, and what was found so far."""

    device: torch.device
    quick: bool
    end: float = 0.0
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
    from pruning.training.loop import Recipe

    return Recipe(
        epochs=epochs, portion=portion, learning_rate=rate, warmup=0.05, weight_decay=0.01, clip=0.5, patience=9
    )


def trained(bench: Bench, family: str, dtype: torch.dtype) -> Any:
    """Return a model of a family after a little training on the CPU, on the CPU; the same for all parts."""
    from pruning.training.loop import train

    if family not in bench.models:
        model = made(family, vocabulary=300, width=16 if bench.quick else 48)
        windows = windows_of(16 * 20 * (12 if bench.quick else 60), 300)
        for _ in train(model, windows, windows_of(2000, 300, seed=2), recipe=recipe(1, 1.0), seed=1):
            pass
        bench.models[family] = model
    return copy.deepcopy(bench.models[family]).to(dtype).eval()


def facts(bench: Bench) -> None:
    """Show what computes here."""
    device, rows = bench.device, [("device", str(bench.device))]
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        rows += [("name", found.name), ("memory", f"{found.total_memory / 2**30:.0f} GiB")]
        rows += [("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")]
    rows += [("PyTorch, Python", f"{torch.__version__}, {platform.python_version()}")]
    rows += [("CPU", f"{cpu_name()}, {torch.get_num_threads()} threads")]
    rows += [("float32 products", f"{torch.get_float32_matmul_precision()}, cuDNN's as PyTorch's defaults say")]
    bench.table(("", "what"), rows)


def cpu_name() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pipeline(bench: Bench) -> None:
    """Run the main job from end to end on the device, for a continuous and a mixed model, in float32."""
    from pruning.core.devices import twin_of
    from pruning.core.neurons import select
    from pruning.evaluation.latency import latencies
    from pruning.evaluation.measures import loss_of
    from pruning.experiment.measured import MEASURED
    from pruning.experiment.measuring import USUAL, calibrate
    from pruning.fusion.fused import fusion
    from pruning.fusion.fusing import Fusing
    from pruning.repair.imitation import Imitation, imitate
    from pruning.repair.reconstruction import reconstruct
    from pruning.selection.allocation import Allocation
    from pruning.selection.retention import keep_of, retention
    from pruning.training.distillation import Teacher
    from pruning.training.loop import train

    vocabulary, width, steps = (300, 16, 10) if bench.quick else (2000, 128, 150)
    corpus, valid = windows_of(16 * 20 * steps, vocabulary), windows_of(4000, vocabulary, seed=2)
    rows = []
    effort = {**USUAL, "hessian": {"probes": 16, "stability": 0.9}} if bench.quick else USUAL
    for family in ("lstm", "mixed"):
        model = made(family, vocabulary=vocabulary, width=width, decoder="tied" if family == "lstm" else "untied",
                     dropout=0.1).to(bench.device)  # fmt: skip
        model.expect(corpus.targets)
        took, mark = {}, time.perf_counter()

        def lap(name: str, took: dict[str, float] = took) -> None:
            nonlocal mark
            bench.wait()
            took[name], mark = time.perf_counter() - mark, time.perf_counter()

        for _ in train(model, corpus, valid, recipe=recipe(1, 1.0, 8e-3), seed=1):
            pass
        model.eval()
        lap("train")
        calibration = calibrate(model, corpus, MEASURED, effort=effort, seed=1)
        lap("signals")
        signals = tuple(name for name in MEASURED if name not in ("surgeon", "criteria"))
        fused = fusion(calibration.tables, Fusing(strategy="simple", seed=1, signals=signals)).importance
        keep = keep_of(retention(fused, Allocation(retain=0.5, floor=4, scope="global"), variant="fused", by="fused"))
        dense = model.decoupled()
        phases = {"dense": model, "pruned": select(dense, keep)}
        phases["ridge"] = reconstruct(dense, keep, calibration.covariances, repair="ridge")
        lap("cut, ridge")
        imitation = Imitation(tokens=16 * 20 * steps, learning_rate=4e-3, warmup=0.05, clip=1.0)
        phases["imitate"] = imitate(phases["ridge"], dense, corpus, imitation=imitation)
        lap("imitate")
        phases["finetuned"] = twin_of(phases["imitate"])
        teacher = Teacher.of(model, share=0.5)
        for _ in train(phases["finetuned"], corpus, valid, recipe=recipe(1, 0.2, 1e-3), seed=1, teacher=teacher):
            pass
        lap("finetune")
        perplexity = {name: loss_of(each, valid).perplexity for name, each in phases.items()}
        lap("evaluate")
        steps_a = latencies({"dense": model, "finetuned": phases["finetuned"]}, batch=1, repeats=20)
        lap("latency")
        cells = [f"{name} {value:.1f}" for name, value in perplexity.items()]
        spent = ", ".join(f"{name} {value:.1f}" for name, value in took.items())
        a_step = ", ".join(f"{name} {1e3 * latency.seconds:.2f}" for name, latency in steps_a.items())
        rows.append((family, ", ".join(cells), spent, a_step))
        if not all(map(np.isfinite, perplexity.values())):
            raise FloatingPointError(f"Expected finite perplexities of {family}, got {perplexity}.")
    bench.table(("family", "perplexity", "seconds", "ms a step at batch 1"), rows)


def numbers(bench: Bench, model: Any) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Return what is compared: name → what measures it on the model's device → columns by name."""
    from pruning.ablation.joint_removal import joint_removal
    from pruning.ablation.oracle import Ablation, oracle
    from pruning.core.neurons import mask, select
    from pruning.evaluation.energy import energy_of
    from pruning.evaluation.measures import loss_of
    from pruning.experiment.measured import MEASURED
    from pruning.experiment.measuring import USUAL, measure
    from pruning.fusion.calibration import removal_curves
    from pruning.repair.imitation import Imitation, imitate
    from pruning.repair.reconstruction import reconstruct
    from pruning.signals.activations import activations
    from pruning.signals.sensitivity import sensitivities

    steps = 8 if bench.quick else 20
    windows = windows_of(16 * 20 * steps, 300, seed=3)
    effort = {**USUAL, "hessian": {"probes": 16, "stability": 1.0}}
    layers = model.layers()
    keep = {layer.name: torch.arange(0, layer.width, 2, device=model.device) for layer in layers}
    found: dict[str, Callable[[], dict[str, np.ndarray]]] = {}
    known: dict[str, Any] = {}

    def states() -> Any:
        if not known:
            known["states"] = activations(model, windows, activation_samples=steps, bins=32)[1]
        return known["states"]

    def signal(name: str) -> dict[str, np.ndarray]:
        table, _ = measure(name, model, windows, states(), effort=effort, seed=1)
        return columns(table)

    for name in MEASURED:
        found[name] = lambda name=name: signal(name)
    found["covariances"] = lambda: matrices(states())
    found["sensitivities"] = lambda: matrices(sensitivities(model, windows, batches=10, seed=1))
    asked = Ablation(neurons=8, tokens=1500, seed=1)
    for how in (asked, replace(asked, words=32)):
        found[f"oracle, {how.words} words"] = lambda how=how: columns(oracle(model, windows, how))

    def joint() -> dict[str, np.ndarray]:
        single = oracle(model, windows, asked)
        some = single.groupby("layer")["neuron"].apply(lambda own: own.iloc[:2].tolist()).to_dict()
        repair = lambda dense, kept: reconstruct(dense, kept, states(), repair="ridge")  # noqa: E731
        table = joint_removal(model, windows, single, sets={"two": some}, tokens=1500, repair=repair)
        return columns(table)

    found["joint removal"] = joint

    def curves() -> dict[str, np.ndarray]:
        scores = columns_frame(model)
        return columns(removal_curves(model, windows, scores, by="score", shares=[0.25, 0.5]))

    found["removal curves"] = curves

    def losses() -> dict[str, np.ndarray]:
        smaller = select(model, keep)
        ridge = reconstruct(model, keep, states(), repair="ridge")
        imitation = Imitation(tokens=16 * 20 * 4, learning_rate=1e-3, warmup=0.05, clip=1.0)
        models = {"dense": model, "masked": mask(model, keep), "cut": smaller, "ridge": ridge}
        models["imitate"] = imitate(ridge, model, windows, imitation=imitation)
        return {name: np.array([loss_of(each, windows).mean]) for name, each in models.items()}

    found["losses of surgeons"] = losses
    found["energy"] = lambda: {"energy": np.array([energy_of(model, [windows[0], windows[1]]).energy])}
    return found


def columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return a table's numbers by column."""
    own = table.drop(columns=[name for name in ("neuron", "samples", "neurons") if name in table])
    return {name: own[name].to_numpy(dtype=float) for name in own.select_dtypes("number")}


def columns_frame(model: Any) -> pd.DataFrame:
    """Return a score of every neuron, always the same."""
    rows = [
        (layer.name, neuron, (7 * neuron) % layer.width) for layer in model.layers() for neuron in range(layer.width)
    ]
    return pd.DataFrame(rows, columns=["layer", "neuron", "score"])


def matrices(groups: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Return each layer's covariance as one long column."""
    from pruning.core.statistics import merged

    return {name: merged(list(own)).matrix.flatten().cpu().numpy() for name, own in groups.items()}


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the largest difference relative to the largest value, and Spearman's correlation."""
    both = np.isfinite(ours) & np.isfinite(theirs)
    if (np.isfinite(ours) != np.isfinite(theirs)).any():
        return float("inf"), float("nan")
    ours, theirs = ours[both], theirs[both]
    if not len(theirs):
        return 0.0, float("nan")
    worst = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300))
    ranks = pd.Series(ours).rank().corr(pd.Series(theirs).rank()) if np.ptp(theirs) and np.ptp(ours) else float("nan")
    return worst, float(ranks)


def passes(column: str, error: float, rank: float, dtype: torch.dtype) -> bool:
    """Return whether a column agrees well enough with the CPU's."""
    return error <= CLOSE[dtype] or (dtype == torch.float32 and column.endswith("_error") and rank >= ALIKE)


def compared(bench: Bench, families: Sequence[str], dtype: torch.dtype, *, full: bool) -> None:
    """Compare every number of some families with the CPU's, from the same model; the text and seeds are the same."""
    rows, failures = [], []
    for family in families:
        one = trained(bench, family, dtype)
        other = copy.deepcopy(one).to(bench.device)
        theirs, ours = numbers(bench, one), numbers(bench, other)
        for name in theirs:
            if bench.late:
                rows.append((family, name, "–", "–", "–", "out of time"))
                continue
            try:
                expected = theirs[name]()
                bench.wait()
                found = ours[name]()
            except Exception:  # whatever it is, the others are still measured
                failures.append(f"{family}, {name}:\n{traceback.format_exc()}")
                rows.append((family, name, "–", "–", "–", f"FAILED: {sys.exc_info()[1]!s:.80}".replace("\n", " ")))
                continue
            apart = {column: difference(found[column], expected[column]) for column in expected}
            far = {column for column, found_apart in apart.items() if not passes(column, *found_apart, dtype)}
            failures += [f"{family}, {name}, {column}: {apart[column]} from the CPU's values" for column in far]
            if not full:
                worst = max(apart, key=lambda column: (column in far, apart[column][0]))
                ranks = [rank for _, rank in apart.values() if np.isfinite(rank)]
                shown = f"worst of {len(apart)}: {worst}"
                far = {shown} if far else set()
                apart = {shown: (apart[worst][0], min(ranks, default=float("nan")))}
            for column, (error, rank) in apart.items():
                correlation = f"{rank:.6f}" if np.isfinite(rank) else "–"
                rows.append((family, name, column, f"{error:.1e}", correlation, "TOO FAR" if column in far else ""))
    bench.table(("family", "number", "column", "largest difference", "rank correlation", ""), rows)
    if failures:
        bench.say("```", *failures, "```")
        raise AssertionError(f"{len(failures)} of {len(rows)} comparisons failed")


def double(bench: Bench) -> None:
    """Compare in float64, where nothing but a wrong formula or a wrong place makes a difference."""
    compared(bench, ["lstm"] if bench.quick else ["lstm", "gru", "rnn", "mixed"], torch.float64, full=False)


def single(bench: Bench) -> None:
    """Compare in float32 with full precision, the type that stages use."""
    from pruning.core.devices import full_precision

    with full_precision():
        compared(bench, ["lstm"], torch.float32, full=True)
        compared(bench, ["mixed"] if bench.quick else list(FAMILIES)[1:], torch.float32, full=False)


def tensor_cores(bench: Bench) -> None:
    """Compare in float32 as PyTorch's defaults compute it: cuDNN's recurrent layers in TF32."""
    if bench.device.type == "cuda":
        compared(bench, ["lstm"], torch.float32, full=False)
    else:
        bench.say("Of a GPU only.")


def resumed(bench: Bench) -> None:
    """Train once without and once with an interruption, and compare the weights."""
    from pruning.training.loop import Trained, train

    rows, wrong = [], []
    corpus, valid = windows_of(16 * 20 * 8, 300), windows_of(1000, 300, seed=2)
    for family in ("lstm", "mixed"):

        def start(family: str = family) -> Any:
            return made(family, vocabulary=300, width=32, dropout=0.2).to(bench.device)

        def whole(start: Callable[[], Any] = start) -> dict[str, Tensor]:
            model = start()
            for _ in train(model, corpus, valid, recipe=recipe(3, 1.0), seed=1):
                pass
            return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

        one, again = whole(), whole()
        before = next(iter(train(start(), corpus, valid, recipe=recipe(3, 1.0), seed=1)))
        stored = {name: tensor.cpu().clone() for name, tensor in before.tensors.items()}  # as a file holds it
        model = start()
        state = Trained(stored, before.history, before.finished)
        for _ in train(model, corpus, valid, recipe=recipe(3, 1.0), seed=1, resume=state):
            pass
        two = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        repeat, resume = (max(float((one[n] - other[n]).abs().max()) for n in one) for other in (again, two))
        rows.append((family, f"{repeat:.1e}", f"{resume:.1e}", "the same bytes" if resume == 0 else ""))
        if resume > max(10 * repeat, 1e-6 if repeat else 0):
            wrong.append(family)
    bench.table(("family", "two runs apart", "uninterrupted and resumed apart", ""), rows)
    if wrong:
        raise AssertionError(f"resumed training of {wrong} ends elsewhere than uninterrupted training")


class Tagger(nn.Module):
    """A bidirectional stacked LSTM over words, as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12)
        self.rnn = nn.LSTM(12, 10, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 5)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of each word's tag."""
        return self.head(self.rnn(self.words(words))[0])


class Pictures(nn.Module):
    """Two convolutions with normalisation, then a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * 64, 16), nn.GELU(), nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits of each picture."""
        found: Tensor = self.body(pictures)
        return found


class Attentive(nn.Module):
    """A layer of attention over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.body = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 5)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of each word's tag."""
        found: Tensor = self.head(self.body(self.words(words)))
        return found


def foreign(bench: Bench) -> None:
    """Find the neurons of models that are not built in, on the device; removed must equal masked; then the signals."""
    from pruning.ablation.oracle import Ablation, oracle
    from pruning.core.neurons import mask, select
    from pruning.experiment.measuring import USUAL, measure
    from pruning.models.adapted import adapt

    random = torch.Generator().manual_seed(1)
    words = torch.randint(50, (6, 4, 7), generator=random)
    pictures = torch.randn(6, 4, 3, 8, 8, generator=random)
    cases: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
        "recurrent": (Tagger(), words, torch.randint(5, (6, 4, 7), generator=random)),
        "convolutions": (Pictures(), pictures, torch.randint(5, (6, 4), generator=random)),
        "attention": (Attentive(), words, torch.randint(5, (6, 4, 7), generator=random)),
    }
    rows, failures = [], []
    for name, (network, inputs, targets) in cases.items():
        network = network.to(bench.device).eval()
        try:
            model = adapt(network, inputs[0].to(bench.device), loss=nn.CrossEntropyLoss())
            exact = [layer for layer in model.layers() if layer.exact]  # elsewhere a normalisation sees who is gone
            keep = {layer.name: torch.arange(1, layer.width, device=bench.device) for layer in exact}
            read = inputs[0].to(bench.device)
            with torch.no_grad():
                cut, masked = (change(model, keep)(read) for change in (select, mask))
                apart = float((cut - masked).abs().max())
                dense = float((model(read) - network(read)).abs().max())
        except Exception:
            failures.append(f"{name}:\n{traceback.format_exc()}")
            rows.append((name, "–", "–", "–", "FAILED"))
            continue
        batches = list(zip(inputs, targets, strict=True))
        told = []
        for signal in ("activations", "weights", "gradients", "hessian", "surgeon", "criteria", "oracle"):
            try:
                if signal == "oracle":
                    oracle(model, batches, Ablation(neurons=8, tokens=40, seed=1))
                    continue
                effort = {**USUAL, "hessian": {"probes": 16, "stability": 0.1}}
                states = measure("activations", model, batches, {}, effort=effort, seed=1)[1]
                measure(signal, model, batches, states, effort=effort, seed=1)
            except Exception:
                told.append(signal)
                failures.append(f"{name}, {signal}:\n{traceback.format_exc()}")
        if not apart < 1e-4 or not dense < 1e-4:
            failures.append(f"{name}: removed and masked are {apart:.1e} apart, found and given {dense:.1e}")
        layers = ", ".join(f"{each.name} {each.width}{'' if each.exact else ' (inexact)'}" for each in model.layers())
        rows.append((name, layers, f"{apart:.1e}", f"{dense:.1e}", f"FAILED: {told}" if told else ""))
    bench.table(("model", "layers found", "removed − masked", "found − given", "signals"), rows)
    if failures:
        bench.say("```", *failures, "```")
        raise AssertionError(f"{len(failures)} failures")


def synchronisations(bench: Bench) -> None:
    """Count how often one training step waits for the device."""
    from pruning.training.loop import train

    if bench.device.type != "cuda":
        bench.say("Of CUDA only.")
        return
    rows = []
    for family in ("lstm", "snn"):
        model = made(family, vocabulary=300, width=32).to(bench.device)
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
    bench.table(("family", "a step", "where"), rows)


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
        from pruning.signals.hessian import hessian
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
        }


def throughput(bench: Bench) -> None:
    """Measure training, Hessian probes, measured removal, imitation and activations on the device and on the CPU."""
    sizes = ((300, 32, 8, 10),) if bench.quick else ((10_000, 256, 20, 35), (10_000, 1024, 64, 35))
    rows: list[tuple[str, str, str, float, str, str]] = []
    for (vocabulary, width, batch, bptt), family in ((s, f) for s in sizes for f in ("lstm", "snn")):
        corpus = windows_of(batch * bptt * 64, vocabulary, batch=batch, bptt=bptt)
        short = windows_of(batch, vocabulary, batch=batch, bptt=1)
        shape = f"{family}, 2 × {width}, {vocabulary:,} words, batch {batch} × {bptt}"
        for device in dict.fromkeys((bench.device, torch.device("cpu"))):
            slow = device.type == "cpu" or bench.quick
            model = made(family, vocabulary=vocabulary, width=width, dropout=0.2).to(device)
            steps, neurons = ((1 if width > 256 else 4), 8) if slow else (32, 64)
            for name, (work, amount, unit) in Load(model, corpus, short, steps, neurons).works().items():
                if bench.late or (slow and width > 256 and name not in ("training", "Hessian probes")):
                    continue
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                speed = amount / bench.seconds(work, device, 1 if slow else 3)
                rows.append((shape, name, device.type, speed, unit, peak(device)))
    other = {(row[0], row[1]): row[3] for row in rows if row[2] == "cpu"}
    shown = []
    for shape, name, where, speed, unit, memory in rows:
        ratio = f"{speed / other[shape, name]:.1f}×" if (shape, name) in other else "–"
        shown.append((shape, name, where, f"{speed:,.1f} {unit}", ratio, memory))
    bench.table(("model", "work", "on", "speed", "of the CPU's", "peak memory"), shown)


def peak(device: torch.device) -> str:
    """Return the most memory of the device that was in use."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB" if device.type == "cuda" else "–"


PARTS: dict[str, tuple[str, float, Callable[[Bench], None]]] = {
    "facts": ("What computes", 20, facts),
    "pipeline": ("The main job from end to end", 60, pipeline),
    "resumed": ("Training interrupted and resumed", 20, resumed),
    "foreign": ("Models that are not built in", 30, foreign),
    "double": ("Every number in float64 beside the CPU's", 75, double),
    "single": ("Every number in float32 beside the CPU's", 75, single),
    "synchronisations": ("Waiting for the device", 15, synchronisations),
    "throughput": ("Throughput", 60, throughput),
    "tensor_cores": ("Every number in float32 as PyTorch computes it by default, beside the CPU's", 30, tensor_cores),
}
"""Name → (title, seconds after which it begins nothing more, what it does); as much as is left of `LIMIT`."""


def write(path: Path | None, bench: Bench) -> None:
    """Write what is known so far."""
    if path is not None:
        path.write_text("\n".join(bench.lines) + "\n", encoding="utf-8")


def run(bench: Bench, name: str, over: float) -> tuple[str, str, str]:
    """Run one part, whatever happens in it, and return its title, how it ended, and its seconds."""
    title, share, part = PARTS[name]
    bench.say("", f"## {title}")
    start, end = time.perf_counter(), "done"
    bench.end = min(over, start + share)
    try:
        if start > over:
            end = "left out: out of time"
        else:
            part(bench)
    except Exception as error:  # the other parts still run
        end = f"FAILED: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.100}"
        bench.say("```", traceback.format_exc().rstrip(), "```")
    return title, end, f"{time.perf_counter() - start:.1f}"


def main() -> None:
    """Run the parts, print what they found, and exit with 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.split("\n", maxsplit=1)[0])
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument("--device", default=str(found or "cpu"), help="cpu, cuda, cuda:1, mps; whatever is there")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which parts to run")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which nothing more is begun")
    parser.add_argument("--packages", type=Path, help="a folder of packages that are not installed")
    parser.add_argument("--to", type=Path, help="a Markdown file for the report")
    given = parser.parse_args()
    if given.packages:
        sys.path.insert(0, str(given.packages))
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    bench, over = Bench(torch.device(given.device), given.quick), time.perf_counter() + given.limit
    ends = []
    for name in given.parts:
        ends.append(run(bench, name, over))
        write(given.to, bench)
    bench.say("", "## Parts")
    bench.table(("part", "end", "seconds"), ends)
    write(given.to, bench)
    sys.exit(any(end.startswith("FAILED") for _, end, _ in ends))


if __name__ == "__main__":
    main()
