"""The pictures: training curves, perplexity (or the loss) against retention, importance by layer."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning.evaluation.comparison import PHASES, measure_of
from pruning.evaluation.front import on_front
from tasks.common.writing import replacing

mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
mpl.rcParams.update({"grid.alpha": 0.3, "figure.dpi": 120, "svg.hashsalt": "fixed"})


COSTS = {"latency": "ms a step, batch 1", "parameters": "parameters", "multiply_adds": "multiply-adds a token"}
MARKERS = ("x", "s", "o")
"""How each phase of a variant is drawn."""


def write_plots(
    folder: Path,
    *,
    training: pd.DataFrame,
    finetuning: pd.DataFrame,
    importance: pd.DataFrame,
    comparison: pd.DataFrame,
) -> None:
    """Write every plot as a PNG, the same bytes for the same tables."""
    plots = {
        "training": _training(training),
        "finetuning": _finetuning(finetuning),
        "retention": _retention(comparison),
        "importance": _importance(importance),
    }
    with replacing(folder) as aside:
        aside.mkdir()
        for name, figure in plots.items():
            figure.savefig(aside / f"{name}.png", metadata={"Software": None})


def write_costs(path: Path, curve: pd.DataFrame, variants: pd.DataFrame, notes: Sequence[str]) -> None:
    """Write a picture of perplexity, or the loss, against each cost: the path of repaired models, variants as points.

    Args:
        path: Where the PNG goes.
        curve: The `path` table with columns `latency` and `latency_error`.
        variants: The `comparison` table with the same.
        notes: Sentences below the title.
    """
    measure = measure_of(curve, "test_{}")
    losses = [f"test_{measure}", f"finetuned_{measure}"]
    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, (cost, label) in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
        _front(axes, *(np.concatenate([curve[one], variants[other]]) for one, other in ((cost, cost), losses)))
        wide = {"xerr": curve["latency_error"]} if cost == "latency" else {}
        look = {"color": "black", "markersize": 4, "linewidth": 1}
        axes.errorbar(curve[cost], curve[losses[0]], fmt="s-", label="path, reconstructed only", **look, **wide)
        for index, (variant, points) in enumerate(variants.groupby("variant", sort=False)):
            wide = {"xerr": points["latency_error"]} if cost == "latency" else {}
            look = {"color": f"C{index}", "markersize": 9}
            axes.errorbar(points[cost], points[losses[1]], fmt="o", label=str(variant), **look, **wide)
        axes.set(xlabel=label, xlim=(0, None))
        _scale(axes, measure)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.axes[0].set_ylabel(f"test {measure}")
    title = ["What a smaller model costs and gives; points are fine-tuned", *(fill(note, 120) for note in notes)]
    figure.suptitle("\n".join(title), fontsize="medium")
    with replacing(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})


def _front(axes: Axes, costs: np.ndarray, losses: np.ndarray) -> None:
    """Draw the front as a band behind the points: below and left of it there is nothing."""
    front = on_front(costs, losses)
    order = np.argsort(costs[front])
    label = "front: none is both cheaper and better"
    axes.step(
        costs[front][order], losses[front][order], where="post", color="gold", linewidth=6, alpha=0.6, label=label
    )


def _training(history: pd.DataFrame) -> Figure:
    figure, axes = _figure("Training the dense model", "training tokens", "loss, nat/token")
    _curve(axes, history, "training", "C0")
    valid = history.dropna(subset="valid_loss")
    axes.plot(valid["tokens"].to_numpy(), valid["valid_loss"].to_numpy(), "o-", color="C1", label="validation")
    axes.legend()
    return figure


def _finetuning(history: pd.DataFrame) -> Figure:
    figure, axes = _figure("Fine-tuning each variant", "fine-tuning tokens", "training loss, nat/token")
    for index, (variant, rows) in enumerate(history.groupby("variant", sort=False)):
        _curve(axes, rows, str(variant), f"C{index}")
    axes.legend()
    return figure


def _curve(axes: Axes, history: pd.DataFrame, label: str, color: str) -> None:
    """Draw the training loss, smoothed over a fiftieth of the steps."""
    width = max(1, len(history) // 50)
    smooth = history["train_loss"].rolling(width, min_periods=1).mean()
    axes.plot(history["tokens"], smooth, color=color, label=label)


def _retention(comparison: pd.DataFrame) -> Figure:
    measure = measure_of(comparison, "finetuned_{}")
    title = f"{measure.capitalize()} against neurons kept"
    figure, axes = _figure(title, "share of neurons kept", f"test {measure}")
    columns = ["retention", *(f"{phase}_{measure}" for phase in PHASES)]
    for index, (variant, share, *phases) in enumerate(
        zip(comparison["variant"], *comparison[columns].to_numpy().T, strict=True)
    ):
        axes.plot([share] * len(phases), phases, "-", color=f"C{index}", alpha=0.5)
        for marker, perplexity in zip(MARKERS, phases, strict=True):
            axes.plot(share, perplexity, marker, color=f"C{index}", markersize=8)
        shown = f"{phases[-1]:.1f}" if measure == "perplexity" else f"{phases[-1]:.4g}"
        axes.plot([], [], "-", color=f"C{index}", label=f"{variant}: {shown}")
    for marker, label in zip(MARKERS, ("pruned", "reconstructed", "finetuned"), strict=True):
        axes.plot([], [], f"k{marker}", label=label)
    axes.set(xlim=(0, 1.05))
    _scale(axes, measure)
    axes.legend()
    return figure


def _scale(axes: Axes, measure: str) -> None:
    """Let perplexities be read on a logarithmic axis, where what counts is a ratio; a loss may be below 0."""
    if measure == "perplexity":
        axes.set(yscale="log")
        axes.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.yaxis.set_minor_formatter(mpl.ticker.ScalarFormatter())


def _importance(importance: pd.DataFrame) -> Figure:
    signals = [name.removesuffix("_share") for name in importance.columns if name.endswith("_share")]
    names = [*signals, "fused", "surgeon"]
    columns = 3
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(10.5, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns).flatten()
    for axes in grid[len(names) :]:
        axes.remove()
    for axes, name in zip(grid, names, strict=False):
        for layer, rows_of_layer in importance.groupby("layer", sort=True):
            known = rows_of_layer[name].dropna()
            if len(known):
                axes.hist(known, bins=30, histtype="step", linewidth=1.5, label=str(layer))
        axes.set(title=name, ylabel="neurons")
    grid[0].legend(title="layer")
    figure.suptitle("Importance of neurons, by signal and layer")
    return figure


def _figure(title: str, horizontal: str, vertical: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=horizontal, ylabel=vertical)
    return figure, axes
