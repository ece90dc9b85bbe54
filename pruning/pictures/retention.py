"""Error by retention: how good models are that keep fewer neurons, and what removing single neurons did."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pruning.core.neurons import Keep
from pruning.core.options import expect_known
from pruning.evaluation.comparison import PHASES, measure_of
from pruning.pictures.canvas import drawn, few, look, one, sheet, short, shown_layers
from pruning.pictures.importance import kept_of
from pruning.pictures.style import FAINT, INK, KEPT, REMOVED, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

MARKERS = dict(zip(PHASES, ("x", "s", "o"), strict=True))
"""How each phase of a variant is drawn."""
SIZES = dict(zip(PHASES, (8, 6, 7), strict=True))
SAME, ASIDE = 0.01, 0.02
"""Shares that are closer than `SAME` are drawn `ASIDE` from each other."""
MOST = 6
"""Layers that a picture of measured removal shows, unless they are named."""


@drawn
def retention(comparison: pd.DataFrame, path: pd.DataFrame | None = None) -> "Picture":
    """Return a picture of test perplexity, or the loss, against the share of neurons kept.

    Each variant has a point for each phase; the line is the path of models that were repaired and not fine-tuned. On
    the left is all of it, on the right what is left once models are repaired.

    Args:
        comparison: The `comparison` table.
        path: The `path` table.
    """
    measure = measure_of(comparison, "finetuned_{}")
    picture = sheet(5.4)
    whole, close = picture.subplots(1, 2)
    for axes, phases, title in ((whole, PHASES, "every phase"), (close, PHASES[1:], "once repaired")):
        if path is not None:
            curve = path.sort_values("retain")
            label = "path of removal, repaired alone"
            axes.plot(curve["retain"], curve[f"test_{measure}"], ".-", color=FAINT, linewidth=2, zorder=1, label=label)
        _variants(axes, comparison, phases, measure)
        axes.set(title=title, xlabel="share of neurons kept", xlim=(0, 1.05))
        _percent(axes)
        readable(axes, measure)
    whole.set_ylabel(f"test {measure}")
    handles = [whole.plot([], [], marker, color=INK, label=phase)[0] for phase, marker in MARKERS.items()]
    lines, labels = close.get_legend_handles_labels()
    picture.legend([*lines, *handles], [*labels, *MARKERS], loc="outside lower center", ncols=3)
    shares = comparison["retention"].to_numpy(dtype=float)
    moved = "" if np.array_equal(_dodged(shares), shares) else "; equal shares side by side"
    picture.suptitle(f"Test {measure} by the share of neurons kept{moved}")
    return picture


def _variants(axes: "Axes", comparison: pd.DataFrame, phases: Sequence[str], measure: str) -> None:
    """Draw each variant's phases one above the other, variants of equal shares beside each other."""
    shares = _dodged(comparison["retention"].to_numpy(dtype=float))
    for place, (share, row) in enumerate(zip(shares, comparison.to_dict("records"), strict=True)):
        colour = look(place)["color"]
        worth = [row[f"{phase}_{measure}"] for phase in phases]
        axes.plot([share] * len(phases), worth, "-", color=colour, alpha=0.4, zorder=2)
        for phase, value in zip(phases, worth, strict=True):
            axes.plot(share, value, MARKERS[phase], color=colour, markersize=SIZES[phase], zorder=3, alpha=0.9)
        shown = f"{worth[-1]:.1f}" if measure == "perplexity" else f"{worth[-1]:.4g}"
        axes.plot([], [], "-", color=colour, linewidth=4, label=f"{row['variant']}: {shown} at {row['retention']:.0%}")


def readable(axes: "Axes", measure: str) -> None:
    """Let perplexities be read on a logarithmic axis, where what counts is a ratio; a loss may be below 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if measure != "perplexity":
        return
    axes.set(yscale="log")
    low, high = axes.get_ylim()
    narrow = high / low < 4
    axes.yaxis.set_major_locator(MaxNLocator(6) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


@drawn
def error_by_share(errors: pd.DataFrame, unit: str) -> "Picture":
    """Return a picture of what a network loses by the share of neurons that it keeps.

    Args:
        errors: Columns `phase`, `retain`, `error` and `standard_error`.
        unit: What `error` is.
    """
    picture, axes = one("What the network loses by the share of neurons kept", "share of neurons kept", unit)
    for place, (phase, rows) in enumerate(errors.groupby("phase", sort=False)):
        curve = rows.sort_values("retain")
        axes.errorbar(
            curve["retain"], curve["error"], yerr=curve["standard_error"], label=str(phase), capsize=3, linewidth=1.5,
            **look(place),
        )  # fmt: skip
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.set(xlim=(0, 1.05))
    _percent(axes)
    axes.legend(title="± standard error over batches")
    return picture


@drawn
def removal(
    table: pd.DataFrame,
    removals: pd.DataFrame,
    keep: Keep | None = None,
    *,
    by: str = "fused",
    layers: Sequence[str] | None = None,
) -> "Picture":
    """Return a picture of measured removal against importance, for each layer: a point for each measured neuron.

    Args:
        table: The `importance` table.
        removals: The `oracle` table.
        keep: Kept neurons of each layer, of those that are not whole; None: nothing is said of what is removed.
        by: The column of importance.
        layers: Which layers, by default the first `MOST` that have measured neurons.

    Raises:
        ValueError: For an unknown column or layer.
    """
    expect_known("importance", list(table.columns[2:]), by)
    names, others = shown_layers(list(dict.fromkeys(removals["layer"])), layers, MOST)
    points = removals.merge(table[["layer", "neuron", by]], on=["layer", "neuron"])
    across = min(3, len(names))
    down = -(-len(names) // across)
    picture = sheet(3.4 * down + 0.9, 3.2 * across + 0.6 if across > 1 else 6)
    panels = picture.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        rows = points[points["layer"] == name]
        stays = kept_of(name, int((table["layer"] == name).sum()), keep)[rows["neuron"].to_numpy(dtype=int)]
        parts = (("kept", stays, KEPT, "o"), ("removed", ~stays, REMOVED, "s"))
        for label, chosen, colour, marker in parts if keep is not None else (("measured", stays, KEPT, "o"),):
            own = rows[chosen]
            axes.errorbar(
                own[by], own["loss_increase"], yerr=own["standard_error"], fmt=marker, color=colour, label=label,
                markersize=6, markeredgecolor=INK, markeredgewidth=0.5, elinewidth=1, ecolor=FAINT,
            )  # fmt: skip
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set(title=f"{short(name, 18)}: {len(rows):,} measured", xlabel=f"importance by {by}")
        few(axes, horizontal=4, vertical=5)
    panels[0].set_ylabel("loss added by removing it, nat/token" if down == 1 else "loss added, nat/token")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL + 1)
    picture.suptitle(f"Measured removal of single neurons, ± standard error{others}")
    return picture


def _dodged(shares: np.ndarray) -> np.ndarray:
    """Return shares of which equal ones stand beside each other."""
    places = shares.copy()
    for share in np.unique(np.round(shares / SAME)):
        same = np.flatnonzero(np.round(shares / SAME) == share)
        places[same] += ASIDE * (np.arange(len(same)) - (len(same) - 1) / 2)
    return places


def _percent(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
