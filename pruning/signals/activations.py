"""Importance from what neurons say: how often, how loudly and how variedly they are active on text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from pruning.core.hooks import recorded
from pruning.core.modes import evaluating
from pruning.core.neurons import NeuronLayer
from pruning.core.progress import Track, silently
from pruning.core.sketches import covariance_of
from pruning.core.statistics import Covariance, Histogram, Moments
from pruning.core.workers import Map, in_stretches, in_turn
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_ready
from pruning.models.objectives import Objective
from pruning.signals.jackknife import (
    by_layer,
    expect_several,
    filled,
    grouped_table,
    groups_that_fit,
    never_run,
    state_after,
)
from pruning.signals.scaling import weighted
from pruning.signals.schemas import ACTIVATIONS


@dataclass
class Activity:
    """Mergeable statistics of one layer's activations; its size depends on the width alone."""

    values: Covariance | Moments
    magnitudes: Moments
    histogram: Histogram
    active: Moments
    root_mean_square: Tensor

    @classmethod
    def empty(cls, width: int, bins: int, root_mean_square: Tensor, rank: int | None = None) -> Self:
        """Return the state that has seen nothing; `root_mean_square` sets its threshold and histogram edges."""
        edges = torch.linspace(-4, 4, bins - 1) * root_mean_square
        histogram = Histogram.empty(width, edges)
        values = covariance_of(width, rank)
        return cls(values, Moments.empty(width), histogram, Moments.empty(width), root_mean_square)

    def update(self, batch: Tensor) -> None:
        """Take in activations, (samples, width)."""
        magnitudes = batch.abs()
        self.values.update(batch)
        self.magnitudes.update(magnitudes)
        self.histogram.update(batch)
        self.active.update((magnitudes >= self.root_mean_square.to(batch)) & (magnitudes > 0))

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        return type(self)(
            self.values.merge(other.values),  # type: ignore[arg-type] # of one kind in all states that are merged
            self.magnitudes.merge(other.magnitudes),
            self.histogram.merge(other.histogram),
            self.active.merge(other.active),
            self.root_mean_square,
        )

    @property
    def alone(self) -> Self:
        """The same of each neuron by itself: all that the table is made of, and merged for each group's absence."""
        return self if isinstance(self.values, Moments) else replace(self, values=self.values.moments)

    @property
    def samples(self) -> int:
        """Tokens so far."""
        return self.values.count

    @property
    def components(self) -> dict[str, Tensor]:
        """The components of the signal by name, each (width,)."""
        return {
            "frequency": self.active.mean,
            "magnitude": self.magnitudes.mean,
            "variance": self.values.variance,
            "entropy": self.histogram.entropy,
            "range": self.histogram.range,
        }

    @property
    def importance(self) -> Tensor:
        """Weighted sum of the scaled components, (width,)."""
        return weighted(self.components, ACTIVATIONS.shares)


Covariances = Mapping[str, list[Covariance]]
"""Layer name → the covariance of its activations in each group of text."""


def activations(
    model: Measurable,
    windows: Batches,
    *,
    activation_samples: int,
    bins: int,
    rank: int | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> tuple[pd.DataFrame, Covariances]:
    """Return the `activations` table and the covariance of each layer's activations, for later stages.

    For each neuron with activations h over the tokens read, those aside whose target is ignored (padding):

    - frequency: share of |h| at or above the layer's root mean square (of the first window) and not zero; of spikes,
      0 or 1, it is the firing rate, even where all fire all the time;
    - magnitude: mean |h|;
    - variance: of h;
    - entropy: of the histogram of h in `bins` bins, whose inner edges lie evenly from −4 to 4 of that RMS and whose
      outer bins are open (nat, at most log bins);
    - range: max h − min h.

    The importance is their weighted sum after scaling within the layer; its standard error is the jackknife over
    eight consecutive groups of windows (fewer of wide layers, see `groups_that_fit`).

    >>> import torch, pruning
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    >>> network[0].weight.data = torch.tensor([[1.0], [2.0]])
    >>> model = pruning.adapt(network, torch.ones(1, 1), loss=nn.CrossEntropyLoss())
    >>> batches = [(torch.tensor([[1.0]]), torch.tensor([0])), (torch.tensor([[3.0]]), torch.tensor([1]))]
    >>> table, covariances = activations(model, batches, activation_samples=2, bins=4)
    >>> table["magnitude"].tolist()  # the neurons said 1 and 3, and 2 and 6
    [2.0, 4.0]

    Args:
        model: Any model that can be run on batches.
        windows: Calibration text (or other batches), read in order with carried state.
        activation_samples: At most this many windows are read.
        bins: Bins of the histogram.
        rank: Of layers more than twice as wide, how many directions of the covariance are kept, beside exact variances
            (see `Sketch`); `ridge` and `surgeon` then never make a matrix of width² numbers. None: covariances are
            exact, whatever the width. The table is the same but for its errors, where the groups are more.
        track: Shows progress.
        map: Who computes: each worker reads some groups.

    Raises:
        ValueError: If there are fewer than two windows.
    """
    expect_ready(model)
    windows, layers = model.pairs(windows), model.layers()
    count = min(activation_samples, len(windows))
    expect_several(count, "activations")
    reading = _Reading(model, layers, bins, _scales(model, layers, windows), rank)
    most = min(groups_that_fit(layers, rank), count)
    with reading.running():
        read = [*in_stretches(map, reading, windows, count, most, track=track, what="activations")]
    groups = {name: filled(parts, "activations") for name, parts in by_layer(layers, read).items()}
    table_of_layers = grouped_table(ACTIVATIONS, {name: [g.alone for g in parts] for name, parts in groups.items()})
    return table_of_layers, {
        name: [g.values for g in parts if isinstance(g.values, Covariance)] for name, parts in groups.items()
    }


@dataclass(frozen=True)
class _Reading:
    """Activity by layer; the carry is the model's state.

    Attributes:
        model: The model.
        layers: Its layers.
        bins: Bins of histograms.
        scales: Layer → root mean square.
        rank: Of the covariances of wide layers.
    """

    model: Measurable
    layers: Sequence[NeuronLayer]
    bins: int
    scales: Mapping[str, Tensor]
    rank: int | None

    @contextmanager
    def running(self) -> Iterator[None]:
        with evaluating(self.model), torch.no_grad():
            yield

    def read(self, batches: Iterable[Any], carry: Any) -> tuple[dict[str, Activity], Any]:
        activity = {
            layer.name: Activity.empty(layer.width, self.bins, self.scales[layer.name], self.rank)
            for layer in self.layers
        }
        for batch in batches:
            outputs, carry = _read(self.model, self.layers, batch, carry)
            for name, values in outputs.items():
                activity[name].update(values)
        return activity, carry

    def passed(self, batches: Iterable[Any], carry: Any) -> Any:
        return state_after(batches, carry, lambda inputs, _, state: self.model.passed(inputs, state))


def _scales(model: Measurable, layers: Sequence[NeuronLayer], windows: Batches) -> dict[str, Tensor]:
    """Return the root mean square activation of each layer on the first window that runs it in which a target counts.

    Raises:
        ValueError: If none does.
    """
    scales: dict[str, Tensor] = {}
    with evaluating(model), torch.no_grad():
        for batch in windows:
            left = [layer for layer in layers if layer.name not in scales]
            if not left:
                break
            for name, values in _read(model, left, batch, None)[0].items():
                scales[name] = values.square().mean().sqrt().cpu()
    if not scales and any(model.count(targets) for _, targets in windows):
        raise ValueError(
            "Expected a call that runs the network that it is given, got one in which no neurons were seen; call that "
            "network, its first argument."
        )
    if not scales:
        raise ValueError("Expected a batch with targets that count, got none; all are ignored.")
    if unread := [layer.name for layer in layers if layer.name not in scales]:
        raise ValueError(never_run(unread[0]))
    return scales


def _read(model: Measurable, layers: Sequence[NeuronLayer], batch: Any, state: Any) -> tuple[dict[str, Tensor], Any]:
    """Return each layer's activations where a target counts, (samples, width), and the state."""
    inputs, targets = batch
    if type(model.objective(targets)).steps_that_count is Objective.steps_that_count:
        wanted, read = model.counted(targets), partial(model.read, inputs, state)
        return recorded(model, layers, read, wanted=wanted, example_dim=model.example_dim)

    def known(answer: tuple[Any, Any]) -> Tensor:
        return model.counted_in(answer[0], targets)

    run = partial(model.predicted, inputs, state)
    found, (_, after) = recorded(model, layers, run, wanted=known, example_dim=model.example_dim)
    return found, after
