"""What a choice of widths costs, and which widths hold the most importance within a budget."""

import copy
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls

from pruning.evaluation import latencies, size_of
from pruning.models.base import Measurable
from pruning.progress import Track, silently

KINDS = ("neurons", "parameters", "multiply_adds", "latency")
EXACT = 2**20
"""Up to this many combinations of widths are all looked at, so that the answer is the optimum."""

Costs = Callable[[np.ndarray], np.ndarray]
"""Widths (n, layers) → what each row costs, (n,)."""


@dataclass(frozen=True)
class Budget:
    """What the kept neurons may cost together.

    Attributes:
        kind: One of `KINDS`, for sentences.
        value: The most they may cost, in the kind's unit.
        layers: Names of the layers, in the order in which `costs` takes their widths.
        costs: Widths (n, layers) → cost of each row, (n,); it must not fall when a layer widens.
    """

    kind: str
    value: float
    layers: tuple[str, ...]
    costs: Costs


def budget_of(model: Measurable, *, kind: str, value: float, latency: Costs | None = None) -> Budget:
    """Return a budget for smaller versions of `model`.

    Args:
        model: The model whose layers are to shrink; one with readers of its own for each layer.
        kind: `neurons`, `parameters` (stored numbers, shared ones once), `multiply_adds` (for one token), or `latency`.
        value: The most that is allowed; for latency in the unit of `latency`.
        latency: For latency: widths (n, layers) → how long each takes, as `measured_latency` or `interpolated` give.

    Raises:
        ValueError: For an unknown kind, or latency without a measurement.
    """
    layers = tuple(layer.name for layer in model.layers())
    if kind not in KINDS:
        raise ValueError(f"Unknown budget {kind!r}; known: {list(KINDS)}.")
    if kind == "latency":
        if latency is None:
            raise ValueError("Expected how long each choice of widths takes for a budget of latency, got nothing.")
        return Budget(kind, value, layers, latency)
    return Budget(kind, value, layers, size_costs(model, kind))


def size_costs(model: Measurable, kind: str) -> Costs:
    """Return the model's `neurons`, `parameters` or `multiply_adds` as a function of its widths.

    A parameter's shape holds each layer's width at most twice in all (recurrent: w², between layers: v·w), so a size
    is c + Σ a_l w_l + Σ q_lm w_l w_m. Its coefficients follow exactly from the sizes of a few tiny models of the
    family, built without memory (on the meta device), so nothing that a family says about itself is said again.

    Raises:
        ValueError: If the family's size is of another form: the formula then misses the model's own size.
    """
    shapes = copy.deepcopy(model).to("meta")

    def size(widths: Sequence[int]) -> float:
        with torch.device("meta"):
            return float(getattr(size_of(shapes.resized(widths)), kind))

    depth = len(model.layers())
    points = _tiny_widths(depth)
    solved = np.linalg.solve(_quadratic(points), [size(point.tolist()) for point in points])
    coefficients = np.round(2 * solved) / 2  # sizes are whole, so halves are the finest that there can be
    own = np.array([[layer.width for layer in model.layers()]])
    if (_quadratic(own) @ coefficients)[0] != size(own[0].tolist()):
        raise ValueError(f"Expected {kind} with at most a product of two widths in each parameter, got another form.")
    return lambda widths: np.asarray(_quadratic(widths) @ coefficients)


def measured_latency(
    model: Measurable, *, batch: int, repeats: int, points: int, track: Track = silently
) -> tuple[Costs, float]:
    """Return how long one step takes as a function of the widths, in seconds, and the fit's relative error (RMS).

    Models of `points` evenly spaced widths, all layers together and each layer alone, take turns (see `latencies`);
    c + Σ a w + Σ q v w with no negative coefficient is fitted to their medians, so a wider layer is never faster.

    Args:
        model: The model whose smaller versions are timed, on its device.
        batch: Sequences side by side.
        repeats: Steps of each model.
        points: Widths between nothing and all, ≥ 2, for each layer and for all together.
        track: Shows progress.
    """
    full = np.array([layer.width for layer in model.layers()])
    widths = _timed_widths(full, points)
    models = {str(row): model.resized(row.tolist()) for row in widths}
    times = latencies(models, batch=batch, repeats=repeats, track=track)
    seconds = np.array([times[str(row)].seconds for row in widths])
    scale = _quadratic(full[None])[0]
    coefficients, _ = nnls(_quadratic(widths) / scale / seconds[:, None], np.ones(len(widths)))
    misfit = _quadratic(widths) / scale @ coefficients / seconds - 1
    return lambda rows: np.asarray(_quadratic(rows) / scale @ coefficients), float(np.sqrt(np.mean(misfit**2)))


def interpolated(times: pd.DataFrame, layers: Sequence[str]) -> Costs:
    """Return costs from a table of measured times: what each layer takes by its width, added up.

    Between two measured widths the time is linear; outside of them it is the nearest one's. Where a wider layer
    measured faster, the noise is taken out: each time is at least those of all narrower widths.

    Args:
        times: Columns `layer`, `width` and `seconds`.
        layers: The layers' names in the order of the widths that the costs take.

    Raises:
        ValueError: If a layer has no row.
    """
    missing = [layer for layer in layers if layer not in set(times["layer"])]
    if missing:
        raise ValueError(f"Expected measured times of the layers {list(layers)}, got none of {missing}.")
    curves = [times[times["layer"] == layer].sort_values("width") for layer in layers]
    lines = [(curve["width"].to_numpy(), curve["seconds"].cummax().to_numpy()) for curve in curves]
    return lambda rows: np.sum([np.interp(rows[:, i], *line) for i, line in enumerate(lines)], axis=0)


def allowed_widths(width: int, *, floor: int, ceiling: int | None, multiple: int) -> np.ndarray:
    """Return the widths that a layer may have, ascending: multiples within [floor, ceiling], or all of the layer.

    >>> allowed_widths(20, floor=6, ceiling=None, multiple=8).tolist()
    [8, 16, 20]

    Raises:
        ValueError: If there is none.
    """
    low, high = min(floor, width), width if ceiling is None else min(ceiling, width)
    multiples = [number for number in range(multiple, high + 1, multiple) if number >= low]
    whole = [width] if high == width and width % multiple else []
    if not multiples + whole:
        raise ValueError(
            f"Expected a width between a floor of {low} and a ceiling of {high} that is a multiple of {multiple}, "
            "got none."
        )
    return np.array(multiples + whole)


def widths_within(
    worths: Mapping[str, np.ndarray], choices: Mapping[str, np.ndarray], budget: Budget
) -> dict[str, int]:
    """Return each layer's width: those that hold the most importance within the budget.

    What a choice costs depends on how many neurons a layer keeps and not on which, so the best choice keeps the most
    important of each layer, and only the widths are searched: all combinations up to `EXACT` of them, and then the
    answer is the optimum. Beyond that, layers start whole, and again and again the step is taken that loses the least
    importance for each unit of cost saved, with the cost computed anew (multiply-adds are products of widths); what
    room is left is then filled, and exchanges between two layers are made while they gain. For costs that are linear
    in the widths this loses at most one step's importance against the optimum.

    Negative importance counts as none; among equals the choice with more neurons is taken.

    Args:
        worths: Layer → importance of its neurons, comparable between layers.
        choices: Layer → the widths it may have, ascending.
        budget: What they may cost together.

    Raises:
        ValueError: If even the narrowest widths cost more than the budget; the sentence says what is possible.
    """
    steps = [choices[layer] for layer in budget.layers]
    _check_possible(steps, budget)
    held = [_held(worths[layer]) for layer in budget.layers]
    search = _best if np.prod([float(len(step)) for step in steps]) <= EXACT else _greedy
    return dict(zip(budget.layers, (int(width) for width in search(held, steps, budget)), strict=True))


def equal_shares_within(choices: Mapping[str, np.ndarray], budget: Budget) -> dict[str, int]:
    """Return the widths of the largest share, the same for every layer, that fits the budget.

    A share s of a layer is its widest allowed width of at most s × its largest allowed one, or else its narrowest.

    Raises:
        ValueError: If even the narrowest widths cost more than the budget; the sentence says what is possible.
    """
    steps = [choices[layer] for layer in budget.layers]
    _check_possible(steps, budget)
    shares = np.unique(np.concatenate([step / step[-1] for step in steps]))
    places = [np.searchsorted(step / step[-1], shares, side="right") - 1 for step in steps]
    rows = np.stack([step[place.clip(min=0)] for step, place in zip(steps, places, strict=True)], axis=1)
    narrowest = np.array([[step[0] for step in steps]])
    rows = np.concatenate([narrowest, rows])
    widest = rows[np.flatnonzero(budget.costs(rows) <= budget.value)[-1]]
    return dict(zip(budget.layers, widest.tolist(), strict=True))


def most_within(
    widths_of: Callable[[int], Mapping[str, int]], most: int, choices: Mapping[str, np.ndarray], budget: Budget
) -> dict[str, int]:
    """Return the widths of the largest number of neurons, at most `most`, that fits the budget.

    Args:
        widths_of: Number of neurons → the layers' widths, which do not shrink as it grows; of 0: the narrowest.
        most: The largest number to consider.
        choices: Layer → the widths it may have, ascending.
        budget: What they may cost together.

    Raises:
        ValueError: If even the narrowest widths cost more than the budget; the sentence says what is possible.
    """
    _check_possible([choices[layer] for layer in budget.layers], budget)

    def cost(number: int) -> float:
        widths = widths_of(number)
        return float(budget.costs(np.array([[widths[layer] for layer in budget.layers]]))[0])

    return dict(widths_of(bisect_right(range(most + 1), budget.value, key=cost) - 1))


def _tiny_widths(depth: int) -> np.ndarray:
    """Return as many choices of widths from 1 to 3 as a quadratic form has coefficients."""
    ones, unit = np.ones(depth, dtype=int), np.eye(depth, dtype=int)
    pairs = [ones + unit[i] + unit[j] for i, j in combinations(range(depth), 2)]
    return np.array([ones, *(ones + unit), *(ones + 2 * unit), *pairs])


def _timed_widths(full: np.ndarray, points: int) -> np.ndarray:
    """Return the widths to time: all layers shrunk together, then each alone."""
    shares = np.arange(1, points + 1)[:, None] / points
    together = np.maximum(1, np.round(shares * full)).astype(int)
    alone = [np.where(np.arange(len(full)) == layer, together, full) for layer in range(len(full))]
    return np.unique(np.concatenate([together, *alone]), axis=0)


def _quadratic(widths: np.ndarray) -> np.ndarray:
    """Return 1, w_l, w_l² and w_l w_m of each row of widths."""
    rows = np.asarray(widths, dtype=float)
    pairs = [rows[:, i] * rows[:, j] for i, j in combinations(range(rows.shape[1]), 2)]
    return np.column_stack([np.ones(len(rows)), rows, rows**2, *pairs])


def _held(worth: np.ndarray) -> np.ndarray:
    """Return how much the most important 0, 1, 2, … neurons hold, (width + 1,)."""
    ordered = np.sort(np.maximum(worth, 0.0))[::-1]
    return np.concatenate([[0.0], np.cumsum(ordered)])


def _check_possible(steps: Sequence[np.ndarray], budget: Budget) -> None:
    extremes = np.array([[step[0] for step in steps], [step[-1] for step in steps]])
    least, most = budget.costs(extremes)
    if not budget.value >= least:
        sizes = ", ".join(f"{layer} {step[0]}" for layer, step in zip(budget.layers, steps, strict=True))
        raise ValueError(
            f"Expected a budget of at least {least:.12g} {budget.kind}, what the narrowest widths cost ({sizes}; "
            f"the widest cost {most:.12g}), got {budget.value:.12g}."
        )


def _best(held: Sequence[np.ndarray], steps: Sequence[np.ndarray], budget: Budget) -> np.ndarray:
    """Return the best of all combinations of widths."""
    rows = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, len(steps))
    rows = rows[budget.costs(rows) <= budget.value]
    worth = _worth(held, rows)
    equals = rows[worth >= worth.max() * (1 - 1e-12)]
    return np.asarray(equals[equals.sum(axis=1).argmax()])


def _greedy(held: Sequence[np.ndarray], steps: Sequence[np.ndarray], budget: Budget) -> np.ndarray:
    """Return widths from taking away what is worth least for its cost, then filling and exchanging."""
    widths = np.array([step[-1] for step in steps])
    while budget.costs(widths[None])[0] > budget.value:
        rows = np.concatenate([_with(widths, layer, step[step < widths[layer]]) for layer, step in enumerate(steps)])
        saved = budget.costs(widths[None])[0] - budget.costs(rows)
        lost = _worth(held, widths[None])[0] - _worth(held, rows)
        rate = np.divide(lost, saved, out=np.full(len(rows), np.inf), where=saved > 0)
        cheapest = np.flatnonzero(rate == rate.min())
        widths = rows[cheapest[rows[cheapest].sum(axis=1).argmax()]]
    return _exchanged(widths, held, steps, budget)


def _exchanged(
    widths: np.ndarray, held: Sequence[np.ndarray], steps: Sequence[np.ndarray], budget: Budget
) -> np.ndarray:
    """Return the widths after every change of one or two layers that fits and gains, the best one first."""
    while True:
        rows = np.concatenate([_with(widths, layer, step) for layer, step in enumerate(steps)])
        pairs = combinations(range(len(steps)), 2)
        rows = np.concatenate([rows, *(_exchanges(widths, pair, steps) for pair in pairs)])
        rows = rows[budget.costs(rows) <= budget.value]
        worth = _worth(held, rows)
        if worth.max() <= _worth(held, widths[None])[0] * (1 + 1e-12):
            return widths
        widths = rows[worth.argmax()]


def _exchanges(widths: np.ndarray, pair: tuple[int, int], steps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows in which two layers take any of the widths near their own."""
    near = [_near(steps[layer], widths[layer]) for layer in pair]
    one, other = (axis.ravel() for axis in np.meshgrid(*near, indexing="ij"))
    rows = np.repeat(widths[None], len(one), axis=0)
    rows[:, pair[0]], rows[:, pair[1]] = one, other
    return rows


def _near(step: np.ndarray, width: int, reach: int = 16) -> np.ndarray:
    """Return the widths that are at most `reach` steps away."""
    place = int(np.searchsorted(step, width))
    near: np.ndarray = step[max(0, place - reach) : place + reach + 1]
    return near


def _with(widths: np.ndarray, layer: int, choices: np.ndarray) -> np.ndarray:
    """Return one row for each choice of one layer's width."""
    rows = np.repeat(widths[None], len(choices), axis=0)
    rows[:, layer] = choices
    return rows


def _worth(held: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return how much importance each row of widths holds."""
    worths: np.ndarray = np.sum([values[rows[:, layer]] for layer, values in enumerate(held)], axis=0)
    return worths
