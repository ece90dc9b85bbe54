"""The experiment's pictures: perplexity by share, precision, stability and cost, each with its error."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pruning.evaluation.comparison import PHASES
from pruning.experiment.variants import CONTROL, VARIANTS
from pruning.experiment.verdict import AGREEMENT, PHASE, PRECISION
from pruning.pictures.canvas import drawn, look, sheet
from pruning.pictures.retention import readable
from pruning.pictures.style import COLOURS, INK, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

KINDS = {"signal": COLOURS[0], "criterion": COLOURS[6], "variant": COLOURS[1]}
ROW = 0.24
"""Inches of a row of bars."""


@drawn
def progressive(table: pd.DataFrame) -> "Picture":
    """Return a picture of perplexity by the share of neurons kept, a line for each choice, in each phase.

    Args:
        table: The `progressive` table.
    """
    picture = sheet(5.2)
    order = [name for name in VARIANTS if (table["variant"] == name).any()]
    for axes, phase in zip(picture.subplots(1, len(PHASES)), PHASES, strict=True):
        rows = table[table["phase"] == phase]
        for place, name in enumerate(order):
            line = rows[rows["variant"] == name].sort_values("retain")
            bars = (line["perplexity"] * line["above_dense_error"]).fillna(0)
            axes.errorbar(line["retain"], line["perplexity"], yerr=bars, label=name, markersize=5, linewidth=1.3,
                          elinewidth=1, **look(place))  # fmt: skip
        dense = rows.loc[rows["variant"] == CONTROL, "perplexity"].iloc[0]
        axes.axhline(dense, color=INK, linestyle="--", label=CONTROL)
        axes.set(title=PHASE[phase], xlabel="share of neurons kept")
        _percent(axes)
        readable(axes, "perplexity")
    picture.axes[0].set_ylabel("perplexity, logarithmic")
    picture.legend(*picture.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=SMALL)
    picture.suptitle("Perplexity by the share of neurons kept; bars: standard error of the difference from dense")
    return picture


@drawn
def precision(table: pd.DataFrame) -> "Picture":
    """Return a picture of how far each score ranks neurons as measured removal does, with 95% intervals.

    Args:
        table: The `precision` table.
    """
    from matplotlib.patches import Patch

    rows = table.sort_values("spearman")
    picture = sheet(ROW * len(rows) + 2.0)
    for axes, name, label in zip(
        picture.subplots(1, 2, sharey=True),
        ("spearman", "overlap"),
        ("Spearman's rank correlation", "share of the costlier half found"),
        strict=True,
    ):
        _dots(axes, rows, name, [KINDS[kind] for kind in rows["kind"]])
        axes.set_xlabel(f"{label}, 95% interval")
        axes.axvline(0 if name == "spearman" else 0.5, color=INK, linewidth=1, linestyle=":")
    left = picture.axes[0]
    left.axvline(PRECISION, color=COLOURS[4], linestyle="--")
    left.axvline(max(float(rows["oracle_reliability"].iloc[0]), 0) ** 0.5, color=COLOURS[2], linestyle="-.")
    handles: list[Any] = [Patch(color=colour, label=kind) for kind, colour in KINDS.items()]
    handles += left.plot([], [], ":", color=INK, label="chance") + left.plot(
        [], [], "--", color=COLOURS[4], label=f"hoped for, {PRECISION}"
    )
    handles += left.plot([], [], "-.", color=COLOURS[2], label="what the truth itself would have")
    picture.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=SMALL)
    picture.suptitle(f"How scores foresee the measured removal of {int(rows['measured'].iloc[0]):,} neurons")
    return picture


@drawn
def stability(table: pd.DataFrame) -> "Picture":
    """Return a picture of how far choices repeat from one calibration text to another.

    Args:
        table: The `stability` table.
    """
    rows = table[(table["over"] == "calibration") & table["overlap"].notna()].sort_values("overlap")
    picture = sheet(ROW * max(len(rows), 4) + 1.9)
    labels = {"overlap": "share of kept neurons that two seeds agree on", "rank_correlation": "Spearman between seeds"}
    for axes, (name, label) in zip(picture.subplots(1, 2, sharey=True), labels.items(), strict=True):
        places = np.arange(len(rows))
        axes.hlines(places, rows[f"{name}_low"], rows[name], color=COLOURS[5], linewidth=3)
        axes.plot(rows[name], places, "o", color=COLOURS[0], markersize=5, label="mean over pairs of seeds")
        axes.plot(rows[f"{name}_low"], places, "|", color=INK, markersize=8, label="lowest pair")
        axes.set_xlabel(label)
        _rows(axes, rows["score"])
    picture.axes[0].axvline(AGREEMENT, color=COLOURS[4], linestyle="--", label=f"hoped for, {AGREEMENT:.0%}")
    picture.legend(*picture.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL)
    seeds = int(rows["runs"].max()) if len(rows) else 0
    picture.suptitle(f"How far choices repeat over {seeds} calibration texts")
    return picture


@drawn
def cost(table: pd.DataFrame) -> "Picture":
    """Return a picture of seconds and memory of each signal, with their standard deviations over seeds.

    Args:
        table: The `cost` table.
    """
    rows = table.sort_values("seconds")
    picture = sheet(0.3 * len(rows) + 1.4)
    columns: Mapping[str, tuple[str, str]] = {
        "seconds": ("seconds_spread", "seconds"),
        "peak_memory": ("memory_spread", "growth of the peak of memory, MiB"),
    }
    for axes, (name, (spread, label)) in zip(picture.subplots(1, 2, sharey=True), columns.items(), strict=True):
        axes.barh(np.arange(len(rows)), rows[name], xerr=rows[spread].fillna(0), color=COLOURS[2], capsize=2)
        axes.set_xlabel(label)
        _rows(axes, rows["score"])
    picture.suptitle("What each signal takes; bars: standard deviation over seeds")
    return picture


def _dots(axes: "Axes", rows: pd.DataFrame, name: str, colours: Sequence[str]) -> None:
    """Draw values with their intervals, one a row."""
    places = np.arange(len(rows))
    axes.hlines(places, rows[f"{name}_low"], rows[f"{name}_high"], color=colours, linewidth=2)
    axes.scatter(rows[name], places, color=colours, s=28, zorder=3)
    _rows(axes, rows["score"])


def _rows(axes: "Axes", names: pd.Series) -> None:
    axes.set_yticks(np.arange(len(names)), names, fontsize=SMALL)
    axes.set_ylim(-0.7, len(names) - 0.3)


def _percent(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
