"""How many neurons each layer keeps, and which."""

import math

import pandas as pd
import torch

from pruning.layers import Keep
from pruning.tables import table

SCOPES = ("layer", "global", "absolute")


def retention(
    importance: pd.DataFrame, *, variant: str, by: str, retain: float, floor: int, scope: str
) -> pd.DataFrame:
    """Return the `retention` table: which neurons the variant keeps.

    `layer` keeps the same share of every layer, ⌊retain × width + ½⌋. `global` ranks all layers together by importance
    relative to the layer's mean, so layers get widths of their own, and keeps ⌊retain × neurons + ½⌋ in all.
    `absolute` does so by importance as it stands, for what is comparable across layers (`surgeon`). In any case at
    least `floor` stay in each layer (or the whole layer, if it is smaller). Equals are kept in the order of their
    numbers.

    Args:
        importance: The `importance` table.
        variant: Name for the table's rows.
        by: The column to rank by.
        retain: Share of neurons to keep, in (0, 1].
        floor: Fewest neurons that a layer keeps, ≥ 1.
        scope: One of `SCOPES`.

    Raises:
        ValueError: For an unknown column or scope, a share outside (0, 1], or importance that is not a number.
    """
    _check(importance, by, retain, floor, scope)
    ordered = importance.sort_values(["layer", "neuron"], ignore_index=True)
    frame = ordered[["layer", "neuron"]].assign(variant=variant, importance=ordered[by])
    ranks = frame.groupby("layer")["importance"].rank(method="first", ascending=False).astype("int64")
    frame = frame.assign(rank=ranks)
    if scope == "layer":
        widths = frame.groupby("layer")["neuron"].transform("size")
        kept = frame["rank"] <= (retain * widths + 0.5).astype("int64").clip(lower=widths.clip(upper=floor))
    else:
        kept = _globally(frame, math.floor(retain * len(frame) + 0.5), floor, relative=scope == "global")
    columns = ["variant", "layer", "neuron", "importance", "rank", "kept"]
    return table("retention", frame.assign(kept=kept)[columns])


def keep_of(retained: pd.DataFrame) -> Keep:
    """Return the kept neurons of each layer, ascending, as `select` takes them."""
    kept = retained[retained["kept"]].sort_values(["layer", "neuron"])
    return {str(layer): torch.tensor(rows.to_numpy()) for layer, rows in kept.groupby("layer")["neuron"]}


def _globally(frame: pd.DataFrame, budget: int, floor: int, *, relative: bool) -> pd.Series:
    """Return which neurons are among the most important of all layers, once each layer has its floor."""
    guaranteed = frame["rank"] <= floor
    importance = frame["importance"]
    if relative:
        mean = frame.groupby("layer")["importance"].transform(lambda values: values.abs().mean())
        importance = importance / mean.where(mean > 0, 1)
    place = importance.mask(guaranteed, math.inf).rank(method="first", ascending=False)
    return place <= max(budget, int(guaranteed.sum()))


def _check(importance: pd.DataFrame, by: str, retain: float, floor: int, scope: str) -> None:
    known = [column for column in importance.columns if column not in ("layer", "neuron")]
    if by not in known:
        raise ValueError(f"Unknown importance {by!r}; known: {known}.")
    if scope not in SCOPES:
        raise ValueError(f"Unknown scope {scope!r}; known: {list(SCOPES)}.")
    if not 0 < retain <= 1:
        raise ValueError(f"Expected retain in (0, 1], got {retain}.")
    if floor < 1:
        raise ValueError(f"Expected a floor of at least 1 neuron, got {floor}.")
    if not importance[by].map(math.isfinite).all():
        raise ValueError(f"Expected a finite importance for every neuron, got others in {by!r}.")
