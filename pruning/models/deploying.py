"""Where PyTorch's own modules take the places of stand-ins again, and how wide the states then are."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruning.core.nested import tensors_in
from pruning.discovery.discovered import PREFIX, Discovered
from pruning.discovery.following import Number
from pruning.discovery.numbers import candidates
from pruning.discovery.plain import given, made_plain, plain_of
from pruning.discovery.recurrent import Narrowed, Recurrent
from pruning.discovery.running import Inputs, close, copied
from pruning.models.calling import example_dim_of, first_state

Kind = tuple[int, int]
"""What a state is: of how many layers and directions, and how wide it was."""


@dataclass(frozen=True)
class Plain:
    """A network in PyTorch's own modules, as far as these can hold its widths.

    Attributes:
        network: It shares all parameters with what it was made of.
        places: Which stand-ins are PyTorch's own modules in it.
        numbers: Numbers in the user's modules by which its own code now makes states as wide as the layers are.
        inputs: What it is called with, states among it as wide as they now are; None where that is not known.
    """

    network: nn.Module
    places: Sequence[str] = ()
    numbers: Sequence[Number] = ()
    inputs: Inputs | None = None


def plainly(model: Discovered) -> Plain:
    """Return a network in PyTorch's own modules, giving what it gives, up to rounding.

    It is run on what it was discovered with: with all of them, else with one after the other. A recurrent module of
    PyTorch's takes and gives states of its own width, where what stood in had padded ones: the network's own code goes
    on where it makes them by a number that may follow (`self.hidden_size`), or is given them.

    Args:
        model: It is left as it was.
    """
    network = model.network
    places = [path for path, module in network.named_modules() if plain_of(module) is not None]
    inputs = None if model.origin is None else model.origin.inputs
    if not places or inputs is None:
        return Plain(network, inputs=inputs)
    try:
        expected = given(network, inputs)
    except Exception:  # whatever a user's code raises, on another device say
        return Plain(network, inputs=inputs)
    readers = [path for path in places if isinstance(network.get_submodule(path), Narrowed)]
    others = [path for path in places if path not in readers]
    chosen: list[str] = []
    for more in _choices(others, readers):
        if not set(more) <= set(chosen) and _plain_gives(network, [*chosen, *more], inputs, expected):
            chosen += [path for path in more if path not in chosen]
    if len(chosen) < len(places):
        left = [path for path in others if path not in chosen]
        widths = _widths(network, left)
        for numbers, narrower in _states(model, widths, left, inputs):
            twin = copied(network, sharing=True)
            for number in numbers:
                number.set(twin, {layer.name: layer.width for layer in model.layers()})
            if _begins(twin, inputs, widths) and _plain_gives(twin, places, narrower, expected):
                return Plain(made_plain(twin, places), places, numbers, narrower)
    chosen = [path for path in places if path in chosen]
    return Plain(made_plain(network, chosen), chosen, (), inputs)


def _choices(others: Sequence[str], readers: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield what to try: all at once, each with the readers of its state, each alone."""
    yield [*others, *readers]
    yield from ([path, *readers] for path in others)
    yield from ([path] for path in itertools.chain(others, readers))


def _states(
    model: Discovered, widths: Mapping[Kind, int], left: Sequence[str], inputs: Inputs
) -> Iterator[tuple[list[Number], Inputs]]:
    """Yield by which numbers a network's own code may make narrower states, and inputs among which states are."""
    dense = () if model.origin is None else model.origin.layers
    of_left = (f"{PREFIX}{path}." for path in left)
    known = [next((layer for layer in dense if layer.owned[0].parameter.startswith(path)), None) for path in of_left]
    following = itertools.chain.from_iterable(candidates(model.network, layer) for layer in known if layer is not None)
    for numbers in itertools.chain([[]], following):
        for first in (None, 0, 1):
            narrower = _narrowed(inputs, widths, first)
            if narrower is not None:
                yield numbers, narrower


def _widths(network: nn.Module, left: Sequence[str]) -> dict[Kind, int]:
    """Return how wide states are once PyTorch's own modules make them, by what they are."""
    widths: dict[Kind, int] = {}
    for path in left:
        module: Any = network.get_submodule(path)
        own: Any = plain_of(module)
        if isinstance(module, Recurrent):
            parts = len(module._parts())
            widths[parts, module.hidden_size] = own.hidden_size
            widths[parts, module._width] = own.proj_size or own.hidden_size
    return widths


def _begins(network: nn.Module, inputs: Inputs, widths: Mapping[Kind, int]) -> bool:
    """Return whether a network that makes the first state elsewhere than in forward makes it as wide as it now is."""
    arguments, _ = inputs[0]
    if not callable(getattr(network, "init_hidden", None)):
        return True
    try:
        state = first_state(network, arguments, example_dim_of(network, arguments))
    except Exception:  # whatever a user's code raises, asked in a way that it does not know
        return False
    kinds = [(len(part), part.shape[-1]) for part in tensors_in(state) if part.ndim > 1]
    return not any(kind in widths and widths[kind] != kind[1] for kind in kinds)


def _narrowed(inputs: Inputs, widths: Mapping[Kind, int], first: int | None) -> Inputs | None:
    """Return the inputs, those from the `first` on that may be states as wide as these now are; None if there are none.

    Args:
        inputs: What the network was called with.
        widths: See `_widths`.
        first: How many of those that may be states are none; None leaves all as they were.
    """
    leaves, layout = pytree.tree_flatten(inputs)
    likely = [
        (place, widths[len(leaf), leaf.shape[-1]])
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor) and leaf.ndim > 1 and (len(leaf), leaf.shape[-1]) in widths
    ]
    if first is None:
        return inputs
    for place, width in likely[first:]:
        leaves[place] = leaves[place][..., :width].contiguous()
    return pytree.tree_unflatten(leaves, layout) if likely[first:] else None


def _plain_gives(network: nn.Module, places: Sequence[str], inputs: Inputs, expected: Sequence[torch.Tensor]) -> bool:
    """Return whether a network with PyTorch's own modules at these places gives the expected tensors.

    A state may be narrower than one that is padded with zeros.
    """
    try:
        found = given(made_plain(network, places), inputs)
    except Exception:  # whatever a user's code raises at other shapes of a state
        return False
    return len(found) == len(expected) and all(map(_is_state_of, found, expected))


def _is_state_of(found: torch.Tensor, padded: torch.Tensor) -> bool:
    if found.ndim < 2 or found.shape[:-1] != padded.shape[:-1] or found.shape[-1] >= padded.shape[-1]:
        return close(found, padded)
    own, rest = padded.tensor_split([found.shape[-1]], dim=-1)
    return close(found, own) and not rest.any()
