"""Statistics of neurons done on others than all of them: on those that are left, or on each of them twice.

A mean by hand, `x.sum(-1) / x.shape[-1]`, reads the width of a tensor. Such a number belongs to a statistic if nothing
changes where each neuron is taken twice and the number is twice what it was: then what fewer neurons give is the
statistic of those that are left. That of a factor, as in `q @ k.mT / k.shape[-1] ** 0.5`, does change something.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pruning.core.neurons import Keep, removed_neurons
from pruning.discovery.discovered import PREFIX
from pruning.discovery.following import Size
from pruning.discovery.running import Still, close, name_of
from pruning.discovery.sizes import call_of, is_library, read_dims, reads
from pruning.discovery.structure import Structure
from pruning.discovery.values import Blend

Read = Mapping[tuple[str, str], Mapping[int, int]]
"""Module and call in its code → dimension → the width that is read there."""
Outputs = tuple[list[Tensor], float]
"""What a network gives, and how coarsely it computes."""


class Telling(TorchFunctionMode):
    """A mode in which a network's code reads other widths of tensors at some places.

    Args:
        mode: It knows the network's modules.
        told: What is read.
    """

    def __init__(self, mode: Still, told: Read) -> None:
        super().__init__()
        self._mode, self._told = mode, told

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is asked, and tell another width where one is known."""
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        name = reads(function)
        if not name or not self._told or is_library(sys._getframe(1)):
            return found
        call, module = call_of(name, sys._getframe(1))
        path = self._mode.paths.get(id(module), "").removeprefix(PREFIX.rstrip(".")).removeprefix(".")
        sizes = self._told.get((path, call), {})
        ndim = args[0].ndim
        own = [sizes.get(dim) for dim in read_dims(args, kwargs, ndim)]
        if isinstance(found, int):
            return own[0] or found
        return torch.Size([other or size for other, size in zip(own, found, strict=True)])


def told(widths: Sequence[Size], number: Callable[[Size], int]) -> Read:
    """Return what `Telling` takes: for each width the number that is to be read."""
    found: dict[tuple[str, str], dict[int, int]] = {}
    for width in widths:
        found.setdefault((width.module, width.attribute), {})[width.place] = number(width)
    return found


def of_statistics(
    widths: Sequence[Size],
    concerned: Callable[[Size], Sequence[Blend]],
    run: Callable[[Still, Read], Outputs],
) -> tuple[list[Size], list[Size]]:
    """Return which widths belong to statistics, and which others the network computes with.

    Those that it reads for shapes, or for nothing, are neither. Modules of one code are tried together.

    Args:
        widths: What the network's code reads of tensors.
        concerned: The operations of a width's module that take the same neurons together.
        run: Runs the network within a mode and with other widths.
    """
    if not widths:
        return [], []
    expected, rounding = run(Still(), {})
    rounding = max(rounding, torch.finfo(torch.float32).eps)  # a small number that keeps a root from zero is none

    def same(chosen: Sequence[Size], blends: Sequence[Blend]) -> bool | None:
        """Return whether nothing changes where neurons are taken twice; None where the network does not run so."""
        try:
            mode = Still({blend.index: _twice(blend) for blend in blends})
            found, _ = run(mode, told(chosen, lambda width: 2 * width.number))
        except Exception:  # a shape that does not fit
            return None
        return all(close(a, b, rounding) for a, b in zip(found, expected, strict=True))

    calls: dict[str, list[Size]] = {}
    for width in widths:
        calls.setdefault(f"{width.attribute} {width.place}", []).append(width)
    numbers = {call: own for call, own in calls.items() if same(own, ()) is False}
    codes: dict[tuple[str, ...], list[str]] = {}
    for call, own in numbers.items():
        codes.setdefault(tuple(dict.fromkeys(width.module for width in own)), []).append(call)
    means: list[Size] = []
    for together in codes.values():
        for tried in [together, *([call] for call in together if len(together) > 1)]:
            chosen = [width for call in tried for width in numbers[call]]
            blends = {blend.index: blend for width in chosen for blend in concerned(width)}
            if blends and same(chosen, [*blends.values()]):
                means += [width for width in chosen if width not in means]
                if tried is together:
                    break
    return means, [width for own in numbers.values() for width in own if width not in means]


def _twice(blend: Blend) -> Callable[..., Any]:
    """Return what does an operation with each neuron twice."""
    twice = torch.arange(blend.places.shape[blend.dim]).repeat(2)
    return lambda operation, args, kwargs: _of_some(operation, args, kwargs, blend, twice)


def with_some(found: Structure, blend: Blend, keep: Keep) -> Callable[..., Any]:
    """Return what does an operation with the neurons that are left."""
    layers, neurons = found.owners
    along = blend.places
    for dim in range(along.ndim):
        if dim != blend.dim:
            along = along.narrow(dim, 0, 1)
    along = along.flatten()
    left = torch.ones(len(along), dtype=torch.bool)
    for number, layer in enumerate(found.layers):
        if layer.name in keep:
            removed = torch.zeros(layer.width, dtype=torch.bool)
            removed[removed_neurons(layer, keep)] = True
            own = layers[along] == number
            left[own] = ~removed[neurons[along][own]]
    kept = left.nonzero().flatten()
    return lambda operation, args, kwargs: _of_some(operation, args, kwargs, blend, kept)


def _of_some(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], blend: Blend, kept: Tensor) -> Any:
    """Do an operation on some of what lies along a dimension; where it keeps that dimension, the rest gets zeros."""
    value, *others = args
    kept = kept.to(value.device)
    some = value.index_select(blend.dim, kept)
    name = name_of(operation)
    if blend.other is not None:
        return operation(some, others[0].index_select(blend.other, kept), *others[1:], **kwargs)
    if name in ("layer_norm", "rms_norm"):
        shape, *weights = others
        place = blend.dim - (value.ndim - len(shape))
        chosen = [w.index_select(place, kept) if isinstance(w, Tensor) else w for w in weights]
        shape = [len(kept) if dim == place else size for dim, size in enumerate(shape)]
        return _put_back(operation(some, shape, *chosen, **kwargs), value, blend.dim, kept)
    if name == "group_norm":
        groups, *weights = others
        chosen = [w.index_select(0, kept) if isinstance(w, Tensor) else w for w in weights]
        return _put_back(operation(some, groups, *chosen, **kwargs), value, blend.dim, kept)
    found = operation(some, *others, **kwargs)
    if isinstance(found, Tensor) and found.ndim == value.ndim and found.shape[blend.dim] == len(kept) != 1:
        return _put_back(found, value, blend.dim, kept)
    return found


def _put_back(found: Tensor, value: Tensor, dim: int, kept: Tensor) -> Tensor:
    shape = list(found.shape)
    shape[dim] = value.shape[dim]
    return found.new_zeros(shape).index_copy(dim, kept, found)
