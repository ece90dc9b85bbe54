"""The experiment's report: its tables as Parquet, and one page in Markdown and in HTML that needs no other file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pruning.experiment.schemas import TABLES
from pruning.pictures.experiment import cost, precision, progressive, stability
from tasks.common.tables import write_table
from tasks.common.writing import replacing
from tasks.experiment.sections import LEVEL_SIGN, PageSection, sections_of

REPORT, PAGE = "summary.md", "report.html"
TITLE = "What each choice of neurons gives"
PICTURES = {"progressive": progressive, "precision": precision, "stability": stability, "cost": cost}
STYLE = """:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
ol.verdict { padding-left: 1.4rem; } ol.verdict li { margin: .45rem 0; }
.wide { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; font-size: 14px; width: 100%; }
th, td { padding: 3px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: right; }
th { vertical-align: bottom; white-space: normal; background: var(--soft); }
td { font-variant-numeric: tabular-nums; } td.word, th.word { text-align: left; }
tr:last-child td { border-bottom: 0; } tr.new td { border-top: 2px solid var(--line); }
td.level { color: GrayText; }
td:first-child, th:first-child { position: sticky; left: 0; background: Canvas; }
th:first-child { background: linear-gradient(var(--soft), var(--soft)), Canvas; }
.wide img { display: block; width: 100%; min-width: 46rem; height: auto; background: #fff; }
code { background: var(--soft); padding: 0 .2em; border-radius: 3px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: 14px; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { font-size: 15px; margin-top: .5rem; } dl { grid-template-columns: 1fr; }
  dd { margin-left: 1rem; } th, td { padding: 3px 8px; } table { font-size: 13px; } }"""


def write_report(
    folder: Path, tables: Mapping[str, pd.DataFrame], sentences: Sequence[str], settings: Mapping[str, Any]
) -> list[Path]:
    """Write tables, plots, `summary.md` and `report.html`; return the files, the page first.

    Args:
        folder: Where they go.
        tables: What `compare_pruning_results` gave.
        sentences: The verdict.
        settings: The experiment's settings, by dotted name.
    """
    pictures = {name: draw(tables[name]).image("svg") for name, draw in PICTURES.items() if name in tables}
    sections = sections_of(tables, sentences, settings)
    texts = {REPORT: _markdown(sections), PAGE: _html(sections, pictures)}
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table, TABLES[name])
    with replacing(folder / "plots") as aside:
        aside.mkdir()
        for name, picture in pictures.items():
            (aside / f"{name}.svg").write_bytes(picture)
    for name, text in texts.items():
        with replacing(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return [folder / PAGE, folder / REPORT, *(folder / f"{name}.parquet" for name in tables)]


def _markdown(sections: Sequence[PageSection]) -> str:
    lines = [f"# {TITLE}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        lines += [*(f"{number}. {point}" for number, point in enumerate(section.points, 1)), ""] * bool(section.points)
        lines += [f"![{section.title}](plots/{section.picture}.svg)", ""] if section.picture else []
        for title, table in section.tables.items():
            columns = list(table.columns)
            lines += [f"### {title}", "", _row(columns), _row(["---"] * len(columns))]
            lines += [*(_row(row) for row in table.itertuples(index=False)), ""]
        lines += [*(f"- `{name}` {value}" for name, value in section.settings.items()), ""] * bool(section.settings)
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _html(sections: Sequence[PageSection], pictures: Mapping[str, bytes]) -> str:
    parts = [f"<h1>{TITLE}</h1>"]
    for section in sections:
        parts += [f"<h2>{html.escape(section.title)}</h2>", f"<p>{_inline(section.text)}</p>"]
        if section.points:
            points = "".join(f"<li>{_inline(point)}</li>" for point in section.points)
            parts.append(f'<ol class="verdict">{points}</ol>')
        if section.picture:
            content = base64.b64encode(pictures[section.picture]).decode()
            image = f'<img alt="{html.escape(section.title)}" src="data:image/svg+xml;base64,{content}">'
            parts.append(f'<div class="wide">{image}</div>')
        for title, table in section.tables.items():
            parts += [f"<h3>{_inline(title)}</h3>", f'<div class="wide">{_table(table)}</div>']
        if section.settings:
            pairs = (f"<dt><code>{html.escape(n)}</code></dt><dd>{html.escape(v)}</dd>"
                     for n, v in section.settings.items())  # fmt: skip
            parts.append(f"<dl>{''.join(pairs)}</dl>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(table: pd.DataFrame) -> str:
    """Return a table: words on the left, numbers on the right, what cannot be told apart in grey."""
    cells = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    columns = list(zip(*cells, strict=True))
    words = [not place or not any(map(str.isdigit, "".join(own))) for place, own in enumerate(columns)]
    heads = "".join(_cell("th", str(name), word) for name, word in zip(table.columns, words, strict=True))
    grouped = len({row[0] for row in cells}) < len(cells)
    rows, before = [], cells[0][0]
    for row in cells:
        first = ' class="new"' if grouped and row[0] != before else ""
        inner = "".join(_cell("td", cell, word) for cell, word in zip(row, words, strict=True))
        rows.append(f"<tr{first}>{inner}</tr>")
        before = row[0]
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(tag: str, text: str, word: bool) -> str:
    classes = [*(["word"] if word else []), *(["level"] if text.startswith(LEVEL_SIGN) else [])]
    attribute = f' class="{" ".join(classes)}"' if classes else ""
    return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"


def _inline(text: str) -> str:
    """Return a sentence as HTML, what stands between backticks as code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))
