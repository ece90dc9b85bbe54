"""What modules keep beside their children and parameters, lists and functions with closures, told of new objects.

A copy of a network has modules of its own, but a function that the network keeps (`self.mlp = lambda x: m.up(x)`, a
hook that stores a feature in `self`) is the same one, and would go on computing with the modules of the given network.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from pruning.core.memory import HOLDERS, PLAIN, is_empty, modules_in, slots

_OWN = ("_parameters", "_buffers", "_modules")
"""Where a module keeps what PyTorch finds there itself."""
_STATED = {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"}
"""By what a class may say what a copy of it is made of."""


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
    known = {**memo}
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
    """Return a deep copy, its modules made one by one: Python's own way takes several times as long for each."""
    own = [module for module in _within(network, memo) if _is_copied_here(module)]
    for module in own:
        memo[id(module)] = type(module).__new__(type(module))
    for module in reversed(own):  # parts first, which a module that is told its state may ask for
        twin, names = memo[id(module)], slots(module)
        own_way = not (names or _copier(type(module)))
        state = module.__getstate__() if own_way else vars(module)  # type: ignore[no-untyped-call]
        found = {name: part if type(part) in PLAIN else _copy(part, memo) for name, part in state.items()}
        twin.__setstate__(found) if own_way else vars(twin).update(found)
        for name in (name for name in names if hasattr(module, name)):
            object.__setattr__(twin, name, _copy(getattr(module, name), memo))
    return _copy(value, memo)


def _within(network: nn.Module, memo: Mapping[int, Any]) -> list[nn.Module]:
    """Return the modules of a network that have no copy yet, but for those in one that says how its copy begins."""
    found, waiting = dict[nn.Module, None](), [network]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found[module] = None
        if id(module) in memo or not _copier(type(module)).startswith("pruning."):
            waiting += module.children()
    return [module for module in found if id(module) not in memo]


def _copier(kind: type[nn.Module]) -> str:
    """Return where the method lies by which a class says how it is copied; nothing if it does not."""
    return getattr(getattr(kind, "__deepcopy__", None), "__module__", "")


def _is_copied_here(module: nn.Module) -> bool:
    """Return whether a module is copied by its attributes, also where a class of the user's copies itself or has slots.

    Of these PyTorch's own way to copy a module knows nothing.
    """
    kind = type(module)
    if _copier(kind) or slots(module):
        return not _copier(kind).startswith(("torch.", "pruning."))
    return not (_says_what_it_is_made_of(kind) or any(above.__module__ == "builtins" for above in kind.__mro__[:-1]))


def _says_what_it_is_made_of(kind: type[nn.Module]) -> bool:
    """Return whether a class that is not PyTorch's says of what a copy is made, as layers of `einops` do."""
    own = (above for above in kind.__mro__[:-1] if not above.__module__.startswith("torch.nn.modules."))
    return any(above.__module__ != "builtins" and _STATED & {*vars(above)} for above in own)


def keep_in_copies(module: nn.Module, name: str) -> None:
    """Let copies of a module, and what is read of its pickle, have an attribute that its class may leave out.

    >>> class Named(nn.Module):
    ...     def __getstate__(self):
    ...         return {"name": "what the class thinks of"}
    ...     def __setstate__(self, state):
    ...         self.__init__()
    >>> module = Named()
    >>> module.heads = 3
    >>> hasattr(copy.deepcopy(module), "heads")
    False
    >>> keep_in_copies(module, "heads")
    >>> copy.deepcopy(copy.deepcopy(module)).heads
    3
    """
    if _says_what_it_is_made_of(type(module)):
        vars(module).setdefault(_Reduced.NAME, _Reduced(module)).names.add(name)


class _Reduced:
    """What a module is asked for in the place of its class's `__reduce_ex__`, which it asks itself.

    Attributes:
        module: The module.
        names: Of the attributes that copies have beside what the class gives them.
    """

    NAME = "__reduce_ex__"

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, {self.NAME}

    def __call__(self, protocol: Any) -> tuple[Any, ...]:
        """Return how a copy is made, and of what: its class's own state, and what is kept beside that."""
        reduced: Any = type(self.module).__reduce_ex__(self.module, protocol)
        make, arguments, *state = reduced
        kept = {name: value for name, value in vars(self.module).items() if name in self.names}
        return _begun, (make, arguments), (state[0] if state else None, kept)


def _begun(make: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    """Return a copy that has not been told its state yet, and lets `_told` tell it."""
    module = make(*arguments)
    vars(module)["__setstate__"] = functools.partial(_told, module)
    return module


def _told(module: nn.Module, state: tuple[Any, dict[str, Any]]) -> None:
    """Let a copy be what its class makes of its state, and have what is kept beside that."""
    own, kept = state
    del vars(module)["__setstate__"]
    if own is not None:
        module.__setstate__(own)  # type: ignore[no-untyped-call]
    vars(module).update(kept)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """Return what `copy.deepcopy` does, sooner."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in HOLDERS and not value:
        found: Any = kind()
    elif kind is tuple and all(type(part) in PLAIN for part in value):
        return value
    elif kind is dict:
        memo[id(value)] = found = {}
        for name, part in value.items():
            found[_copy(name, memo)] = part if type(part) in PLAIN else _copy(part, memo)
    else:
        return copy.deepcopy(value, memo)
    memo[id(value)] = found
    return found


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
    for module in modules_in(network):
        for name, value in list(vars(module).items()):
            if is_empty(value) or name in _OWN:
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
