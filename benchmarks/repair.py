"""How much of a language model its neurons' removal costs: each choice, each repair, then one epoch of training.

`python -m benchmarks.repair --corpus FOLDER --checkpoint FILE`, with a folder of published splits such as the Penn
Treebank's and a dense LSTM of its vocabulary. Calibration reads training text alone; the validation split only judges.
Every cell is kept in `--results` as soon as it is measured, so that an interrupted run goes on from there. `--choose`
measures what the learning rates and the teacher's share were chosen by: the last tenth of the training text, which
nothing else then reads.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks import asked
from pruning.core.neurons import Keep
from pruning.core.tables import rows_of
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import REPAIRS, reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances, activations
from pruning.signals.hessian import hessian
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from pruning.training.recipes import Recipe
from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary
from tasks.shown.console import track

CALIBRATION = {"batch": 32, "bptt": 35}
STATES, SENSITIVE, PROBES = 60, 15, 100
"""Windows for covariances and for sensitivities, and probes of the Hessian."""
IMITATION = Imitation(tokens=400_000, learning_rate=8e-3, warmup=0.05, clip=1.0)
RECIPE = Recipe(epochs=1, portion=1.0, learning_rate=2e-3, warmup=0.02, weight_decay=0.0, clip=0.5, patience=1)
SCRATCH = Recipe(epochs=1, portion=1.0, learning_rate=4e-3, warmup=0.05, weight_decay=0.0, clip=0.5, patience=5)
DROPOUT = 0.3
"""Of a model that is trained from scratch for more than one epoch."""
TRAINING = {"batch": 20, "bptt": 35}
SHARE = 0.9
"""Share of the dense model in what fine-tuning minimises."""
HELD_OUT = 0.1
"""Share of the training text, its end, that judges what is chosen with `--choose`."""


@dataclass
class Bench:
    """The dense model, its text, and what has been measured so far."""

    dense: LanguageModel
    splits: dict[str, Tensor]
    first: int
    results: Path
    cells: dict[str, dict[str, float]] = field(default_factory=dict)

    def windows(self, split: str, *, batch: int, bptt: int, seed: int = 0) -> Windows:
        """Return a split as windows; another seed starts elsewhere in it."""
        tokens = self.splits[split]
        return Windows(tokens.roll(-seed * len(tokens) // 7), first=self.first, batch=batch, bptt=bptt)

    def choosing(self) -> "Bench":
        """Return a bench whose validation split is the end of the training text, which its training split lacks."""
        train = self.splits["train"]
        end = round((1 - HELD_OUT) * len(train))
        splits = {"train": train[:end], "valid": train[end:]}
        return Bench(self.dense, splits, self.first, self.results, self.cells)

    def perplexity(self, model: LanguageModel) -> float:
        """Return the perplexity on valid at batch 10, state carried."""
        return loss_of(model, self.windows("valid", batch=10, bptt=100)).perplexity

    def cell(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return a cell's numbers, measured unless they are kept already."""
        if name not in self.cells:
            self.cells[name] = measure()
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: self.cells[name]}) + "\n")
            print(name, {key: round(value, 2) for key, value in self.cells[name].items()}, flush=True)
        return self.cells[name]


@dataclass(frozen=True)
class Calibrated:
    """What is known of the dense model from training text, and the seconds that it took."""

    model: LanguageModel
    windows: Windows
    states: Covariances
    importance: pd.DataFrame
    seconds: float


def opened(corpus: Path, checkpoint: Path, results: Path) -> Bench:
    """Return the bench of a dense model and its text, with what was measured before."""
    vocabulary = read_vocabulary(checkpoint)
    splits = read_splits(corpus, vocabulary)
    bench = Bench(read_checkpoint(checkpoint), splits, vocabulary[END_OF_LINE], results)
    if results.is_file():
        for line in results.read_text(encoding="utf-8").splitlines():
            bench.cells |= json.loads(line)
    return bench


def calibrated(bench: Bench, seed: int) -> Calibrated:
    """Measure covariances and sensitivities, and order the neurons."""
    model = bench.dense.decoupled()
    windows = bench.windows("train", **CALIBRATION, seed=seed)
    start = time.perf_counter()
    states = activations(model, windows, activation_samples=STATES, bins=32, track=track)[1]
    order = surgeon(states, sensitivities(model, windows, batches=SENSITIVE, seed=seed, track=track), damping=1e-4)
    seconds = time.perf_counter() - start
    keys = rows_of([layer.name for layer in model.layers()], model.widths())
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(len(keys), generator=generator, dtype=torch.float64).numpy()
    importance = keys.assign(surgeon=order["importance"], random=random)
    return Calibrated(model, windows, states, importance, seconds)


def with_traditional(found: Calibrated, seed: int) -> pd.DataFrame:
    """Return the importance with the Hessian's beside it."""
    traditional = hessian(found.model, found.windows, probes=PROBES, stability=1.0, seed=seed, track=track)
    return found.importance.assign(traditional=traditional["importance"])


def chosen(importance: pd.DataFrame, by: str, keep: float) -> Keep:
    """Return the kept neurons: the surgeon's order over all layers, others the same share of each layer."""
    scope = "absolute" if by == "surgeon" else "layer"
    return keep_of(retention(importance, Allocation(retain=keep, floor=8, scope=scope), variant=by, by=by))


def measure_repairs(bench: Bench, found: Calibrated, importance: pd.DataFrame, by: str, keep: float, seed: int) -> None:
    """Measure a choice with each repair."""
    kept = chosen(importance, by, keep)

    def refitted(repair: str) -> dict[str, float]:
        return {"perplexity": bench.perplexity(reconstruct(found.model, kept, found.states, repair=repair))}

    for repair in REPAIRS:
        bench.cell(f"{keep}/{by}/{repair}/{seed}", partial(refitted, repair))

    def imitated() -> dict[str, float]:
        start = time.perf_counter()
        model = repaired(found, kept)
        seconds = time.perf_counter() - start
        widths = {f"width {layer}": float(len(own)) for layer, own in kept.items()}
        return {"perplexity": bench.perplexity(model), "seconds": found.seconds + seconds, **widths}

    bench.cell(f"{keep}/{by}/imitate/{seed}", imitated)


def repaired(found: Calibrated, kept: Keep, imitation: Imitation = IMITATION) -> LanguageModel:
    """Return the pruned model, refitted in closed form and then by imitation."""
    smaller = reconstruct(found.model, kept, found.states, repair="ridge")
    return imitate(smaller, found.model, found.windows, imitation=imitation, track=track)


def finetuned(bench: Bench, model: LanguageModel, recipe: Recipe, seed: int, *, share: float) -> dict[str, float]:
    """Return perplexity and seconds after one epoch."""
    start = time.perf_counter()
    windows, valid = bench.windows("train", **TRAINING), bench.windows("valid", batch=10, bptt=100)
    teacher = Teacher.of(bench.dense, share=share)
    for _ in train(model, windows, valid, recipe=recipe, seed=seed, teacher=teacher, track=track):
        seconds = time.perf_counter() - start
    return {"perplexity": bench.perplexity(model), "seconds": seconds}


def main() -> None:
    """Measure every cell that is missing and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repair", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--corpus", type=asked.splits, required=True, help="a folder of published splits")
    parser.add_argument(
        "--checkpoint", type=asked.checkpoint, required=True, help="a dense model, its vocabulary beside it"
    )
    parser.add_argument(
        "--keep", type=asked.share, nargs="+", default=[0.75, 0.5, 0.35], help="shares of neurons to keep"
    )
    parser.add_argument("--seeds", type=asked.count, default=3, help="seeds of calibration")
    parser.add_argument("--finetune", type=asked.index, default=1, help="seeds that are fine-tuned; 0 for none")
    choices = ["surgeon", "random", "traditional"]
    parser.add_argument("--choices", nargs="+", choices=choices, default=choices, help="all but the first: one seed")
    trained = ["surgeon", "random", "scratch"]
    parser.add_argument("--epochs", type=asked.count, default=1, help="of models trained from scratch")
    parser.add_argument("--trained", nargs="+", choices=trained, default=trained, help="what is trained for an epoch")
    parser.add_argument("--results", type=asked.file, default="repair.jsonl", help="where cells are kept")
    parser.add_argument("--choose", action="store_true", help="measure settings on held-out training text instead")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    bench = opened(given.corpus, given.checkpoint, given.results)
    if given.choose:
        measure_settings(bench.choosing())
        return
    _measure(bench, given)
    _print(bench, given.keep)


def measure_settings(bench: Bench) -> None:
    """Measure, at half of the neurons, how imitation and a tenth of an epoch do with each setting."""
    found = calibrated(bench, 0)
    kept = chosen(found.importance, "surgeon", 0.5)

    def imitated(rate: float) -> dict[str, float]:
        return {"perplexity": bench.perplexity(repaired(found, kept, replace(IMITATION, learning_rate=rate)))}

    def taught(rate: float, share: float) -> dict[str, float]:
        recipe = replace(RECIPE, portion=0.1, learning_rate=rate)
        return finetuned(bench, copy.deepcopy(start), recipe, 0, share=share)

    rates = (2e-3, 4e-3, 8e-3)
    tried = {rate: bench.cell(f"choose/imitate/{rate}", partial(imitated, rate)) for rate in rates}
    best = min(tried, key=lambda rate: tried[rate]["perplexity"])
    start = repaired(found, kept, replace(IMITATION, learning_rate=best))
    for rate, share in ((1e-3, 0.9), (2e-3, 0.9), (4e-3, 0.9), (2e-3, 0.5)):
        bench.cell(f"choose/epoch/{rate}/{share}", partial(taught, rate, share))


def _measure(bench: Bench, given: argparse.Namespace) -> None:
    bench.cell("dense", lambda: {"perplexity": bench.perplexity(bench.dense)})
    calibrations = {seed: calibrated(bench, seed) for seed in range(max(given.seeds, given.finetune))}
    for seed, found in list(calibrations.items())[: given.seeds]:
        choices = given.choices if seed == 0 else given.choices[:1]
        importance = with_traditional(found, seed) if "traditional" in choices else found.importance
        for keep in given.keep:
            for by in choices:
                measure_repairs(bench, found, importance, by, keep, seed)
    for seed in range(given.finetune):
        for keep in given.keep:
            _measure_training(bench, calibrations[seed], keep, seed, given.trained, given.epochs)


def _measure_training(
    bench: Bench, found: Calibrated, keep: float, seed: int, trained: Sequence[str], epochs: int
) -> None:
    for by in trained:
        if by == "scratch":
            bench.cell(
                f"{keep}/scratch/{epochs} epochs/{seed}", partial(_from_scratch, bench, found, keep, seed, epochs)
            )
        else:
            bench.cell(f"{keep}/{by}/epoch/{seed}", partial(_after_epoch, bench, found, keep, seed, by))


def _after_epoch(bench: Bench, found: Calibrated, keep: float, seed: int, by: str) -> dict[str, float]:
    """Return what the repaired choice becomes in an epoch beside the dense model."""
    return finetuned(bench, repaired(found, chosen(found.importance, by, keep)), RECIPE, seed, share=SHARE)


def _from_scratch(bench: Bench, found: Calibrated, keep: float, seed: int, epochs: int) -> dict[str, float]:
    """Return what a new model of the surgeon's widths becomes in some epochs, by the labels alone.

    All neurons (`keep` 1) make a model as the dense one was before its training, tied as that is.
    """
    widths = [len(own) for own in chosen(found.importance, "surgeon", keep).values()]
    config = bench.dense.to_config() if keep == 1 else found.model.to_config() | {"widths": widths}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(**config | {"family": "lstm", "dropout": DROPOUT if epochs > 1 else 0.0})
    model.expect(bench.splits["train"])
    return finetuned(bench, model, replace(SCRATCH, epochs=epochs), seed, share=0.0)


def _print(bench: Bench, keeps: Iterable[float]) -> None:
    """Print perplexities over seeds, mean ± largest deviation, as Markdown."""
    third = dict.fromkeys(name.split("/")[2] for name in bench.cells if "/" in name)
    phases = (*REPAIRS, "imitate", *(phase for phase in third if "epoch" in phase))
    print(f"\ndense: {bench.cells['dense']['perplexity']:.1f}\n")
    print("| keep | chosen by | " + " | ".join(phases) + " | seconds, selection and repair |")
    print("|---|---|" + "---:|" * (len(phases) + 1))
    for keep in keeps:
        for by in ("surgeon", "random", "traditional", "scratch"):
            columns = [_spread(bench, f"{keep}/{by}/{phase}/", "perplexity") for phase in phases]
            columns.append(_spread(bench, f"{keep}/{by}/imitate/", "seconds"))
            print(f"| {keep:.0%} | {by} | " + " | ".join(columns) + " |")


def _spread(bench: Bench, prefix: str, what: str) -> str:
    values = [cell.get(what, math.nan) for name, cell in bench.cells.items() if name.startswith(prefix)]
    if not values:
        return "–"
    middle = statistics.mean(values)
    return f"{middle:.1f}" + (f" ± {max(abs(value - middle) for value in values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
