"""How many neurons each layer keeps, and which."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pruning.core.neurons import Keep
from pruning.core.options import expect_known
from pruning.core.tables import table
from pruning.core.words import described
from pruning.selection.adaptive import adaptive_retention_rate
from pruning.selection.allocation import Allocation
from pruning.selection.budgets import Budget, allowed_widths, equal_shares_within, most_within, widths_within
from pruning.selection.schemas import RETENTION


def retention(
    importance: pd.DataFrame,
    allocation: Allocation,
    *,
    variant: str,
    by: str,
    kinds: Mapping[str, str] | None = None,
    avoided: Mapping[str, Collection[int]] | None = None,
) -> pd.DataFrame:
    """Return the `retention` table: which neurons the variant keeps.

    What is compared, `scope`:

    - `layer`: every layer keeps the same share, ⌊share × width + ½⌋ of its own most important neurons;
    - `global`: all layers are ranked together by importance relative to the layer's mean, so layers get widths of
      their own;
    - `absolute`: likewise by importance as it is; for importance that is calibrated across layers.

    How many: ⌊retain × neurons + ½⌋ (of each layer, or in all), or what `adaptive_retention_rate` says in place of
    `retain`, or the largest set of importance within `budget` (see `widths_within`; the largest equal share that
    fits for `layer`). Every layer's width lies between its floor and its ceiling and is a multiple of `multiple`, or
    is the whole layer; a fixed share takes the nearest such width, the larger of two. A layer smaller than its floor
    is kept whole. Equals are kept in the order of their numbers. A width with which the network's code does something
    else is stepped over: a share of a layer takes the nearest other one, of two the larger, since one neuron too many
    does no harm; a budget, and a share of all neurons together, is not exceeded.

    A mixed network starts with more recurrent and spiking neurons than are to stay (a super-network), and which kind
    stays is decided in one of three ways. `snn_ratio` r: 1 − r of the recurrent neurons and r of the spiking ones, at
    least one in each half of a layer. `quota`: each kind has its share of the neurons that stay, however many
    `retain`, `rate` or `budget` let stay. Neither: freely, by one ranking of both kinds; each half is a layer of its
    own, so the importance is comparable between kinds where it is between layers (see `pruning.fusion.calibration`, or
    the surgeon's order) and `scope` is `absolute`.

    A layer of which `by` has no numbers (the surgeon's order, where its outputs cannot be tapped) is refused, unless
    `otherwise` names a column that has them. It ranks the layer's neurons then, and since its numbers say nothing
    beside the others', the layer keeps its share whatever the scope: `retain`, or its own adaptive rate.

    >>> importance = pd.DataFrame({"layer": ["a"] * 4 + ["b"] * 4, "neuron": [*range(4)] * 2, "score": np.arange(8.0)})
    >>> allocation = Allocation(retain=1.0, floor=1, scope="layer", snn_ratio=0.25)
    >>> kinds = {"a": "rnn", "b": "snn"}
    >>> kept = keep_of(retention(importance, allocation, variant="mixed", by="score", kinds=kinds))
    >>> {layer: neurons.tolist() for layer, neurons in kept.items()}
    {'a': [1, 2, 3], 'b': [3]}

    Args:
        importance: The `importance` table.
        allocation: How many neurons are kept, and how they are shared out.
        variant: Name for the table's rows.
        by: The column to rank by.
        kinds: Layer → network type, for `adaptive`, `snn_ratio` and `quota`; `mixed` where it is not named.
        avoided: Layer → widths that it must not have, see `avoided_in`.

    Raises:
        ValueError: For an unknown column or layer, importance that is not a number, bounds that leave no width, a
            budget that not even the narrowest widths meet, or a quota that its kind cannot fill.
    """
    _expect_table(importance, "importance", ("layer", "neuron"))
    expect_known("importance", [name for name in importance.columns if name not in ("layer", "neuron")], by)
    scope, budget, quota, snn_ratio = allocation.scope, allocation.budget, allocation.quota, allocation.snn_ratio
    ordered = importance.sort_values(["layer", "neuron"], ignore_index=True)
    apart = _without_numbers(ordered, by, allocation.otherwise)
    values = ordered[by].mask(ordered["layer"].isin(apart), ordered[allocation.otherwise or by])
    frame = ordered[["layer", "neuron"]].assign(variant=variant, importance=values)
    ranks = frame.groupby("layer")["importance"].rank(method="first", ascending=False).astype("int64")
    frame = frame.assign(rank=ranks, worth=_comparable(frame, scope))
    sizes = {str(layer): int(size) for layer, size in frame.groupby("layer").size().items()}
    place = frame["rank"]
    if budget is not None:
        budget, place = _ordered(budget, frame)
    choices = _choices(sizes, allocation, avoided or {})
    shares = dict.fromkeys(sizes, allocation.retain)
    if allocation.rate == "adaptive":
        beside = frame["layer"].isin(apart)
        shares = _shares(frame[beside], "layer", kinds or {})
        shares |= {} if beside.all() else _shares(frame[~beside], scope, kinds or {})
    choices |= {layer: np.array([_nearest(choices[layer], shares[layer] * sizes[layer])]) for layer in apart}
    if snn_ratio is not None:
        of_kinds = {"rnn": 1 - snn_ratio, "snn": snn_ratio}
        widths = _by_kind(frame, choices, _layers_of(kinds or {}, sizes, of_kinds), of_kinds, scope)
    elif quota is not None and (budget is not None or min(shares.values()) < 1):
        wanted = math.floor(sum(shares[layer] * sizes[layer] for layer in sizes) + 0.5)
        widths = _by_quota(frame, choices, _layers_of(kinds or {}, sizes, quota), quota, budget or wanted, scope)
    elif budget is not None:
        widths = _within(frame, choices, budget, scope)
    else:
        fixed = {layer: int(choices.pop(layer)[0]) for layer in apart}
        widths = fixed | (_shared(frame[~frame["layer"].isin(apart)], choices, shares, scope) if choices else {})
    kept = place <= frame["layer"].map(widths)
    columns = ["variant", "layer", "neuron", "importance", "rank", "kept"]
    return table(RETENTION, frame.assign(kept=kept)[columns])


def keep_of(retained: pd.DataFrame) -> Keep:
    """Return the kept neurons of each layer, ascending, as `select` takes them.

    >>> import pandas as pd
    >>> retained = pd.DataFrame({"layer": ["a"] * 3, "neuron": [0, 1, 2], "kept": [True, False, True]})
    >>> keep_of(retained)
    {'a': tensor([0, 2])}
    """
    _expect_table(retained, "retention", ("layer", "neuron", "kept"))
    kept = retained[retained["kept"]].sort_values(["layer", "neuron"])
    return {str(layer): torch.tensor(rows.to_numpy()) for layer, rows in kept.groupby("layer")["neuron"]}


def _expect_table(table: Any, what: str, columns: Sequence[str]) -> None:
    """Refuse what is no such table.

    Raises:
        TypeError: If it is none at all.
        ValueError: If it has other columns.
    """
    if not isinstance(table, pd.DataFrame):
        held = isinstance(getattr(table, "table", None), pd.DataFrame)
        got = f"{type(table).__name__}; give its `.table`" if held else described(table)
        raise TypeError(f"Expected a table of {what}, a pandas DataFrame, got {got}.")
    if lacking := [name for name in columns if name not in table.columns]:
        raise ValueError(f"Expected a table of {what} with the columns {list(columns)}, got one without {lacking}.")


def _comparable(frame: pd.DataFrame, scope: str) -> pd.Series:
    """Return the importance as it is compared between layers."""
    if scope == "absolute":
        return frame["importance"]
    mean = frame.groupby("layer")["importance"].transform(lambda values: values.abs().mean())
    return frame["importance"] / mean.where(mean > 0, 1)


def _choices(
    sizes: Mapping[str, int], allocation: Allocation, avoided: Mapping[str, Collection[int]]
) -> dict[str, np.ndarray]:
    """Return the widths that each layer may have."""
    floors = {**dict.fromkeys(sizes, 1), **_of_layers(allocation.floor, sizes, "floor")}
    ceilings = _of_layers(allocation.ceiling, sizes, "ceiling") if allocation.ceiling is not None else {}
    return {
        layer: allowed_widths(
            size,
            floor=floors[layer],
            ceiling=ceilings.get(layer),
            multiple=allocation.multiple,
            avoided=avoided.get(layer, ()),
        )
        for layer, size in sizes.items()
    }


def _of_layers(bound: int | Mapping[str, int], sizes: Mapping[str, int], what: str) -> dict[str, int]:
    """Return a bound for each layer, or for those that are named."""
    bounds = dict(bound) if isinstance(bound, Mapping) else dict.fromkeys(sizes, bound)
    expect_known("layer", sizes, *bounds, where=f" of a {what}")
    return bounds


def _ordered(budget: Budget, frame: pd.DataFrame) -> tuple[Budget, pd.Series]:
    """Return the budget for these neurons, and the place of each in the order in which its layer keeps them."""
    worths = {str(layer): values.to_numpy() for layer, values in frame.groupby("layer")["worth"]}
    if budget.spikes is None or set(worths) != set(budget.layers):
        return budget, frame["rank"]
    budget = budget.ordered(worths)
    assert budget.order is not None  # noqa: S101 - for the type checker: the budget has just been given one
    places = {layer: np.argsort(order) + 1 for layer, order in budget.order.items()}
    return budget, pd.Series(np.concatenate([places[layer] for layer in frame["layer"].unique()]), index=frame.index)


def _within(frame: pd.DataFrame, choices: Mapping[str, np.ndarray], budget: Budget, scope: str) -> dict[str, int]:
    """Return each layer's width within the budget."""
    if set(budget.layers) != set(choices):
        raise ValueError(f"Expected a budget for the layers {list(choices)}, got one for {list(budget.layers)}.")
    if scope == "layer":
        return equal_shares_within(choices, budget)
    worths = {str(layer): values.to_numpy() for layer, values in frame.groupby("layer")["worth"]}
    return widths_within(worths, choices, budget)


def _layers_of(kinds: Mapping[str, str], layers: Iterable[str], wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return the layers of each wanted network type; every layer must have one of them."""
    by_kind: dict[str, list[str]] = {}
    for layer in layers:
        by_kind.setdefault(kinds.get(layer, "mixed"), []).append(layer)
    if set(by_kind) != set(wanted):
        raise ValueError(f"Expected layers of the kinds {sorted(wanted)}, got {sorted(by_kind)}.")
    return by_kind


def _by_kind(
    frame: pd.DataFrame,
    choices: Mapping[str, np.ndarray],
    layers: Mapping[str, list[str]],
    shares: Mapping[str, float],
    scope: str,
) -> dict[str, int]:
    """Return each layer's width where each network type keeps a share of its own neurons."""
    widths: dict[str, int] = {}
    for kind, names in layers.items():
        neurons, steps = frame[frame["layer"].isin(names)], {layer: choices[layer] for layer in names}
        widths |= _shared(neurons, steps, dict.fromkeys(names, shares[kind]), scope)
    return widths


def _by_quota(
    frame: pd.DataFrame,
    choices: Mapping[str, np.ndarray],
    layers: Mapping[str, list[str]],
    quota: Mapping[str, float],
    wanted: Budget | int,
    scope: str,
) -> dict[str, int]:
    """Return each layer's width where each network type has its quota of a number of neurons or of a budget."""
    sizes = {kind: int(frame["layer"].isin(names).sum()) for kind, names in layers.items()}

    def widths(total: int) -> dict[str, int]:
        shares = {kind: count / sizes[kind] for kind, count in _split(total, quota).items()}
        return _by_kind(frame, choices, layers, shares, scope)

    if not isinstance(wanted, int):
        filled = (total for total in range(len(frame), -1, -1) if not _unfilled(total, quota, sizes))
        return most_within(widths, next(filled), choices, wanted)
    for kind in _unfilled(wanted, quota, sizes):
        raise ValueError(
            f"Expected a quota that {sizes[kind]} {kind} neurons can fill, got {quota[kind]:g} of {wanted} in all."
        )
    return widths(wanted)


def _split(total: int, quota: Mapping[str, float]) -> dict[str, int]:
    """Return how many of `total` neurons are of each kind; they sum to it.

    >>> _split(5, {"rnn": 0.5, "snn": 0.5})
    {'rnn': 3, 'snn': 2}
    """
    reached = np.floor(np.cumsum(list(quota.values())) * total + 0.5 + 1e-9).astype(int)
    return dict(zip(quota, np.diff(reached, prepend=0).tolist(), strict=True))


def _unfilled(total: int, quota: Mapping[str, float], sizes: Mapping[str, int]) -> list[str]:
    """Return the kinds that have fewer neurons than their quota of `total`."""
    return [kind for kind, count in _split(total, quota).items() if count > sizes[kind]]


def _shares(frame: pd.DataFrame, scope: str, kinds: Mapping[str, str]) -> dict[str, float]:
    """Return each layer's share by how unequal its importance is, or by that of all layers together."""
    layers = {str(layer): values.to_numpy() for layer, values in frame.groupby("layer")["worth"]}
    types = {layer: kinds.get(layer, "mixed") for layer in layers}
    if scope == "layer":
        return {layer: adaptive_retention_rate(values, types[layer]) for layer, values in layers.items()}
    kind = next(iter(types.values())) if len(set(types.values())) == 1 else "mixed"
    return dict.fromkeys(layers, adaptive_retention_rate(frame["worth"].to_numpy(), kind))


def _shared(
    frame: pd.DataFrame, choices: Mapping[str, np.ndarray], shares: Mapping[str, float], scope: str
) -> dict[str, int]:
    """Return each layer's width for a share of each layer, or of all neurons together."""
    sizes = frame.groupby("layer").size()
    if scope == "layer":
        return {layer: _nearest(choices[layer], shares[layer] * int(sizes[layer])) for layer in choices}
    wanted = math.floor(shares[next(iter(choices))] * len(frame) + 0.5)
    if all(len(step) == step[-1] - step[0] + 1 and step[-1] == sizes[layer] for layer, step in choices.items()):
        return _ranked(frame, wanted, {layer: int(step[0]) for layer, step in choices.items()})
    narrowest = sum(int(step[0]) for step in choices.values())
    neurons = Budget("neurons", max(wanted, narrowest), tuple(choices), lambda rows: rows.sum(axis=1))
    worths = {str(layer): values.to_numpy() for layer, values in frame.groupby("layer")["worth"]}
    return widths_within(worths, choices, neurons)


def _nearest(choices: np.ndarray, wanted: float) -> int:
    """Return the allowed width that is nearest to a number, the larger of two."""
    distance = np.abs(choices - wanted)
    return int(choices[distance == distance.min()].max())


def _ranked(frame: pd.DataFrame, wanted: int, floors: Mapping[str, int]) -> dict[str, int]:
    """Return how many of each layer are among the most important of all, once each layer has its floor."""
    guaranteed = frame["rank"] <= frame["layer"].map(floors)
    place = frame["worth"].mask(guaranteed, math.inf).rank(method="first", ascending=False)
    kept = place <= max(wanted, int(guaranteed.sum()))
    return {str(layer): int(number) for layer, number in kept.groupby(frame["layer"]).sum().items()}


def _without_numbers(importance: pd.DataFrame, by: str, otherwise: str | None) -> list[str]:
    """Return the layers of which `by` has no numbers, if `otherwise` has them; refuse what else is not finite."""
    names = [column for column in importance.columns if column not in ("layer", "neuron")]
    if otherwise is not None:
        expect_known("importance", names, otherwise, where=" at otherwise")
    missing = importance.loc[~np.isfinite(importance[by].to_numpy(float)), "layer"]
    wrong = [str(layer) for layer in missing.unique()]
    if not wrong:
        return []
    neurons = importance[importance["layer"].isin(wrong)]
    known = [name for name in names if np.isfinite(neurons[name].to_numpy(float)).all()]
    empty = bool(neurons[by].isna().all())
    if empty and otherwise in known:
        return wrong
    out = f"choose by one of {known}" + (", or let otherwise name one of them for what has no numbers" if empty else "")
    where = f"layer {wrong[0]!r}" if len(wrong) == 1 else f"the layers {wrong}"
    what = repr(by) if not empty or otherwise is None else f"{by!r} and in {otherwise!r}"
    raise ValueError(f"Expected a finite importance for every neuron, got others for {where} in {what}; {out}.")
