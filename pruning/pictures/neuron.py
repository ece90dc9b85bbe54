"""A neuron's card as a picture: its ranks, its partners, how active it is, and after what."""

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from pruning.pictures.canvas import COLOURS, FAINT, INK, KEPT, REMOVED, SMALL, drawn, sheet, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.card import NeuronCard
    from pruning.pictures.figure import Picture

BINS = 40
LETTERS = 16
ROW = 110
"""Letters of a line above."""


@drawn
def card(of: "NeuronCard") -> "Picture":
    """Return a neuron's card as a picture.

    Args:
        of: What `card_of` gave.
    """
    picture = sheet(6.6)
    (ranks, partners), (values, labels) = picture.subplots(2, 2, height_ratios=(1, 1.1))
    _ranks(ranks, of)
    _partners(partners, of)
    _values(values, of)
    _labels(labels, of)
    picture.suptitle("\n".join(fill(line, ROW) for line in of.sentences()), fontsize="medium")
    return picture


def _ranks(axes: "Axes", of: "NeuronCard") -> None:
    """Draw which share of its layer's neurons are less important, by signal; beside it the rank."""
    rows = of.scores.iloc[::-1]
    places = np.arange(len(rows))
    shares = 1 - (rows["rank"] - 1) / (rows["of"] - 1).clip(lower=1)
    axes.barh(places, shares, color=KEPT, height=0.7)
    for place, share, rank, count in zip(places, shares, rows["rank"], rows["of"], strict=True):
        inside = share > 0.5
        axes.text(share + (-0.02 if inside else 0.02), float(place), f"{rank} of {count}", va="center", fontsize=SMALL,
                  ha="right" if inside else "left", color="white" if inside else INK)  # fmt: skip
    axes.set_yticks(places, rows["signal"])
    axes.set(xlim=(0, 1), title="rank in its layer, by signal", xlabel="share of neurons less important")


def _partners(axes: "Axes", of: "NeuronCard") -> None:
    rows = of.partners.iloc[::-1]
    if not len(rows):
        _nothing(axes, "it has no partners")
        return
    places = np.arange(len(rows))
    colours = [KEPT if value >= 0 else REMOVED for value in rows["correlation"]]
    axes.barh(places, rows["edge"], color=colours, height=0.7)
    for place, edge, value in zip(places, rows["edge"], rows["correlation"], strict=True):
        axes.text(edge + 0.02, float(place), f"correlation {value:+.2f}", va="center", fontsize=SMALL)
    axes.set_yticks(places, [str(neuron) for neuron in rows["neuron"]])
    axes.set(xlim=(0, 1.45), title="neurons that it works with", xlabel="weight of the edge", ylabel="neuron")
    axes.set_xticks([0, 0.5, 1])


def _values(axes: "Axes", of: "NeuronCard") -> None:
    if of.firing is None or not len(of.firing.values):
        _nothing(axes, "it was not watched")
        return
    axes.hist(of.firing.values, bins=BINS, color=COLOURS[5])
    axes.axvline(float(of.firing.values.mean()), color=INK, linestyle="--", label="mean")
    axes.legend()
    axes.set(title="how active it is", xlabel="activation", ylabel="samples", yscale="log")


def _labels(axes: "Axes", of: "NeuronCard") -> None:
    from matplotlib.ticker import MaxNLocator

    if of.firing is None or not len(of.firing.labels):
        _nothing(axes, "nothing is known of what it fires at")
        return
    high, low = of.firing.highest, of.firing.lowest
    rows = [*high.to_dict("records"), *low.iloc[::-1].to_dict("records")][::-1]
    places = np.arange(len(rows)) + np.where(np.arange(len(rows)) >= len(low), 0.8, 0) * (len(low) > 0)
    means = [row["mean"] for row in rows]
    axes.barh(places, means, color=[KEPT if mean >= 0 else REMOVED for mean in means], height=0.7)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(places, [short(str(row["label"]), LETTERS).replace("$", r"\$") for row in rows], fontsize=SMALL)
    axes.set(title="what it fires at: the highest and the lowest", xlabel="mean activation")
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _nothing(axes: "Axes", sentence: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", color=FAINT, transform=axes.transAxes)
