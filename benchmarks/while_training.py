"""Importance while training beside pruning at once, at the same number of training tokens, on a default run's model.

`python -m benchmarks.while_training --data FOLDER --state FOLDER [--keep 0.5 0.25] [--seeds 1 2 3] [--portion 1.0]`,
with the `data` of a finished default run. All learn from the labels alone, for one pass over that portion of the
training text:

- at once: chosen by the surgeon, readers refitted (`ridge`), then trained;
- gradual: the gradients of training choose, neurons leave over the first half (`prune_gradually`), also with the group
  lasso;
- iterative: a tenth leaves, readers are refitted, some training, all is measured again (`prune_iteratively`);
- the dense model with the same training.

Each row is kept as soon as it is known, so that the same command goes on from where it was.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from benchmarks.resumable import replaced
from pruning.core.neurons import select
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of, size_of
from pruning.models import describe, rebuild
from pruning.models.base import LanguageModel
from pruning.steps.iterating import Rounds, prune_iteratively
from pruning.training.gradual import prune_gradually, pruned
from pruning.training.loop import Recipe, train
from pruning.training.thinning import Schedule, Thinning
from tasks.common.models import read_model

FLOOR, CALIBRATION, DAMPING = 8, 30, 1e-4
TENTH = 0.9
"""Share of the neurons that a round leaves."""


@dataclass(frozen=True)
class Trial:
    """What all ways share."""

    dense: LanguageModel
    windows: Windows
    valid: Windows
    recipe: Recipe

    @property
    def few(self) -> list[object]:
        """Validation text for trainings whose best epoch is their only one."""
        return [self.valid[0]]

    def trained(self, model: LanguageModel, seed: int) -> LanguageModel:
        """Return a model after the training."""
        *_, last = train(model, self.windows, self.few, recipe=self.recipe, seed=seed)
        model.load_state_dict(last.best())
        return model

    def more(self, _: float, seed: int) -> LanguageModel:
        """Return the dense model after the training."""
        return self.trained(select(self.dense, {}), seed)

    def rounds(self, keep: float, seed: int, rounds: int, last: float) -> LanguageModel:
        """Return what pruning in rounds comes to."""
        how = Rounds(retain=keep, rounds=rounds, floor=FLOOR, calibration=CALIBRATION, damping=DAMPING, last=last)
        *_, found = prune_iteratively(self.dense, self.windows, self.few, rounds=how, recipe=self.recipe, seed=seed)
        assert isinstance(found.model, LanguageModel)
        return found.model

    def at_once(self, keep: float, seed: int) -> LanguageModel:
        """Return what removing all at the start comes to."""
        return self.rounds(keep, seed, 1, 1.0)

    def iterative(self, keep: float, seed: int) -> LanguageModel:
        """Return what removing a tenth at a time comes to."""
        return self.rounds(keep, seed, math.ceil(math.log(keep) / math.log(TENTH)), 0.5)

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


WAYS: dict[str, Callable[[Trial, float, int], LanguageModel]] = {
    "at once": Trial.at_once,
    "gradual": Trial.gradual,
    "gradual, group lasso": Trial.lasso,
    "iterative": Trial.iterative,
    "dense": Trial.more,
}


def trial_of(data: Path, portion: float, rate: float) -> Trial:
    """Return what all ways share, from a default run."""
    words = pd.read_parquet(data / "prepare/vocabulary.parquet")
    first = int(words.loc[words["text"] == END_OF_LINE, "token"].iloc[0])
    rows = pd.read_parquet(data / "prepare/corpus.parquet")
    tokens = {
        split: torch.tensor(rows.loc[rows["split"] == split, "token"].to_numpy(), dtype=torch.long)
        for split in ("train", "valid")
    }
    dense = read_model(data / "train/model").cpu()
    assert isinstance(dense, LanguageModel)
    config, tensors = describe(dense.decoupled())
    recipe = Recipe(epochs=1, portion=portion, learning_rate=rate, warmup=0.05, weight_decay=0.01, clip=0.5, patience=1)
    windows = Windows(tokens["train"], first=first, batch=32, bptt=35)
    judged = Windows(tokens["valid"][:20_000], first=first, batch=10, bptt=100)
    return Trial(rebuild(config, tensors), windows, judged, recipe)


def table(state: Path) -> list[str]:
    """Return the table of what is known."""
    rows: dict[tuple[float, str], list[dict[str, float]]] = {}
    for file in sorted(state.glob("*.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        rows.setdefault((facts["keep"], facts["way"]), []).append(facts)
    lines = ["| keep | how | seeds | valid perplexity | parameters |", "|---|---|---:|---:|---:|"]
    for (keep, way), each in sorted(rows.items(), key=lambda item: (-item[0][0], item[0][1])):
        values: Sequence[float] = [one["perplexity"] for one in each]
        mean, size = sum(values) / len(values), sum(one["parameters"] for one in each) / len(each)
        beside = f" ± {max(abs(value - mean) for value in values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {keep:.0%} | {way} | {len(values)} | {mean:.1f}{beside} | {size:,.0f} |")
    return lines


def main() -> None:
    """Do what is left to do, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.while_training", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="of a finished default run")
    parser.add_argument("--state", type=Path, required=True, help="folder of what is known so far")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25], help="shares of the neurons")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--portion", type=float, default=1.0, help="of the training text")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    given.state.mkdir(parents=True, exist_ok=True)
    trial = trial_of(given.data, given.portion, given.learning_rate)
    for seed in given.seeds:
        for keep in given.keep:
            for way in given.ways:
                share = 1.0 if way == "dense" else keep
                file = given.state / f"{way.replace(', ', '-').replace(' ', '-')}-{share:g}-{seed}.json"
                if file.exists():
                    continue
                model = WAYS[way](trial, share, seed)
                facts = {"way": way, "keep": share, "seed": seed, "widths": list(model.widths())}
                facts |= {"parameters": size_of(model).parameters, "perplexity": loss_of(model, trial.valid).perplexity}
                replaced(file, json.dumps(facts))
                print(facts, flush=True)
    print("\n".join(table(given.state)))


if __name__ == "__main__":
    main()
