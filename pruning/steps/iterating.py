"""Pruning in rounds: some neurons leave, readers are repaired, the rest learns a little, and all is measured again."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch

from pruning.core.avoiding import avoided_in
from pruning.core.devices import seeded
from pruning.core.modes import evaluating
from pruning.core.neurons import Keep, select
from pruning.core.progress import Track, silently
from pruning.data.windows import Batches, Stretch
from pruning.models.adapted import Adapted
from pruning.models.base import Measurable, expect_ready
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import activations
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.training.distillation import Teacher
from pruning.training.loop import Trained, steps_an_epoch, train
from pruning.training.recipes import Recipe

BINS = 16
"""Of the histograms that activations are counted in, which the order does not need."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How neurons leave in rounds; see `prune_iteratively`.

    >>> Rounds(retain=0.5, rounds=7, floor=8, calibration=20, damping=1e-4, last=0.5).neurons(256)
    [232, 210, 190, 172, 156, 141, 128]

    Attributes:
        retain: Share of the neurons that are left in the end, in (0, 1].
        rounds: In how many rounds the others leave, ≥ 1; each takes the same share of what is left.
        floor: Fewest neurons of a layer; one number, or layer → number.
        calibration: Batches that each round measures on, ≥ 2.
        damping: Of the surgeon's curvature, relative to its mean.
        last: Share of all training that comes after the last round, in (0, 1]; the other rounds share the rest.
        ceiling: Most neurons of a layer; likewise.
        multiple: What every width is a multiple of, unless the layer is whole.

    Raises:
        ValueError: For a setting outside its range.
    """

    retain: float
    rounds: int
    floor: int | Mapping[str, int]
    calibration: int
    damping: float
    last: float
    ceiling: int | Mapping[str, int] | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.retain <= 1 and 0 < self.last <= 1):
            raise ValueError(f"Expected retain and last in (0, 1], got {self.retain} and {self.last}.")
        if self.rounds < 1 or self.calibration < 2:
            raise ValueError(
                f"Expected at least 1 round and 2 batches to measure on, got {self.rounds} and {self.calibration}."
            )
        self.allocation(self.retain)

    def neurons(self, count: int) -> list[int]:
        """Return how many of so many neurons are left after each round."""
        return [math.floor(self.retain ** (done / self.rounds) * count + 0.5) for done in range(1, self.rounds + 1)]

    def allocation(self, share: float) -> Allocation:
        """Return how what stays in a round is shared out, if it is that share of the neurons that are left."""
        return Allocation(
            retain=min(1.0, share), scope="absolute", floor=self.floor, ceiling=self.ceiling, multiple=self.multiple
        )

    def steps(self, total: int) -> list[int]:
        """Return how many of all training steps come after each round."""
        if self.rounds == 1:
            return [total]
        marks = [round((1 - self.last) * total * done / (self.rounds - 1)) for done in range(self.rounds)]
        return [*(after - before for before, after in pairwise(marks)), total - marks[-1]]


@dataclass(frozen=True)
class Round:
    """Where pruning in rounds stands after an epoch of a round's training; enough to go on from.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> Round(model, {"rnn.0": torch.arange(6)}, 1).finished
    True

    Attributes:
        model: The smaller network, at the best epoch of the round so far.
        kept: The neurons that are left, by their numbers in the dense one.
        number: The round, from 1.
        trained: Where its training stands; None where it has none.
        history: One row for each step of all rounds so far, as `Trained` has it.
    """

    model: Measurable
    kept: Keep
    number: int
    trained: Trained | None = None
    history: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do in this round."""
        return self.trained is None or self.trained.finished

    @property
    def valid_loss(self) -> float:
        """The model's loss on the validation batches; not a number where the round trains nothing."""
        return math.nan if self.trained is None else float(self.trained.history["valid_loss"].min())


def prune_iteratively(
    model: Measurable,
    data: Batches,
    valid: Batches,
    *,
    rounds: Rounds,
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None = None,
    resume: Round | None = None,
    track: Track = silently,
) -> Iterator[Round]:
    """Yield smaller and smaller networks: each time some neurons leave, readers are refitted, and the rest is trained.

    In each round the order of removal that knows the repair (`surgeon`) is measured anew on the network as it is, the
    least important neurons of all layers leave, and their readers are refitted by `ridge`, both on the batches that the
    round is going to read. Then it is trained on the next batches: together the rounds take as many steps as the recipe
    has, each along a schedule of its own, which lets it recover from its removal (Renda, Frankle & Carbin 2020). A
    round of more steps than an epoch trains in as many epochs as are nearest; one round is pruning at once.

    A run resumed from what it yielded last ends with the bytes of a run that was never interrupted, and the global
    random state is left as it was.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> recipe = pruning.Recipe(
    ...     epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
    ... )
    >>> rounds = pruning.Rounds(retain=0.5, rounds=2, floor=1, calibration=4, damping=1e-4, last=0.5)
    >>> [step.model.widths() for step in prune_iteratively(model, text, text, rounds=rounds, recipe=recipe, seed=1)]
    [(4,), (3,)]

    Args:
        model: The dense network, whose layers have readers of their own (`decoupled`); it is left as it was.
        data: Training batches.
        valid: Validation batches.
        rounds: How many neurons leave in how many rounds.
        recipe: How to train: epochs × portion of the batches are what all rounds read together. Its patience counts
            within a round.
        seed: Of sampled targets and dropout.
        teacher: The model to imitate beside the labels.
        resume: What an interrupted run yielded last.
        track: Shows progress.

    Yields:
        Where it stands after each epoch of a round's training, and after a round that trains nothing.
    """
    expect_ready(model)
    pairs = model.pairs(data)
    an_epoch = steps_an_epoch(recipe, pairs)
    everything = {layer.name: torch.arange(layer.width) for layer in model.layers()}
    state = resume or Round(select(model, {}), everything, 0)
    plan = zip(rounds.neurons(sum(model.widths())), rounds.steps(recipe.epochs * an_epoch), strict=True)
    start = 0
    for number, (neurons, steps) in enumerate(plan, 1):
        first, start = start, start + max(steps, rounds.calibration)
        if number < state.number or (number == state.number and state.finished):
            continue
        part, round_seed = partial(Stretch, pairs, of=an_epoch, start=first), seed + number - 1
        if number > state.number:
            state = _begun(state, number, part(length=rounds.calibration), neurons, rounds, round_seed)
        if not steps:
            yield state
            continue
        epochs = max(1, round(steps / an_epoch))
        trained, how = part(length=steps // epochs), replace(recipe, epochs=epochs, portion=1.0)
        for after in _training(state, trained, valid, recipe=how, seed=round_seed, teacher=teacher, track=track):
            state = after
            yield after


def _begun(before: Round, number: int, data: Batches, neurons: int, rounds: Rounds, seed: int) -> Round:
    """Return where the next round stands before its training: so many neurons are left, their readers refitted."""
    with seeded(before.model.module, seed):
        batches = list(data)
    keep, smaller = _cut(before.model, batches, neurons, rounds, seed)
    kept = {name: numbers[keep[name]] for name, numbers in before.kept.items()}
    return Round(smaller, kept, number, None, before.history)


def _training(begun: Round, data: Batches, valid: Batches, **how: Any) -> Iterator[Round]:
    """Yield where the round stands after each epoch that its training has left to do."""
    smaller, known = select(begun.model, {}), begun.trained
    earlier = begun.history.iloc[: len(begun.history) - (0 if known is None else len(known.history))]
    for state in train(smaller, data, valid, resume=known, **how):
        best = select(smaller, {})
        best.load_state_dict(state.best())
        yield Round(best, begun.kept, begun.number, state, _after(earlier, state.history))


def _after(earlier: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the history with a round's own rows after it, steps and tokens counted on."""
    if earlier.empty:
        return rows
    counted = rows.assign(**{name: rows[name] + earlier[name].iloc[-1] for name in ("step", "tokens")})
    return pd.concat([earlier, counted], ignore_index=True)


def _cut(model: Measurable, batches: list[Any], neurons: int, rounds: Rounds, seed: int) -> tuple[Keep, Measurable]:
    """Return which neurons stay, so many in all, and the network without the others, its readers refitted."""
    with evaluating(model):
        _, states = activations(model, batches, activation_samples=len(batches), bins=BINS)
        moments = sensitivities(model, batches, batches=len(batches), seed=seed)
        order = surgeon(states, moments, damping=rounds.damping)
        allocation = rounds.allocation(neurons / sum(model.widths()))
        keep = keep_of(retention(order, allocation, variant="round", by="importance", avoided=avoided_in(model)))
        read: dict[str, Any] = {"data": batches} if isinstance(model, Adapted) else {"covariances": states}
        return keep, reconstruct(model, keep, repair="ridge", **read)
