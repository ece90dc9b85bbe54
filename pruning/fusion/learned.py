"""Weights of signals fitted to measured removal, and how well they rank neurons that the fit has not seen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from pruning.core.options import too_few
from pruning.fusion.weights import TRANSFORMS, relative, spearman

Shares = dict[str, dict[str, float]]
"""Layer → signal → weight; non-negative, summing to 1 in each layer."""
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Candidate:
    """One way to fit.

    Attributes:
        transform: The signals' common scale, one of `TRANSFORMS`.
        target: What is fitted: the `increase` in loss, or its `rank` in the layer.
        shared: One set of weights for all layers, or one for each.
        penalty: Of the squared weights, for each neuron.
    """

    transform: str
    target: str
    shared: bool
    penalty: float


CANDIDATES = [
    Candidate(*values) for values in product(TRANSFORMS, ("rank", "increase"), (True, False), (0.001, 0.01, 0.1))
]


@dataclass(frozen=True)
class Learned:
    """What was fitted, and to what it led on neurons that were not used.

    Attributes:
        candidate: The way to fit that all measured neurons together prefer.
        shares: Its weights, fitted to all measured neurons.
        held_out: Each measured neuron's score by weights fitted without it, in the order of `measured`.
    """

    candidate: Candidate
    shares: Shares
    held_out: np.ndarray


def measured(frame: pd.DataFrame, oracle: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `frame` whose removal was measured, with `loss_increase` and its `standard_error`.

    Raises:
        ValueError: For a removal that is not of these neurons, measured twice, or no finite number.
    """
    columns = ["layer", "neuron", "loss_increase", "standard_error"]
    rows = frame.merge(oracle[columns], on=["layer", "neuron"], how="inner", validate="one_to_one")
    if len(rows) != len(oracle) or rows.empty:
        raise ValueError(f"Expected measured removals of the signals' neurons, got {len(oracle) - len(rows)} others.")
    if not np.isfinite(rows[columns[2:]].to_numpy()).all():
        raise ValueError("Expected finite measured removals, got others.")
    return rows


def learn(frame: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str], *, folds: int, seed: int) -> Learned:
    """Return weights fitted to measured removal, and the scores of neurons that each fit has not seen.

    The increase in loss (or its rank) of a layer's neurons, less its mean, is fitted by Σ weight × signal with
    weights ≥ 0 and a ridge penalty, each neuron counting 1 / (se² + τ²): its error's variance and the layer's true
    variance τ² = var − mean(se²) (random effects, DerSimonian & Laird 1986; where errors rule, that is 1/se²). Which of
    `CANDIDATES` is used is chosen by cross-validation *inside* the neurons that a fold may see (nested: Varma & Simon
    2006), so the held-out scores owe nothing to the neurons that they are compared with.

    Args:
        frame: Every neuron's signals; scales and ranks within a layer come from all of them.
        rows: What `measured` gives of it.
        names: The signals.
        folds: How many parts the measured neurons are cut into, stratified by layer, ≥ 2.
        seed: Seed of the cuts.

    Raises:
        ValueError: If a measured layer has fewer than 2 × folds measured neurons.
    """
    _check_enough(rows, folds)
    signals = _signals(frame, rows, names)
    rows = rows[["layer", "loss_increase", "standard_error"]]  # narrow, for it is cut hundreds of times
    held_out = np.empty(len(rows))
    for fit, test in _cuts(rows, folds, seed):
        chosen = _chosen(rows.iloc[fit], {key: x[fit] for key, x in signals.items()}, names, folds, seed)
        shares = _fitted(rows.iloc[fit], signals[chosen.transform][fit], names, chosen)
        held_out[test] = scores(rows["layer"].iloc[test], signals[chosen.transform][test], shares, names)
    chosen = _chosen(rows, signals, names, folds, seed)
    return Learned(chosen, _fitted(rows, signals[chosen.transform], names, chosen), held_out)


def learn_together(
    models: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], names: Sequence[str]
) -> tuple[Candidate, dict[str, float]]:
    """Return one set of weights for all layers of several models, to serve models that were not measured.

    Fitted as in `learn`. The way to fit is the one of `CANDIDATES` (of those that share weights) by which the other
    models' weights rank a model's neurons best, averaged over the models.

    >>> import numpy as np
    >>> keys = pd.DataFrame({"layer": ["a"] * 9, "neuron": range(9)})
    >>> random = np.random.default_rng(0)
    >>> models = {}
    >>> for name in ("one", "two"):
    ...     frame = keys.assign(good=random.random(9), bad=random.random(9))
    ...     models[name] = frame, keys.assign(loss_increase=frame["good"], standard_error=0.01)
    >>> _, weights = learn_together(models, ["good", "bad"])
    >>> weights["good"] > 0.9
    True

    Args:
        models: Name → (every neuron's signals, measured removals), at least two models.
        names: The signals.

    Returns:
        The way to fit, and signal → weight, summing to 1.

    Raises:
        ValueError: For fewer than two models.
    """
    if len(models) < 2:
        raise ValueError(f"Expected the measured removals of at least two models, got {len(models)}.")
    parts = {}
    for model, (frame, oracle) in models.items():
        rows = measured(frame, oracle)
        signals = _signals(frame, rows, names)
        named = rows.assign(layer=model + "/" + rows["layer"].astype(str))
        parts[model] = named[["layer", "loss_increase", "standard_error"]], signals
    shared = [candidate for candidate in CANDIDATES if candidate.shared]
    reached = []
    for candidate in shared:
        served = []
        for model, (rows, signals) in parts.items():
            weights = _fitted_together([part for other, part in parts.items() if other != model], names, candidate)
            score = signals[candidate.transform] @ np.array(list(weights.values()))
            served.append(within_layers(rows["layer"].to_numpy(), score, rows["loss_increase"].to_numpy()))
        reached.append(np.mean(served))
    best = shared[int(np.argmax(reached))]
    return best, _fitted_together(list(parts.values()), names, best)


def _fitted_together(
    parts: Sequence[tuple[pd.DataFrame, Mapping[str, np.ndarray]]], names: Sequence[str], candidate: Candidate
) -> dict[str, float]:
    """Return the weights that a candidate gives all layers of some models."""
    rows = pd.concat([rows for rows, _ in parts], ignore_index=True)
    signals = np.concatenate([signals[candidate.transform] for _, signals in parts])
    return next(iter(_fitted(rows, signals, names, candidate).values()))


def scores(
    layers: pd.Series, signals: np.ndarray, shares: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> np.ndarray:
    """Return Σ weight × signal for each row, (n,)."""
    kinds, places = np.unique(layers.to_numpy(dtype=str), return_inverse=True)
    weights = np.array([[shares[str(layer)].get(name, 0.0) for name in names] for layer in kinds])
    return np.asarray((signals * weights[places]).sum(axis=1))


def within_layers(layers: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation within layers, averaged over them by their number of neurons."""
    kinds, counts = np.unique(layers, return_counts=True)
    correlations = [spearman(one[layers == layer], other[layers == layer]) for layer in kinds]
    return float(np.average(correlations, weights=counts))


def bootstrapped(
    layers: np.ndarray, truth: np.ndarray, predictions: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, np.ndarray]:
    """Return `within_layers` of each prediction for resampled neurons of each layer, the same ones for each."""
    random = np.random.default_rng(seed)
    total = {name: np.zeros(BOOTSTRAPS) for name in predictions}
    for layer in np.unique(layers):
        places = np.flatnonzero(layers == layer)
        drawn = places[random.integers(len(places), size=(BOOTSTRAPS, len(places)))]
        wanted = _standard_ranks(truth[drawn])
        for name, prediction in predictions.items():
            total[name] += (_standard_ranks(prediction[drawn]) * wanted).mean(axis=1) * len(places) / len(layers)
    return total


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval of bootstrap values."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _check_enough(rows: pd.DataFrame, folds: int) -> None:
    if folds < 2:
        raise ValueError(f"Expected at least 2 folds, got {folds}.")
    counts = {str(layer): int(count) for layer, count in rows.groupby("layer").size().items()}
    for layer, count, needed in too_few(counts, folds):
        raise ValueError(f"Expected at least {needed} measured neurons in {layer} for {folds} folds, got {count}.")


def _signals(frame: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the measured neurons' signals on each scale, (n, signals)."""
    places = pd.MultiIndex.from_frame(frame[["layer", "neuron"]])
    indices = places.get_indexer(pd.MultiIndex.from_frame(rows[["layer", "neuron"]]))
    return {transform: relative(frame, names, transform).to_numpy()[indices] for transform in TRANSFORMS}


def _cuts(rows: pd.DataFrame, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold  # slow to import, and fusion mostly learns nothing

    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return iter(cut.split(np.zeros(len(rows)), rows["layer"].to_numpy()))


def _chosen(
    rows: pd.DataFrame, signals: Mapping[str, np.ndarray], names: Sequence[str], folds: int, seed: int
) -> Candidate:
    """Return the candidate whose held-out scores rank these neurons best; the first of equals."""
    held_out = np.empty((len(CANDIDATES), len(rows)))
    for fit, test in _cuts(rows, folds, seed + 1):
        for index, candidate in enumerate(CANDIDATES):
            scaled = signals[candidate.transform]
            shares = _fitted(rows.iloc[fit], scaled[fit], names, candidate)
            held_out[index, test] = scores(rows["layer"].iloc[test], scaled[test], shares, names)
    layers, truth = rows["layer"].to_numpy(), rows["loss_increase"].to_numpy()
    return CANDIDATES[int(np.argmax([within_layers(layers, prediction, truth) for prediction in held_out]))]


def _fitted(rows: pd.DataFrame, signals: np.ndarray, names: Sequence[str], candidate: Candidate) -> Shares:
    """Return the weights of one candidate."""
    layers = rows["layer"].to_numpy()
    parts = {layer: _centred(rows[layers == layer], signals[layers == layer], candidate) for layer in np.unique(layers)}
    if candidate.shared:
        together, target = (np.concatenate(part) for part in zip(*parts.values(), strict=True))
        weights = dict.fromkeys(parts, _ridge(together, target, candidate.penalty))
    else:
        weights = {layer: _ridge(*part, candidate.penalty) for layer, part in parts.items()}
    return {str(layer): dict(zip(names, shares.tolist(), strict=True)) for layer, shares in weights.items()}


def _centred(rows: pd.DataFrame, signals: np.ndarray, candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """Return one layer's signals and target less their weighted means, each row times the root of its weight."""
    increase, noise = rows["loss_increase"].to_numpy(), rows["standard_error"].to_numpy() ** 2
    target = rows["loss_increase"].rank().to_numpy() if candidate.target == "rank" else increase
    true = max(increase.var() - noise.mean(), 0.0)
    variance = np.maximum(noise + true, np.finfo(float).tiny)
    precision = variance.min() / variance  # at most 1, so that no sum of them overflows
    weight = precision / precision.mean()
    target = target - np.average(target, weights=weight)
    size = np.sqrt(np.average(target**2, weights=weight)) or 1.0
    root = np.sqrt(weight)
    return root[:, None] * (signals - np.average(signals, axis=0, weights=weight)), root * target / size


def _ridge(signals: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """Return non-negative weights that sum to 1; equal ones where none is positive."""
    from scipy.optimize import nnls

    count = signals.shape[1]
    rows = np.concatenate([signals, np.sqrt(penalty * len(signals)) * np.eye(count)])
    solution, _ = nnls(rows, np.concatenate([target, np.zeros(count)]))
    return np.asarray(solution / solution.sum() if solution.sum() > 0 else np.full(count, 1 / count))


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of each row, less their mean and over their spread; zeros where a row does not vary."""
    ranks = np.ascontiguousarray(pd.DataFrame(values).rank(axis=1))  # laid out as the rows, so that sums add in order
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    spread = ranks.std(axis=1, keepdims=True)
    return np.asarray(np.divide(ranks, spread, out=np.zeros_like(ranks), where=spread > 0))
