"""Which arguments of forward the inputs of a batch are: several, several by name, or a structure that is one.

A tuple is several arguments to one network; to another a packed sequence, a named tuple or a list of bags is one. What
forward takes tells them apart, and where that leaves a choice, what the network was given before.
"""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from torch import nn
from torch.nn.utils.rnn import PackedSequence

PLACED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_MANY = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def parameters_of(module: nn.Module) -> list[Parameter]:
    """Return the arguments that a module's forward takes."""
    return list(signature(module.forward).parameters.values())


def forward_places(module: nn.Module) -> int | None:
    """Return how many arguments by place forward takes at most; None if any number."""
    taken = parameters_of(module)
    if any(each.kind is Parameter.VAR_POSITIONAL for each in taken):
        return None
    return sum(each.kind in PLACED for each in taken)


def given_as(module: nn.Module, inputs: Any, before: Any = None) -> tuple[Any, ...] | dict[str, Any]:
    """Return the arguments that inputs are, by place or by name.

    A tuple or list is as many arguments as it has parts, a dictionary arguments by name, all else is one argument. So
    is a packed sequence, a named tuple that forward can be called with alone, a tuple or list of more parts than
    forward has places for, a dictionary with none of the names of its arguments, and what is of the kind of the one
    structure that the network was given before, unless it holds such a structure alone.

    >>> class Pooled(nn.Module):
    ...     def forward(self, bags):
    ...         return sum(bag.mean() for bag in bags)
    >>> len(given_as(Pooled(), [1, 2, 3])), len(given_as(nn.Bilinear(2, 3, 1), [1, 2]))
    (1, 2)

    Args:
        module: What is called.
        inputs: Of a batch.
        before: Arguments by place that it was given, if any are known.
    """
    if isinstance(inputs, PackedSequence) or not isinstance(inputs, Mapping | list | tuple):
        return (inputs,)
    taken, places = parameters_of(module), forward_places(module)
    needed = [each for each in taken if each.default is Parameter.empty and each.kind not in _MANY]
    alone = places != 0 and len(needed) <= 1 and all(each.kind in PLACED for each in needed)
    if alone and isinstance(before, tuple) and len(before) == 1 and type(before[0]) is type(inputs):
        return tuple(inputs) if _holds_one(inputs, before[0]) else (inputs,)
    if isinstance(inputs, Mapping):
        names = {each.name for each in taken}
        other = bool(inputs) and not any(each.kind is Parameter.VAR_KEYWORD for each in taken)
        return (inputs,) if alone and other and names.isdisjoint(inputs) else dict(inputs)
    one = hasattr(inputs, "_fields") or (places is not None and len(inputs) > places)
    return (inputs,) if alone and one else tuple(inputs)


def _holds_one(inputs: Any, before: Any) -> bool:
    """Return whether inputs are a tuple of nothing but another one, while the structure given before had none in it."""
    held = type(inputs) is tuple and len(inputs) == 1 and type(inputs[0]) is tuple
    return held and not any(type(part) is tuple for part in before)
