"""What the experiment's results say side by side: perplexity, precision, stability and cost, each a typed table."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from pruning.ablation.oracle import split_half_reliability
from pruning.core.neurons import Keep
from pruning.core.tables import table
from pruning.evaluation.comparison import PHASES
from pruning.experiment.choices import importance_of
from pruning.experiment.measured import Calibration
from pruning.experiment.schemas import COST, ONCE, PRECISION, PROGRESSIVE, STABILITY
from pruning.experiment.trials import Pruning
from pruning.experiment.variants import CONTROL, FOLDS, RANDOM, TRADITIONAL, VARIANTS, choice_of
from pruning.fusion.learned import BOOTSTRAPS, bootstrapped, interval, learn, measured, within_layers
from pruning.fusion.weights import without_noise
from pruning.signals.schemas import BESIDE, CRITERIA, SIGNALS

KIND = {**dict.fromkeys((*SIGNALS, *BESIDE), "signal"), **dict.fromkeys(CRITERIA, "criterion")}


def compare_pruning_results(
    results: Sequence[Pruning],
    *,
    calibrations: Mapping[int, Calibration] | None = None,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[int, Mapping[str, Any]] | None = None,
    joint: tuple[Mapping[str, Mapping[str, Sequence[int]]], pd.DataFrame] | None = None,
    costs: Iterable[Mapping[str, object]] = (),
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Return the tables `progressive`, `precision`, `stability` and `cost`, each as far as there is evidence for it.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> recipe = pruning.Recipe(
    ...     epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
    ... )
    >>> imitation = pruning.Imitation(tokens=32, learning_rate=0.01, warmup=0.1, clip=1.0)
    >>> treatment = pruning.Treatment(
    ...     scope="layer", floor=1, repair="ridge", imitation=imitation, recipe=recipe, distillation=0.0
    ... )
    >>> texts = pruning.Texts(calibration=text, training=text, judged=text)
    >>> dense = pruning.run_dense_control(model, texts, treatment=treatment, seed=1)
    >>> sorted(compare_pruning_results([dense]))
    ['progressive', 'stability']

    Args:
        results: Prunings, the dense controls among them, of any variants, shares, calibrations and dense models.
            `progressive` is told of the lowest seeds; `stability` of the share that most seeds have in common.
        calibrations: Seed → what was measured of dense model 0 with it.
        oracle: Measured removals of that model, on text that nothing was chosen by.
        weights: Seed → what was learned from them (see `fusion.to_plain`); without it, it is learned again.
        joint: Sets of its neurons and the `joint_removal` table of removing each set together.
        costs: Rows of the `cost` table.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there are prunings of a model without its dense control.
    """
    scores = {
        seed: scores_of(calibration, oracle, (weights or {}).get(seed))
        for seed, calibration in (calibrations or {}).items()
    }
    tables = {"progressive": progressive(results), "stability": stability(results, scores)}
    rows = [{**ONCE, **row} for row in costs]
    if calibrations and oracle is not None:
        first = min(calibrations)
        tables["precision"] = precision(calibrations[first], scores[first], oracle, joint, seed=seed)
    if rows:
        tables["cost"] = table(COST, pd.DataFrame(rows))
    return tables


def progressive(results: Sequence[Pruning]) -> pd.DataFrame:
    """Return the `progressive` table: each variant, share and phase against dense, `traditional` and `random`.

    Differences are paired on the same tokens. The dense model of a phase is the one with the same extra training.

    Args:
        results: Prunings with their control; of each variant and share the one with the lowest seeds is told of.
    """
    first: dict[tuple[str, float], Pruning] = {}
    for result in sorted(results, key=lambda result: (result.training, result.calibration)):
        first.setdefault((result.variant, result.retain), result)
    control = _control(results, min(result.training for result in results))
    rows = []
    for (variant, retain), result in first.items():
        for phase in PHASES:
            losses, dense = result.losses[phase], control.losses[phase]
            row = {"variant": variant, "retain": retain, "phase": phase}
            row |= {name: getattr(result.size, name) for name in ("neurons", "parameters", "multiply_adds")}
            row |= {"loss": losses.mean, "loss_error": losses.standard_error}
            row |= {"perplexity": losses.perplexity, "tokens": int(losses.tokens.sum())}
            row["change"] = losses.perplexity / dense.perplexity - 1
            others = {CONTROL: control, **{name: first.get((name, retain)) for name in (TRADITIONAL, RANDOM)}}
            for name, other in others.items():
                above = (np.nan, np.nan) if other is None else losses.above(other.losses[phase])
                row |= {f"above_{name}": above[0], f"above_{name}_error": above[1]}
            rows.append(row)
    return table(PROGRESSIVE, pd.DataFrame(rows))


def precision(
    calibration: Calibration,
    frame: pd.DataFrame,
    oracle: pd.DataFrame,
    joint: tuple[Mapping[str, Mapping[str, Sequence[int]]], pd.DataFrame] | None = None,
    *,
    seed: int,
) -> pd.DataFrame:
    """Return the `precision` table: how far each score ranks neurons as measured removal does.

    Within each layer, averaged over layers by their number of measured neurons, with 95% intervals from 1000
    resamples of the neurons, the same ones for every score:

    - spearman: rank correlation with the loss increase;
    - without_noise: the same over √reliability, as it would be were measured removal exact;
    - overlap: share of the half of the neurons that cost most which is also in the score's upper half;
    - gain: spearman less that of the best single signal or criterion;
    - joint: rank correlation, over sets of neurons removed together, of the sum of the score's ranks with the loss
      increase.

    `learned` is judged by scores of neurons that its weights were not fitted to (`learned.learn`).

    Args:
        calibration: Every signal.
        frame: What `scores_of` gave of it.
        oracle: Measured removals of all neurons or a sample.
        joint: Sets and the `joint_removal` table, whose phase `pruned` is read; None leaves the column empty.
        seed: Seed of the bootstrap.
    """
    rows = measured(frame, oracle)
    names = [name for name in frame.columns if name not in ("layer", "neuron")]
    held_out = _held_out(calibration, oracle)
    scores = {name: held_out if name == "learned" else rows[name].to_numpy() for name in names}
    layers, truth = rows["layer"].to_numpy(), rows["loss_increase"].to_numpy()
    alone = [name for name in names if name in KIND]
    best = max(alone, key=lambda name: within_layers(layers, scores[name], truth))
    drawn = bootstrapped(layers, truth, scores, seed=seed)
    reliabilities = [split_half_reliability(removals) for _, removals in oracle.groupby("layer")]
    sizes = oracle.groupby("layer").size()
    reliability, compared = float(np.average(reliabilities, weights=sizes)), []
    for name in names:
        overlaps = overlap_drawn(layers, truth, scores[name], seed=seed)
        low, high = interval(drawn[name])
        gain_low, gain_high = interval(drawn[name] - drawn[best])
        spearman = within_layers(layers, scores[name], truth)
        overlap_low, overlap_high = interval(overlaps)
        compared.append(
            {
                "score": name,
                "kind": KIND.get(name, "variant"),
                "spearman": spearman,
                "spearman_low": low,
                "spearman_high": high,
                "overlap": overlap(layers, truth, scores[name]),
                "overlap_low": overlap_low,
                "overlap_high": overlap_high,
                "best_single": best,
                "gain_low": gain_low,
                "gain_high": gain_high,
                **_joint(frame, name, joint, seed),
                "held_out": name == "learned",
                "oracle_reliability": reliability,
                "without_noise": without_noise(spearman, reliability),
                "without_noise_low": without_noise(low, reliability),
                "without_noise_high": without_noise(high, reliability),
                "measured": len(rows),
            }
        )
    return table(PRECISION, pd.DataFrame(compared))


def overlap(layers: np.ndarray, truth: np.ndarray, score: np.ndarray) -> float:
    """Return which share of each layer's upper half (rounded down) by `truth` is in its upper half by `score`.

    >>> overlap(np.array(["a"] * 4), np.array([1, 2, 3, 4]), np.array([1, 4, 2, 3]))
    0.5
    """
    shares, halves = [], []
    for layer in np.unique(layers):
        here = layers == layer
        half = int(here.sum()) // 2
        both = _upper(truth[here], half) & _upper(score[here], half)
        shares.append(both.sum())
        halves.append(half)
    return float(np.sum(shares) / np.sum(halves))


def overlap_drawn(layers: np.ndarray, truth: np.ndarray, score: np.ndarray, *, seed: int) -> np.ndarray:
    """Return `overlap` for resampled neurons of each layer, (resamples,); the neurons `bootstrapped` draws."""
    random = np.random.default_rng(seed)
    both, halves = np.zeros(BOOTSTRAPS), 0
    for layer in np.unique(layers):
        places = np.flatnonzero(layers == layer)
        drawn = places[random.integers(len(places), size=(BOOTSTRAPS, len(places)))]
        half = len(places) // 2
        both += (_upper(truth[drawn], half) & _upper(score[drawn], half)).sum(axis=-1)
        halves += half
    return np.asarray(both / halves)


def of_sets(
    frame: pd.DataFrame, name: str, sets: Mapping[str, Mapping[str, Sequence[int]]], removed: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, of each set, its layer, the sum of the score's ranks, and the loss increase, each (sets,).

    Args:
        frame: Columns `layer`, `neuron` and the score.
        name: The score.
        sets: Set → its one layer → neurons.
        removed: The `joint_removal` table of these sets.
    """
    ranks = frame.assign(rank=frame.groupby("layer")[name].rank()).set_index(["layer", "neuron"])["rank"]
    increase = removed[removed["phase"] == "pruned"].set_index("set")["loss_increase"]
    layers, sums = [], []
    for neurons_of_layers in sets.values():
        ((layer, neurons),) = neurons_of_layers.items()
        layers.append(layer)
        sums.append(ranks[[(layer, neuron) for neuron in neurons]].sum())
    return np.array(layers), np.array(sums), increase[list(sets)].to_numpy()


def _joint(frame: pd.DataFrame, name: str, joint: Any, seed: int) -> dict[str, float]:
    """Return the columns on sets of neurons that were removed together."""
    if joint is None:
        return dict.fromkeys(("joint", "joint_low", "joint_high"), np.nan)
    layers, sums, increase = of_sets(frame, name, *joint)
    drawn = bootstrapped(layers, increase, {name: sums}, seed=seed)[name]
    low, high = interval(drawn[np.isfinite(drawn)]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return {"joint": within_layers(layers, sums, increase), "joint_low": low, "joint_high": high}


def stability(results: Sequence[Pruning], frames: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Return the `stability` table: how far choices and perplexities repeat with another seed.

    - over `calibration`, dense model 0 measured on other stretches of text with other probes: the overlap of kept
      sets and the rank correlation within layers, both over all pairs of seeds, of every signal (its upper half) and
      variant; and the mean and standard deviation of the perplexities;
    - over `training`, dense models trained from other seeds, each measured by itself: of the perplexities only. A
      neuron of one such model is none of the other's, so overlaps would mean nothing.

    Perplexities are of the share of neurons that the most seeds have in common, the largest of equals. Measured
    removal is the same for every calibration seed.

    Args:
        results: Prunings with their controls.
        frames: Seed → what `scores_of` gave of the calibration with it.
    """
    rows = []
    retain = _common_share(results)
    variants = [name for name in VARIANTS if any(result.variant == name for result in results)]
    names = [name for name in next(iter(frames.values())).columns if name not in ("layer", "neuron")] if frames else []
    for name in dict.fromkeys([*names, *variants]):
        runs = [r for r in results if r.variant == name and r.retain == retain and r.training == 0]
        kept = [r.keep for r in runs] or [_upper_half(frame, name) for frame in frames.values()]
        columns = [frame[name].to_numpy() for frame in frames.values()] if name in names else []
        ranks = [
            within_layers(next(iter(frames.values()))["layer"].to_numpy(), one, other)
            for one, other in combinations(columns, 2)
        ]
        rows.append(_stability_row(name, "calibration", runs, _overlaps(kept), ranks, runs=len(kept)))
    for name in [CONTROL, *variants]:
        runs_of_models = [r for r in results if r.variant == name and r.retain in (retain, 1.0)]
        lowest = {r.training: r for r in sorted(runs_of_models, key=lambda r: -r.calibration)}
        if len(lowest) > 1:
            rows.append(_stability_row(name, "training", list(lowest.values()), [], [], runs=len(lowest)))
    return table(STABILITY, pd.DataFrame(rows, columns=list(_STABILITY)).astype(_STABILITY))


_STABILITY = {
    "score": "str",
    "over": "str",
    "runs": "int64",
    **dict.fromkeys(("overlap", "overlap_low", "rank_correlation", "rank_correlation_low"), "float64"),
    **{f"{phase}_{what}": "float64" for phase in PHASES for what in ("perplexity", "spread")},
}


def _stability_row(
    name: str, over: str, results: Sequence[Pruning], overlaps: Sequence[float], ranks: Sequence[float], *, runs: int
) -> dict[str, object]:
    row: dict[str, object] = {"score": name, "over": over, "runs": runs}
    for column, values in (("overlap", overlaps), ("rank_correlation", ranks)):
        row |= {column: np.mean(values) if values else np.nan, f"{column}_low": min(values, default=np.nan)}
    for phase in PHASES:
        perplexities = [result.losses[phase].perplexity for result in results]
        row[f"{phase}_perplexity"] = np.mean(perplexities) if perplexities else np.nan
        row[f"{phase}_spread"] = np.std(perplexities, ddof=1) if len(perplexities) > 1 else np.nan
    return row


def _overlaps(kept: Sequence[Keep]) -> list[float]:
    """Return, for each pair, the neurons that both keep over those that the smaller set keeps."""
    sets = [{(layer, neuron) for layer, neurons in keep.items() for neuron in neurons.tolist()} for keep in kept]
    return [len(one & other) / min(len(one), len(other)) for one, other in combinations(sets, 2)]


def _common_share(results: Sequence[Pruning]) -> float:
    """Return the share that most seeds have in common, the largest of equals."""
    seeds: dict[float, set[tuple[int, int]]] = {}
    for result in results:
        if result.variant != CONTROL:
            seeds.setdefault(result.retain, set()).add((result.calibration, result.training))
    return max(seeds, key=lambda retain: (len(seeds[retain]), retain), default=1.0)


def _control(results: Sequence[Pruning], training: int) -> Pruning:
    for result in results:
        if result.variant == CONTROL and result.training == training:
            return result
    raise ValueError(f"Expected the dense control of model {training} among the results, got none.")


def scores_of(
    calibration: Calibration, oracle: pd.DataFrame | None = None, weights: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Return `layer`, `neuron` and one column for each single signal and each variant that can be computed.

    Args:
        calibration: Signals, as many as were measured.
        oracle: Measured removals, for `learned`.
        weights: Saved weights in their place.
    """
    tables = calibration.tables
    frame = tables["activations"][["layer", "neuron"]].copy()
    for name in (*SIGNALS, *BESIDE):
        if name in tables:
            frame[name] = tables[name]["importance"]
    if "criteria" in tables:
        frame = frame.assign(**{name: tables["criteria"][name] for name in CRITERIA})
    complete = {*SIGNALS, *BESIDE, "criteria"} <= set(tables)
    for name in VARIANTS:
        choice = choice_of(name)
        possible = complete and (choice.strategy != "learned" or oracle is not None or weights is not None)
        if name not in frame and (choice.by == "random" or choice.by in tables or (choice.by == "fused" and possible)):
            frame[name] = importance_of(calibration, name, oracle=oracle, weights=weights)["importance"]
    return frame


def _held_out(calibration: Calibration, oracle: pd.DataFrame) -> np.ndarray:
    """Return scores of the measured neurons by learned weights that have not seen them, as `fusion` learns them."""
    tables = calibration.tables
    frame = tables["activations"][["layer", "neuron"]].assign(
        **{name: tables[name]["importance"] for name in SIGNALS},
        **{name: tables["criteria"][name] for name in CRITERIA},
    )
    names = [*SIGNALS, *CRITERIA]
    return learn(frame, measured(frame, oracle), names, folds=FOLDS, seed=calibration.seed).held_out


def _upper(values: np.ndarray, count: int) -> np.ndarray:
    """Return whether each value is among the `count` largest of its row; the first of equals."""
    ranks = rankdata(-values, axis=-1, method="ordinal")
    return np.asarray(ranks <= count)


def _upper_half(frame: pd.DataFrame, name: str) -> Keep:
    """Return the upper half of each layer by a score."""
    keep = {}
    for layer, neurons in frame.groupby("layer"):
        upper = _upper(neurons[name].to_numpy(), len(neurons) // 2)
        keep[str(layer)] = torch.tensor(neurons["neuron"].to_numpy()[upper])
    return keep
