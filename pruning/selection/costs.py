"""What widths cost: counted from parameters' shapes and tiny models, or timed.

A size is c + Σ a_l w_l + Σ q_lm w_l w_m of the layers' widths w; measured times are fitted or interpolated.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, combinations_with_replacement, product

import numpy as np
import pandas as pd

from pruning.core.devices import without_values
from pruning.core.neurons import NeuronLayer, named_buffers
from pruning.core.progress import Track, silently
from pruning.evaluation.latency import latencies
from pruning.models.base import Measurable

Costs = Callable[[np.ndarray], np.ndarray]
"""Widths (n, layers) → what each row costs, (n,)."""


def size_costs(model: Measurable, kind: str) -> Costs:
    """Return the model's `neurons`, `parameters` or `multiply_adds` as a function of its widths.

    A parameter's shape holds each layer's width at most twice in all (recurrent: w², between layers: v·w), so a size
    is c + Σ a_l w_l + Σ q_lm w_l w_m. Its coefficients follow exactly from the shapes, where the size is a sum of
    parameters; else from the sizes of tiny models of the family, built without memory (on the meta device): one for
    each layer and each product that the shapes have, and only if that misses, one for each two layers. Whatever the
    formula, it is compared with the model's own size and a small model's.

    Raises:
        ValueError: If the family's size is of another form: the formula then misses these sizes.
    """
    if kind == "neurons":
        return lambda widths: np.asarray(widths, dtype=float).sum(axis=1)
    layers, shapes = model.layers(), copy.deepcopy(model).to("meta")
    depth, full = len(layers), np.array([layer.width for layer in layers])

    def size(widths: np.ndarray) -> float:
        with without_values():
            smaller = shapes.resized(widths.tolist())
            return float(smaller.multiply_adds() if kind == "multiply_adds" else _numbers(smaller))

    rows = np.stack([full, np.arange(depth) % 3 + 1])
    sizes = [size(row) for row in rows]
    names = model.multiplied() if kind == "multiply_adds" else [name for name, _ in model.named_parameters()]
    every = list(combinations_with_replacement(range(depth), 2))
    ways: list[Callable[[], Costs]] = [
        lambda: told_by_shapes(model, names or ()),
        lambda: _told_by_sizes(size, depth, _multiplied(layers)),
        lambda: _told_by_sizes(size, depth, every),
    ]
    for way in ways:
        costs = way()
        if costs(rows).tolist() == sizes:
            return costs
    raise ValueError(f"Expected {kind} with at most a product of two widths in each parameter, got another form.")


def _numbers(model: Measurable) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measured_latency(
    model: Measurable, *, batch: int, repeats: int, points: int, track: Track = silently
) -> tuple[Costs, float]:
    """Return how long one step takes as a function of the widths, in seconds, and the fit's relative error (RMS).

    Models of `points` evenly spaced widths, all layers together and each layer alone, take turns (see `latencies`);
    c + Σ a w + Σ q v w with no negative coefficient is fitted to their medians, so a wider layer is never faster; the
    products are of those widths that a parameter multiplies.

    Args:
        model: The model whose smaller versions are timed, on its device.
        batch: Sequences side by side.
        repeats: Steps of each model.
        points: Widths between nothing and all, ≥ 2, for each layer and for all together.
        track: Shows progress.
    """
    from scipy.optimize import nnls  # slow to import, and few budgets are of time

    full = np.array([layer.width for layer in model.layers()])
    widths, pairs = _timed_widths(full, points), _multiplied(model.layers())
    models = {str(row): model.resized(row.tolist()) for row in widths}
    times = latencies(models, batch=batch, repeats=repeats, track=track)
    seconds = np.array([times[str(row)].seconds for row in widths])
    scale = quadratic(full[None], pairs)[0]
    coefficients, _ = nnls(quadratic(widths, pairs) / scale / seconds[:, None], np.ones(len(widths)))
    misfit = quadratic(widths, pairs) / scale @ coefficients / seconds - 1
    return lambda rows: np.asarray(quadratic(rows, pairs) / scale @ coefficients), float(np.sqrt(np.mean(misfit**2)))


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


def _multiplied(layers: Sequence[NeuronLayer]) -> list[tuple[int, int]]:
    """Return the pairs of layers (ascending; one twice: its square) that hold two dimensions of one parameter."""
    dimensions: dict[str, dict[int, set[int]]] = {}
    for index, layer in enumerate(layers):
        for piece in (*layer.owned, *layer.read):
            dimensions.setdefault(piece.parameter, {}).setdefault(piece.dim, set()).add(index)
    dims = (pair for parameter in dimensions.values() for pair in combinations(parameter.values(), 2))
    return sorted({(min(pair), max(pair)) for one, other in dims for pair in product(one, other)})


def told_by_shapes(model: Measurable, names: Iterable[str], *, dims: int | None = None) -> Costs:
    """Return how many numbers what is named holds: each dimension is a number plus some for each neuron.

    Args:
        model: The model whose layers are to shrink.
        names: Of parameters and buffers.
        dims: How many dimensions count, the first ones; all by default.
    """
    layers, parameters = model.layers(), dict(model.named_parameters()) | named_buffers(model)
    depth, full = len(layers), np.array([layer.width for layer in layers])
    each: dict[tuple[str, int], np.ndarray] = {}
    for index, layer in enumerate(layers):
        for piece in dict.fromkeys((*layer.owned, *layer.read, *layer.buffers)):
            each.setdefault((piece.parameter, piece.dim), np.zeros(depth))[index] += piece.blocks * piece.size
    constant, linear, products = 0.0, np.zeros(depth), np.zeros((depth, depth))
    for name in names:
        c, a, q = 1.0, np.zeros(depth), np.zeros((depth, depth))
        for dim, length in enumerate(parameters[name].shape[:dims]):
            if (name, dim) not in each:
                c, a, q = c * length, a * length, q * length
                continue
            more = each[name, dim]
            fixed = length - more @ full
            c, a, q = c * fixed, a * fixed + c * more, q * fixed + (np.outer(a, more) + np.outer(more, a)) / 2
        constant, linear, products = constant + c, linear + a, products + q
    return _quadratic_costs(constant, linear, products)


def _told_by_sizes(size: Callable[[np.ndarray], float], depth: int, pairs: Sequence[tuple[int, int]]) -> Costs:
    """Return c + Σ a_l w_l + Σ q_lm w_l w_m as the sizes of models with widths of 1, 2 and 3 tell it."""
    ones, unit = np.ones(depth, dtype=int), np.eye(depth, dtype=int)
    least = size(ones)
    more = np.array([size(ones + one) for one in unit]) - least
    products = np.zeros((depth, depth))
    for i, j in pairs:
        products[i, j] = products[j, i] = (size(ones + unit[i] + unit[j]) - least - more[i] - more[j]) / 2
    linear = more - products.diagonal() - 2 * products.sum(axis=1)
    return _quadratic_costs(least - linear.sum() - products.sum(), linear, products)


def _quadratic_costs(constant: float, linear: np.ndarray, products: np.ndarray) -> Costs:
    """Return costs c + a·w + wᵀ Q w; of whole numbers and halves they are exact."""

    def costs(widths: np.ndarray) -> np.ndarray:
        rows = np.asarray(widths, dtype=float)
        return np.asarray(constant + rows @ linear + np.einsum("nl,nl->n", rows @ products, rows))

    return costs


def _timed_widths(full: np.ndarray, points: int) -> np.ndarray:
    """Return the widths to time: all layers shrunk together, then each alone."""
    shares = np.arange(1, points + 1)[:, None] / points
    together = np.maximum(1, np.round(shares * full)).astype(int)
    alone = [np.where(np.arange(len(full)) == layer, together, full) for layer in range(len(full))]
    return np.unique(np.concatenate([together, *alone]), axis=0)


def quadratic(widths: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return 1, w_l and w_l w_m of each row of widths."""
    rows = np.asarray(widths, dtype=float)
    return np.column_stack([np.ones(len(rows)), rows, *(rows[:, i] * rows[:, j] for i, j in pairs)])
