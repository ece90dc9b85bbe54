"""What a network's code compares widths with as it runs, and so by which widths it takes other paths than it does."""

import operator
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pruning.core.hearing import LIBRARIES
from pruning.discovery.widths import Width

Formed = tuple[Any, ...] | int | float
"""How a number is made: a number; or ("read", which of the sizes that were read, the size); or what of two others."""
MOST = 1000
"""So many different comparisons are looked at."""
LARGEST = 2**22
"""So many pairs of widths of two layers are looked at."""
_MADE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
HIDDEN, WORDS = "hidden", "words"
"""In the place of a comparison: a width goes where nobody sees what it is compared with, as a root, or as a key."""
_SAYING = ("hash", "repr", "str", "format")
_HIDING = (
    *_SAYING,
    *("float", "int", "round", "trunc", "floor", "ceil"),
    *("and", "or", "xor", "lshift", "rshift", "rand", "ror", "rxor", "rlshift", "rrshift", "invert"),
)
"""What gives a number, or words, of a width, that tell of nothing any more."""
_LIBRARIES = (*LIBRARIES, f"{torch.__path__[0].rpartition('/')[0]}/")
_KNOWN: dict[str, Callable[[Any, Any], Any]] = {name: getattr(operator, name) for name in (*_MADE, *_COMPARED)}


class Compared(int):
    """A width that code reads of a tensor, and that tells what it is compared with; so does what is made of it.

    >>> told = []
    >>> width = Compared(8, ("read", 0, 8), told.append)
    >>> (width // 2) % 3 == 0, width in (7, 11), bool(width - 8), width**0.5 > 3
    (False, False, False, False)
    >>> told[0]
    ('eq', ('mod', ('floordiv', ('read', 0, 8), 2), 3), 0)
    >>> [comparison[2] for comparison in told[1:]]
    [7, 11, 0, 3]
    >>> {7: "seven"}.get(width), told[-1]
    (None, ('words', ('read', 0, 8), 0))

    Attributes:
        formed: How it is made.
        tell: Is told of each comparison how it is made.
    """

    formed: Formed
    tell: Callable[[tuple[Any, ...]], object]

    def __new__(cls, number: int, formed: Formed, tell: Callable[[tuple[Any, ...]], object]) -> Self:
        """Return a width."""
        made = super().__new__(cls, number)
        made.formed, made.tell = formed, tell
        return made


class Part(float):
    """What is made of such a width that is no whole number, such as its root."""

    formed: Formed
    tell: Callable[[tuple[Any, ...]], object]

    def __new__(cls, number: float, formed: Formed, tell: Callable[[tuple[Any, ...]], object]) -> Self:
        """Return a number."""
        made = super().__new__(cls, number)
        made.formed, made.tell = formed, tell
        return made


def _formed(value: Any) -> Formed:
    formed: Formed = value.formed if isinstance(value, Compared | Part) else value
    return formed


def _bare(value: Any) -> Any:
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _making(name: str, *, reflected: bool) -> Callable[[Any, Any], Any]:
    def found(self: Compared | Part, value: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, Width):  # which knows by itself what is made of it
            return NotImplemented
        numbers, forms = (_bare(self), _bare(value)), (self.formed, _formed(value))
        numbers, forms = (numbers[::-1], forms[::-1]) if reflected else (numbers, forms)
        number = _KNOWN[name](*numbers)
        kind = {int: Compared, float: Part}.get(type(number))
        return kind(number, (name, *forms), self.tell) if kind else number

    return found


def _comparing(name: str) -> Callable[[Any, Any], Any]:
    def found(self: Compared | Part, value: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, Width):
            return NotImplemented
        self.tell((name, self.formed, _formed(value)))
        return _KNOWN[name](_bare(self), _bare(value))

    return found


def _is_some(self: Compared | Part) -> bool:
    """Return whether it is not 0, which is a comparison, too."""
    self.tell(("ne", self.formed, 0))
    return bool(_bare(self))


def _hiding(kind: type, name: str) -> Callable[..., Any]:
    method = getattr(kind, f"__{name}__")

    def found(self: Compared | Part, *others: Any) -> Any:
        if not sys._getframe(1).f_code.co_filename.startswith(_LIBRARIES):  # einops keeps what it made by sizes
            self.tell((WORDS if name in _SAYING else HIDDEN, self.formed, 0))
        return method(_bare(self), *others)

    return found


for _kind, _base in ((Compared, int), (Part, float)):
    for _name in _HIDING:
        if hasattr(_base, f"__{_name}__"):
            setattr(_kind, f"__{_name}__", _hiding(_base, _name))
    for _name in _MADE:
        setattr(_kind, f"__{_name}__", _making(_name, reflected=False))
        setattr(_kind, f"__r{_name}__", _making(_name, reflected=True))
    for _name in _COMPARED:
        setattr(_kind, f"__{_name}__", _comparing(_name))
    for _name, _function in (
        ("bool", _is_some),
        ("neg", lambda self: 0 - self),
        ("pos", lambda self: self),
        ("abs", lambda self: self if _bare(self) >= 0 else 0 - self),
        ("divmod", lambda self, value: (self // value, self % value)),
        ("reduce", lambda self: (type(_bare(self)), (_bare(self),))),  # a copy is a plain number
    ):
        setattr(_kind, f"__{_name}__", _function)


def plain(value: Any) -> Any:
    """Return plain numbers where such widths are given, also in tuples, lists, dictionaries and slices."""
    kind = type(value)
    if kind in (Compared, Part):
        return _bare(value)
    if kind in (tuple, list, torch.Size):
        return kind(map(plain, value)) if any(map(_may_hold, value)) else value
    if kind is dict:
        return {key: plain(part) for key, part in value.items()}
    return slice(plain(value.start), plain(value.stop), plain(value.step)) if kind is slice else value


def _may_hold(value: Any) -> bool:
    return type(value) in (Compared, Part, tuple, list, torch.Size, dict, slice)


def paths_of(
    compared: Iterable[tuple[Any, ...]],
    reads: Sequence[Tensor],
    widths: Mapping[str, int],
    owners: tuple[Tensor, Tensor],
    *,
    how: Collection[str] = _COMPARED,
) -> dict[str, np.ndarray]:
    """Return, for each layer whose width is compared, which path the code is seen to take for each width, from 1 on.

    Widths for which every comparison comes out alike have one number. A comparison of two layers' widths is left out.

    Args:
        compared: The comparisons, each as it is made.
        reads: The places along each of the dimensions whose sizes were read.
        widths: Layer → its width.
        owners: Place → the number of the layer that it belongs to, and of the neuron; −1 for none.
        how: Of which comparisons; of `HIDDEN` and `WORDS` each width may be a path of its own.
    """
    counts, names, sizes = [_counted(places, owners) for places in reads], [*widths], [*widths.values()]
    outcomes: dict[int, list[np.ndarray]] = {}
    for comparison in compared:
        layers = _layers_in(comparison, counts)
        for layer in layers if len(layers) == 1 and comparison[0] in how else ():
            found = _outcome(comparison, counts, {layer: np.arange(1, sizes[layer] + 1)}, sizes)
            if found is not None:
                outcomes.setdefault(layer, []).append(found)
    ways = {layer: np.unique(np.stack(own), axis=1, return_inverse=True)[1].ravel() for layer, own in outcomes.items()}
    return {names[layer]: own for layer, own in ways.items()}


def turns_of(
    compared: Iterable[tuple[Any, ...]],
    reads: Sequence[Tensor],
    widths: Mapping[str, int],
    owners: tuple[Tensor, Tensor],
) -> dict[tuple[str, str], np.ndarray]:
    """Return, for each two layers whose widths are compared, for which widths of both that comes out otherwise.

    It takes what `paths_of` does.
    """
    counts, names, sizes = [_counted(places, owners) for places in reads], [*widths], [*widths.values()]
    turns: dict[tuple[str, str], np.ndarray] = {}
    for comparison in compared:
        layers = sorted(_layers_in(comparison, counts))
        if comparison[0] in _COMPARED and len(layers) == 2 and sizes[layers[0]] * sizes[layers[1]] <= LARGEST:
            one, other = layers
            both = {one: np.arange(1, sizes[one] + 1)[:, None], other: np.arange(1, sizes[other] + 1)[None]}
            found = _outcome(comparison, counts, both, sizes)
            if found is not None:
                pair = names[one], names[other]
                turns[pair] = turns.get(pair, np.zeros_like(found)) | (found != found[-1, -1])
    return turns


def _layers_in(comparison: tuple[Any, ...], counts: Sequence[Mapping[int, tuple[int, int]]]) -> set[int]:
    return {layer for read in _reads(comparison) for layer, (_, neurons) in counts[read].items() if neurons > 1}


def _reads(formed: Formed) -> set[int]:
    if not isinstance(formed, tuple):
        return set()
    return {formed[1]} if formed[0] == "read" else _reads(formed[1]) | _reads(formed[2])


def _counted(places: Tensor, owners: tuple[Tensor, Tensor]) -> dict[int, tuple[int, int]]:
    """Return for each layer how many places along a dimension are its neurons', and how many neurons these are.

    Along a batch there lies one neuron, again and again.
    """
    layers, neurons = (own[places] for own in owners)
    found = {}
    for layer in torch.unique(layers[layers >= 0]).tolist():
        own = neurons[layers == layer]
        found[layer] = len(own), len(torch.unique(own))
    return found


def _outcome(
    comparison: tuple[Any, ...],
    counts: Sequence[Mapping[int, tuple[int, int]]],
    sizes: Mapping[int, np.ndarray],
    widths: Sequence[int],
) -> np.ndarray | None:
    """Return what a comparison comes to for these sizes of some layers; None if that is not known."""

    def values(part: Formed) -> Any:
        if not isinstance(part, tuple):
            return part
        if part[0] != "read":
            return _KNOWN[part[0]](values(part[1]), values(part[2]))
        size = part[2]
        for layer, (count, neurons) in counts[part[1]].items():
            if neurons > 1:
                if neurons != widths[layer] or count % neurons:
                    raise ValueError  # a part of the neurons: it depends on which of them go
                size = size + (sizes[layer] - neurons) * (count // neurons)
        return size

    shape = np.broadcast_shapes(*(size.shape for size in sizes.values()))
    try:
        with np.errstate(all="ignore"):
            if comparison[0] not in _COMPARED:
                return np.broadcast_to(np.asarray(values(comparison[1]), dtype=float), shape)
            return np.broadcast_to(np.asarray(values(comparison), dtype=bool), shape)
    except (ValueError, TypeError, OverflowError):
        return None
