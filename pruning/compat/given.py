"""What callers of the older interface hand over, (name, parameter) pairs and traces, as layers of neurons.

A parameter's rows are its neurons: one for each trace. Where there are fewer traces than rows, the rows are stacked
copies, as the four gates of an LSTM's `weight_hh_l0` (4 width, width) are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.core.neurons import NeuronLayer, Slice

Pair = tuple[str, nn.Parameter | Tensor | nn.Module]


@dataclass(frozen=True)
class Given:
    """Layers of neurons as they were handed over.

    Attributes:
        layers: One for each pair, under its name; `output` is the module that holds the parameter, and `read` is empty
            unless the parameter also reads its own neurons (`weight_hh`).
        parameters: The model's own parameters by the names that it gives them.
        traces: Layer → Hessian trace of each neuron, (width,) float64.
    """

    layers: list[NeuronLayer]
    parameters: dict[str, nn.Parameter]
    traces: dict[str, Tensor]

    @property
    def gated(self) -> list[NeuronLayer]:
        """The layers with a neuron's own rows as what reads it: a gate on the rows is a gate on the neuron."""
        return [replace(layer, read=layer.owned) for layer in self.layers]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name, each as a matrix with a row for each of its first dimension's places."""
        return {name: p.detach().reshape(len(p), -1) for name, p in self.parameters.items()}


def given(model: nn.Module, modules: Sequence[Pair], channel_trace: Sequence[Any]) -> Given:
    """Return what was handed over as layers of neurons.

    Args:
        model: Holds the parameters.
        modules: (name, parameter) pairs, or (name, module): all of a module's own parameters are then its neurons'.
        channel_trace: For each pair, an entry for each neuron: a number, a tensor or a nested list of numbers (several
            estimates, or one for each weight), whose mean is the trace.

    Raises:
        ValueError: For no pair, other than one list of traces a pair, a name that is none or is given twice, a
            parameter that is not the model's or has no rows, traces that do not match them, or numbers that are none.
    """
    if not len(modules):
        raise ValueError("Expected at least one pair (name, parameter) in modules, got none.")
    if len(channel_trace) != len(modules):
        raise ValueError(f"Expected traces for each of {len(modules)} modules, got {len(channel_trace)} lists.")
    own: dict[str, nn.Parameter] = {}
    layers: list[NeuronLayer] = []
    traces: dict[str, Tensor] = {}
    for pair, entries in zip(modules, channel_trace, strict=True):
        name, owner = _checked(pair, traces)
        traces[name] = torch.tensor([_number(entry, name) for entry in entries], dtype=torch.float64)
        found = dict(_parameters_of(model, name, owner))
        own |= found
        layers.append(_layer(name, found, len(traces[name])))
    return Given(layers, own, traces)


def _checked(pair: Any, known: dict[str, Tensor]) -> tuple[str, Any]:
    """Return a pair as (name, what holds the neurons), or refuse it."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise ValueError(f"Expected pairs (name, parameter) in modules, got {type(pair).__name__}.")
    name, owner = pair
    if name in known:
        raise ValueError(f"Expected each name once in modules, got {name!r} twice.")
    if not isinstance(owner, Tensor | nn.Module):
        raise ValueError(f"Expected a parameter or a module under the name {name!r}, got {type(owner).__name__}.")
    return name, owner


def _number(entry: Any, name: str) -> float:
    """Return the mean of all numbers in a trace's entry, however they are nested."""
    numbers = list(numbers_in(entry))
    mean = float(np.mean(numbers)) if numbers else float("nan")
    if not np.isfinite(mean):
        raise ValueError(f"Expected a finite trace for each neuron of {name!r}, got {entry!r}.")
    return mean


def numbers_in(entry: Any) -> Iterator[float]:
    """Yield every number of tensors, arrays or numbers, however they are nested in lists.

    >>> list(numbers_in([1, [torch.tensor([2.0, 3.0])]]))
    [1.0, 2.0, 3.0]
    """
    if isinstance(entry, Tensor):
        yield from entry.detach().double().flatten().tolist()
    elif isinstance(entry, list | tuple):
        for part in entry:
            yield from numbers_in(part)
    else:
        yield from np.asarray(entry, dtype=float).ravel().tolist()


def _parameters_of(model: nn.Module, name: str, owner: Tensor | nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the model's parameters that `owner` is, or holds itself, under the names that the model gives them."""
    every = dict(model.named_parameters(remove_duplicate=False))
    wanted = list(owner.parameters(recurse=False)) if isinstance(owner, nn.Module) else [owner]
    if not wanted:
        raise ValueError(f"Expected a module with parameters of its own under the name {name!r}, got none.")
    for one in wanted:
        same = [key for key, parameter in every.items() if parameter is one or _is_view(parameter, one)]
        if not same:
            raise ValueError(f"Expected parameters of the model in modules, got {name!r}, which is none of them.")
        chosen = name if name in same else same[0]
        yield chosen, every[chosen]


def _is_view(parameter: nn.Parameter, other: Tensor) -> bool:
    """Return whether a tensor is the parameter's data, as in a `state_dict`."""
    return (
        parameter.shape == other.shape
        and parameter.device == other.device
        and bool(other.numel())
        and (parameter.data_ptr() == other.data_ptr())
    )


def _layer(name: str, parameters: dict[str, nn.Parameter], width: int) -> NeuronLayer:
    """Return the layer of `width` neurons whose rows these parameters hold."""
    for parameter in parameters.values():
        rows = len(parameter) if parameter.ndim else 0
        if not width or not rows or rows % width:
            raise ValueError(
                f"Expected a trace for each of {rows} rows of {name!r}, or for each of as many stacked in "
                f"equal blocks, got {width}."
            )
        if not parameter.isfinite().all():
            raise ValueError(f"Expected finite weights in {name!r}, got others.")
    owned = tuple(Slice(key, dim=0, blocks=len(parameter) // width) for key, parameter in parameters.items())
    read = tuple(Slice(key, dim=1) for key, p in parameters.items() if "weight_hh" in key and p.shape[1:] == (width,))
    return NeuronLayer(name, "given", width, owned, read, output=next(iter(parameters)).rpartition(".")[0])
