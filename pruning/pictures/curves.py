"""Curves of training: the loss by the tokens that were read."""

from typing import TYPE_CHECKING

import pandas as pd

from pruning.pictures.canvas import drawn, look, one
from pruning.pictures.style import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture


@drawn
def training(history: pd.DataFrame) -> "Picture":
    """Return a picture of the training loss, smoothed, and the validation loss of each epoch.

    Args:
        history: The `history` table of the dense model.
    """
    picture, axes = one("Training the dense model", "training tokens", "loss, nat/token")
    _curve(axes, history, "training, smoothed", COLOURS[0])
    valid = history.dropna(subset="valid_loss")
    axes.plot(valid["tokens"].to_numpy(), valid["valid_loss"].to_numpy(), "o-", color=INK, label="validation")
    axes.legend()
    return picture


@drawn
def finetuning(history: pd.DataFrame) -> "Picture":
    """Return a picture of each variant's training loss while it is fine-tuned.

    Variants stand in the order of the `comparison` table, so each has the colour that it has in every picture.

    Args:
        history: The `history` tables of all variants, as one.
    """
    picture, axes = one("Fine-tuning each variant", "fine-tuning tokens", "training loss, smoothed, nat/token")
    for place, (variant, rows) in enumerate(history.groupby("variant")):
        _curve(axes, rows, str(variant), look(place)["color"])
    picture.legend(loc="outside lower center", ncols=5)  # not among curves that lie beside each other
    return picture


def _curve(axes: "Axes", history: pd.DataFrame, label: str, color: str) -> None:
    """Draw the training loss, smoothed over a fiftieth of the steps."""
    from matplotlib.ticker import EngFormatter

    width = max(1, len(history) // 50)
    smooth = history["train_loss"].rolling(width, min_periods=1).mean()
    axes.plot(history["tokens"], smooth, color=color, label=label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
