"""What was given and what went wrong, in words for a sentence; and rows of words as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pruning.core.nested import kind_of, parts_of


def described(value: Any) -> str:
    """Return in words what was given where something else was expected: of a class its name, of tensors their forms.

    >>> import torch
    >>> described((torch.ones(2, 3), 1)), described(dict)
    ('a tuple of float32 (2, 3) and int', 'the class dict')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, list | tuple) and parts_of(value):
        return f"a {type(value).__name__} of {' and '.join(described(part) for part in list(value)[:4])}"
    if isinstance(value, Mapping):
        parts = [f"{name}: {described(part)}" for name, part in list(value.items())[:4]]
        return f"a {type(value).__name__} of {', '.join(parts)}"
    return kind_of(value)


def said(error: Exception) -> str:
    """Return an error's kind and the first line of what it says, without the stop at its end.

    >>> said(ValueError("Expected more."))
    'ValueError: Expected more'
    """
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(".")


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines: the header, then the rows.

    >>> table_of(["layer", "kept"], [["a", "12"]])
    ['layer  kept', 'a      12']
    """
    whole = [list(header), *map(list, rows)]
    widths = [max(len(row[place]) for row in whole) for place in range(len(header))]
    return ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in whole]
