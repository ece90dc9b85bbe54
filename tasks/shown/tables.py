"""How a table stands in a terminal or a log: no number of it is ever cut, and words fold where room is short."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table

Row = Mapping[str, str]
"""Cells by the heads of their columns."""
NARROWEST, GAP = 12, 2
"""Letters that a word has before it is folded, and how far columns stand apart."""
HELD = "\N{NO-BREAK SPACE}"
"""What stands for a blank at which no line ends."""


class _Head(str):
    """The head of a column: it stands at the foot of its row, as cells of the others stand at the top of theirs."""

    __slots__ = ()
    vertical = "bottom"  # which Rich asks each cell for


def shown_table(title: str, rows: Sequence[Row], *, words: int = 1) -> Table:
    """Return rows of cells as a table.

    Args:
        title: What stands above it.
        rows: All with the same heads, in their order; a head may have several lines.
        words: How many columns hold words, which stand first and may fold; the others hold numbers, which never do.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, head in enumerate(rows[0]):
        is_word = number < words
        least = max(cell_len(line) for text in (head, *(row[head] for row in rows)) for line in text.split("\n"))
        table.add_column(
            _Head(head),
            justify="left" if is_word else "right",
            overflow="fold",
            no_wrap=not is_word,
            min_width=min(least, NARROWEST) if is_word else least,
        )
    for row in rows:
        table.add_row(*row.values())
    return table


def print_all(parts: Sequence[RenderableType], hints: Sequence[str] = ()) -> None:
    """Print tables and sentences, then hints below an empty line.

    A table is as wide as its numbers need to be whole, whatever the terminal has. A sentence folds between its words
    where a terminal ends; elsewhere, and where it is laid out in lines or is a model's own text, it stands as it is.
    """
    console = Console(highlight=False, markup=False, emoji=False)  # "[/b]" and ":x:" are words like others
    wide = console.width
    for part in parts:
        if isinstance(part, Table):
            least = sum((column.min_width or 0) + GAP for column in part.columns) - GAP
            console.width = max(wide, least)
            console.print(part)
            console.print()
        else:
            folds = console.is_terminal and isinstance(part, str)
            console.print(folded(str(part), wide) if folds else part, soft_wrap=True)
    if hints and parts and not isinstance(parts[-1], Table):
        console.print()
    for hint in hints:
        console.print(hint, soft_wrap=True)


def folded(text: str, width: int) -> str:
    r"""Return a sentence in lines of at most so many letters; what is to be copied, between backticks, stays whole.

    >>> print(folded("Keep it; then run `dvc repro train --force` here.", 24))
    Keep it; then run
    `dvc repro train --force`
    here.
    """
    if "\n" in text:  # laid out
        return text
    held = re.sub("`[^`]+`", lambda copied: copied[0].replace(" ", HELD), text)
    return textwrap.fill(held, width, break_long_words=False, break_on_hyphens=False).replace(HELD, " ")


def markdown(parts: Sequence[RenderableType]) -> str:
    r"""Return tables and sentences as Markdown; a sentence of several lines keeps them, as they were laid out.

    >>> print(markdown([shown_table("Cost", [{"variant": "dense", "batch 1\nms": "0.47"}]), "Measured in turns."]))
    **Cost**
    <BLANKLINE>
    | variant | batch 1 ms |
    |---|---:|
    | dense | 0.47 |
    <BLANKLINE>
    Measured in turns.
    """
    return "\n\n".join(_table(part) if isinstance(part, Table) else _sentence(str(part)) for part in parts)


def _table(table: Table) -> str:
    heads = [_cell(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*(map(_cell, column.cells) for column in table.columns), strict=True)
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*([f"**{table.title}**", ""] if table.title else []), *lines])


def _cell(text: Any) -> str:
    return " ".join(str(text).replace("-\n", "-").replace("|", "\\|").split())


def _sentence(text: str) -> str:
    return f"```text\n{text}\n```" if "\n" in text else text


def digits(value: float) -> str:
    """Return a measured number with three digits, or whole.

    >>> digits(0.30812), digits(12.345), digits(1234.5)
    ('0.308', '12.3', '1,234')
    """
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 2
    return f"{value:,.{decimals}f}"


def plain(value: Any) -> Any:
    """Return values as JSON has them: what is no number is null.

    >>> plain({"perplexity": float("nan"), "batches": (1, 32)})
    {'perplexity': None, 'batches': [1, 32]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value
