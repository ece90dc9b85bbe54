"""Which kind of neuron should stay in a mixed network: importance's free choice against fixed ratios of the two kinds.

`python -m benchmarks.supernet`, after `dvc exp run -S train.family=mixed` or with `--data` of such a run: perplexity on
the validation split of models with the same number of neurons, right after removal and after the ridge repair.
Calibration reads training text alone; the validation split only judges. Every cell is kept in `--results` as soon as
it is measured, so that an interrupted run goes on from there.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pandas as pd
import torch

from benchmarks import asked
from benchmarks.repair import CALIBRATION, SENSITIVE, STATES, Bench
from pruning.core.neurons import Keep
from pruning.fusion.calibration import removal_curves
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.models.base import LanguageModel
from pruning.models.mixed import MixedLanguageModel
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances, activations
from pruning.signals.cooperative import cooperative
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.signals.weights import weights
from tasks.shown.console import track

RATIOS, FLOOR = (0.25, 0.5, 0.75), 8
CURVE, CURVE_WINDOWS, PROBES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85), 20, 60
CHOICES, REPAIRS = ("surgeon", "fused"), ("none", "ridge")
UNUSED: dict[str, Any] = {"batches": 2, "bins": 8, "classes": 8, "ridge": 1e-4}
"""Settings of `criteria`, which `fuse` passes on and nothing here chooses by."""


def ways(most: Mapping[str, int], least: int, total: int) -> dict[str, dict[str, Any]]:
    """Return name → settings of `retention` of each way to share `total` neurons between the kinds.

    A ratio is left out that a kind cannot fill, or whose floors would keep more neurons than the others keep.

    Args:
        most: Network type → how many neurons there are.
        least: How many neurons of each kind the floors keep.
        total: How many are to stay.
    """
    quotas = [{"rnn": 1 - ratio, "snn": ratio} for ratio in RATIOS]
    possible = [quota for quota in quotas if all(least <= quota[kind] * total <= most[kind] for kind in most)]
    fixed = {f"{quota['snn']:.0%} spiking": {"scope": "absolute", "quota": quota} for quota in possible}
    return {"free": {"scope": "absolute"}, **fixed, "equal shares": {"scope": "layer"}}


def calibrated(bench: Bench, seed: int) -> tuple[pd.DataFrame, Covariances]:
    """Return importance that is comparable between the kinds, by the surgeon's order and by calibrated fusion.

    The surgeon ranks all neurons by one loss; the fused score becomes, layer half by layer half, the loss that removal
    is measured to cost.
    """
    model, windows = bench.dense, bench.windows("train", **CALIBRATION, seed=seed)
    active, states = activations(model, windows, activation_samples=STATES, bins=32, track=track)
    tables = {
        "weights": weights(model, threshold=0.1, bins=32),
        "hessian": hessian(model, windows, probes=PROBES, stability=0.9, seed=seed, track=track),
        "activations": active,
        "gradients": gradients(model, windows, batches=STATES, track=track),
        "cooperative": cooperative(model, states, strong=0.75),
        "surgeon": surgeon(
            states, sensitivities(model, windows, batches=SENSITIVE, seed=seed, track=track), damping=1e-4
        ),
    }
    tables["criteria"] = criteria(model, windows, **UNUSED, seed=seed, track=track)
    some = list(islice(windows, CURVE_WINDOWS))
    curves = partial(removal_curves, model, some, by="fused", shares=CURVE, track=track)
    return fuse(tables, Fusing(strategy="simple", seed=seed, calibration="removal"), curves=curves), states


def measure(bench: Bench, keeps: Sequence[float], seeds: Sequence[int]) -> None:
    """Measure every cell that is missing."""
    bench.cell("dense", lambda: {"perplexity": bench.perplexity(bench.dense)})
    for seed in seeds:
        wanted = list(cells(bench.dense, keeps, seed))
        if all(f"{name}/{repair}" in bench.cells for name, *_ in wanted for repair in REPAIRS):
            continue
        importance, states = calibrated(bench, seed)
        kinds = {layer.name: layer.kind for layer in bench.dense.layers()}
        for name, by, allocation in wanted:
            retained = retention(importance, allocation, variant=name, by=by, kinds=kinds)
            for repair in REPAIRS:
                bench.cell(f"{name}/{repair}", partial(measured, bench, keep_of(retained), states, repair))


def cells(model: LanguageModel, keeps: Sequence[float], seed: int) -> Iterator[tuple[str, str, Allocation]]:
    """Yield (name, what to choose by, allocation) of all that one seed measures."""
    layers = model.layers()
    sizes = {kind: sum(layer.width for layer in layers if layer.kind == kind) for kind in ("rnn", "snn")}
    floors = FLOOR * len(layers) // 2
    for keep in keeps:
        for way, settings in ways(sizes, floors, round(keep * sum(sizes.values()))).items():
            for by in CHOICES:
                yield f"{keep}/{by}/{way}/{seed}", by, Allocation(retain=keep, floor=FLOOR, **settings)


def measured(bench: Bench, keep: Keep, states: Covariances, repair: str) -> dict[str, float]:
    """Return the smaller model's perplexity and how many neurons of each kind it has."""
    smaller = reconstruct(bench.dense, keep, states, repair=repair)
    layers = smaller.layers()
    counts = {kind: float(sum(layer.width for layer in layers if layer.kind == kind)) for kind in ("rnn", "snn")}
    return {"perplexity": bench.perplexity(smaller), **counts}


def report(bench: Bench, keeps: Sequence[float]) -> None:
    """Print perplexities over seeds, mean ± largest deviation, as Markdown."""
    print(f"\ndense: {bench.cells['dense']['perplexity']:.1f}\n")
    print("| keep | chosen by | kinds | recurrent, spiking | removed | ridge |\n|---|---|---|---:|---:|---:|")
    for keep in keeps:
        for by in CHOICES:
            for way in dict.fromkeys(name.split("/")[2] for name in bench.cells if name.startswith(f"{keep}/{by}/")):
                none, ridge = (_seeds(bench, f"{keep}/{by}/{way}/", repair) for repair in REPAIRS)
                kept = ", ".join(f"{statistics.mean(cell[kind] for cell in none):.0f}" for kind in ("rnn", "snn"))
                print(f"| {keep:.0%} | {by} | {way} | {kept} | {_spread(none)} | {_spread(ridge)} |")


def _seeds(bench: Bench, prefix: str, repair: str) -> list[dict[str, float]]:
    return [cell for name, cell in bench.cells.items() if name.startswith(prefix) and name.endswith(f"/{repair}")]


def _spread(cells_of_seeds: Sequence[Mapping[str, float]]) -> str:
    values = [cell["perplexity"] for cell in cells_of_seeds]
    middle = statistics.mean(values)
    return f"{middle:.1f} ± {max(abs(value - middle) for value in values):.1f}"


def main() -> None:
    """Measure every cell that is missing and print the table."""
    from tasks.common.models import read_model
    from tasks.common.tables import read_table
    from tasks.common.windows import first_token

    parser = argparse.ArgumentParser(prog="python -m benchmarks.supernet", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=asked.results, default="data", help="results of a run with train.family: mixed")
    parser.add_argument("--keep", type=asked.share, nargs="+", default=[0.5, 0.35], help="shares of neurons to keep")
    parser.add_argument(
        "--seeds", type=asked.index, nargs="+", default=[0, 1, 2], help="seeds of calibration to measure"
    )
    parser.add_argument("--results", type=asked.file, default="supernet.jsonl", help="where cells are kept")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    dense = read_model(given.data / "train/model")
    if not isinstance(dense, MixedLanguageModel):
        parser.exit(2, f"Expected a mixed model in {given.data}, got another; `dvc exp run -S train.family=mixed`.\n")
    corpus = read_table(given.data / "prepare/corpus.parquet")
    splits = {
        str(split): torch.tensor(rows["token"].to_numpy(), dtype=torch.long) for split, rows in corpus.groupby("split")
    }
    bench = Bench(
        dense.decoupled(), splits, first_token(given.data / "prepare/vocabulary.parquet"), results=given.results
    )
    if given.results.is_file():
        for line in given.results.read_text(encoding="utf-8").splitlines():
            bench.cells |= json.loads(line)
    measure(bench, given.keep, given.seeds)
    report(bench, given.keep)


if __name__ == "__main__":
    main()
