"""Configurations of `transformers` that follow the widths of their model, where they can say them."""

import copy
import itertools
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.core.devices import drawing
from pruning.core.neurons import NeuronLayer
from pruning.discovery.plain import given, gives
from pruning.discovery.redrawing import redrawn
from pruning.discovery.running import Inputs, copied

logger = logging.getLogger(__name__)

WIDTHS = re.compile(r"inner|dim|size|width|ffn|head")
"""In the name of a number that a configuration may leave out."""
COUNTED = re.compile(r"(layer|block|depth)s?$|^(n|num|L|N)$|^(n|num)_(layer|block|encoder|decoder|res|cell|repeat)")
"""In the name of a number that may say how long a list of modules is."""
EXPERTS = re.compile(r"expert|^(n|num|E)$")
"""In the name of a number that may say how many experts there are."""
ATTEMPTS = 40
"""How many configurations are tried."""


@dataclass(frozen=True)
class Entry:
    """A number in a configuration.

    Attributes:
        model: The path of the model that it belongs to.
        path: The configurations within configurations that lead to it.
        name: Its name.
        place: Where in it, if it is a list.
        value: What it is to be.
    """

    model: str
    path: tuple[str, ...]
    name: str
    place: int | None
    value: int

    def set(self, config: Any) -> None:
        """Let the number be that."""
        for part in self.path:
            config = getattr(config, part)
        if self.place is None:
            setattr(config, self.name, self.value)
        else:
            numbers = list(getattr(config, self.name))
            numbers[self.place] = self.value
            setattr(config, self.name, numbers)


def follow_widths(
    network: nn.Module, befores: Iterable[Sequence[NeuronLayer]], after: Sequence[NeuronLayer], inputs: Inputs
) -> tuple[Entry, ...]:
    """Let a network's configurations say the widths that it has, so that `transformers` saves and loads it by them.

    A model of `transformers` holds a configuration from which its class builds it. The numbers in it are tried with
    what has become of a layer, until what the class builds has the shapes of the network. That must give what the
    network gives on the example inputs, with the same parameters; else the configuration stays as it was.

    Args:
        network: Its configurations may be changed.
        befores: Its layers with widths that they had, of which the configurations know some.
        after: The layers with the widths that they have.
        inputs: What it is called with.

    Returns:
        The numbers that were changed.
    """
    pairs = {(one.width, other.width) for before in befores for one, other in zip(before, after, strict=True)}
    changes = {(old, new) for old, new in pairs if old != new}
    found: tuple[Entry, ...] = ()
    for path in _configured(network) if changes else []:
        model = network.get_submodule(path)
        entries = _solved(model, changes, path)
        if entries and _taken(network, path, entries, inputs):
            found += entries
        else:
            logger.info("The configuration of %s cannot say the widths that it has.", type(model).__name__)
    return found


def follow_lengths(
    network: nn.Module, lists: Mapping[str, tuple[int, int]], inputs: Inputs, named: re.Pattern[str] = COUNTED
) -> tuple[Entry, ...]:
    """Let a network's configurations say how many blocks, or experts, there are left, see `follow_widths`.

    Where no configuration builds the network, one still says how many layers a cache is to have.

    Args:
        network: Its configurations may be changed.
        lists: Where some are gone → how many there were, and how many these are.
        inputs: What it is called with.
        named: What names the numbers may have.

    Returns:
        What was changed.
    """
    found: tuple[Entry, ...] = ()
    for path in _configured(network):
        model: Any = network.get_submodule(path)
        own = (length for above, length in lists.items() if f"{above}.".startswith(f"{path}.".lstrip(".")))
        changes = {(length, length - gone) for length, gone in own}
        numbers = [
            Entry(path, where, name, place, left)
            for where, name, place, number in _numbers(model.config, ())
            for length, left in changes
            if number == length and named.search(name)
        ]
        said = next(
            (
                chosen
                for chosen in _some(numbers)
                if _apart(model, _changed(model.config, chosen), _shapes(model)) == (0, 0)
                and _taken(network, path, chosen, inputs)
            ),
            None,
        )
        if said is None:
            logger.info("The configuration of %s cannot say how many it has of what is gone.", type(model).__name__)
            said = () if named is EXPERTS else _cached(model, [entry for entry in numbers if not entry.path])
        found += said
    return found


def _some(numbers: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    """Yield choices of numbers: each, all, pairs."""
    sizes = dict.fromkeys((1, len(numbers), 2))
    choices = (chosen for size in sizes for chosen in itertools.combinations(numbers, size) if chosen)
    yield from itertools.islice(choices, ATTEMPTS)


def _cached(model: Any, numbers: Sequence[Entry]) -> tuple[Entry, ...]:
    """Let the configuration say how many layers there are, as the cache of keys and values has it, where it does."""
    name = getattr(model.config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    chosen = tuple(entry for entry in numbers if entry.name == name)
    try:
        _share(_built(model, _changed(model.config, chosen)), model)
    except Exception:  # whatever a class says of a configuration
        return ()
    return chosen


def shorten_lists(config: Any, length: int, gone: Collection[int]) -> None:
    """Let the lists in a configuration that have an entry for each of so many blocks lose those of some."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shorten_lists(value, length, gone)
        if (
            isinstance(value, list)
            and len(value) == length
            and all(part in (0, 1) or type(part) is str for part in value)
        ):
            setattr(config, name, [part for place, part in enumerate(value) if place not in gone])


def configure(network: nn.Module, entries: Iterable[Entry]) -> nn.Module:
    """Return the network, its configurations with these numbers."""
    by_model: dict[str, list[Entry]] = {}
    for entry in entries:
        by_model.setdefault(entry.model, []).append(entry)
    for path, own in by_model.items():
        model: Any = network.get_submodule(path)
        _share(_built(model, _changed(model.config, own)), model)
    return network


def _configured(network: nn.Module) -> list[str]:
    """Return the models in a network that can be built from a configuration, outer ones alone."""
    found: list[str] = []
    for path, module in network.named_modules():
        inside = any(f"{path}.".startswith(f"{above}.") or not above for above in found)
        if not inside and hasattr(module, "save_pretrained") and hasattr(getattr(module, "config", None), "to_dict"):
            found.append(path)
    return found


def _solved(model: nn.Module, changes: set[tuple[int, int]], path: str) -> tuple[Entry, ...]:
    """Return the numbers with which the model's class builds one of its shapes; none if they were not met.

    What brings it nearer is taken, one number after the other; of those that its class refuses alone, pairs.
    """
    config: Any = model.config
    shapes = _shapes(model)
    left = _apart(model, config, shapes)
    entries = list(dict.fromkeys(_entries(config, path, (), changes)))
    chosen: tuple[Entry, ...] = ()
    refused: list[Entry] = []
    waiting: list[tuple[Entry, ...]] = [(entry,) for entry in entries]
    attempts = 0
    while waiting and left != (0, 0) and attempts < ATTEMPTS:
        more = waiting.pop(0)
        attempts += 1
        apart = _apart(model, _changed(config, (*chosen, *more)), shapes)
        if apart < left:
            chosen, left = (*chosen, *more), apart
            waiting, refused = [(entry,) for entry in entries if entry not in chosen], []
        elif apart[0] > len(shapes) and len(more) == 1:
            refused += more
        if not waiting and left[0] and refused:
            waiting, refused = [(one, other) for one in refused for other in entries if other != one], []
    return chosen if left[0] == 0 else ()


def _changed(config: Any, entries: Iterable[Entry]) -> Any:
    """Return a copy of a configuration with these numbers."""
    found = copy.deepcopy(config)
    for entry in entries:
        entry.set(found)
    return found


def _apart(model: nn.Module, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return how many tensors, and numbers in modules, differ from the model in one of this configuration."""
    try:
        built = _built(model, config)
    except Exception:  # whatever a class says of a configuration
        return len(shapes) + 1, 0
    other = _shapes(built)
    names = {name for name in {**shapes, **other} if shapes.get(name) != other.get(name)}
    modules = dict(built.named_modules())
    numbers = [
        name
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float) and getattr(modules.get(path), name, value) != value
    ]
    return len(names), len(numbers)


def _taken(network: nn.Module, path: str, entries: Sequence[Entry], inputs: Inputs) -> bool:
    """Let a model have these numbers if one that is built from them gives the same; return whether it has.

    That is seen on weights in general position, where no neuron is silent.
    """
    model: Any = network.get_submodule(path)
    try:
        whole = redrawn(network)
        expected = given(whole, inputs)
        if not all(bool(tensor.isfinite().all()) for tensor in expected):
            whole = copied(network, sharing=True)
            expected = given(whole, inputs)
        drawn = whole.get_submodule(path)
        built = _filled(_built(model, _changed(model.config, entries)), drawn)
        _share(built, drawn)  # whose own code reads its configuration, too
        same = gives(whole, inputs, expected)
        if path:
            above, _, name = path.rpartition(".")
            setattr(whole.get_submodule(above), name, built)
        same = same and gives(whole if path else built, inputs, expected)
    except Exception:  # whatever a user's code, or the class, says
        return False
    if same:
        _share(built, model)
    return same


def _share(built: nn.Module, model: nn.Module) -> None:
    """Let every module of a model have the configuration that it has in the one that was built."""
    modules = dict(built.named_modules())
    for name, module in model.named_modules():
        if hasattr(module, "config") and hasattr(modules.get(name), "config"):
            module.config = modules[name].config


class _Unfilled(TorchFunctionMode):
    """A mode in which memory that nothing was written to is none, so that parameters cost nothing."""

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is called for."""
        kwargs = kwargs or {}
        if function is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)


def _built(model: nn.Module, config: Any) -> nn.Module:
    """Return a model of that class of a configuration, its parameters without memory."""
    with drawing(model), _Unfilled():
        found: nn.Module = type(model)(copy.deepcopy(config))
    return found.eval()


def _filled(built: nn.Module, model: nn.Module) -> nn.Module:
    """Return the built model with the parameters and saved buffers of the other."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        above, _, own = name.rpartition(".")
        setattr(built.get_submodule(above), own, parameter)
    saved = model.state_dict()
    device = next(model.parameters()).device
    for path, module in built.named_modules():
        for own, buffer in module._buffers.items():
            name = f"{path}.{own}".lstrip(".")
            if buffer is not None:
                module._buffers[own] = saved[name] if name in saved else buffer.to(device)
    return built


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    named: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in named}


def _entries(config: Any, model: str, path: tuple[str, ...], changes: set[tuple[int, int]]) -> Iterator[Entry]:
    """Yield what numbers in a configuration might have become, the likeliest first."""
    numbers = list(_numbers(config, path))
    for exact in (True, False):
        for where, name, place, number in numbers:
            for old, new in sorted(changes):
                if number is None and exact:
                    yield Entry(model, where, name, place, new)
                elif number is not None and (number == old) == exact and number * new % old == 0 < number * new // old:
                    yield Entry(model, where, name, place, number * new // old)


def _numbers(config: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, int | None, int | None]]:
    """Yield the whole numbers in a configuration, and the widths that it leaves out."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            yield from _numbers(value, (*path, name))
        for place, number in enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]:
            if (number is None and WIDTHS.search(name)) or (type(number) is int and number > 1):
                yield path, name, place, number
