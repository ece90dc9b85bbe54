"""Widths that a network's code reads of tensors: a size in a shape, and another number where the code computes with it.

`b, c, h, w = x.shape` may serve a `view(b, c, -1)`, which must follow the neurons, and a factor `c ** -0.5`, which must
not: where nobody reads some neurons it is what it was.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

ATTENTION = "scaled_dot_product_attention"
"""It divides by the root of the width of its queries where it is told no scale, as code would that reads it."""
_TELLING = {"size": "size", "numel": "numel", "__len__": "len", ATTENTION: ATTENTION}
READ = {"shape", *_TELLING.values()}
"""What tells the sizes of a tensor, or computes with them."""
_SCALED = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "pow", "clamp"}
_SCALED |= {"float_power", "clamp_min", "clamp_max", "fill", "addcmul", "addcdiv", "lerp", "full_like"}
_SCALED |= {"rsub", "rdiv", "rtruediv", "rmul", "radd", "rpow", "truediv", "iadd", "isub", "imul", "idiv", "itruediv"}
"""What takes numbers as terms or factors."""
_MADE = {"tensor", "as_tensor", "scalar_tensor", "new_tensor"}
"""What makes a tensor of numbers."""
_FILLED = {"full", "new_full"}
"""What is told sizes first, and then such a number."""


class Width(int):
    """A width that is computed with as one number, and is another where it is a size.

    What is made of it by whole numbers is such a width again. It is compared by its size.

    >>> width = Width(8, size=6)
    >>> width / 2, 1.0 / width, math.sqrt(2 * width), width == 6
    (4.0, 0.125, 4.0, True)
    >>> sizes_told(torch.zeros, (2, width // 2), {})
    ((2, 3), {})

    Attributes:
        size: What it is as a size.
        times: What is made of it by whole numbers is computed with as so many times the size; 0 if as it comes.
    """

    size: int
    times: int

    def __new__(cls, number: int, size: int, times: int = 0) -> Self:
        """Return a width."""
        made = super().__new__(cls, number)
        made.size, made.times = size, times
        return made

    @classmethod
    def of(cls, size: int, times: int) -> Self:
        """Return a width of which, and of whose `n - 1`, so many times as much is computed with.

        >>> width = Width.of(8, times=2)
        >>> width / 1, (width - 1) / 1, (width - 1).size
        (16.0, 14.0, 7)
        """
        return cls(times * size, size, times)

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Return what a copy is made of."""
        return int(self), self.size, self.times

    def __hash__(self) -> int:
        """Return another number than that of a size, for which a function may have kept what it computed."""
        return hash((int(self), self.size))

    def __repr__(self) -> str:
        """Return the size, which may be a part of a name."""
        return repr(self.size)

    def __neg__(self) -> int:
        """Return a width, too."""
        return 0 - self


class Free(torch.SymInt):
    """What a width gives with a size that `torch.export` leaves free: a width, too.

    Attributes:
        size: What it is as a size.
    """

    def __init__(self, number: torch.SymInt, size: torch.SymInt) -> None:
        super().__init__(number.node)  # type: ignore[no-untyped-call]
        self.size = size

    __hash__ = torch.SymInt.__hash__


def computed(value: Any) -> Any:
    """Return what is computed with where a width is given; else the same."""
    if isinstance(value, Width):
        return int(value)
    return torch.SymInt(value.node) if isinstance(value, Free) else value  # type: ignore[no-untyped-call]


def _size(value: Any) -> Any:
    """Return the size where a width is given, also in tuples, lists and slices; else the same."""
    if isinstance(value, Width | Free):
        return value.size
    if isinstance(value, torch.Size):
        return torch.Size(map(_size, value))
    if type(value) in (tuple, list):
        return type(value)(map(_size, value))
    return slice(_size(value.start), _size(value.stop), _size(value.step)) if isinstance(value, slice) else value


def _apart(operation: Callable[[Any, Any], Any], *, reflected: bool) -> Callable[[Any, Any], Any]:
    """Return what an operation gives that a width takes part in."""

    def found(self: Width | Free, value: Any) -> Any:
        if not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
            return NotImplemented
        numbers, sizes = (computed(self), computed(value)), (self.size, _size(value))
        number = operation(*(numbers[::-1] if reflected else numbers))
        if not isinstance(number, int | torch.SymInt):
            return number
        size = operation(*(sizes[::-1] if reflected else sizes))
        if isinstance(self, Width) and self.times:
            return Width.of(size, self.times)
        return Free(number, size) if isinstance(number, torch.SymInt) else Width(number, size)

    return found


def _compared(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return what a comparison gives that a width takes part in."""
    return lambda self, value: operation(self.size, _size(value))


for _kind in (Width, Free):
    for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
        setattr(_kind, f"__{_name}__", _apart(getattr(operator, _name), reflected=False))
        setattr(_kind, f"__r{_name}__", _apart(getattr(operator, _name), reflected=True))
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", _compared(getattr(operator, _name)))


def sizes_told(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return a call's arguments, those that are widths as sizes unless they are factors or terms of real numbers.

    What counts with whole numbers, such as places along a dimension, is told sizes, too.
    """
    name = getattr(function, "__name__", "").strip("_")
    if name in _MADE or (name in _SCALED and any(isinstance(value, Tensor) and not _is_whole(value) for value in args)):
        return args, kwargs
    if name in _FILLED:
        kept = 1 if name == "full" else 2
        return (*map(_size, args[:kept]), *args[kept:]), kwargs
    return _size(args), {key: _size(value) for key, value in kwargs.items()}


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def reads(function: Any) -> str:
    """Return by which of `READ` a function tells a tensor's sizes; empty if it does not."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return "shape" if getattr(function, "__self__", None) is Tensor.shape else ""
    return _TELLING.get(name, "")


def read_dims(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], ndim: int) -> list[int]:
    """Return of which dimensions a tensor's sizes are read."""
    if name == "len":
        return [0]
    if name == ATTENTION:
        return [] if kwargs.get("scale") is not None else [ndim - 1]
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return [*range(ndim)] if dim is None else [dim % ndim]


def among(told: Mapping[int, Mapping[int, int]], shape: Sequence[Any]) -> dict[int, int]:
    """Return for each dimension the number that is computed with: of unlike ones, that of the size that is read there.

    >>> among({0: {4: 8}, 1: {4: 8, 6: 12}}, (3, 6))
    {0: 8, 1: 12}

    Args:
        told: Dimension → size → the number that is computed with.
        shape: That of the tensor.
    """
    found = {}
    for dim, numbers in told.items():
        one, *others = dict.fromkeys(numbers.values())
        known = numbers.get(int(shape[dim])) if others and dim < len(shape) else one
        if known is not None:
            found[dim] = known
    return found


def answered(
    function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], told: Mapping[int, int]
) -> Any:
    """Return the sizes that code reads of a tensor, as widths where they are computed with as others.

    Args:
        function: What it asks.
        name: Which of `READ` that is.
        args: What that is given.
        kwargs: What it is given by name.
        told: Dimension → the number that is computed with, or the width itself.
    """
    if name == ATTENTION:
        width = next((told[dim] for dim in read_dims(name, args, kwargs, args[0].ndim) if dim in told), None)
        return function(*args, **kwargs if width is None else {**kwargs, "scale": computed(width) ** -0.5})
    found = function(*args, **kwargs)
    shape = [int(size) if isinstance(size, Tensor) else size for size in args[0].shape]  # as `torch.jit.trace` has it
    dims = [
        dim for dim in read_dims(name, args, kwargs, len(shape)) if computed(told.get(dim, shape[dim])) != shape[dim]
    ]
    if not dims:
        return found
    if name == "len":  # Python takes no other whole number of it
        return computed(told[0])
    if name == "numel":
        number: Any = math.prod(told.get(dim, size) for dim, size in enumerate(shape))
        size: Any = math.prod(shape)
        if isinstance(number, Width):
            return number
        return Free(number, size) if isinstance(number, torch.SymInt) else Width(number, size)
    sizes = [_width(told[dim], size) if dim in dims else size for dim, size in enumerate(shape)]
    return torch.Size(sizes) if isinstance(found, tuple) else sizes[dims[0]]


def _width(number: int, size: int) -> Width:
    return number if isinstance(number, Width) else Width(number, size)
