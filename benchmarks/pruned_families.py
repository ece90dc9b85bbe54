"""What pruning does to each family on one corpus: dense, half of the neurons removed, repaired, fine-tuned.

`python -m benchmarks.pruned_families --corpus FOLDER` trains a model of each family (2 layers of 128 units; of a mixed
one 64 + 64) for one epoch, removes half of its neurons in the surgeon's order over all layers, repairs (ridge, then
imitation) and fine-tunes all, the dense one too, on a tenth of the text beside the dense model. Perplexity on the
validation split, state carried. A row is kept in `--results` as soon as it is measured, one of a family and a seed.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from benchmarks import asked
from benchmarks.families import WOKEN
from pruning.core.neurons import Keep, select
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.evaluation.energy import energy_of
from pruning.evaluation.measures import loss_of
from pruning.models import build
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances, activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from pruning.training.recipes import Recipe
from tasks.experiment.published import read_splits
from tasks.shown.console import track

FAMILIES = {
    "lstm": {"family": "lstm", "widths": (128, 128)},
    "gru": {"family": "gru", "widths": (128, 128)},
    "rnn": {"family": "rnn", "widths": (128, 128), "nonlinearity": "tanh"},
    "snn": {"family": "snn", "widths": (128, 128), **WOKEN},
    "mixed": {"family": "mixed", "widths": (64, 64), "cell": "lstm", "snn_widths": (64, 64), **WOKEN},
}
RATES = {"snn": 4e-3}
"""Learning rates of dense models other than `TRAINING`'s."""
TRAINING = Recipe(epochs=1, portion=1.0, learning_rate=8e-3, warmup=0.05, weight_decay=0.01, clip=0.5, patience=1)
EXTRA = Recipe(epochs=1, portion=0.1, learning_rate=1e-3, warmup=0.05, weight_decay=0.01, clip=0.5, patience=1)
IMITATION = Imitation(tokens=112_000, learning_rate=4e-3, warmup=0.05, clip=1.0)
KEEP, FLOOR, SHARE = 0.5, 8, 0.5
COLUMNS = ("dense", "removed", "ridge", "imitate", "fine-tuned", "dense fine-tuned")


def vocabulary_of(folder: Path) -> dict[str, int]:
    """Return the words of the training text by number, in the order in which they come."""
    words = (folder / "ptb.train.txt").read_text(encoding="utf-8").split()
    return {word: number for number, word in enumerate(dict.fromkeys([END_OF_LINE, *words]))}


def kept(states: Covariances, moments: Covariances) -> Keep:
    """Return the neurons that the surgeon removes last, at least `FLOOR` of each layer."""
    order = surgeon(states, moments, damping=1e-4)
    allocation = Allocation(retain=KEEP, floor=FLOOR, scope="absolute")
    return keep_of(retention(order, allocation, variant="surgeon", by="importance"))


def trained(
    model: LanguageModel, windows: Windows, valid: Windows, recipe: Recipe, teacher: LanguageModel | None, seed: int
) -> None:
    """Train in place."""
    taught = teacher and Teacher.of(teacher, share=SHARE)
    for _ in train(model, windows, valid, recipe=recipe, seed=seed, teacher=taught, track=track):
        continue


def measured(config: dict[str, object], splits: dict[str, torch.Tensor], size: int, seed: int) -> dict[str, float]:
    """Return the row of a family and a seed of its training and of what is drawn."""
    windows, calibration, valid = (
        Windows(splits[split], first=0, batch=batch, bptt=bptt)
        for split, batch, bptt in (("train", 20, 35), ("train", 32, 35), ("valid", 10, 100))
    )
    torch.manual_seed(seed)
    dense = build(**{"vocabulary": size, "embedding": 128, "decoder": "untied", "dropout": 0.1, **config})
    dense.expect(windows.targets)
    start = time.perf_counter()
    rate = RATES.get(str(config["family"]), TRAINING.learning_rate)
    trained(dense, windows, valid, replace(TRAINING, learning_rate=rate), None, seed)
    row = {"train seconds": time.perf_counter() - start, "dense": loss_of(dense, valid).perplexity}
    row |= {"dense energy": energy_of(dense, [valid[0]]).energy, "multiply_adds": dense.multiply_adds()}
    states = activations(dense, calibration, activation_samples=60, bins=32, track=track)[1]
    moments = sensitivities(dense, calibration, batches=20, seed=seed, track=track)
    keep = kept(states, moments)
    row |= {f"kept {name}": len(own) for name, own in keep.items()}
    row["removed"] = loss_of(select(dense, keep), valid).perplexity
    smaller = reconstruct(dense, keep, states, repair="ridge")
    row["ridge"] = loss_of(smaller, valid).perplexity
    smaller = imitate(smaller, dense, calibration, imitation=IMITATION, track=track)
    row["imitate"] = loss_of(smaller, valid).perplexity
    control = copy.deepcopy(dense)
    for name, model in (("fine-tuned", smaller), ("dense fine-tuned", control)):
        trained(model, windows, valid, EXTRA, dense, seed)
        row[name] = loss_of(model, valid).perplexity
    return row | {"energy": energy_of(smaller, [valid[0]]).energy, "pruned multiply_adds": smaller.multiply_adds()}


def main() -> None:
    """Measure every family that is missing and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruned_families", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--corpus", type=asked.splits, required=True, help="a folder with ptb.{train,valid,test}.txt")
    parser.add_argument(
        "--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="families of recurrent layers"
    )
    parser.add_argument("--seeds", nargs="+", type=asked.index, default=[1, 2, 3], help="of the dense models")
    parser.add_argument("--results", type=asked.file, default="pruned_families.jsonl", help="where rows are kept")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    vocabulary = vocabulary_of(given.corpus)
    splits = read_splits(given.corpus, vocabulary)
    rows: dict[str, dict[str, float]] = {}
    if given.results.is_file():
        for line in given.results.read_text(encoding="utf-8").splitlines():
            rows |= json.loads(line)
    for seed, name in product(given.seeds, given.families):
        if f"{name}/{seed}" not in rows:
            row = rows[f"{name}/{seed}"] = measured(FAMILIES[name], splits, len(vocabulary), seed)
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({f"{name}/{seed}": row}) + "\n")
    print("\n".join(report({key: row for key, row in rows.items() if key.split("/")[0] in given.families})))


def report(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the table of families, mean over seeds ± largest deviation, as Markdown."""
    lines = ["| family | seeds | " + " | ".join(COLUMNS) + " | multiply-adds | nJ/token |"]
    lines.append("|---|---:|" + "---:|" * (len(COLUMNS) + 2))
    for name in dict.fromkeys(key.split("/")[0] for key in rows):
        seeds = [row for key, row in rows.items() if key.split("/")[0] == name]
        cells = [_spread([row[column] for row in seeds]) for column in COLUMNS]
        for pair, unit in ((("multiply_adds", "pruned multiply_adds"), 1), (("dense energy", "energy"), 1e3)):
            cells.append(" → ".join(f"{statistics.mean(row[one] for row in seeds) / unit:,.0f}" for one in pair))
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    deviation = max(abs(value - mean) for value in values)
    return f"{mean:.1f} ± {deviation:.1f}" if len(values) > 1 else f"{mean:.1f}"


if __name__ == "__main__":
    main()
