"""How much the loss depends on what the readers of each neuron read: the Gram matrix of its readers, per layer."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pruning.core.hooks import at_targets
from pruning.core.modes import carried, derivatives, differentiating, evaluating
from pruning.core.neurons import NeuronLayer
from pruning.core.progress import Track, silently
from pruning.core.sketches import covariance_of
from pruning.core.statistics import Covariance
from pruning.core.workers import Map, in_stretches, in_turn
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_ready
from pruning.signals.drawing import Drawn, drawing_passed
from pruning.signals.jackknife import by_layer, groups_that_fit

logger = logging.getLogger(__name__)


EMPIRICAL = "empirical"
"""What a table says of Fisher information by the true targets."""


UNMOVED = (
    "the derivative of the loss by what its readers read is 0 everywhere, as where outputs are so large that the loss "
    "is flat, or a torch.autograd.Function runs them without recording it (an adjoint)"
)
"""Why a layer is left out, any order of whose neurons would be as good."""


class Sensitivities(dict[str, list[Covariance]]):
    """Layer → moments of γ, in groups of consecutive windows.

    Attributes:
        fisher: What targets were drawn from, or `EMPIRICAL`; empty if there were none to ask.
    """

    fisher: str = ""


def sensitivities(
    model: Measurable,
    windows: Batches,
    *,
    batches: int,
    seed: int,
    rank: int | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> Sensitivities:
    """Return the moments of γ = ∂L/∂h of each layer, in groups of consecutive windows.

    h (width,) are a layer's outputs at one token and γ their derivative through every reader: the layer's own
    recurrence, the next layer, the decoder. L is the summed loss of the window with targets sampled from the model
    (`Objective.fisher_loss`), so that M = E[γ γᵀ] is the Fisher information of h, and an error e in what is read costs
    ½ eᵀ M e nat/token to second order. With readers' weights W and pre-activation gradients g, γ = Wᵀ g: M is the sum
    over pairs of readers of Wᵀ E[g gᵀ] W, which is how K-FAC weighs their rows (Martens & Grosse 2015), without its
    matrices ever being made. Where a loss is the negative logarithm of no distribution known here, targets are the true
    ones, and a warning says so.
    Tokens whose target is ignored (padding) are left out of the mean.
    Where no one place shows a layer to all its readers (a cell in a loop, packed sequences, a pooling beside a
    recurrence), M is that of what each of them reads, all together. A layer of which no reader is seen, or by whose
    outputs all derivatives are 0, is left out, and a warning says so: other signals still order it.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> groups = sensitivities(unread, text, batches=8, seed=1)["rnn.0"]
    >>> [group.products[0, 0].item() for group in groups[:2]]
    [0.0, 0.0]

    Args:
        model: Any model whose layers can be tapped (`Measurable.tapped`).
        windows: Calibration text (or other batches), read in order with carried state; what flows back is cut at the
            end of each.
        batches: At most this many windows are read.
        seed: Seed of the sampled labels.
        rank: As in `activations`; `surgeon` gains by it where both have one.
        track: Shows progress.
        map: Who computes: each worker reads some groups.
    """
    expect_ready(model)
    windows = model.pairs(windows)
    layers, count = tappable(model, windows, "surgeon"), min(batches, len(windows))
    found = Sensitivities()
    if not layers:
        return found
    reading, most = _Reading(model, layers, seed, rank), min(groups_that_fit(layers, rank), count)
    with reading.running():
        read = [*in_stretches(map, reading, windows, count, most, track=track, what="sensitivities")]
    found.fisher = next((fisher for fisher, _ in reversed(read) if fisher), "")
    groups = by_layer(layers, [moments for _, moments in read])
    found.update({name: [group for group in parts if group.count] for name, parts in groups.items()})
    for name in [name for name, parts in found.items() if parts and not any(map(_flows, parts))]:
        del found[name]
        logger.warning("Not measured by surgeon: layer %s, because %s.", name, UNMOVED)
    return found


def _flows(moments: Covariance) -> bool:
    """Return whether some derivative is not zero."""
    return bool(moments.mean.any() or moments.variance.any())


@dataclass(frozen=True)
class _Reading:
    """What targets are drawn from and the moments by layer; the carry is a `Drawn`.

    Attributes:
        model: The model.
        layers: Those that are measured.
        seed: Of the targets.
        rank: Of the moments of wide layers.
    """

    model: Measurable
    layers: Sequence[NeuronLayer]
    seed: int
    rank: int | None

    def running(self) -> AbstractContextManager[object]:
        return differentiating(self.model)

    def read(self, batches: Iterable[Any], carry: Drawn | None) -> tuple[tuple[str, dict[str, Covariance]], Drawn]:
        carry, fisher = carry or Drawn.of(self.seed), ""
        state, generator = carry.state, carry.generator()
        groups = {layer.name: covariance_of(layer.width, self.rank) for layer in self.layers}
        for inputs, targets in batches:
            if not self.model.count(targets):
                state = self.model.passed(inputs, state)
                continue
            fisher = self.model.objective(targets).drawn or EMPIRICAL
            moments, wanted, state = _of_batch(self.model, inputs, targets, carried(state), generator)
            for name, gradients in moments.items():
                groups[name].update(at_targets(gradients, wanted, self.model.example_dim))
        return (fisher, groups), Drawn(state, generator.get_state())

    def passed(self, batches: Iterable[Any], carry: Drawn | None) -> Drawn:
        return drawing_passed(self.model, batches, carry or Drawn.of(self.seed))


def tappable(model: Measurable, windows: Batches, signal: str) -> list[NeuronLayer]:
    """Return the layers that can be tapped; a warning names each of the others and says why.

    Another says so where the Fisher information is that of the true targets, for want of others to draw.
    """
    with evaluating(model):
        inputs, targets = next(iter(windows))
        reasons, objective = model.untappable(inputs), model.objective(targets)
        never = {layer.name for layer in model.layers() if layer.unread}
        for inputs, _ in islice(windows, 1, None):  # a layer may be one that only another path reads
            if reasons.keys() <= never:
                break
            reasons = {name: why for name, why in model.untappable(inputs).items() if name in reasons}
    if not objective.drawn:
        logger.warning(
            "The Fisher information in %s is the empirical one, by the true targets: %s is the negative logarithm of "
            "no distribution that is known to draw them from.",
            signal,
            objective.name,
        )
    for name, reason in reasons.items():
        logger.warning("Not measured by %s: layer %s, because %s.", signal, name, reason)
    return [layer for layer in model.layers() if layer.name not in reasons]


def _of_batch(
    model: Measurable, inputs: Any, targets: Tensor, state: Any, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor, Any]:
    """Return ∂L/∂h of each layer, (steps, examples, width), what counts of them, and the state to carry on from."""
    outputs, taps, state = model.tapped(inputs, state)
    loss = model.objective(targets).fisher_loss(outputs, targets, generator)
    wanted = model.counted_in(outputs, targets)
    return dict(zip(taps, derivatives(loss, taps.values()), strict=True)), wanted, state
