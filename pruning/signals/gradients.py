"""Importance from the flow of gradients: what the loss would gain or lose if a neuron's output were scaled."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from pruning.core.modes import carried, derivatives, differentiating, thawed
from pruning.core.neurons import NeuronLayer, gather, real_pairs
from pruning.core.progress import Track, silently
from pruning.core.statistics import Moments
from pruning.core.workers import Map, in_stretches, in_turn
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_ready
from pruning.signals.jackknife import GROUPS, expect_several, filled, grouped_table, state_after
from pruning.signals.scaling import weighted
from pruning.signals.schemas import GRADIENTS

TOGETHER = 16
"""Most batches whose gate gradients are handed on together."""


@dataclass
class Flow:
    """Mergeable statistics of one layer's gate gradients over batches."""

    values: Moments
    magnitudes: Moments
    signs: Moments

    @classmethod
    def empty(cls, width: int) -> Self:
        """Return the state that has seen nothing."""
        return cls(Moments.empty(width), Moments.empty(width), Moments.empty(width))

    def update(self, batch: Tensor) -> None:
        """Take in gate gradients, (batches, width)."""
        self.values.update(batch)
        self.magnitudes.update(batch.abs())
        self.signs.update(batch.sign())

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""
        values, magnitudes = self.values.merge(other.values), self.magnitudes.merge(other.magnitudes)
        return type(self)(values, magnitudes, self.signs.merge(other.signs))

    @property
    def samples(self) -> int:
        """Batches so far."""
        return self.values.count

    @property
    def components(self) -> dict[str, Tensor]:
        """The components of the signal by name, each (width,); a gradient that is always 0 has 0 of each."""
        size, spread = self.magnitudes.mean, self.magnitudes.variance.sqrt()
        deviation = self.values.variance.sqrt()
        return {
            "magnitude": size,
            "stability": torch.where(size > 0, size / (size + spread), 0),
            "signal_to_noise": torch.where(deviation > 0, self.values.mean.abs() / deviation, 0),
            "sign_consistency": self.signs.mean.abs(),
        }

    @property
    def importance(self) -> Tensor:
        """Weighted sum of the scaled components, (width,)."""
        return weighted(self.components, GRADIENTS.shares)


def gradients(
    model: Measurable, windows: Batches, *, batches: int, track: Track = silently, map: Map = in_turn
) -> pd.DataFrame:
    """Return the `gradients` table.

    For each neuron with gate gradient g = ∂L/∂m (see `gate_gradients`) of each batch:

    - magnitude: mean |g|, nat/token;
    - stability: 1 / (1 + std|g| / mean|g|), in [0, 1];
    - signal_to_noise: |mean g| / std g;
    - sign_consistency: |mean sign g|, in [0, 1].

    The importance is their weighted sum after scaling within the layer; its standard error is the jackknife over
    eight consecutive groups of windows.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> gradients(unread, text, batches=4)["magnitude"].tolist()[0]
    0.0

    Args:
        model: Any model that knows its loss.
        windows: Calibration text (or other batches), read in order with carried state.
        batches: At most this many windows are read, each one a sample of g.
        track: Shows progress.
        map: Who computes: each worker differentiates some windows.

    Raises:
        ValueError: If there are fewer than two windows.
    """
    expect_ready(model)
    windows, layers = model.pairs(windows), model.layers()
    count = min(batches, len(windows))
    expect_several(count, "gradients")
    groups = [[Flow.empty(layer.width) for _ in range(min(GROUPS, count))] for layer in layers]
    for index, gates in enumerate(gates_of_each(model, layers, windows, count, track=track, what="gradients", map=map)):
        for layer, flows in zip(layers, groups, strict=True):
            if gates:
                flows[index * len(flows) // count].update(gates[1][layer.name][None])
    layers_read = zip(layers, groups, strict=True)
    return grouped_table(GRADIENTS, {layer.name: filled(flows, "gradients") for layer, flows in layers_read})


Gates: TypeAlias = tuple[float, dict[str, Tensor]] | None
"""A batch's weight and ∂L/∂m of every neuron by layer, (width,); None where no target counts."""
GatesOf: TypeAlias = Callable[[Measurable, Sequence[NeuronLayer], Any, Any, Any], tuple[dict[str, Tensor], Any]]
"""(model, layers, inputs, targets, state) → what is told by layer, and the state, as `gate_gradients` does."""


def gates_of_each(
    model: Measurable,
    layers: Sequence[NeuronLayer],
    windows: Batches,
    count: int,
    *,
    track: Track,
    what: str,
    map: Map,
    gates: GatesOf | None = None,
) -> Iterator[Gates]:
    """Yield the gate gradients of each of the first `count` batches, or what `gates` says of it, whoever computes."""
    reading, parts = _Reading(model, layers, gates or gate_gradients), max(min(GROUPS, count), -(-count // TOGETHER))
    with reading.running():
        yield from chain.from_iterable(in_stretches(map, reading, windows, count, parts, track=track, what=what))


@dataclass(frozen=True)
class _Reading:
    """Gate gradients of batches; the carry is the model's state.

    Attributes:
        model: The model.
        layers: Its layers.
        gates: What is told of a batch.
    """

    model: Measurable
    layers: Sequence[NeuronLayer]
    gates: GatesOf

    @contextmanager
    def running(self) -> Iterator[None]:
        with differentiating(self.model), thawed(self.model):
            yield

    def read(self, batches: Iterable[Any], carry: Any) -> tuple[list[Gates], Any]:
        found: list[Gates] = []
        for inputs, targets in batches:
            weight = self.model.weight(targets)
            if weight:
                gates, carry = self.gates(self.model, self.layers, inputs, targets, carried(carry))
                found.append((weight, {name: values.cpu() for name, values in gates.items()}))
            else:
                carry = self.model.passed(inputs, carry)
                found.append(None)
        return found, carry

    def passed(self, batches: Iterable[Any], carry: Any) -> Any:
        return state_after(batches, carry, self._passed)

    def _passed(self, inputs: Any, targets: Any, state: Any) -> Any:
        counts = self.model.weight(targets)  # where none does, `read` uses the kernels without derivatives
        return self.model.read(inputs, state) if counts else self.model.passed(inputs, state)


def gate_gradients(
    model: Measurable,
    layers: Sequence[NeuronLayer],
    inputs: Any,
    targets: Tensor,
    state: Any,
) -> tuple[dict[str, Tensor], Any]:
    """Return ∂L/∂m of every neuron on one batch, (width,) for each layer, and the state to carry on from.

    m multiplies the neuron's output (m = 1), so ∂L/∂m = Σ w · ∂L/∂w over its outgoing weights: the exact first-order
    effect of removing it (Molchanov et al. 2017), from the gradients that the fused kernel gives anyway; 0 where the
    loss does not depend on them.
    """
    read = {piece.parameter for layer in layers for piece in layer.read}
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in read}
    loss, state = model.loss(inputs, targets, state)
    slopes = derivatives(loss, parameters.values())
    products = {name: real_pairs(w.detach()) * g for (name, w), g in zip(parameters.items(), slopes, strict=True)}
    return gate_sums(layers, products), state


def gate_sums(layers: Iterable[NeuronLayer], products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ∂L/∂m of every neuron, (width,) for each layer, from w · ∂L/∂w of each parameter that reads neurons."""
    return {layer.name: gather(layer.read, products).sum(1) for layer in layers}
