"""What was given, in words for a sentence; and rows of words as a table."""

from collections.abc import Iterable, Sequence
from itertools import islice
from textwrap import wrap
from typing import Any

from torch import Tensor

from pruning.core.nested import parts_of

WIDE = 80
"""Columns of a terminal or of a notebook's cell."""
SHOWN = 4
"""Parts of what was given that a sentence tells of."""


def described(value: Any) -> str:
    """Return in words what was given where something else was expected: of a class its name, of tensors their forms.

    >>> import torch
    >>> described({"x": torch.ones(2, 3), "more": 1})
    'a dict of x: a tensor (2, 3) of float32, more: int'
    >>> described((None, [])), described(dict)
    ('a tuple of nothing and an empty list', 'the class dict')
    """
    if value is None:
        return "nothing"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if (parts := parts_of(value)) is None:
        return kind
    named = f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
    each = [(name, described(part)) for name, part in islice(parts.items(), SHOWN)]
    more = ["…"] if len(parts) > SHOWN else []
    if isinstance(value, list | tuple):
        return f"{named} of {' and '.join([part for _, part in each] + more)}" if each else f"an empty {kind}"
    return f"{named} of {', '.join([f'{name}: {part}' for name, part in each] + more)}" if each else f"an empty {kind}"


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines: the header, then the rows.

    >>> table_of(["layer", "kept"], [["a", "12"]])
    ['layer  kept', 'a      12']
    """
    whole = [list(header), *map(list, rows)]
    widths = [max(len(row[place]) for row in whole) for place in range(len(header))]
    return ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in whole]


def wrapped(lines: Iterable[str]) -> list[str]:
    """Return sentences in lines of at most `WIDE` columns, what follows the first two further in; words stay whole.

    >>> [len(line) for line in wrapped(["  one: " + "word " * 20, ""])], wrapped(["  one"])
    ([76, 33, 0], ['  one'])
    """
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    further = " " * (len(line) - len(line.lstrip()) + 2)
    return wrap(line, WIDE, subsequent_indent=further, break_long_words=False, break_on_hyphens=False) or [line]
