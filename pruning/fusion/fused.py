"""Many signals become one importance for each neuron."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pruning.core.options import expect_known
from pruning.core.tables import table
from pruning.fusion.calibration import by_curves, by_quantiles
from pruning.fusion.fusing import CALIBRATIONS, Fusing
from pruning.fusion.learned import Shares, learn, measured, scores, within_layers
from pruning.fusion.report import ranks_of_removals, report_of
from pruning.fusion.schemas import ALL, IMPORTANCE
from pruning.fusion.taught import TRANSFORM, taught
from pruning.fusion.weights import TRANSFORMS, adaptive, agreements, relative, variance_reliability
from pruning.signals.schemas import BESIDE, CRITERIA, SIGNALS

logger = logging.getLogger(__name__)

FOLDS = 5
"""Parts that measured neurons are cut into for `learned`, where there are enough of them."""
Curves = Callable[[pd.DataFrame], pd.DataFrame]
ERROR = "_error"
"""What the column of a criterion's standard error has behind the criterion's name."""


@dataclass(frozen=True)
class Weighing:
    """How signals become one score: everything that another model or corpus needs to do the same.

    Attributes:
        strategy: Which strategy found the weights.
        transform: The signals' common scale within a layer, `scaled` or `rank`.
        shares: Layer → signal → weight; non-negative, summing to 1 in each layer, with the layers' mean under `all`.
    """

    strategy: str
    transform: str
    shares: Shares


@dataclass(frozen=True)
class Fusion:
    """A fused importance and how it came about.

    Attributes:
        importance: The `importance` table.
        report: The `fusion` table.
        weighing: The weights, as they can be saved (`to_plain`) and applied elsewhere.
    """

    importance: pd.DataFrame
    report: pd.DataFrame
    weighing: Weighing

    @property
    def by_layer(self) -> dict[str, list[float]]:
        """Layer → the fused importance of each of its neurons."""
        return {str(name): rows.tolist() for name, rows in self.importance.groupby("layer")["fused"]}


def fuse(tables: Mapping[str, pd.DataFrame], fusing: Fusing, **beside: Any) -> pd.DataFrame:
    """Return the `importance` table alone; see `fusion`, whose further arguments may be given.

    >>> import pandas as pd
    >>> keys = {"layer": ["a"] * 3, "neuron": range(3)}
    >>> tables = {"weights": pd.DataFrame({**keys, "importance": [0.0, 1.0, 2.0]})}
    >>> tables["hessian"] = pd.DataFrame({**keys, "importance": [0.0, 9.0, 9.0]})
    >>> fuse(tables, Fusing(strategy="simple", seed=1))["fused"].tolist()
    [0.0, 0.75, 1.0]
    """
    return fusion(tables, fusing, **beside).importance


def fusion(
    tables: Mapping[str, pd.DataFrame],
    fusing: Fusing,
    *,
    oracle: pd.DataFrame | None = None,
    criteria: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
    curves: Curves | None = None,
) -> Fusion:
    """Return each signal's importance, the shares used, their fusion, what else one can choose by, and a report.

    fused = Σ share × signal on a common scale within its layer, in [0, 1]. The scale is q05 → 0, q95 → 1, clipped, so
    an outlier cannot flatten the others; where it serves better, `learned` takes the rank. The shares:

    - `simple`: the same for each signal;
    - `adaptive`: by each signal's reliability in the layer and its agreement with the others (`weighing.adaptive`);
      where `criteria` has `taylor_second` or `intervention`, all by the weights that other models taught (`taught`);
    - `learned`: fitted to measured removal and checked on neurons that were not used (`learned.learn`). Where the fit
      ranks those no better than the best single signal does, that is said and that signal alone is used.

    With `calibration` the fused score becomes a loss in nat/token, comparable across layers (`calibration`): each
    neuron gets the quantile at its place of its layer's measured (`oracle`) or estimated (`hessian`: ½ wᵀ diag(H) w =
    half the traditional importance; or any of `criteria`'s columns) losses; or, with `removal`, what its layer's
    measured curve of joint removal rises by at its place.

    Args:
        tables: Signal name → its table, of as many signals as were measured; the same neurons in each. Those of
            `BESIDE` and `criteria` are passed on. Where one was not measured, its columns are not numbers and nothing
            can be chosen by them.
        fusing: How to fuse them.
        oracle: Measured removals: `layer`, `neuron`, `loss_increase`, `standard_error` (nat/token), of some neurons.
        criteria: More importances by column, of the same neurons, that `learned` and `adaptive` may weigh beside the
            signals. The standard error of one is its column with `_error` behind the name, here or in the table
            `criteria`; one that has none is exact.
        weights: What `to_plain` gave of an earlier fusion; applied as it is, and nothing is fitted.
        curves: For `removal`: scores (`layer`, `neuron`, `fused`) → what `removal_curves` gives for them.

    Raises:
        ValueError: For no tables, an unknown calibration, tables of different neurons, or `learned` or a calibration
            without the measurements that it needs.
    """
    if fusing.signals is None:
        fusing = replace(fusing, signals=[name for name in SIGNALS if name in tables])
    signals, calibration = fusing.signals or (), fusing.calibration
    _check(fusing, oracle, criteria, weights)
    if calibration == "removal" and curves is None:
        raise ValueError("Expected what measures removal curves for calibration 'removal', got nothing.")
    frame, errors = _side_by_side(tables, signals, criteria)
    if calibration == "hessian" and "hessian" not in tables:
        raise ValueError("Expected the table 'hessian' for calibration 'hessian', got none.")
    names = [*(name for name in SIGNALS if name in signals), *_names_of(criteria)]
    described = _described(frame, errors, names)
    rows = None if oracle is None else measured(frame[["layer", "neuron", *names]], oracle)
    parts = fusing.folds or (FOLDS if rows is None else max(2, min(FOLDS, rows.groupby("layer").size().min() // 2)))
    weighing, evidence = _weighed(frame, rows, described, replace(fusing, folds=int(parts)), names, weights)
    raw = relative(frame, names, weighing.transform).to_numpy()
    fused = scores(frame["layer"], raw, _for_layers(weighing.shares, frame), names)
    if rows is not None:
        evidence = ranks_of_removals(rows, frame, fused, names, evidence, fusing.seed)
    calibrated = _calibrated(frame.assign(fused=fused), errors, calibration, oracle, curves)
    importance = _importance_table(frame, calibrated, weighing, fusing.seed, _beside(tables))
    shares = {**_for_layers(weighing.shares, frame), ALL: weighing.shares[ALL]}
    return Fusion(importance, report_of(shares, weighing.strategy, names, described, evidence), weighing)


def learnable(tables: Mapping[str, pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """Return what learned weights may weigh besides the signals, by column, as `fusion` takes it for `criteria`.

    >>> table = pd.DataFrame({"layer": ["a"], "neuron": [0], "importance": [0.5], "standard_error": [0.1]})
    >>> learnable({"intervention": table}, ["intervention"]).iloc[0].to_dict()
    {'layer': 'a', 'neuron': 0, 'intervention': 0.5, 'intervention_error': 0.1}

    Args:
        tables: The tables `intervention` and `criteria`, as far as they are named.
        names: `intervention` and criteria.
    """
    first = tables["intervention" if "intervention" in names else "criteria"]
    columns: dict[str, pd.Series] = {}
    for name in names:
        if name == "intervention":
            columns |= {name: tables[name]["importance"], name + ERROR: tables[name]["standard_error"]}
        else:
            columns[name] = tables["criteria"][name]
    return first[["layer", "neuron"]].assign(**columns)


def to_plain(weighing: Weighing) -> dict[str, Any]:
    """Return weights as plain values, for a file."""
    return {"strategy": weighing.strategy, "transform": weighing.transform, "shares": weighing.shares}


def from_plain(values: Mapping[str, Any], known: Sequence[str]) -> Weighing:
    """Return the weights that `to_plain` made plain.

    Raises:
        ValueError: If they are not of that form, name an unknown signal, are negative, or do not sum to 1.
    """
    fields = ["strategy", "transform", "shares"]
    if sorted(values) != sorted(fields) or values["transform"] not in TRANSFORMS or ALL not in values["shares"]:
        raise ValueError(f"Expected saved weights with {fields} and the layers' mean, got others: {sorted(values)}.")
    for layer, weights in values["shares"].items():
        expect_known("signal", known, *weights, where=" in the saved weights")
        if min(weights.values()) < 0 or abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"Expected saved weights of {layer!r} that are not negative and sum to 1, got {weights}.")
    return Weighing(
        values["strategy"], values["transform"], {layer: dict(weights) for layer, weights in values["shares"].items()}
    )


def _check(
    fusing: Fusing, oracle: pd.DataFrame | None, criteria: pd.DataFrame | None, weights: Mapping[str, Any] | None
) -> None:
    """Refuse a calibration that there is none of, and what was not measured."""
    calibration = fusing.calibration
    expect_known("calibration", [*CALIBRATIONS, *_names_of(criteria)], calibration)
    if oracle is None and (calibration == "oracle" or (fusing.strategy == "learned" and weights is None)):
        what = "calibration 'oracle'" if calibration == "oracle" else "fusion 'learned'"
        raise ValueError(f"Expected measured removals (the table `oracle`) for {what}, got none.")


def _side_by_side(
    tables: Mapping[str, pd.DataFrame], signals: Sequence[str], criteria: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row a neuron with one column a signal, not numbers where there is none; likewise standard errors."""
    missing = [name for name in signals if name not in tables]
    if missing:
        raise ValueError(f"Expected the tables {list(signals)}, got none of {missing}.")
    keys = tables[signals[0]][["layer", "neuron"]]
    for name in (*SIGNALS, *BESIDE, "criteria"):
        if name not in tables:
            continue
        if not tables[name][["layer", "neuron"]].equals(keys):
            raise ValueError(f"Expected the same neurons in every signal, got others in {name!r}.")
    frame = keys.assign(**{name: tables[name]["importance"] if name in tables else np.nan for name in SIGNALS})
    errors = keys.assign(**{name: tables[name].get("standard_error", 0.0) for name in SIGNALS if name in tables})
    if criteria is None:
        return frame, errors
    joined, known = _with_criteria(frame, criteria), tables.get("criteria", keys)
    for name in _names_of(criteria):
        source = joined if name + ERROR in joined else known
        errors[name] = source.get(name + ERROR, 0.0)
    return joined, errors


def _names_of(criteria: pd.DataFrame | None) -> list[str]:
    """Return the criteria's columns that are neither keys nor another one's standard errors."""
    columns = [] if criteria is None else [name for name in criteria.columns if name not in ("layer", "neuron")]
    return [name for name in columns if not (name.endswith(ERROR) and name.removesuffix(ERROR) in columns)]


def _with_criteria(frame: pd.DataFrame, criteria: pd.DataFrame) -> pd.DataFrame:
    columns = [name for name in criteria.columns if name not in ("layer", "neuron")]
    taken = [name for name in columns if name in frame]
    if taken:
        raise ValueError(f"Expected criteria with names of their own, got {taken}.")
    joined = frame.merge(criteria, on=["layer", "neuron"], how="left", validate="one_to_one")
    if len(criteria) != len(frame) or not np.isfinite(joined[columns].to_numpy(dtype=float)).all():
        raise ValueError("Expected a finite criterion for exactly the signals' neurons, got others.")
    return joined


def _described(frame: pd.DataFrame, errors: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return each signal's reliability and agreement in each layer, and of how many neurons."""
    ranks, parts = relative(frame, names, "rank").to_numpy(), []
    for layer, places in frame.groupby("layer").indices.items():
        rows = frame.iloc[places]
        reliabilities = [variance_reliability(rows[name].to_numpy(), errors[name].to_numpy()[places]) for name in names]
        varies = np.array([np.ptp(rows[name].to_numpy()) > 0 for name in names])
        agreement = agreements(ranks[places], varies)
        columns = {
            "layer": layer,
            "signal": names,
            "reliability": reliabilities,
            "agreement": agreement,
            "width": len(rows),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _weighed(
    frame: pd.DataFrame,
    rows: pd.DataFrame | None,
    described: pd.DataFrame,
    fusing: Fusing,
    names: Sequence[str],
    weights: Mapping[str, Any] | None,
) -> tuple[Weighing, dict[str, Any]]:
    """Return the weights, and what is already known of how they do: held-out scores, and whether they fell back."""
    if weights is not None:
        return restricted(from_plain(weights, [*SIGNALS, *names]), names), {"strategy": "saved"}
    if fusing.strategy == "learned" and rows is not None:
        return _learned(frame, rows, names, fusing)
    known = taught(names) if fusing.strategy == "adaptive" else None
    if known is not None:
        shares = {str(layer): known for layer in frame["layer"].unique()}
        return Weighing(fusing.strategy, TRANSFORM, _with_mean(shares)), {}
    signals = [name for name in names if name in SIGNALS]
    shares = {}
    for layer, signal_rows in described[described["signal"].isin(signals)].groupby("layer"):
        equal = np.full(len(signals), 1 / len(signals))
        pair = signal_rows["reliability"].to_numpy(), signal_rows["agreement"].to_numpy()
        weight_of_each = adaptive(*pair) if fusing.strategy == "adaptive" else equal
        shares[str(layer)] = dict(zip(signal_rows["signal"], weight_of_each.tolist(), strict=True))
    return Weighing(fusing.strategy, "scaled", _with_mean(shares)), {}


def _learned(
    frame: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str], fusing: Fusing
) -> tuple[Weighing, dict[str, Any]]:
    """Return learned weights, or the best single signal where they rank unseen neurons no better."""
    learnt = learn(frame, rows, names, folds=fusing.folds or FOLDS, seed=fusing.seed)
    layers, truth = rows["layer"].to_numpy(), rows["loss_increase"].to_numpy()
    reached = within_layers(layers, learnt.held_out, truth)
    alone = {name: within_layers(layers, rows[name].to_numpy(), truth) for name in names}
    best = max(alone, key=lambda name: alone[name])
    fell_back = reached <= alone[best]
    if fell_back:
        logger.warning(
            "Learned fusion ranks unseen neurons no better (Spearman %.3f) than %s alone (%.3f), which is used.",
            reached, best, alone[best],
        )  # fmt: skip
    only = {name: float(name == best) for name in names}
    shares = {layer: only if fell_back else weights for layer, weights in learnt.shares.items()}
    weighing = Weighing("learned", "rank" if fell_back else learnt.candidate.transform, _with_mean(shares))
    return weighing, {"held_out": learnt.held_out, "fell_back": bool(fell_back)}


def restricted(weighing: Weighing, names: Sequence[str]) -> Weighing:
    """Return saved weights of the signals that are at hand and switched on, summing to 1 again."""
    shares: Shares = {}
    for layer, weights in weighing.shares.items():
        left = {name: weights.get(name, 0.0) for name in names}
        total = sum(left.values())
        if total <= 0:
            raise ValueError(f"Expected saved weights of one of {list(names)} for {layer!r}, got {weights}.")
        shares[layer] = {name: weight / total for name, weight in left.items()}
    return Weighing(weighing.strategy, weighing.transform, shares)


def _with_mean(shares: Shares) -> Shares:
    names = next(iter(shares.values()))
    mean = {name: float(np.mean([weights[name] for weights in shares.values()])) for name in names}
    return {**shares, ALL: mean}


def _for_layers(shares: Shares, frame: pd.DataFrame) -> Shares:
    """Return the shares of the layers at hand; one that the shares do not name has their mean."""
    return {str(layer): shares.get(str(layer), shares[ALL]) for layer in frame["layer"].unique()}


def _calibrated(
    frame: pd.DataFrame, errors: pd.DataFrame, calibration: str, oracle: pd.DataFrame | None, curves: Curves | None
) -> np.ndarray:
    """Return the fused scores, or the losses that their places stand for."""
    if calibration == "none":
        return frame["fused"].to_numpy()
    if calibration == "oracle" and oracle is not None:
        return by_quantiles(frame, "fused", oracle)
    if calibration == "removal" and curves is not None:
        return by_curves(frame, "fused", curves(frame[["layer", "neuron", "fused"]]))
    factor = 0.5 if calibration == "hessian" else 1.0
    losses = frame[["layer"]].assign(
        loss_increase=factor * frame[calibration], standard_error=factor * errors[calibration]
    )
    return by_quantiles(frame, "fused", losses)


def _beside(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the importances that stand beside the fused one, by column; no numbers where they were not measured."""
    signals = {name: tables[name]["importance"] if name in tables else np.nan for name in BESIDE}
    criteria = tables.get("criteria")
    return signals | {name: np.nan if criteria is None else criteria[name] for name in CRITERIA}


def _importance_table(
    frame: pd.DataFrame, fused: np.ndarray, weighing: Weighing, seed: int, beside: Mapping[str, Any]
) -> pd.DataFrame:
    shares_of_layers = _for_layers(weighing.shares, frame)
    shares = {
        f"{name}_share": frame["layer"].map({layer: share.get(name, 0.0) for layer, share in shares_of_layers.items()})
        for name in SIGNALS
    }
    random = np.random.default_rng(seed).random(len(frame))
    columns = ["layer", "neuron", *SIGNALS]
    return table(IMPORTANCE, frame[columns].assign(**shares, fused=fused, random=random, **beside))
