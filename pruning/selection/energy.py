"""What kept neurons cost where spikes do: that depends on how often each fires, and so on which of them stay."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pruning.core.neurons import NeuronLayer, gather, named_tensors
from pruning.core.progress import Track, silently
from pruning.data.windows import Batches
from pruning.evaluation.energy import ACCUMULATE, MULTIPLY_ADD, firing_rates
from pruning.models.base import Measurable
from pruning.selection.costs import Costs, size_costs

FanOut = Callable[[np.ndarray], np.ndarray]
"""Widths (n, layers) → how many weights read one spike of each spiking layer, (n, spiking layers)."""


@dataclass(frozen=True)
class Spikes:
    """What neurons cost by how often they fire, in synaptic operations or pJ a token.

    Attributes:
        layers: Names of all layers, in the order in which widths are given.
        rates: Spiking layer → how often each of its neurons fires in a step, (width,).
        fan_out: Of the spiking layers, in the order of `rates`.
        numbers: What all that reads no spikes costs.
        accumulate: What one synaptic operation costs.
    """

    layers: tuple[str, ...]
    rates: Mapping[str, np.ndarray]
    fan_out: FanOut
    numbers: Costs
    accumulate: float

    @property
    def spiking(self) -> list[int]:
        """Where the spiking layers are among all."""
        return [self.layers.index(name) for name in self.rates]

    def costs(self, order: Mapping[str, np.ndarray]) -> Costs:
        """Return what widths cost whose neurons are the first ones of each layer in an order, by the known rates.

        Args:
            order: Layer → its neurons' numbers, those that stay longest first.
        """
        fired = [np.concatenate([[0.0], np.cumsum(rates[order[name]])]) for name, rates in self.rates.items()]

        def costs(widths: np.ndarray) -> np.ndarray:
            columns = np.asarray(widths)[:, self.spiking].T
            spikes = np.stack([own[column] for own, column in zip(fired, columns, strict=True)], axis=1)
            operations = (spikes * self.fan_out(widths)).sum(axis=1)
            return np.asarray(self.numbers(widths) + self.accumulate * operations)

        return costs

    def order(self, worths: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return each layer's neurons, those of the most importance for what they cost first, equals by their numbers.

        Args:
            worths: Layer → importance of its neurons.
        """
        full = np.array([[len(worths[name]) for name in self.layers]])
        sums = np.array([rates.sum() for rates in self.rates.values()])
        whole, orders = self.fan_out(full)[0], {}
        for index, name in enumerate(self.layers):
            fewer = full.copy()
            fewer[0, index] -= 1
            # what others spend on the neuron's own weights, beside what its spikes cost its readers
            price = float((self.numbers(full) - self.numbers(fewer))[0])
            price += self.accumulate * float(sums @ (whole - self.fan_out(fewer)[0]))
            fires = self.rates.get(name, np.zeros(full[0, index]))
            prices = price + self.accumulate * fires * (whole[[*self.rates].index(name)] if name in self.rates else 0)
            worth = np.asarray(worths[name], dtype=float)
            density = np.divide(worth, prices, out=np.full(len(worth), np.inf), where=prices > 0)
            orders[name] = np.lexsort((-worth, -np.where(worth > 0, density, worth)))
        return orders


def spikes_of(
    model: Measurable, kind: str, data: Batches, *, track: Track = silently, what: str = "firing rates"
) -> Spikes:
    """Return what the model's neurons cost by their firing rates on some text.

    Args:
        model: It is left as it was; one with readers of its own for each layer.
        kind: One of `FIRING`.
        data: Text (or other batches), read in order with carried state.
        track: Shows progress.
        what: What the progress is called.

    Raises:
        ValueError: If no layer spikes, or a fan-out is no linear function of the widths.
    """
    layers = model.layers()
    spiking = spiking_of(layers, kind)
    rates = firing_rates(model, spiking, data, track=track, what=what)
    fan_out = fan_outs(model, spiking)
    places = [[layer.name for layer in layers].index(layer.name) for layer in spiking]
    multiplied = size_costs(model, "multiply_adds")

    def numbers(widths: np.ndarray) -> np.ndarray:
        if kind == "synaptic_operations":
            return np.zeros(len(widths))
        read = (np.asarray(widths)[:, places] * fan_out(widths)).sum(axis=1)
        return np.asarray(MULTIPLY_ADD * (multiplied(widths) - read))

    return Spikes(
        tuple(layer.name for layer in layers),
        {name: rate.double().cpu().numpy() for name, rate in rates.items()},
        fan_out,
        numbers,
        ACCUMULATE if kind == "energy" else 1.0,
    )


def spiking_of(layers: Sequence[NeuronLayer], kind: str) -> list[NeuronLayer]:
    """Return the layers of spiking neurons.

    Raises:
        ValueError: If there is none, for a budget of that kind.
    """
    spiking = [layer for layer in layers if layer.kind == "snn"]
    if not spiking:
        kinds = sorted({layer.kind for layer in layers})
        raise ValueError(
            f"Expected layers of spiking neurons for a budget of {kind}, got layers of the kinds {kinds} alone; where "
            "nothing spikes a budget of multiply_adds says the same."
        )
    return spiking


def fan_outs(model: Measurable, spiking: Sequence[NeuronLayer]) -> FanOut:
    """Return how many weights read a spike of each of some layers, as a function of the widths.

    Readers are matrices, so it is c + Σ a_m w_m; the coefficients follow from tiny models, one for each layer, and are
    compared with the model itself.

    Raises:
        ValueError: If it is of another form.
    """
    shapes, names = copy.deepcopy(model).to("meta"), {layer.name for layer in spiking}
    full = np.array([layer.width for layer in model.layers()])

    def counted(widths: np.ndarray) -> np.ndarray:
        with torch.device("meta"):
            smaller = shapes.resized(widths.tolist())
        tensors = named_tensors(smaller)
        readers = (gather(layer.read, tensors) for layer in smaller.layers() if layer.name in names)
        return np.array([read.shape[1] for read in readers], dtype=float)

    least = counted(np.ones_like(full))
    slopes = np.stack([counted(row) - least for row in np.ones_like(full) + np.eye(len(full), dtype=int)])

    def fan_out(widths: np.ndarray) -> np.ndarray:
        return np.asarray(least + (np.asarray(widths, dtype=float) - 1) @ slopes)

    if not np.array_equal(fan_out(full[None])[0], counted(full)):
        raise ValueError("Expected readers of spikes whose fan-out is linear in the widths, got another form.")
    return fan_out
