"""Importance while training beside pruning at once, at the same number of training tokens, on a default run's model.

`python -m benchmarks.while_training --data FOLDER --state FOLDER [--epochs 1 3] [--keep 0.5 0.25] [--seeds 1 2 3]
[--ways iterative dense] [--learning-rate 2e-3]`, with the `data` of a finished default run (it reads `prepare` and
`train/model`). All but one learn from the labels alone, in so many passes over the training text, and are the
best of their epochs on its validation text:

- at once: chosen by the surgeon, readers refitted (`ridge`), then trained; also with the dense model as a teacher;
- gradual: the gradients of training choose, neurons leave over the first half (`prune_gradually`), also with the group
  lasso;
- iterative: a tenth leaves, readers are refitted, some training, all is measured again (`prune_iteratively`);
- the dense model with the same training.

What signals read is part of the text that is trained on, so no way sees text that another does not; `read again` counts
it in tokens, forwards and backwards each. Each cell is kept as soon as it is known, so that the same command goes on
from where it was, and several processes with other options may share a folder.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import asked
from benchmarks.resumable import replaced
from pruning.core.neurons import select
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of, size_of
from pruning.models import describe, rebuild
from pruning.models.base import LanguageModel
from pruning.steps.iterating import Rounds, prune_iteratively
from pruning.training.distillation import Teacher
from pruning.training.gradual import prune_gradually, pruned
from pruning.training.loop import steps_an_epoch, train
from pruning.training.recipes import Recipe
from pruning.training.thinning import Schedule, Thinning
from tasks.common.models import read_model

BATCH, BPTT, FLOOR, CALIBRATION, DAMPING = 32, 35, 8, 30, 1e-4
TENTH = 0.9
"""Share of the neurons that a round leaves."""


@dataclass(frozen=True)
class Trial:
    """What all ways share."""

    dense: LanguageModel
    windows: Windows
    valid: Windows
    test: Windows
    recipe: Recipe

    def more(self, _: float, seed: int) -> LanguageModel:
        """Return the dense model after the training."""
        model = select(self.dense, {})
        last = list(train(model, self.windows, self.valid, recipe=self.recipe, seed=seed))[-1]
        model.load_state_dict(last.best())
        return model

    def rounds(self, keep: float, seed: int, rounds: int, last: float, teacher: Teacher | None = None) -> LanguageModel:
        """Return what pruning in rounds comes to."""
        how = Rounds(retain=keep, rounds=rounds, floor=FLOOR, calibration=CALIBRATION, damping=DAMPING, last=last)
        *_, state = prune_iteratively(
            self.dense, self.windows, self.valid, rounds=how, recipe=self.recipe, seed=seed, teacher=teacher
        )
        assert isinstance(state.model, LanguageModel)
        return state.model

    def taught(self, keep: float, seed: int) -> LanguageModel:
        """Return what removing all at the start comes to, half of the teaching being the dense model's."""
        own = Trial(self.dense, self.windows, self.valid, self.test, replace(self.recipe, softmax="full"))
        return own.rounds(keep, seed, 1, 1.0, Teacher.of(self.dense, share=0.5, temperature=1.0))

    def at_once(self, keep: float, seed: int) -> LanguageModel:
        """Return what removing all at the start comes to."""
        return self.rounds(keep, seed, 1, 1.0)

    def iterative(self, keep: float, seed: int) -> LanguageModel:
        """Return what removing a tenth at a time comes to."""
        return self.rounds(keep, seed, rounds_to(keep), 0.5)

    def gradual(self, keep: float, seed: int, penalty: float = 0.0) -> LanguageModel:
        """Return what gradual pruning comes to."""
        thinning = Thinning(
            retain=keep, floor=FLOOR, schedule=Schedule(begin=0.05, end=0.5, every=10), momentum=0.98, penalty=penalty
        )
        *_, last = prune_gradually(
            self.dense, self.windows, self.valid, recipe=self.recipe, thinning=thinning, seed=seed
        )
        return pruned(self.dense, last)

    def lasso(self, keep: float, seed: int) -> LanguageModel:
        """Return what gradual pruning with the group lasso comes to."""
        return self.gradual(keep, seed, penalty=2.0)


def rounds_to(keep: float) -> int:
    """Return in how many rounds of a tenth so many neurons are left."""
    return math.ceil(math.log(keep) / math.log(TENTH))


WAYS: dict[str, Callable[[Trial, float, int], LanguageModel]] = {
    "at once": Trial.at_once,
    "at once, taught": Trial.taught,
    "gradual": Trial.gradual,
    "gradual, group lasso": Trial.lasso,
    "iterative": Trial.iterative,
    "dense": Trial.more,
}


READ_AGAIN: dict[str, Callable[[float], int]] = {
    "at once": lambda _: 1,
    "at once, taught": lambda _: 1,
    "iterative": rounds_to,
}
"""Of ways that stop to measure, how often they do."""


def trial_of(data: Path, epochs: int, portion: float, rate: float) -> Trial:
    """Return what all ways share, from a default run."""
    words = pd.read_parquet(data / "prepare/vocabulary.parquet")
    first = int(words.loc[words["text"] == END_OF_LINE, "token"].iloc[0])
    rows = pd.read_parquet(data / "prepare/corpus.parquet")
    tokens = {
        split: torch.tensor(rows.loc[rows["split"] == split, "token"].to_numpy(), dtype=torch.long)
        for split in ("train", "valid", "test")
    }
    dense = read_model(data / "train/model").cpu()
    assert isinstance(dense, LanguageModel)
    config, tensors = describe(dense.decoupled())
    recipe = Recipe(
        epochs=epochs,
        portion=portion,
        learning_rate=rate,
        warmup=0.05,
        weight_decay=0.01,
        clip=0.5,
        patience=epochs,  # the same budget for all, whatever validation says
        softmax="chunked",
    )
    windows = Windows(tokens["train"], first=first, batch=BATCH, bptt=BPTT)
    valid, test = (Windows(tokens[split], first=first, batch=10, bptt=100) for split in ("valid", "test"))
    return Trial(rebuild(config, tensors), windows, valid, test, recipe)


def measured(trial: Trial, way: str, keep: float, seed: int) -> dict[str, Any]:
    """Return the facts of one cell."""
    start = time.process_time()
    model = WAYS[way](trial, keep, seed)
    seconds = time.process_time() - start
    recipe, tokens = trial.recipe, BATCH * BPTT
    return {
        "way": way,
        "keep": keep,
        "seed": seed,
        "epochs": recipe.epochs,
        "learning rate": recipe.learning_rate,
        "widths": list(model.widths()),
        "parameters": size_of(model).parameters,
        "valid": loss_of(model, trial.valid).perplexity,
        "test": loss_of(model, trial.test).perplexity,
        "trained": recipe.epochs * steps_an_epoch(recipe, trial.windows) * tokens,
        "read again": (READ_AGAIN[way](keep) if way in READ_AGAIN else 0) * CALIBRATION * tokens,
        "processor seconds": seconds,
    }


def table(state: Path) -> list[str]:
    """Return the table of what is known."""
    each = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(state.glob("*.json"))]
    if not each:
        return []
    by = ["epochs", "keep", "way", "learning rate"]
    rows = pd.DataFrame(each).sort_values(by, ascending=[True, False, True, True]).groupby(by, sort=False)
    lines = [
        "| epochs | keep | how | learning rate | seeds | valid | test | parameters | read again | processor seconds |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for _, cells in rows:
        epochs, keep, way, rate = cells[by].iloc[0]
        means = cells.mean(numeric_only=True)
        one = {name: f"{means[name]:.1f}{_spread(cells[name])}" for name in ("valid", "test")}
        size = f"{means['parameters']:,.0f} | {means['read again']:,.0f} | {means['processor seconds']:.0f}"
        what = f"{epochs} | {keep:.0%} | {way} | {rate:g} | {len(cells)}"
        lines.append(f"| {what} | {one['valid']} | {one['test']} | {size} |")
    return lines


def _spread(values: pd.Series) -> str:
    """Return how far the furthest seed is from the mean."""
    return f" ± {(values - values.mean()).abs().max():.1f}" if len(values) > 1 else ""


def main() -> None:
    """Do what is left to do, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.while_training", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=asked.results, default="data", help="of a finished default run")
    parser.add_argument("--state", type=asked.folder, required=True, help="folder of what is known so far")
    parser.add_argument(
        "--epochs", type=asked.count, nargs="+", default=[1, 3], help="passes over the text, of all rounds"
    )
    parser.add_argument("--keep", type=asked.share, nargs="+", default=[0.5, 0.25], help="shares of the neurons")
    parser.add_argument("--seeds", type=asked.index, nargs="+", default=[1, 2, 3], help="of the dense models")
    parser.add_argument(
        "--ways", nargs="+", default=[*WAYS], choices=[*WAYS], metavar="WAY", help=f"of {'; '.join(WAYS)}"
    )
    parser.add_argument("--portion", type=asked.share, default=1.0, help="of the training text, for a short try")
    parser.add_argument("--learning-rate", type=asked.amount, default=2e-3, help="highest learning rate after pruning")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    given.state.mkdir(parents=True, exist_ok=True)
    for epochs, seed, share, way in product(given.epochs, given.seeds, given.keep, given.ways):
        keep = 1.0 if way == "dense" else share
        name = f"{way.replace(', ', '-').replace(' ', '-')}-{keep:g}-{epochs}-{given.learning_rate:g}-{seed}"
        if (file := given.state / f"{name}.json").exists():
            continue
        facts = measured(trial_of(given.data, epochs, given.portion, given.learning_rate), way, keep, seed)
        replaced(file, json.dumps(facts))
        print(facts, flush=True)
    print("\n".join(table(given.state)))


if __name__ == "__main__":
    main()
