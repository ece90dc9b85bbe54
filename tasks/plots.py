"""The pictures: training curves, perplexity against retention, importance by layer."""

import math
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning.tables import SIGNALS
from tasks.common.writing import replacing

mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
mpl.rcParams.update({"grid.alpha": 0.3, "figure.dpi": 120, "svg.hashsalt": "fixed"})


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
    figure, axes = _figure("Perplexity against neurons kept", "share of neurons kept", "test perplexity")
    columns = ["retention", "pruned_perplexity", "finetuned_perplexity"]
    for index, (variant, share, before, after) in enumerate(
        zip(comparison["variant"], *comparison[columns].to_numpy().T, strict=True)
    ):
        axes.plot([share, share], [before, after], "-", color=f"C{index}", alpha=0.5)
        axes.plot(share, before, "x", color=f"C{index}", markersize=9)
        axes.plot(share, after, "o", color=f"C{index}", markersize=8, label=f"{variant}: {after:.1f}")
    axes.plot([], [], "kx", label="right after removal")
    axes.plot([], [], "ko", label="after fine-tuning")
    axes.set(yscale="log", xlim=(0, 1.05))
    axes.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.yaxis.set_minor_formatter(mpl.ticker.ScalarFormatter())
    axes.legend()
    return figure


def _importance(importance: pd.DataFrame) -> Figure:
    names = [*SIGNALS, "fused"]
    columns = 3
    figure = Figure(figsize=(10.5, 6), layout="constrained")
    grid = figure.subplots(math.ceil(len(names) / columns), columns).flatten()
    for axes, name in zip(grid, names, strict=True):
        for layer, rows in importance.groupby("layer", sort=True):
            axes.hist(rows[name], bins=30, histtype="step", linewidth=1.5, label=str(layer))
        axes.set(title=name, ylabel="neurons")
    grid[0].legend(title="layer")
    figure.suptitle("Importance of neurons, by signal and layer")
    return figure


def _figure(title: str, horizontal: str, vertical: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=horizontal, ylabel=vertical)
    return figure, axes
