"""How a neuron's card is filled: from tables, from what it works with, and from what it does on batches."""

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch

from pruning.core.devices import without_values
from pruning.core.hooks import record
from pruning.core.modes import evaluating
from pruning.core.neurons import NeuronLayer, named_tensors
from pruning.core.options import expect_known
from pruning.core.statistics import merged
from pruning.models.base import LanguageModel, Measurable
from pruning.pictures.card import Firing, NeuronCard
from pruning.pictures.importance import columns_of
from pruning.signals.activations import Covariances
from pruning.signals.cooperative import edges_of, recurrent_coupling

PARTNERS, MOMENTS, BEFORE = 6, 4, 7
"""How many partners, and moments with so many tokens before them, a card holds."""
SEEN = 5
"""Times that a token is read, at least, before what it does to the neuron is told."""
BATCHES = 20
"""Batches that a neuron is watched on."""


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
