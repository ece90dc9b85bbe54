"""What modules keep beside their children and parameters, lists and functions with closures, told of new objects.

A copy of a network has modules of its own, but a function that the network keeps (`self.mlp = lambda x: m.up(x)`, a
hook that stores a feature in `self`) is the same one, and would go on computing with the modules of the given network.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from pruning.core.memory import slots

_OWN = ("_parameters", "_buffers", "_modules")
"""Where a module keeps what PyTorch finds there itself."""


def duplicated(value: Any, network: nn.Module, memo: dict[int, Any]) -> Any:
    """Return a copy of what belongs to a network, which shares what its modules keep that Python cannot copy.

    >>> import threading
    >>> network = nn.Linear(2, 2)
    >>> network.lock = threading.Lock()
    >>> duplicated(network, network, {}).lock is network.lock
    True

    A class of the user's that copies itself (`__deepcopy__`), as layers of `sinabs` do, knows nothing of what the copy
    is to have in the place of something; its modules are copied as all others are.

    Args:
        value: The network, or what holds it.
        network: Whose modules may keep a lock, an open file, a running generator or the like.
        memo: By identity of an object, what the copy has in its place; all that was copied is noted there.
    """
    known = {**_empty(network), **memo}
    memo.update(known)
    try:
        found = _copied(value, network, memo)
    except (TypeError, RuntimeError):
        parts = {id(module): module for module in network.modules()}
        for module in parts.values():
            for kept in (kept for name, kept in vars(module).items() if name not in _OWN):
                try:
                    copy.deepcopy(kept, {**parts, **known})
                except (TypeError, RuntimeError):  # which a tensor without numbers raises, as graphs keep them
                    known[id(kept)] = kept
        memo.clear()
        memo.update(known)
        found = _copied(value, network, memo)
    return found


def _copied(value: Any, network: nn.Module, memo: dict[int, Any]) -> Any:
    own = [module for module in network.modules() if _copies_itself(module) and id(module) not in memo]
    for module in own:
        memo[id(module)] = type(module).__new__(type(module))
    for module in own:
        vars(memo[id(module)]).update(copy.deepcopy(vars(module), memo))
        for name in (name for name in slots(module) if hasattr(module, name)):
            object.__setattr__(memo[id(module)], name, copy.deepcopy(getattr(module, name), memo))
    return copy.deepcopy(value, memo)


def _copies_itself(module: nn.Module) -> bool:
    """Return whether a module is of a class of the user's that says how it is copied, or has slots.

    Of these PyTorch's own way to copy a module knows nothing.
    """
    copier = getattr(type(module), "__deepcopy__", None)
    return bool(slots(module)) or (copier is not None and not copier.__module__.startswith(("torch.", "pruning.")))


def _empty(network: nn.Module) -> dict[int, Any]:
    """Return what stands in a copy for the mappings of each module that are empty, as most of its hooks' are.

    A module has a dozen of them, and Python's own way to copy one takes as long as that of all else in the module.
    """
    held = (value for module in network.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in held if type(value) in (dict, OrderedDict) and not value}


def rebind(network: nn.Module, changes: Mapping[int, Any]) -> None:
    """Let lists, functions and hooks that the modules of a network keep mean other objects.

    >>> class Called(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.one = one = nn.Linear(2, 2)
    ...         self.run = lambda inputs: one(inputs)
    >>> network, other = Called(), nn.Linear(2, 3)
    >>> rebind(network, {id(network.one): other})
    >>> network.run.__closure__[0].cell_contents is other
    True

    Args:
        network: It is changed, but for functions that it may share with others: it gets its own.
        changes: By identity of an object, what stands in its place.
    """
    known: dict[int, Any] = {}
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if name in _OWN or value is None or isinstance(value, bool | int | str):
                continue
            new = _bound(value, changes, known)
            if new is value:
                continue
            if isinstance(value, dict):  # hooks: what removes them knows the dictionary
                value.update(new)
            else:
                vars(module)[name] = new


def put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Let another module stand at a path of a network, also in what its modules keep beside their children."""
    before = network.get_submodule(path)
    above, _, name = path.rpartition(".")
    setattr(network.get_submodule(above), name, module)
    rebind(network, {id(before): module})


def _bound(value: Any, changes: Mapping[int, Any], known: dict[int, Any]) -> Any:
    """Return a value in which the new objects stand in the place of the old ones; itself if it has none of them."""
    if id(value) in changes:
        return changes[id(value)]
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, FunctionType):
        return _function(value, changes, known)
    if isinstance(value, MethodType):
        owner = _bound(value.__self__, changes, known)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, functools.partial):
        parts = [_bound(part, changes, known) for part in (value.func, value.args, value.keywords)]
        same = parts[0] is value.func and parts[1] is value.args and parts[2] is value.keywords
        return value if same else functools.partial(parts[0], *parts[1], **parts[2])
    if isinstance(value, dict):
        new = {name: _bound(part, changes, known) for name, part in value.items()}
        return value if all(new[name] is part for name, part in value.items()) else new
    if type(value) in (list, tuple):
        parts = [_bound(part, changes, known) for part in value]
        return value if all(map(_is, parts, value)) else type(value)(parts)
    return value


def _is(one: object, other: object) -> bool:
    return one is other


def _function(function: FunctionType, changes: Mapping[int, Any], known: dict[int, Any]) -> FunctionType:
    """Return a function that closes over the new objects; itself if it closes over none of the old ones."""
    cells = function.__closure__ or ()
    known[id(function)] = function  # one that closes over itself
    held = [cell.cell_contents if _is_filled(cell) else None for cell in cells]
    new = [_bound(value, changes, known) for value in held]
    defaults = _bound(function.__defaults__, changes, known)
    named = _bound(function.__kwdefaults__, changes, known)
    if all(map(_is, new, held)) and defaults is function.__defaults__ and named is function.__kwdefaults__:
        return function
    closure = tuple(
        cell if value is before else CellType(value) for cell, value, before in zip(cells, new, held, strict=True)
    )
    found = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure or None)
    found.__kwdefaults__, found.__qualname__, found.__doc__ = named, function.__qualname__, function.__doc__
    vars(found).update(vars(function))
    known[id(function)] = found
    return found


def _is_filled(cell: CellType) -> bool:
    """Return whether a cell holds something already; one of a name that is bound later does not."""
    try:
        cell.cell_contents  # noqa: B018 - raises where there is nothing
    except ValueError:
        return False
    return True
