"""How soon the Hessian and its Gauss–Newton part rank the neurons of a published checkpoint, and as whom.

`python -m benchmarks.ranks --corpus FOLDER --checkpoint FILE --into FOLDER` measures and prints the table; of packages
it needs those of the library alone. What it measures is in parts, each done once and kept in the folder: probes by each
method on each half of the training text (`exact-1-0` is the first part of the first half), and the measured removal of
every neuron on each half of the validation text (`removal-1`). `--only` names parts to measure, for processes side by
side; the table is printed when none is missing.

Two runs never read the same text (but for what is left over of its last window), so what they agree on is not the
text's doing. A ranking by n probes is that of the first n of a run.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

import torch
from safetensors import safe_open
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import asked
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.modes import carried
from pruning.core.options import Curvature as Method
from pruning.data.corpus import END_OF_LINE, numbered, published_lines, published_names
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel
from pruning.models.checkpoint import unstacked
from pruning.signals.curvature import Curvature
from pruning.signals.hessian import mean_squares

METHODS: tuple[Method, ...] = ("exact", "gauss_newton")
RUNS = (1, 2)
SHAPE, JUDGED = {"batch": 32, "bptt": 35}, {"batch": 10, "bptt": 35}
COUNTS = (16, 24, 32, 60, 100, 200, 300, 400)
"""Probes that rankings are looked at after."""
Probes = dict[str, Tensor]
"""Layer → what each probe says of each neuron, (probes, width)."""


def read(checkpoint: Path, corpus: Path) -> tuple[LanguageModel, dict[str, Tensor], int]:
    """Return a checkpoint's model, the corpus's splits in its vocabulary, and the number of `<eos>`."""
    with safe_open(checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        model = unstacked(file.metadata(), tensors, name=checkpoint.name)
    (words,) = checkpoint.parent.glob("*vocabulary*.txt")
    vocabulary = {word: place for place, word in enumerate(words.read_text("utf-8").removesuffix("\n").split("\n"))}
    names = published_names(path.name for path in corpus.iterdir())
    splits = {
        split: torch.from_numpy(numbered(published_lines((corpus / name).read_text("utf-8")), vocabulary))
        for split, name in names.items()
    }
    return model.decoupled(), splits, vocabulary[END_OF_LINE]


def probes(model: LanguageModel, windows: Windows, method: Method, first: int, number: int, seed: int) -> Probes:
    """Return what each of some probes says, the first of them on window `first`."""
    curvature = Curvature(model, model.layers(), method=method, generator=torch.Generator().manual_seed(seed))
    rows: dict[str, list[Tensor]] = {layer.name: [] for layer in model.layers()}
    state = None
    with curvature.running():
        for index in range(first, first + number):
            traces, state = curvature.estimate(*windows[index % len(windows)], carried(state))
            for name, trace in traces.items():
                rows[name].append(trace.double())
    return {name: torch.stack(values) for name, values in rows.items()}


def parts(given: argparse.Namespace) -> dict[str, Callable[[], tuple[Probes, float]]]:
    """Return what there is to measure, by name; each gives its numbers and the processor seconds that they took."""
    model, splits, first = read(given.checkpoint, given.corpus)

    def timed(measure: Callable[[], Probes]) -> tuple[Probes, float]:
        start = time.process_time()
        return measure(), time.process_time() - start

    def probed(method: Method, run: int, part: int) -> Callable[[], tuple[Probes, float]]:
        text = Windows(splits["train"].chunk(2)[run - 1], first=first, **SHAPE)
        start, seed = part * given.part, 1000 * run + part
        return lambda: timed(lambda: probes(model, text, method, start, given.part, seed))

    def removed(run: int) -> Callable[[], tuple[Probes, float]]:
        text = Windows(splits["valid"].chunk(2)[run - 1], first=first, **JUDGED)
        ablation = Ablation(neurons="all", tokens=given.tokens, words=64, seed=run)
        return lambda: timed(
            lambda: {
                str(name): torch.tensor(rows["loss_increase"].to_numpy())[None]
                for name, rows in oracle(model, text, ablation).groupby("layer", sort=False)
            }
        )

    pieces = range(-(-given.probes // given.part))
    whole = [(method, run, part) for method in METHODS for run in RUNS for part in pieces]
    found = {f"{method}-{run}-{part}": probed(method, run, part) for method, run, part in whole}
    return found | {f"removal-{run}": removed(run) for run in RUNS}


def kept(folder: Path, start: str) -> tuple[Probes, float]:
    """Return the probes of all parts whose names begin so, in their order, and the processor seconds of one probe."""
    files = [folder / f"{start}{end}.pt" for end in ("", *(f"-{part}" for part in range(len(list(folder.iterdir())))))]
    loaded = [torch.load(file) for file in files if file.exists()]
    whole = {name: torch.cat([numbers[name] for numbers, _ in loaded]) for name in loaded[0][0]}
    return whole, sum(seconds for _, seconds in loaded) / len(next(iter(whole.values())))


def alike(one: Tensor, other: Tensor) -> float:
    """Return the Spearman correlation."""
    return float(spearmanr(one, other).statistic)


def lines(folder: Path, scales: Mapping[str, Tensor]) -> list[str]:
    """Return the table's rows, of each method and layer."""
    runs = {(method, run): kept(folder, f"{method}-{run}") for method in METHODS for run in RUNS}
    removal = [kept(folder, f"removal-{run}")[0] for run in RUNS]
    shown = []
    for name, scale in scales.items():
        truth = mean_of([each[name][0] for each in removal])
        known = alike(removal[0][name][0], removal[1][name][0])
        of_truth = (2 * known / (1 + known)) ** 0.5
        whole = {run: runs["exact", run][0][name].mean(0) * scale for run in RUNS}
        r = alike(whole[1], whole[2])
        shown.append(
            f"| exact, both runs of {len(runs['exact', 1][0][name])} together | {name} | "
            f"| {2 * r / (1 + r):.3f} | 1 | {alike(mean_of(list(whole.values())), truth) / of_truth:.2f} |"
        )
        for method in METHODS:
            (one, seconds), (other, _) = runs[method, 1], runs[method, 2]
            for number in (n for n in COUNTS if n <= len(one[name])):
                ranked = [each[name][:number].mean(0) * scale for each in (one, other)]
                as_exact = mean(alike(ranked[0 if run == 1 else 1], whole[3 - run]) for run in RUNS) / r**0.5
                as_removed = mean(alike(each, truth) for each in ranked) / of_truth
                cells = f"{number * seconds:.0f} | {alike(*ranked):.2f} | {as_exact:.2f} | {as_removed:.2f}"
                shown.append(f"| {method}, {number} | {name} | {cells} |")
    return shown


def mean_of(tensors: list[Tensor]) -> Tensor:
    """Return the mean of some tensors."""
    return torch.stack(tensors).mean(0)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--corpus", type=asked.splits, required=True, help="a folder of published splits")
    parser.add_argument(
        "--checkpoint", type=asked.checkpoint, required=True, help="a dense model, its vocabulary beside it"
    )
    parser.add_argument("--into", type=asked.folder, required=True, help="where parts are kept")
    parser.add_argument("--only", nargs="+", help="the parts to measure")
    parser.add_argument("--probes", type=asked.count, default=400, help="of each run and method")
    parser.add_argument("--part", type=asked.count, default=100, help="probes of a part")
    parser.add_argument("--tokens", type=asked.count, default=10_000, help="that each half's removal is measured on")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    given.into.mkdir(parents=True, exist_ok=True)
    measures = parts(given)
    for name in given.only or measures:
        if not (given.into / f"{name}.pt").exists():
            numbers, seconds = measures[name]()
            torch.save((numbers, seconds), given.into / f".{name}.pt")
            (given.into / f".{name}.pt").rename(given.into / f"{name}.pt")
            print(f"{name}: {seconds:.0f} s", flush=True)
    missing = [name for name in measures if not (given.into / f"{name}.pt").exists()]
    if missing:
        print(f"Missing: {missing}.")
        return
    print("| method, probes | layer | processor s | two runs | as the Hessian | as removal |")
    print("|---|---|---:|---:|---:|---:|")
    print("\n".join(lines(given.into, mean_squares(read(given.checkpoint, given.corpus)[0]))))


if __name__ == "__main__":
    main()
