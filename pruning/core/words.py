"""Rows of words as a table of columns of equal width."""

from collections.abc import Sequence


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines: the header, then the rows.

    >>> table_of(["layer", "kept"], [["a", "12"]])
    ['layer  kept', 'a      12']
    """
    whole = [list(header), *map(list, rows)]
    widths = [max(len(row[place]) for row in whole) for place in range(len(header))]
    return ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in whole]
