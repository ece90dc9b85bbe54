"""What a network's modules keep from one call to the next, and how each batch starts where the network once began."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from pruning.core.nested import mapped

Place = tuple[str, str]
"""A module's path, and the name of its attribute or buffer."""
Kept = Mapping[Place, Any]
"""What is kept at some places; those that are not there at all are left out."""


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module has by name, also in the slots of its class.

    >>> class Counter(nn.Module):
    ...     __slots__ = ("steps",)
    >>> counter = Counter()
    >>> counter.steps = 3
    >>> attributes(counter)["steps"], "steps" in vars(counter)
    (3, False)
    """
    names = slots(module)
    if not names:
        return vars(module)
    return {**vars(module), **{name: getattr(module, name) for name in names if hasattr(module, name)}}


PLAIN = {type(None), bool, int, float, str}
"""Types of what a copy of a module shares, whatever else it has."""
HOLDERS = {dict, OrderedDict, list, tuple, set}
"""Types of what a module may keep things in; most of its own are empty."""


def filled(module: nn.Module) -> list[Any]:
    """Return what a module has, also its parameters and buffers, but for plain values, and what holds nothing.

    >>> layer = nn.Linear(2, 1)
    >>> [[*held] for held in filled(layer)]
    [['weight', 'bias']]
    """
    return [v for name, v in attributes(module).items() if not is_empty(v) and name != "_modules"]


def is_empty(value: Any) -> bool:
    """Return whether a value is a plain one, or holds nothing."""
    kind = type(value)
    return kind in PLAIN or (kind in HOLDERS and not value)


def modules_in(network: nn.Module) -> list[nn.Module]:
    """Return what `modules()` yields, in its order, in a quarter of the time: it is asked in every run of a network.

    >>> inner = nn.Sequential(nn.ReLU())
    >>> network = nn.Sequential(inner, nn.Linear(1, 1), inner)
    >>> modules_in(network) == [*network.modules()]
    True
    """
    found, waiting = dict[nn.Module, None](), [network]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [part for part in reversed([*module._modules.values()]) if part is not None]
    return list(found)


def tensors_of(network: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a network, what it has twice twice."""
    held = (held for module in modules_in(network) for held in (module._parameters, module._buffers) if held)
    return [tensor for each in held for tensor in each.values() if tensor is not None]


_SLOTS = WeakKeyDictionary[type, list[str]]()
"""Class of modules → its slots."""


def slots(module: nn.Module) -> list[str]:
    """Return the names of the slots that the classes of a module have beside what every module has."""
    found = _SLOTS.get(type(module))
    if found is None:
        _SLOTS[type(module)] = found = _slots_of(type(module))
    return found


def _slots_of(module: type) -> list[str]:
    found = []
    for kind in module.__mro__:
        own = vars(kind).get("__slots__", ())
        names = [own] if isinstance(own, str) else list(own)
        private = f"_{kind.__name__.lstrip('_')}"
        found += [private + name if name.startswith("__") and not name.endswith("__") else name for name in names]
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def kept(network: nn.Module, places: Iterable[Place]) -> dict[Place, Any]:
    """Return what a network's modules keep at these places.

    >>> counter = nn.Module()
    >>> counter.steps = 3
    >>> kept(counter, [("", "steps"), ("", "state")])
    {('', 'steps'): 3}
    """
    found = {}
    for path, name in places:
        module = network.get_submodule(path)
        for held in (module._buffers, attributes(module)):
            if name in held:
                found[path, name] = held[name]
    return found


def copies(values: Kept) -> dict[Place, Any]:
    """Return the same values, in tensors of their own, without the graph that computed them."""
    return {place: mapped(_copy, value) for place, value in values.items()}


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def keeping(network: nn.Module, places: Iterable[Place], values: Kept) -> Iterator[None]:
    """Within the context the modules keep copies of `values`, and nothing at other places; then what they kept before.

    >>> counter = nn.Module()
    >>> counter.steps = 3
    >>> with keeping(counter, [("", "steps")], {("", "steps"): 0}):
    ...     counter.steps += 1
    >>> counter.steps
    3
    """
    places = list(places)
    before = kept(network, places)
    _put(network, places, copies(values))
    try:
        yield
    finally:
        _put(network, places, before)


def _put(network: nn.Module, places: Iterable[Place], values: Kept) -> None:
    for path, name in places:
        module: Any = network.get_submodule(path)
        if name in slots(module):
            if (path, name) in values:
                setattr(module, name, values[path, name])
            elif hasattr(module, name):
                delattr(module, name)
            continue
        held = module._buffers if name in module._buffers else vars(module)
        if (path, name) in values:
            held[name] = values[path, name]
        else:
            held.pop(name, None)
