"""A neuron's card: all that is known of one neuron."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pruning.core.devices import without_values
from pruning.core.hooks import record
from pruning.core.modes import evaluating
from pruning.core.neurons import NeuronLayer, named_tensors
from pruning.core.options import expect_known
from pruning.core.statistics import merged
from pruning.core.words import table_of, wrapped
from pruning.models.base import LanguageModel, Measurable
from pruning.pictures.importance import columns_of
from pruning.signals.activations import Covariances
from pruning.signals.cooperative import edges_of, recurrent_coupling

if TYPE_CHECKING:
    from pruning.pictures.figure import Picture

PARTNERS, LABELS, MOMENTS, BEFORE = 6, 8, 4, 7
"""How many partners, tokens, and moments with so many tokens before them a card holds."""
SEEN = 5
"""Times that a token is read, at least, before what it does to the neuron is told."""
BATCHES = 20
"""Batches that a neuron is watched on."""


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
        from pruning.pictures.neuron import card

        return card(self)

    def _removed(self) -> str:
        if not self.removal:
            return "not measured"
        increase, error, rank, of = (self.removal[name] for name in ("loss_increase", "standard_error", "rank", "of"))
        return f"loss {increase:+.2g} ± {error:.1g} nat/target, {rank:.0f} of {of:.0f} measured in its layer (1: most)"


def card_of(
    model: Measurable,
    layer: str | int,
    neuron: int,
    *,
    importance: pd.DataFrame,
    covariances: Covariances,
    batches: Any = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    removals: pd.DataFrame | None = None,
    kept: Mapping[str, pd.DataFrame] | None = None,
    words: Sequence[str] | None = None,
) -> NeuronCard:
    """Return all that is known of one neuron.

    Args:
        model: The network that was measured, with readers of its own for each layer.
        layer: Its layer, by name or by place.
        neuron: Its number.
        importance: The `importance` table.
        covariances: What `pruning.activations` gave.
        batches: What it is watched on; None: nothing is said of when it is active.
        tables: Signal → its table, for standard errors.
        removals: The `oracle` table.
        kept: Variant → its `retention` table.
        words: The text of each token, of a language model.

    Raises:
        TypeError: For a neuron that is no number.
        ValueError: For an unknown layer or neuron.
    """
    place = _layer(model, layer)
    if not isinstance(neuron, Integral):
        raise TypeError(f"Expected a neuron of {place.name} by its number, got {neuron!r}.")
    if not 0 <= neuron < place.width:
        raise ValueError(f"Expected a neuron of {place.name} from 0 to {place.width - 1}, got {neuron}.")
    rows = importance[importance["layer"] == place.name].set_index("neuron")
    return NeuronCard(
        layer=place,
        neuron=neuron,
        scores=_scores(rows, place.name, neuron, tables or {}),
        partners=_partners(model, place, neuron, covariances),
        saved=_saved(model, place),
        removal=_removal(removals, place.name, neuron),
        kept={name: _kept(table, place.name, neuron) for name, table in (kept or {}).items()},
        firing=None if batches is None else firing_of(model, place, neuron, batches, words=words),
    )


def firing_of(
    model: Measurable, layer: NeuronLayer, neuron: int, batches: Any, *, words: Sequence[str] | None = None
) -> Firing:
    """Return when a neuron is active, on the first `BATCHES` batches.

    Args:
        model: The network.
        layer: The neuron's layer.
        neuron: Its number.
        batches: As signals are measured on.
        words: The text of each token, of a language model.

    Raises:
        ValueError: For the words of another model.
    """
    reads = isinstance(model, LanguageModel)
    if isinstance(model, LanguageModel) and words is not None and len(words) != model.encoder.num_embeddings:
        types = model.encoder.num_embeddings
        raise ValueError(f"Expected the text of each of the model's {types} tokens, got {len(words)}.")
    values, labels, windows, state = [], [], [], None
    seen: list[torch.Tensor] = []
    with torch.no_grad(), evaluating(model), record(model, [layer], lambda _, own: seen.append(own[:, neuron].cpu())):
        for number, (inputs, targets) in enumerate(model.pairs(batches)):
            if number == BATCHES:
                break
            seen.clear()
            _, state = model.predicted(inputs, state)
            if not seen:
                continue
            active = torch.cat(seen).double()
            known = inputs if reads else _classes(targets, len(active))
            values.append(active.numpy())
            if known is not None:
                labels.append(known.flatten().cpu().numpy())
            if reads:
                windows.append((active.view(inputs.shape), inputs.cpu()))
    every = np.concatenate(values) if values else np.zeros(0)
    told = len(labels) == len(values) and bool(values)
    means = (
        _means(every, np.concatenate(labels), words, reads=reads) if told else _means(np.zeros(0), np.zeros(0), None)
    )
    return Firing(every, means, _moments(windows, words) if words is not None else [])


def _layer(model: Measurable, layer: str | int) -> NeuronLayer:
    layers = model.layers()
    names = [each.name for each in layers]
    if isinstance(layer, int) or (layer not in names and layer.isdigit()):
        if not 0 <= int(layer) < len(layers):
            raise ValueError(f"Expected a layer from 0 to {len(layers) - 1}, got {layer}; they are {names}.")
        return layers[int(layer)]
    expect_known("layer", names, layer)
    return layers[names.index(layer)]


def _scores(rows: pd.DataFrame, layer: str, neuron: int, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the neuron's importance by each signal, and its rank among the layer's neurons that have a number."""
    found = []
    for name in columns_of(rows):
        values = rows[name]
        if np.isnan(values[neuron]):
            continue
        own = tables.get(name)
        error = np.nan
        if own is not None and "standard_error" in own:
            error = own.loc[(own["layer"] == layer) & (own["neuron"] == neuron), "standard_error"].iloc[0]
        rank = int((values > values[neuron]).sum()) + 1
        found.append({"signal": name, "importance": float(values[neuron]), "standard_error": float(error),
                      "rank": rank, "of": int(values.notna().sum())})  # fmt: skip
    return pd.DataFrame(found, columns=["signal", "importance", "standard_error", "rank", "of"])


def _partners(model: Measurable, layer: NeuronLayer, neuron: int, covariances: Covariances) -> pd.DataFrame:
    columns = ["neuron", "edge", "correlation"]
    if layer.name not in covariances or layer.width < 2:
        return pd.DataFrame(columns=columns)
    correlation = merged(covariances[layer.name]).correlation.cpu()
    edges = edges_of(correlation.abs(), recurrent_coupling(layer, named_tensors(model)))[neuron]
    edges[neuron] = -1
    order = edges.argsort(descending=True, stable=True)[: min(PARTNERS, layer.width - 1)].tolist()
    rows = [(other, float(edges[other]), float(correlation[neuron, other])) for other in order]
    return pd.DataFrame(rows, columns=columns)


def _saved(model: Measurable, layer: NeuronLayer) -> dict[str, int]:
    """Return what the network has fewer of with one neuron less in this layer, counted from shapes alone."""
    if layer.width < 2:
        return {}
    shapes, widths = (
        copy.deepcopy(model).to("meta"),
        [each.width - (each.name == layer.name) for each in model.layers()],
    )
    with without_values():
        smaller = shapes.resized(widths)
        saved = {"parameters": _numbers(shapes) - _numbers(smaller)}
        try:
            return {**saved, "multiply_adds": shapes.multiply_adds() - smaller.multiply_adds()}
        except ValueError:  # of code that looks at numbers they are not known
            return saved


def _numbers(model: Measurable) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _removal(removals: pd.DataFrame | None, layer: str, neuron: int) -> dict[str, float]:
    if removals is None:
        return {}
    rows = removals[removals["layer"] == layer].set_index("neuron")
    if neuron not in rows.index:
        return {}
    increase = rows["loss_increase"]
    own = {name: float(rows[name][neuron]) for name in ("loss_increase", "standard_error")}
    return {**own, "rank": float((increase > increase[neuron]).sum()) + 1, "of": float(len(rows))}


def _kept(table: pd.DataFrame, layer: str, neuron: int) -> tuple[bool, int]:
    row = table[(table["layer"] == layer) & (table["neuron"] == neuron)].iloc[0]
    return bool(row["kept"]), int(row["rank"])


def _classes(targets: Any, samples: int) -> torch.Tensor | None:
    """Return the class of each sample; None unless targets are classes, one an example, and so are samples."""
    known = isinstance(targets, torch.Tensor) and targets.ndim == 1 and len(targets) == samples
    return targets if known and not targets.is_floating_point() else None


def _means(values: np.ndarray, labels: np.ndarray, words: Sequence[str] | None, *, reads: bool = False) -> pd.DataFrame:
    """Return the mean activation by label, from the highest down, of those that were seen often enough."""
    frame = pd.DataFrame({"label": labels.astype(int), "value": values})
    found = frame.groupby("label")["value"].agg(["mean", "count"]).reset_index()
    found = found[found["count"] >= SEEN].sort_values(["mean", "label"], ascending=[False, True], ignore_index=True)
    unknown = "token {}" if reads else "class {}"
    names = [words[label] if words is not None else unknown.format(label) for label in found["label"]]
    return found.assign(label=pd.Series(names, dtype=object))[["label", "mean", "count"]]


def _moments(
    windows: Sequence[tuple[torch.Tensor, torch.Tensor]], words: Sequence[str]
) -> list[tuple[float, list[str]]]:
    """Return the moments at which the neuron was most active, each with the tokens up to it in its column."""
    heights = [(float(active.max()), number) for number, (active, _) in enumerate(windows)]
    found = []
    for _, number in sorted(heights, reverse=True)[:MOMENTS]:
        active, tokens = windows[number]
        step, column = divmod(int(active.argmax()), active.shape[1])
        before = tokens[max(0, step - BEFORE) : step + 1, column].tolist()
        found.append((float(active[step, column]), [words[token] for token in before]))
    return found


def _error(error: float) -> str:
    return "" if np.isnan(error) else f"{error:.1g}"
