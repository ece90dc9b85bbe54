"""Widths that a network's code reads of tensors: a size in a shape, and another number where the code computes with it.

`b, c, h, w = x.shape` may serve a `view(b, c, -1)`, which must follow the neurons, and a factor `c ** -0.5`, which must
not: where nobody reads some neurons it is what it was.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

_TELLING = {"size": "size", "numel": "numel", "__len__": "len"}
READ = {"shape", *_TELLING.values()}
"""What tells the sizes of a tensor."""
_SCALED = {"add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "pow", "clamp"}
_SCALED |= {"float_power", "clamp_min", "clamp_max", "fill", "addcmul", "addcdiv", "lerp", "full_like"}
_SCALED |= {"rsub", "rdiv", "rtruediv", "rmul", "radd", "rpow", "truediv", "iadd", "isub", "imul", "idiv", "itruediv"}
_MADE = {"tensor", "as_tensor", "scalar_tensor", "new_tensor", "full", "new_full"}
"""What makes a tensor of a number, in which a width is one that is computed with."""


class Width(int):
    """A width that is one number as a size, and another where the code computes with it.

    What is made of it by whole numbers is such a width again; a fraction, a root or a power of it is of the other.

    >>> width = Width(6, 8)
    >>> list(range(width // 2)), width**0.5 == 8**0.5, 1 / (width - 1) == 1 / 7, math.sqrt(2 * width)
    ([0, 1, 2], True, True, 4.0)
    >>> torch.zeros(2, width).shape
    torch.Size([2, 6])

    Attributes:
        other: What is computed with.
    """

    other: int

    def __new__(cls, now: int, other: int) -> Self:
        """Return a width."""
        made = super().__new__(cls, now)
        made.other = other
        return made

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        """Return what a copy is made of."""
        return int.__index__(self), self.other

    def __hash__(self) -> int:
        """Return another number than that of a size, for which a function may have kept what it computed."""
        return hash((int.__index__(self), self.other))

    def __float__(self) -> float:
        """Return the number that is computed with."""
        return float(self.other)

    def __int__(self) -> int:
        """Return the number that is computed with, as in `int(c) ** -0.5`; a size is told otherwise, see `sizes`."""
        return self.other


_BY_TWO: tuple[Callable[[Any, Any], Any], ...] = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.mod,
    operator.truediv,
    operator.pow,
)


def _apart(operation: Callable[[Any, Any], Any], *, reflected: bool) -> Callable[[Width, Any], Any]:
    """Return what an operation gives that a width takes part in."""

    def found(self: Width, value: Any) -> Any:
        def of(part: Any, number: Any) -> Any:
            return operation(number, part) if reflected else operation(part, number)

        if isinstance(value, torch.SymInt):  # a size that `torch.export` leaves free
            return of(int.__index__(self), value)
        if isinstance(value, float):
            return of(self.other, value)
        if not isinstance(value, int):
            return NotImplemented
        other = of(self.other, computed(value))
        return Width(of(int.__index__(self), int.__index__(value)), other) if isinstance(other, int) else other

    return found


for _operation in _BY_TWO:
    setattr(Width, f"__{_operation.__name__}__", _apart(_operation, reflected=False))
    setattr(Width, f"__r{_operation.__name__}__", _apart(_operation, reflected=True))


def computed(value: Any) -> Any:
    """Return what is computed with where a width is given; else the same."""
    return value.other if isinstance(value, Width) else value


def scaled(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a call's arguments, those that are widths as numbers if they are factors or terms of real numbers.

    What counts with whole numbers, such as places along a dimension, is told sizes.
    """
    if not any(isinstance(value, Width) for value in args):
        return args
    name = getattr(function, "__name__", "").strip("_")
    real = any(isinstance(value, Tensor) and not _is_whole(value) for value in args)
    return tuple(map(computed, args)) if name in _MADE or (real and name in _SCALED) else args


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
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return [*range(ndim)] if dim is None else [dim % ndim]


def answered(found: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], told: Mapping[int, int]) -> Any:
    """Return the sizes that code reads of a tensor, as widths where they are computed with as others.

    Args:
        found: The sizes as they are.
        name: By which of `READ`.
        args: What that is given.
        kwargs: What it is given by name.
        told: Dimension → the width that is computed with.
    """
    shape = args[0].shape
    dims = [dim for dim in read_dims(name, args, kwargs, len(shape)) if told.get(dim, shape[dim]) != shape[dim]]
    if not dims:
        return found
    if name == "len":  # Python takes no other whole number of it
        return told[0]
    if name == "numel":
        whole = math.prod(told.get(dim, size) for dim, size in enumerate(shape))
        return Width(found, whole) if isinstance(whole, int) else found
    if isinstance(found, int):
        return Width(found, told[dims[0]])
    return torch.Size([Width(size, told[dim]) if dim in dims else size for dim, size in enumerate(found)])
