"""What callers of the older interface hand over, (name, parameter) pairs and traces, as a model with those neurons.

A parameter's rows are its neurons: one for each trace. Where there are fewer traces than rows, the rows are stacked
copies, as the four gates of an LSTM's `weight_hh_l0` (4 width, width) are.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from pruning.core.devices import expect_on
from pruning.core.nested import numbers_in
from pruning.core.neurons import NeuronLayer, Slice
from pruning.data.windows import first_batches
from pruning.discovery.recurrent import unstacked
from pruning.models.adapted import Adapted
from pruning.models.calling import Caller, example_dim_of, on
from pruning.models.classes import Classes
from pruning.models.examples import Examples
from pruning.models.objectives import Objective
from pruning.models.use import Use

Criterion = Callable[[Any, Any], Tensor]
Pair = tuple[str, nn.Parameter | Tensor | nn.Module]


class _Whole(Examples):
    """Targets of any kind, which count as one."""

    def counted(self, targets: Any) -> Tensor:  # noqa: ARG002 - whatever they are
        """Return that they count, (1,)."""
        return torch.ones(1, dtype=torch.bool)


class Given(Adapted):
    """A user's model whose layers of neurons are those that were handed over.

    Attributes:
        own: One layer for each pair; `read` is empty unless a parameter also reads its own neurons (`weight_hh`).
        traces: Layer → Hessian trace of each neuron, (width,) float64.
    """

    def __init__(self, model: nn.Module, inputs: Any, criterion: Criterion | None) -> None:
        dim, start = 0 if inputs is None else example_dim_of(model, inputs[0]), getattr(model, "init_hidden", None)
        call = Caller(dim, start and torch.enable_grad()(cache(start)))
        use = Use(inputs=inputs, criterion=cast(Criterion, criterion), call=call, example_dim=dim, carries=False)
        super().__init__(cast(Any, unstacked(model)), use)
        self.own: list[NeuronLayer] = []
        self.traces: dict[str, Tensor] = {}

    def layers(self) -> list[NeuronLayer]:
        """Return the layers that were handed over."""
        return self.own

    def only(self, layers: Sequence[NeuronLayer]) -> Self:
        """Return the same model with these layers alone."""
        twin = copy.copy(self)
        twin.own = list(layers)
        return twin

    def gated(self) -> Self:
        """Return the model with a neuron's own rows as what reads it: a gate on the rows is a gate on the neuron."""
        return self.only([replace(layer, read=layer.owned) for layer in self.own])

    def predicted(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Return the output, whatever it is, and the state to carry on from."""
        found, state = self.use.call(self.network, on(self.device, inputs), state)
        if isinstance(found, Mapping):
            return found.get("logits", found), state
        return getattr(found, "logits", found[0] if isinstance(found, list | tuple) else found), state

    def pairs(self, batches: Any) -> Any:
        """Return the batches, which are pairs already."""
        return batches

    def objective(self, targets: Any) -> Objective:
        """Return that class numbers are to be predicted, or whatever other targets are, all of them as one."""
        known = isinstance(targets, Tensor) and not targets.is_floating_point()
        return (Classes if known else _Whole)(cast(Criterion, self.use.criterion))

    def judged(self, logits: Any, targets: Any, *, reduction: str = "mean", **_: Any) -> Tensor:
        """Return the criterion's loss, `mean`, or `sum`: that times `weight`; (…, classes) are flattened for it."""
        weight, wanted = self.weight(targets) if reduction == "sum" else 1.0, on(self.device, targets)
        if not weight:
            return torch.zeros((), device=self.device)
        if isinstance(logits, Tensor) and isinstance(wanted, Tensor) and not wanted.is_floating_point():
            rows = logits.shape[:-1]
            if wanted.shape == rows or (wanted.ndim == 1 and len(wanted) == rows.numel()):
                logits, wanted = logits.reshape(-1, logits.shape[-1]), wanted.flatten()
        loss: Any = cast(Criterion, self.use.criterion)(logits, wanted)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.isfinite():
            got = loss.detach().tolist() if isinstance(loss, Tensor) and loss.numel() == 1 else type(loss).__name__
            raise ValueError(f"Expected one finite number as the criterion's loss, got {got}.")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError("Expected a loss that depends on the modules' parameters, got one that depends on none.")
        return loss.reshape(()) * weight if reduction == "sum" else loss.reshape(())


def given(
    model: nn.Module,
    modules: Sequence[Pair],
    channel_trace: Sequence[Any],
    loader: Iterable[Any] | None,
    criterion: Criterion | None,
    device: torch.device | str | None,
    most: int,
) -> tuple[Given, list[Any]]:
    """Return the model with what was handed over as its layers of neurons, and at most so many of its batches."""
    if not len(modules):
        raise ValueError("Expected at least one pair (name, parameter) in modules, got none.")
    if len(channel_trace) != len(modules):
        raise ValueError(f"Expected traces for each of {len(modules)} modules, got {len(channel_trace)} lists.")
    expect_on(model, device)
    batches = [] if loader is None else first_calls(loader, most)
    found = Given(model, batches[0][0] if batches else None, criterion)
    for pair, entries in zip(modules, channel_trace, strict=True):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"Expected pairs (name, parameter) in modules, got {type(pair).__name__}.")
        name, owner = pair
        if name in found.traces:
            raise ValueError(f"Expected each name once in modules, got {name!r} twice.")
        if not isinstance(owner, Tensor | nn.Module):
            raise ValueError(f"Expected a parameter or a module under the name {name!r}, got {type(owner).__name__}.")
        numbers = [np.mean(numbers_in(entry) or [np.nan]) for entry in entries]
        if wrong := [entry for entry, number in zip(entries, numbers, strict=True) if not np.isfinite(number)]:
            raise ValueError(f"Expected a finite trace for each neuron of {name!r}, got {wrong[0]!r}.")
        found.traces[name] = torch.tensor(numbers, dtype=torch.float64)
        found.own.append(_layer(found, name, owner, len(numbers)))
    return found, batches


def first_calls(loader: Iterable[Any], most: int) -> list[Any]:
    """Return the first batches as ((data,), targets): whatever the data are, they are a model's one argument."""
    return [((data,), targets) for data, targets in first_batches(loader, most)]


def _layer(model: nn.Module, name: str, owner: Tensor | nn.Module, width: int) -> NeuronLayer:
    """Return the layer of `width` neurons whose rows `owner` is, or whose rows its own parameters are."""
    first = {parameter: key for key, parameter in model.named_parameters()}
    wanted = list(owner.parameters(recurse=False)) if isinstance(owner, nn.Module) else [owner]
    if not wanted:
        raise ValueError(f"Expected a module with parameters of its own under the name {name!r}, got none.")
    owned, read, outputs = [], [], []
    for one in wanted:
        places, at = model.named_parameters(remove_duplicate=False), one.data_ptr() or -1  # of a `state_dict`'s, too
        names = [key for key, own in places if own is one or (own.shape == one.shape and own.data_ptr() == at)]
        if not names:
            raise ValueError(f"Expected parameters of the model in modules, got {name!r}, which is none of them.")
        own = model.get_parameter(names[0])
        rows = len(own) if own.ndim else 0
        if not width or not rows or rows % width:
            raise ValueError(
                f"Expected a trace for each of {rows} rows of {name!r}, or for each of as many stacked in "
                f"equal blocks, got {width}."
            )
        if not own.isfinite().all():
            raise ValueError(f"Expected finite weights in {name!r}, got others.")
        owned.append(Slice(first[own], dim=0, blocks=rows // width))
        read += [Slice(first[own], dim=1)] if "weight_hh" in first[own] and own.shape[1:] == (width,) else []
        outputs.append((f"network.{name}" if f"network.{name}" in names else names[0]).rpartition(".")[0])
    return NeuronLayer(name, "given", width, tuple(owned), tuple(read), outputs[0])
