"""A neuron's card: all that is known of one neuron, in lines and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pruning.core.neurons import NeuronLayer
from pruning.core.words import table_of, wrapped
from pruning.pictures.canvas import drawn, sheet, short
from pruning.pictures.style import COLOURS, FAINT, INK, KEPT, REMOVED, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

LABELS = 8
"""How many labels with the highest means a card shows, and as many with the lowest."""
BINS = 40
LETTERS = 16
ROW = 110
"""Letters of a line above the picture."""


@dataclass(frozen=True)
class Firing:
    """When a neuron is active.

    Attributes:
        values: Its activations, (samples,).
        labels: Columns `label` (the token just read, or the class of the example), `mean` activation, `count`; from the
            highest mean down. Empty where neither is known of each activation.
        moments: The tokens up to and with the one after which it was most active, with that activation.
    """

    values: np.ndarray
    labels: pd.DataFrame
    moments: Sequence[tuple[float, Sequence[str]]]

    @property
    def highest(self) -> pd.DataFrame:
        """The labels with the highest means, the highest first."""
        return self.labels.head(LABELS)

    @property
    def lowest(self) -> pd.DataFrame:
        """The labels with the lowest means, the lowest first, none of which is among the highest."""
        return self.labels.iloc[LABELS:].tail(LABELS).iloc[::-1]


@dataclass(frozen=True)
class NeuronCard:
    """All that is known of one neuron.

    Attributes:
        layer: Its layer.
        neuron: Its number in the layer.
        scores: Columns `signal`, `importance`, `standard_error`, `rank` (1 is the most important), `of`.
        partners: Columns `neuron`, `edge`, `correlation`: those that it works with most in its layer.
        saved: `parameters` and `multiply_adds` that the network has fewer of without it; empty if it is alone, without
            the latter where these cannot be counted from shapes.
        removal: What its removal did: `loss_increase`, `standard_error`, `rank`, `of`; empty if it was not measured.
        kept: Variant → whether it keeps the neuron, and its rank there.
        firing: When it is active.
    """

    layer: NeuronLayer
    neuron: int
    scores: pd.DataFrame
    partners: pd.DataFrame
    saved: Mapping[str, int]
    removal: Mapping[str, float]
    kept: Mapping[str, tuple[bool, int]] = field(default_factory=dict)
    firing: Firing | None = None

    def __str__(self) -> str:
        """Return the card as lines."""
        rows = [
            [row["signal"], f"{row['importance']:.4g}", _error(row["standard_error"]), f"{row['rank']} of {row['of']}"]
            for row in self.scores.to_dict("records")
        ]
        lines = [*self.sentences(), "", *table_of(["signal", "importance", "±", "rank in its layer"], rows)]
        if len(self.partners):
            pairs = [
                [str(row["neuron"]), f"{row['edge']:.2f}", f"{row['correlation']:+.2f}"]
                for row in self.partners.to_dict("records")
            ]
            lines += ["", *table_of(["works with", "edge", "correlation"], pairs)]
        return "\n".join([*lines, *(["", *wrapped(said)] if (said := self.fires()) else [])])

    def sentences(self) -> list[str]:
        """Return what the neuron is, who keeps it, and what it costs, a sentence each."""
        lines = [f"{self.layer.name}, neuron {self.neuron} of {self.layer.width:,} ({self.layer.kind})"]
        for stays, what in ((True, "kept by"), (False, "removed by")):
            names = [f"{name} (rank {rank})" for name, (kept, rank) in self.kept.items() if kept == stays]
            lines += [f"{what}: {', '.join(names)}"] if names else []
        if self.saved:
            words = {"parameters": "parameters", "multiply_adds": "multiply-adds a step"}
            costs = (f"{number:,} {words[name]}" for name, number in self.saved.items())
            lines.append(f"it costs: {', '.join(costs)}")
        lines.append(f"measured removal: {self._removed()}")
        return lines

    def fires(self) -> list[str]:
        """Return when it is active, a line each."""
        firing = self.firing
        if firing is None or not len(firing.values):
            return []
        values = firing.values
        lines = [
            f"active: mean {values.mean():.3g}, standard deviation {values.std():.3g}, "
            f"from {values.min():.3g} to {values.max():.3g}, in {len(values):,} samples"
        ]
        for what, rows in (("highest at", firing.highest), ("lowest at", firing.lowest)):
            said = [f"{row['label']} ({row['mean']:+.2f})" for row in rows.to_dict("records")]
            lines += [f"{what}: {', '.join(said)}"] if said else []
        return [*lines, *(f"{value:+.2f} at: … {' '.join(words)}" for value, words in firing.moments)]

    def plain(self) -> dict[str, Any]:
        """Return the card as plain values, without the activations themselves."""
        firing = self.firing
        return {
            "layer": self.layer.name,
            "neuron": self.neuron,
            "width": self.layer.width,
            "kind": self.layer.kind,
            "scores": self.scores.to_dict("records"),
            "partners": self.partners.to_dict("records"),
            "saved": dict(self.saved),
            "removal": dict(self.removal),
            "kept": {name: {"kept": kept, "rank": rank} for name, (kept, rank) in self.kept.items()},
            "highest": [] if firing is None else firing.highest.to_dict("records"),
            "lowest": [] if firing is None else firing.lowest.to_dict("records"),
            "moments": [] if firing is None else [{"activation": v, "tokens": list(w)} for v, w in firing.moments],
        }

    def plot(self) -> "Picture":
        """Return the card as a picture.

        Raises:
            ModuleNotFoundError: Without matplotlib, which the extra `plots` brings.
        """
        return card(self)

    def _removed(self) -> str:
        if not self.removal:
            return "not measured"
        increase, error, rank, of = (self.removal[name] for name in ("loss_increase", "standard_error", "rank", "of"))
        return f"loss {increase:+.2g} ± {error:.1g} nat/target, {rank:.0f} of {of:.0f} measured in its layer (1: most)"


def _error(error: float) -> str:
    return "" if np.isnan(error) else f"{error:.1g}"


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
