"""Whole numbers that a module holds: its attributes, and what its settings say, however deep in which kind of object.

Settings are what code is told at once: a dictionary, a namespace, a dataclass, a configuration of OmegaConf's or of
`transformers`'. Modules often share them. A module is told another number by settings of its own, so that its
neighbours may have other widths, and what was given stays as it was.
"""

import copy
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.memory import PLAIN, slots
from pruning.core.rebinding import keep_in_copies

Held = tuple[str, int | None, int]
"""The attribute behind the names that lead to it, as in `settings.model.width`; where in it, if it is a list; what."""
MOST = 400
"""What holds more than so many things is no settings but data, such as a vocabulary."""
DEEP = 5
"""So deep settings may lie in others."""
_EVERY = {*vars(nn.Module())}
"""What every module has."""
_OTHER = (Tensor, nn.Module, type, ModuleType, FunctionType)
"""What is no settings, whatever it holds."""


def numbers_held(module: nn.Module, *, settings: bool) -> Iterator[Held]:
    """Yield the whole numbers that a module holds.

    >>> module = nn.Module()
    >>> module.heads, module.settings = [2, 3], {"model": {"width": 12, "name": "a"}}
    >>> [*numbers_held(module, settings=False)]
    [('heads', 0, 2), ('heads', 1, 3)]
    >>> [*numbers_held(module, settings=True)]
    [('settings.model.width', None, 12)]

    Args:
        module: It is left as it was.
        settings: Whether those of its settings, or its attributes.
    """
    for name, value in vars(module).items():
        if name in _EVERY:
            continue
        if settings:
            yield from _said(name, value, DEEP)
        else:
            yield from _whole(name, value)


def _whole(name: str, value: Any) -> Iterator[Held]:
    """Yield a value, or what a list has, as far as these are whole numbers."""
    for place, part in enumerate(value) if isinstance(value, tuple | list) else [(None, value)]:
        if isinstance(part, Tensor) and not part.ndim and not part.is_floating_point():
            part = int(part)
        if isinstance(part, int) and not isinstance(part, bool):
            yield name, place, part


def _said(name: str, value: Any, deep: int) -> Iterator[Held]:
    """Yield the numbers in settings, in those within these, and in lists of them."""
    listed = isinstance(value, tuple | list)
    parts = [(str(place), part) for place, part in enumerate(value[:MOST])] if listed else _parts(value)
    for key, part in parts if deep else []:
        if not listed or isinstance(part, tuple | list):  # numbers in a list are told with that
            yield from _whole(f"{name}.{key}", part)
        yield from _said(f"{name}.{key}", part, deep - 1)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Return what settings hold by name; nothing of what is none."""
    if type(value) in PLAIN or isinstance(value, _OTHER):
        return []
    if isinstance(value, MethodType):  # of an object that the network keeps by what it does
        return [("__self__", value.__self__)]
    if isinstance(value, Mapping):
        try:
            held = dict(value) if len(value) <= MOST else {}
        except Exception:  # whatever a class of settings says of what is missing
            return []
    else:
        held = {**getattr(value, "__dict__", {})}
        held |= {name: getattr(value, name) for name in slots(value) if hasattr(value, name)}
    named = len(held) <= MOST and all(type(name) is str and "." not in name for name in held)
    return [*held.items()] if named else []


def hold(module: nn.Module, attribute: str, place: int | None, number: int) -> None:
    """Let a number that a module holds be another one, in settings of its own.

    >>> shared = {"width": 12}
    >>> one, other = nn.Module(), nn.Module()
    >>> one.settings = other.settings = shared
    >>> hold(one, "settings.width", None, 9)
    >>> one.settings, other.settings
    ({'width': 9}, {'width': 12})
    """
    name, *path = attribute.split(".")
    keep_in_copies(module, name)
    path += [] if place is None else [str(place)]
    setattr(module, name, _with(getattr(module, name), path, number))


def _with(held: Any, path: list[str], number: int) -> Any:
    """Return what is held with the number at the end of the path, copied as far as that leads."""
    if not path:
        return torch.full_like(held, number) if isinstance(held, Tensor) else number
    name, *rest = path
    if isinstance(held, tuple | list):
        parts = [*held]
        parts[int(name)] = _with(parts[int(name)], rest, number)
        return held._make(parts) if hasattr(held, "_make") else type(held)(parts)
    if isinstance(held, MethodType):
        return MethodType(held.__func__, _with(held.__self__, rest, number))
    found = copy.copy(held)
    if isinstance(held, Mapping):
        found[name] = _with(held[name], rest, number)
    else:  # also of a frozen dataclass
        object.__setattr__(found, name, _with(getattr(held, name), rest, number))
    return found
