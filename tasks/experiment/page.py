"""The experiment's report: its tables as Parquet, and one page in Markdown and in HTML that needs no other file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from pruning.evaluation.comparison import PHASES
from pruning.experiment.schemas import TABLES
from pruning.experiment.variants import CONTROL, RANDOM, TRADITIONAL, VARIANTS
from pruning.experiment.verdict import AGREEMENT, ERRORS, PHASE, PRECISION
from tasks.common.tables import write_table
from tasks.common.writing import replacing

REPORT, PAGE = "summary.md", "report.html"
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: 2px 10px; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } td:first-child, th { text-align: left; }
img { max-width: 100%; } code { background: #f3f3f3; }
@media (prefers-color-scheme: dark) { img { background: #fff; } }"""


@dataclass(frozen=True)
class PageSection:
    """One part of the page: a heading, paragraphs, perhaps a list, a picture and a table for reading."""

    title: str
    text: str
    points: Sequence[str] = ()
    picture: str = ""
    table: pd.DataFrame | None = None


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
    figures = _figures(tables)
    pictures = {name: _svg(figure) for name, figure in figures.items()}
    sections = _sections(tables, sentences, settings)
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


def _sections(
    tables: Mapping[str, pd.DataFrame], sentences: Sequence[str], settings: Mapping[str, Any]
) -> list[PageSection]:
    """Return what the page holds, in order."""
    options = [f"`{name}` {_plain(value)}" for name, value in settings.items()]
    sections = [
        PageSection(
            "Verdict",
            f"Computed from the tables below. A method wins where its loss is lower by more than {ERRORS:g} standard "
            "errors, paired on the same tokens; it is level within them.",
            points=sentences,
        )
    ]
    makers = {
        "progressive": _progressive_section,
        "precision": _precision_section,
        "stability": _stability_section,
        "cost": _cost_section,
    }
    sections += [make(tables[name]) for name, make in makers.items() if name in tables]
    return [*sections, PageSection("Settings", "What was measured, and how.", points=options)]


def _progressive_section(progressive: pd.DataFrame) -> PageSection:
    tokens = progressive["tokens"].iloc[0]
    text = (
        f"Perplexity on {tokens:,} tokens that nothing was chosen by, after each phase; `change` is that after "
        "fine-tuning against the dense model with the same extra training; then the loss above that of `traditional` "
        "and of `random` with the same share, nat/token ± standard error, below zero where it wins."
    )
    keyed = {
        phase: rows_of_phase.set_index(["retain", "variant"]) for phase, rows_of_phase in progressive.groupby("phase")
    }
    last = keyed[PHASES[-1]]
    order = sorted(last.index, key=lambda key: (-key[0], [CONTROL, *VARIANTS].index(key[1])))
    rows = []
    for key in order:
        row = {"keep": f"{key[0]:.0%}", "variant": key[1]}
        row |= {name: f"{last[name][key]:,}" for name in ("neurons", "parameters")}
        row |= {PHASE[phase]: f"{keyed[phase]['perplexity'][key]:.2f}" for phase in PHASES}
        row["change"] = f"{last['change'][key]:+.1%}"
        for name in (TRADITIONAL, RANDOM):
            for phase in PHASES:
                above, error = (keyed[phase][f"above_{name}{end}"][key] for end in ("", "_error"))
                row[f"above {name}, {PHASE[phase]}"] = "–" if key[1] == name else _with_error(above, error)
        rows.append(row)
    return PageSection("Perplexity kept", text, picture="progressive", table=pd.DataFrame(rows))


def _precision_section(precision: pd.DataFrame) -> PageSection:
    first = precision.iloc[0]
    reliability = first["oracle_reliability"]
    text = (
        f"Rank correlation (Spearman, within layers) with the measured loss increase of {first['measured']} neurons, "
        "each removed alone, and the share of the costlier half of the neurons in a score's upper half; 95% bootstrap "
        f"intervals. Measured removal repeats itself with a reliability of {reliability:.2f}, so even the truth would "
        f"correlate with it by about {max(reliability, 0) ** 0.5:.2f} only. `joint`: the same for sets of neurons "
        "removed together. `learned` is judged on neurons that its weights have not seen."
    )
    rows = [
        {
            "score": row["score"],
            "kind": row["kind"],
            "Spearman": _interval(row, "spearman"),
            "top half": _interval(row, "overlap"),
            f"less {row['best_single']}": f"{row['gain_low']:+.2f} to {row['gain_high']:+.2f}",
            "joint": _number(row["joint"]),
        }
        for row in precision.sort_values("spearman", ascending=False).to_dict("records")
    ]
    return PageSection("Precision", text, picture="precision", table=pd.DataFrame(rows))


def _stability_section(stability: pd.DataFrame) -> PageSection:
    text = (
        "Over seeds of `calibration` (other text, other probes): how much of the kept sets two seeds share and how "
        "alike they rank (mean over pairs, the lowest pair in brackets). Over seeds of `training`: other dense models, "
        "whose neurons have nothing to do with each other. Perplexities: mean ± standard deviation over seeds."
    )
    rows = [
        {
            "score": row["score"],
            "over": row["over"],
            "seeds": row["runs"],
            "kept sets": _lowest(row, "overlap"),
            "ranks": _lowest(row, "rank_correlation"),
            **{PHASE[phase]: _with_error(row[f"{phase}_perplexity"], row[f"{phase}_spread"], 2) for phase in PHASES},
        }
        for row in stability.to_dict("records")
    ]
    return PageSection("Stability", text, picture="stability", table=pd.DataFrame(rows))


def _cost_section(cost: pd.DataFrame) -> PageSection:
    text = (
        "Each measured in a process of its own: seconds without loading, growth of the peak of resident memory, "
        "windows read, and passes back through a graph. `cooperative` and `surgeon` need the states of `activations` "
        "besides."
    )
    rows = [
        {
            "score": row["score"],
            "seconds": f"{row['seconds']:.1f}",
            "peak memory, MiB": f"{row['peak_memory']:,.0f}",
            "forward passes": row["forward_passes"],
            "backward passes": row["backward_passes"],
            "seeds": row["runs"],
        }
        for row in cost.to_dict("records")
    ]
    return PageSection("Cost", text, picture="cost", table=pd.DataFrame(rows))


def _figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    makers = {
        "progressive": _progressive_figure,
        "precision": _precision_figure,
        "stability": _stability_figure,
        "cost": _cost_figure,
    }
    return {name: make(tables[name]) for name, make in makers.items() if name in tables}


def _progressive_figure(progressive: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(14, 5), layout="constrained")
    for axes, phase in zip(figure.subplots(1, len(PHASES)), PHASES, strict=True):
        rows = progressive[progressive["phase"] == phase]
        for index, (variant, curve) in enumerate(rows[rows["variant"] != CONTROL].groupby("variant")):
            line = curve.sort_values("retain")
            axes.plot(line["retain"], line["perplexity"], "o-", color=f"C{index % 10}", label=str(variant), alpha=0.8)
        dense = rows.loc[rows["variant"] == CONTROL, "perplexity"].iloc[0]
        axes.axhline(dense, color="black", linestyle="--", label=CONTROL)
        axes.set(title=PHASE[phase], xlabel="share of neurons kept", yscale="log")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for side in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            side(ScalarFormatter())
    figure.axes[0].set_ylabel("perplexity")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def _precision_figure(precision: pd.DataFrame) -> Figure:
    rows = precision.sort_values("spearman")
    figure = Figure(figsize=(12, 0.26 * len(rows) + 1.5), layout="constrained")
    colors = rows["kind"].map({"signal": "C0", "criterion": "C7", "variant": "C1"})
    for axes, name, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("spearman", "overlap"),
        ("Spearman", "overlap of upper halves"),
        strict=True,
    ):
        errors = np.abs(rows[[f"{name}_low", f"{name}_high"]].sub(rows[name], axis=0).to_numpy().T)
        axes.barh(rows["score"], rows[name], xerr=errors, color=colors, error_kw={"elinewidth": 1})
        axes.set_xlabel(f"{label} with measured removal, 95% interval")
    figure.axes[0].axvline(PRECISION, color="black", linestyle=":", label="asked for")
    figure.axes[0].axvline(rows["oracle_reliability"].iloc[0], color="C3", linestyle="--", label="oracle's reliability")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    return figure


def _stability_figure(stability: pd.DataFrame) -> Figure:
    rows = stability[(stability["over"] == "calibration") & stability["overlap"].notna()].sort_values("overlap")
    figure = Figure(figsize=(12, 0.26 * max(len(rows), 4) + 1.5), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("overlap", "rank_correlation"),
        ("share of kept neurons that two seeds agree on", "Spearman between two seeds"),
        strict=True,
    ):
        axes.barh(rows["score"], rows[name], color="C0", label="mean over pairs")
        axes.plot(rows[f"{name}_low"], rows["score"], "|", color="black", label="lowest pair")
        axes.axvline(AGREEMENT, color="black", linestyle=":", label="asked for")
        axes.set_xlabel(label)
    figure.axes[0].legend(fontsize=8, loc="lower right")
    return figure


def _cost_figure(cost: pd.DataFrame) -> Figure:
    rows = cost.sort_values("seconds")
    figure = Figure(figsize=(12, 0.3 * len(rows) + 1.5), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2, sharey=True), ("seconds", "peak_memory"), ("seconds", "peak memory, MiB"), strict=True
    ):
        axes.barh(rows["score"], rows[name], color="C2")
        axes.set_xlabel(label)
    return figure


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _markdown(sections: Sequence[PageSection]) -> str:
    lines = ["# What each choice of neurons gives", ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        lines += [*(f"- {point}" for point in section.points), ""] if section.points else []
        lines += [f"![{section.title}](plots/{section.picture}.svg)", ""] if section.picture else []
        if section.table is not None:
            columns = list(section.table.columns)
            lines += [_row(columns), _row(["---"] * len(columns))]
            lines += [*(_row(row) for row in section.table.itertuples(index=False)), ""]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _html(sections: Sequence[PageSection], pictures: Mapping[str, bytes]) -> str:
    parts = ["<h1>What each choice of neurons gives</h1>"]
    for section in sections:
        parts += [f"<h2>{html.escape(section.title)}</h2>", f"<p>{_inline(section.text)}</p>"]
        if section.points:
            parts.append(f"<ul>{''.join(f'<li>{_inline(point)}</li>' for point in section.points)}</ul>")
        if section.picture:
            content = base64.b64encode(pictures[section.picture]).decode()
            parts.append(f'<img alt="{section.title}" src="data:image/svg+xml;base64,{content}">')
        if section.table is not None:
            parts.append(section.table.to_html(index=False, border=0))
    head = f'<meta charset="utf-8"><title>What each choice of neurons gives</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _inline(text: str) -> str:
    """Return a sentence as HTML, what stands between backticks as code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _interval(row: Mapping[object, float], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _lowest(row: Mapping[object, float], name: str) -> str:
    return "–" if np.isnan(row[name]) else f"{row[name]:.2f} [{row[f'{name}_low']:.2f}]"


def _with_error(value: float, error: float, digits: int = 3) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
