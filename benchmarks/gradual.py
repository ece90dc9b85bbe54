"""Gradual pruning against removing all at once, from one dense checkpoint and with the same training tokens.

`python -m benchmarks.gradual --corpus FOLDER --checkpoint FILE`: FOLDER holds published splits, FILE is read by
`tasks.experiment.published`. For each share of neurons kept: gradual pruning over one epoch without and with the group
lasso; the same criterion measured on the dense model, all removed at once, then one epoch of the same training. A
dense row gets that epoch too. Seconds are those of training steps, validation left out; *measuring* is what the choice
at once costs before; *last tenth* is the speed that gradual pruning ends at. `--portion 0.05` is a short try.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks import asked
from pruning.core.modes import carried, evaluating
from pruning.core.neurons import Keep, select
from pruning.core.progress import Item
from pruning.data.corpus import END_OF_LINE
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel
from pruning.signals.gradients import gate_gradients
from pruning.training.gradual import most_important, prune_gradually, pruned, renewed
from pruning.training.loop import Trained, steps_an_epoch, train
from pruning.training.recipes import Recipe
from pruning.training.thinning import Schedule, Thinning
from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary

BATCH, BPTT = 20, 35
VALID_BATCH, VALID_BPTT = 10, 100
MOMENTUM, FLOOR = 0.98, 8
SETTLED = 150
"""Windows after which a moving average with this momentum has forgotten 95% of where it started."""


@dataclass
class Stopwatch:
    """Times the steps of an epoch, as the `track` of a training.

    Attributes:
        marks: Seconds at the start and after each step.
    """

    marks: list[float] = field(default_factory=list)

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]:  # noqa: ARG002 - the signature is Track's
        """Yield the items, noting when each is done."""
        return self._timed(items)

    def _timed(self, items: Sequence[Item]) -> Iterator[Item]:
        self.marks = [time.perf_counter()]
        for item in items:
            yield item
            self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.marks[-1] - self.marks[0]

    @property
    def last_tenth(self) -> float:
        """Tokens/s of the last tenth of the steps."""
        steps = max(1, len(self.marks) // 10)
        return steps * BATCH * BPTT / (self.marks[-1] - self.marks[-1 - steps])


@dataclass(frozen=True)
class Trial:
    """What all rows share."""

    dense: LanguageModel
    windows: Windows
    valid: Windows
    recipe: Recipe
    schedule: Schedule
    seed: int

    def dense_row(self) -> None:
        """Print the dense model with the same training."""
        self._trained("dense", "–", select(self.dense, {}), 0.0)

    def at_once(self, retain: float) -> None:
        """Print what removing all at the start and training comes to."""
        start = time.perf_counter()
        smaller = select(self.dense, self._choice(retain))
        self._trained("at once", f"{retain:.0%}", smaller, time.perf_counter() - start)

    def gradual(self, retain: float, penalty: float) -> None:
        """Print what gradual pruning comes to."""
        watch = Stopwatch()
        thinning = Thinning(retain=retain, floor=FLOOR, schedule=self.schedule, momentum=MOMENTUM, penalty=penalty)
        *_, last = prune_gradually(
            self.dense,
            self.windows,
            self.valid,
            recipe=self.recipe,
            thinning=thinning,
            seed=self.seed,
            track=watch,
        )
        how = f"gradual, group lasso {penalty:g}" if penalty else "gradual"
        self._print(how, f"{retain:.0%}", pruned(self.dense, last), last, watch, 0.0)

    def _trained(self, how: str, keep: str, model: LanguageModel, measuring: float) -> None:
        """Train a model whose neurons stay, and print it."""
        watch = Stopwatch()
        *_, last = train(model, self.windows, self.valid, recipe=self.recipe, seed=self.seed, track=watch)
        self._print(how, keep, model, last, watch, measuring)

    def _choice(self, retain: float) -> Keep:
        """Return what gradual pruning's criterion keeps of the dense model as it is."""
        layers, state = self.dense.layers(), None
        importance = {layer.name: torch.zeros(layer.width, dtype=torch.float64) for layer in layers}
        with evaluating(self.dense):
            for index in range(min(SETTLED, steps_an_epoch(self.recipe, self.windows))):
                gates, state = gate_gradients(self.dense, layers, *self.windows[index], carried(state))
                importance = renewed(importance, gates, momentum=MOMENTUM)
        neurons = int(retain * sum(self.dense.widths()) + 0.5)
        return most_important(importance, neurons=neurons, floor=FLOOR)

    def _print(
        self, how: str, keep: str, model: LanguageModel, last: Trained, watch: Stopwatch, measuring: float
    ) -> None:
        perplexity = math.exp(last.history["valid_loss"].iloc[-1])  # the one epoch's, so the best
        speed = (len(watch.marks) - 1) * BATCH * BPTT / watch.seconds
        widths = " + ".join(map(str, model.widths()))
        numbers = f"{perplexity:.1f} | {watch.seconds:.0f} | {measuring:.0f} | {speed:.0f} | {watch.last_tenth:.0f}"
        print(f"| {keep} | {how} | {widths} | {numbers} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradual")
    parser.add_argument("--corpus", type=asked.splits, required=True, help="folder of published splits")
    parser.add_argument(
        "--checkpoint", type=asked.checkpoint, required=True, help="safetensors file, its vocabulary beside it"
    )
    parser.add_argument("--portion", type=asked.share, default=1.0, help="share of the epoch")
    parser.add_argument("--keep", type=asked.share, nargs="+", default=[0.75, 0.5, 0.35], help="shares of neurons")
    parser.add_argument("--penalty", type=asked.amount, default=2.0, help="strength of the group lasso")
    parser.add_argument("--learning-rate", type=asked.amount, default=1e-3)
    parser.add_argument("--dropout", type=asked.part, default=0.2)
    parser.add_argument("--begin", type=asked.part, default=0.05, help="share of the steps before the first removal")
    parser.add_argument("--end", type=asked.share, default=0.5, help="share of the steps after which all have left")
    parser.add_argument("--every", type=asked.count, default=10, help="steps between removals")
    parser.add_argument("--seed", type=asked.index, default=1)
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    bench = _bench(given)
    print("| keep | how | widths | valid perplexity | s training | s measuring | tokens/s | tokens/s, last tenth |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    bench.dense_row()
    for retain in given.keep:
        bench.at_once(retain)
        bench.gradual(retain, 0.0)
        bench.gradual(retain, given.penalty)


def _bench(given: argparse.Namespace) -> Trial:
    """Return what all rows share, read from the files named on the command line."""
    vocabulary = read_vocabulary(given.checkpoint)
    tokens, first = read_splits(given.corpus, vocabulary), vocabulary[END_OF_LINE]
    recipe = Recipe(
        epochs=1,
        portion=given.portion,
        learning_rate=given.learning_rate,
        warmup=0.05,
        weight_decay=0.01,
        clip=0.5,
        patience=1,
    )
    return Trial(
        dense=read_checkpoint(given.checkpoint, dropout=given.dropout).decoupled("project"),
        windows=Windows(tokens["train"], first=first, batch=BATCH, bptt=BPTT),
        valid=Windows(tokens["valid"], first=first, batch=VALID_BATCH, bptt=VALID_BPTT),
        recipe=recipe,
        schedule=Schedule(begin=given.begin, end=given.end, every=given.every),
        seed=given.seed,
    )


if __name__ == "__main__":
    main()
