"""What a model's arithmetic costs in energy: multiply-adds of numbers, and accumulates that spikes cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pruning.core.hooks import recorded
from pruning.core.modes import evaluating
from pruning.core.neurons import NeuronLayer, gather, named_tensors
from pruning.core.progress import Track, silently
from pruning.core.statistics import Moments
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_measurable

MULTIPLY_ADD, ACCUMULATE = 4.6, 0.9
"""pJ of a 32-bit floating-point multiplication with its addition (3.7 + 0.9) and of an addition alone, at 45 nm
(Horowitz 2014, "Computing's energy problem", ISSCC)."""


@dataclass(frozen=True)
class Energy:
    """What a model's matrices cost for one token on hardware that skips what does not spike.

    Attributes:
        synaptic_operations: Accumulates that spikes cause, on average over text, 1/token.
        energy: Of these and of the multiply-adds that read no spikes, pJ/token.
    """

    synaptic_operations: float
    energy: float


def energy_of(model: Measurable, windows: Batches, *, track: Track = silently, what: str = "energy") -> Energy:
    """Return the synaptic operations and the energy of one token, from measured firing rates.

    Each spike adds the column of weights that reads it to its readers, fan-out accumulates; where there is no spike,
    nothing is done. With rate r_j, the spikes of neuron j in a step,

        synaptic operations = Σ_j r_j fan-out_j,
        energy = 4.6 pJ × (multiply-adds − Σ_j fan-out_j) + 0.9 pJ × synaptic operations,

    the sums over spiking neurons; whatever reads numbers (embeddings, states of continuous neurons, projections) costs
    multiply-adds. A model without spiking neurons has no synaptic operations and no text is read for it. Only matrices
    count, as in `multiply_adds`: not what happens within a neuron, and no memory traffic, which often costs more.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> energy_of(model, text)  # no neuron spikes, so it is 114 multiply-adds of 4.6 pJ
    Energy(synaptic_operations=0.0, energy=524.4)

    Args:
        model: It is left as it was.
        windows: Text (or other batches) on which spikes are counted, the state carried; padding does not count.
        track: Shows progress.
        what: What the progress is called.
    """
    expect_measurable(model)
    equal = model.decoupled("untie")
    spiking = [layer for layer in equal.layers() if layer.kind == "snn"]
    tensors = named_tensors(equal)
    fan_out = {layer.name: gather(layer.read, tensors).shape[1] for layer in spiking}
    rates = firing_rates(equal, spiking, windows, track=track, what=what) if spiking else {}
    skipped = sum(layer.width * fan_out[layer.name] for layer in spiking)
    operations = sum((rate.sum().item() * fan_out[name] for name, rate in rates.items()), start=0.0)
    return Energy(operations, MULTIPLY_ADD * (equal.multiply_adds() - skipped) + ACCUMULATE * operations)


def firing_rates(
    model: Measurable,
    layers: Sequence[NeuronLayer],
    windows: Batches,
    *,
    track: Track = silently,
    what: str = "firing rates",
) -> dict[str, Tensor]:
    """Return how often each neuron of spiking layers fires in a step: layer → (width,).

    Args:
        model: It is left as it was.
        layers: Its layers whose activations are 0 or 1.
        windows: Text, read in order with carried state; padding does not count.
        track: Shows progress.
        what: What the progress is called.
    """
    moments = {layer.name: Moments.empty(layer.width) for layer in layers}
    windows, state = model.pairs(windows), None
    with evaluating(model), torch.no_grad():
        for _, (inputs, targets) in zip(track(range(len(windows)), f"{what}, batches"), windows, strict=False):
            wanted, read = model.counted(targets), partial(model.read, inputs, state)
            outputs, state = recorded(model, layers, read, wanted=wanted, example_dim=model.example_dim)
            for name, spikes in outputs.items():
                moments[name].update(spikes)
    return {name: state.mean for name, state in moments.items()}
