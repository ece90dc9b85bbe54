"""Statistics of neurons done on others than all of them: on those that are left, or on each of them twice.

A mean by hand, `x.sum(-1) / x.shape[-1]`, reads the width of a tensor. Such a number belongs to a statistic if nothing
changes where each neuron is taken twice and the number, and what the code makes of it (`n - 1` for a variance without
bias), is twice what it was: then what fewer neurons give is the statistic of those that are left. That of a factor, as
in `q @ k.mT / k.shape[-1] ** 0.5`, does change something, and stays what it was.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pruning.core.neurons import Keep, NeuronLayer, removed_neurons
from pruning.discovery.alike import CODE
from pruning.discovery.discovered import PREFIX
from pruning.discovery.following import Size
from pruning.discovery.running import Instead, Still, close, name_of
from pruning.discovery.sizes import call_of, read_by_code
from pruning.discovery.structure import Structure
from pruning.discovery.values import Blend
from pruning.discovery.widths import ATTENTION, Width, among, answered, sizes_told

Read = Mapping[tuple[str, str], Mapping[int, Mapping[int, int]]]
"""Module and call in its code → dimension → the size there → the width that is read instead."""
Outputs = tuple[list[Tensor], float]
"""What a network gives, and how coarsely it computes."""


class Telling(TorchFunctionMode):
    """A mode in which a network's code computes with other widths of tensors than it reads at some places.

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
        """Do what is asked, and tell what is computed with where that is known."""
        args, named = sizes_told(function, args, kwargs or {})
        name = read_by_code(function, sys._getframe(1)) if self._told else ""
        if not name:
            return function(*args, **named)
        call, module = call_of(name, sys._getframe(1))
        path = self._mode.paths.get(id(module), "").removeprefix(PREFIX.rstrip(".")).removeprefix(".")
        return answered(function, name, args, named, among(self._told.get((path, call), {}), args[0].shape))


def told(widths: Sequence[Size], number: Callable[[Size], int]) -> Read:
    """Return what `Telling` takes: for each width the number that is to be read."""
    found: dict[tuple[str, str], dict[int, dict[int, int]]] = {}
    for width in widths:
        own = found.setdefault((width.module, width.attribute), {}).setdefault(width.place, {})
        own[width.number] = number(width)
    return found


@dataclass(frozen=True)
class Widths:
    """What a network's code reads of tensors and computes with.

    Attributes:
        means: Those that belong to statistics of neurons; of fewer neurons they are fewer.
        factors: The others, which are what they were.
    """

    means: tuple[Size, ...] = ()
    factors: tuple[Size, ...] = ()

    def kept(self, layers: Iterable[NeuronLayer]) -> list[Size]:
        """Return the factors that count neurons of these layers, for each, and unlike ones that the same code reads."""
        known = {layer.name: layer for layer in layers}
        own = [width.of(known[name]) for width in self.factors for name, *_ in width.counts or () if name in known]
        calls = {(width.module, width.attribute, width.place) for width in own}
        numbers = {(width.module, width.attribute, width.place, width.number) for width in own}
        beside = (width for width in self.factors if (width.module, width.attribute, width.place) in calls)
        return [*own, *(w for w in beside if (w.module, w.attribute, w.place, w.number) not in numbers)]

    def readings(self, keep: Keep, layers: Iterable[NeuronLayer]) -> Iterator[tuple[Read, str]]:
        """Yield what the code may read where nobody reads some neurons, and what is wrong with it.

        Those of statistics are of the neurons that are left; then the others, too, which tells of them.
        """
        left = {layer.name: len(keep.get(layer.name, range(layer.width))) for layer in layers}
        means, factors = (
            [each for each in known if any(name in keep for name, *_ in each.counts or ())]
            for known in (self.means, self.factors)
        )
        if means:
            yield told(means, lambda width: width.fitting(left)), ""
        if factors:
            what = (
                f"{CODE} computes with its width ({factors[0]}) what is no mean over it; a number that "
                "its module keeps in an attribute would stay what it is"
            )
            yield told([*means, *factors], lambda width: width.fitting(left)), what


Twice = Callable[[Size], int]
"""A width → what is read where each neuron is taken twice."""


def _doubled(width: Size) -> int:
    return Width.of(width.number, 2)


def _less_one(width: Size) -> int:
    """Return what `n - 1` is twice as large of as it was: `len` gives Python no number that knows by itself."""
    return 2 * width.number - 1


def computed_with(
    widths: Sequence[Size],
    concerned: Callable[[Size], Sequence[Blend]],
    run: Callable[[Instead, Read], Outputs],
) -> Widths:
    """Return which widths belong to statistics, and which others the network computes with.

    Those that it reads for shapes, or for nothing, are neither. Modules of one code are tried together.

    Args:
        widths: What the network's code reads of tensors.
        concerned: The operations of a width's module that take the same neurons together.
        run: Runs the network with chosen operations done otherwise and with other widths.
    """
    if not widths:
        return Widths()
    expected, rounding = run({}, {})
    rounding = max(rounding, torch.finfo(torch.float32).eps)  # a small number that keeps a root from zero is none

    def same(chosen: Sequence[Size], blends: Sequence[Blend], number: Twice = _doubled) -> bool | None:
        """Return whether nothing changes where neurons are taken twice; None where the network does not run so."""
        try:
            twice = {blend.when: _twice(blend) for blend in blends}
            found, _ = run(twice, told(chosen, number))
        except Exception:  # a shape that does not fit
            return None
        alike = len(found) == len(expected)  # of what spikes are computed of there may be more where more of them come
        return alike and all(close(a, b, rounding) for a, b in zip(found, expected, strict=True))

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
            blends = {blend.when: blend for width in chosen for blend in concerned(width)}
            if blends and any(same(chosen, [*blends.values()], number) for number in (_doubled, _less_one)):
                means += [width for width in chosen if width not in means]
                if tried is together:
                    break
    return Widths(tuple(means), tuple(width for own in numbers.values() for width in own if width not in means))


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
    if name == ATTENTION and kwargs.get("scale") is None:
        kwargs = {**kwargs, "scale": value.shape[-1] ** -0.5}
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
    if not isinstance(found, Tensor) or found.ndim != value.ndim or found.shape[blend.dim] != len(kept):
        return found
    if len(kept) == 1 and operation(value, *others, **kwargs).shape[blend.dim] == 1:  # a mean that keeps its dimension
        return found
    return _put_back(found, value, blend.dim, kept)


def _put_back(found: Tensor, value: Tensor, dim: int, kept: Tensor) -> Tensor:
    shape = list(found.shape)
    shape[dim] = value.shape[dim]
    return found.new_zeros(shape).index_copy(dim, kept, found)
