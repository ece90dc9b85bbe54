"""What smaller models cost and give: perplexity, or the loss, against each cost, and the front."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pruning.evaluation.comparison import measure_of
from pruning.evaluation.front import on_front
from pruning.pictures.canvas import drawn, look, sheet
from pruning.pictures.retention import readable
from pruning.pictures.style import INK, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

LISTED = 20
"""Points of a front that are told in words."""
COSTS = {"latency": "ms a step, batch 1", "parameters": "parameters", "multiply_adds": "multiply-adds a token"}


@drawn
def costs(curve: pd.DataFrame, variants: pd.DataFrame, notes: Sequence[str] = ()) -> "Picture":
    """Return a picture of perplexity, or the loss, against each cost: the path of repaired models, variants as points.

    Args:
        curve: The `path` table with columns `latency` and `latency_error`.
        variants: The `comparison` table with the same.
        notes: Sentences below the title.
    """
    measure = measure_of(curve, "test_{}")
    losses = [f"test_{measure}", f"finetuned_{measure}"]
    picture = sheet(5.2)
    for axes, (cost, label) in zip(picture.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
        _front(axes, *(np.concatenate([curve[one], variants[other]]) for one, other in ((cost, cost), losses)))
        wide = {"xerr": curve["latency_error"]} if cost == "latency" else {}
        axes.errorbar(
            curve[cost], curve[losses[0]], fmt=".-", label="path, reconstructed only", color=INK, linewidth=1, **wide
        )
        for place, (variant, points) in enumerate(variants.groupby("variant", sort=False)):
            wide = {"xerr": points["latency_error"]} if cost == "latency" else {}
            looks = {**look(place), "linestyle": "none", "markersize": 8, "markeredgecolor": "white"}
            axes.errorbar(points[cost], points[losses[1]], label=str(variant), **looks, **wide)
        axes.set(xlabel=label, xlim=(0, None))
        _short(axes)
        readable(axes, measure)
    picture.legend(*picture.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    picture.axes[0].set_ylabel(f"test {measure}")
    title = ["What a smaller model costs and gives; points are fine-tuned", *(fill(note, 110) for note in notes)]
    picture.suptitle("\n".join(title), fontsize="medium")
    return picture


@drawn
def tried(points: pd.DataFrame, *, cost: str, measure: str) -> "Picture":
    """Return a picture of all that was tried, a point each, with the front as a band and its points by number.

    Args:
        points: Columns `variant`, `cost`, `quality`, `on_front` and `said`, what made it in few words.
        cost: What the cost is, for its axis.
        measure: What the quality is: `perplexity` or `loss`.
    """
    picture = sheet(5.4)
    axes = picture.subplots()
    best = points[points["on_front"]].sort_values("cost")
    axes.step(best["cost"], best["quality"], where="post", color="gold", linewidth=6, alpha=0.6, label="front")
    for place, (variant, own) in enumerate(points.groupby("variant", sort=False)):
        looks = {**look(place), "linestyle": "none", "markeredgecolor": "white", "markersize": 8}
        axes.plot(own["cost"], own["quality"], label=str(variant), **looks)
    # below and on the left of a front there is nothing else
    for number, (x, y) in enumerate(zip(best["cost"], best["quality"], strict=True), 1):
        axes.annotate(str(number), (x, y), xytext=(-6, -12), textcoords="offset points", ha="center", fontsize=SMALL)
    axes.set(xlabel=cost, ylabel=f"test {measure}", xlim=(0, None), title="What was tried, and its front")
    _short(axes)
    readable(axes, measure)
    handles, labels = axes.get_legend_handles_labels()
    for number, said in enumerate(best["said"][:LISTED], 1):
        handles += axes.plot([], [], linestyle="none", label=f"{number}: {said}")
        labels.append(f"{number}: {said}")
    picture.legend(handles, labels, loc="outside right upper", fontsize=SMALL, handlelength=1.2)
    return picture


def _front(axes: "Axes", costs_of: np.ndarray, losses: np.ndarray) -> None:
    """Draw the front as a band behind the points: below and left of it there is nothing."""
    front = on_front(costs_of, losses)
    order = np.argsort(costs_of[front])
    label = "front: none is both cheaper and better"
    line = (costs_of[front][order], losses[front][order])
    axes.step(*line, where="post", color="gold", linewidth=6, alpha=0.6, label=label)


def _short(axes: "Axes") -> None:
    """Let large numbers be short ones: 1.5M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    if axes.get_xlim()[1] > 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
