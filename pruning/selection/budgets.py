"""Which widths hold the most importance within a budget."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from pruning.core.options import BudgetKind, Numbers
from pruning.core.units import byte_count
from pruning.models.base import Measurable
from pruning.selection.costs import Costs, size_costs
from pruning.selection.memory import memory_costs

KINDS = get_args(BudgetKind)
EXACT = 2**20
"""Up to this many combinations of widths are all looked at, so that the answer is the optimum."""
CHUNK = 2**16
"""So many combinations are looked at together, which bounds the memory."""


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


def budget_of(
    model: Measurable, *, kind: str, value: float | str, target: Numbers = "float32", latency: Costs | None = None
) -> Budget:
    """Return a budget for smaller versions of `model`.

    >>> import numpy as np, torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> budget = budget_of(model, kind="parameters", value=100)
    >>> budget.costs(np.array([[2], [6]])).tolist()  # what widths of 2 and of 6 cost
    [79.0, 171.0]

    Args:
        model: The model whose layers are to shrink; one with readers of its own for each layer.
        kind: `neurons`, `parameters` (stored numbers, shared ones once), `multiply_adds` (for one token), `latency`,
            or `memory` (of one step, see `memory_of`).
        value: The most that is allowed; for latency in the unit of `latency`, for memory bytes, or such as `512KiB`.
        target: For memory: what the weights are held in, `float32` or `int8`.
        latency: For latency: widths (n, layers) → how long each takes, as `measured_latency` or `interpolated` give.

    Raises:
        ValueError: For an unknown kind, or latency without a measurement, or what `memory_costs` refuses.
    """
    layers = tuple(layer.name for layer in model.layers())
    if kind not in KINDS:
        raise ValueError(f"Unknown budget {kind!r}; known: {list(KINDS)}.")
    if kind == "latency":
        if latency is None:
            raise ValueError("Expected how long each choice of widths takes for a budget of latency, got nothing.")
        return Budget(kind, float(value), layers, latency)
    if kind == "memory":
        return Budget(kind, byte_count(value), layers, memory_costs(model, numbers=target))
    return Budget(kind, float(value), layers, size_costs(model, kind))


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

    def widths(share: float) -> np.ndarray:
        places = (int(np.searchsorted(step / step[-1], share, side="right")) - 1 for step in steps)
        return np.array([step[max(place, 0)] for step, place in zip(steps, places, strict=True)])

    fitting = bisect_right(shares, budget.value, key=lambda share: float(budget.costs(widths(share)[None])[0]))
    widest = widths(shares[fitting - 1]) if fitting else np.array([step[0] for step in steps])
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
    most = max(_worth(held, rows).max() for rows in _fitting(steps, budget))
    best, neurons = np.empty(0), -1
    for rows in _fitting(steps, budget):
        equals = rows[_worth(held, rows) >= most * (1 - 1e-12)]
        counts = equals.sum(axis=1)
        if len(equals) and counts.max() > neurons:
            best, neurons = equals[counts.argmax()], counts.max()
    return best


def _fitting(steps: Sequence[np.ndarray], budget: Budget) -> Iterator[np.ndarray]:
    """Yield the combinations of widths within the budget, some at a time."""
    shape = tuple(len(step) for step in steps)
    for start in range(0, math.prod(shape), CHUNK):
        places = np.unravel_index(np.arange(start, min(start + CHUNK, math.prod(shape))), shape)
        rows = np.stack([step[place] for step, place in zip(steps, places, strict=True)], axis=1)
        rows = rows[budget.costs(rows) <= budget.value]
        if len(rows):
            yield rows


def _greedy(held: Sequence[np.ndarray], steps: Sequence[np.ndarray], budget: Budget) -> np.ndarray:
    """Return widths from taking away what is worth least for its cost, then filling and exchanging."""
    prices = _prices(steps, budget)
    if prices is not None:
        widths = _searched(held, steps, budget, prices)
        if budget.costs(widths[None])[0] <= budget.value:
            return widths
    return _searched(held, steps, budget, _Asked(steps, budget.costs))


class _Asked:
    """What changes of one or two layers cost, asked of the costs themselves: any layer's price may depend on any other.

    Attributes:
        steps: The widths that each layer may have.
        coupled: Whether the price of one layer's neurons depends on another's width, (layers, layers).
    """

    def __init__(self, steps: Sequence[np.ndarray], costs: Costs) -> None:
        self.steps, self.costs = steps, costs
        self.coupled = np.ones((len(steps), len(steps)), dtype=bool)

    def alone(self, widths: np.ndarray, layer: int) -> np.ndarray:
        """Return what all costs, but for a constant, with each of one layer's widths, (choices,)."""
        return self.costs(_with(widths, layer, self.steps[layer]))

    def together(self, widths: np.ndarray, pair: tuple[int, int], near: tuple[slice, slice]) -> np.ndarray:
        """Return what all costs, but for a constant, with some widths of two layers, (choices, choices)."""
        one, other = (self.steps[layer][part] for layer, part in zip(pair, near, strict=True))
        rows = np.concatenate([_with(row, pair[1], other) for row in _with(widths, pair[0], one)])
        return self.costs(rows).reshape(len(one), len(other))


class _Priced(_Asked):
    """Prices looked up in Σ f_l(w_l) + Σ_{l<m} q_lm w_l w_m, where a change concerns a layer and its neighbours alone.

    Attributes:
        own: f_l of each of layer l's widths.
        products: q, (layers, layers), symmetric, without a diagonal.
    """

    def __init__(self, steps: Sequence[np.ndarray], costs: Costs, own: Sequence[np.ndarray], products: np.ndarray):
        super().__init__(steps, costs)
        self.own, self.products = own, products
        self.coupled = products != 0

    def alone(self, widths: np.ndarray, layer: int) -> np.ndarray:
        return np.asarray(self.own[layer] + (self.products[layer] @ widths) * self.steps[layer])

    def together(self, widths: np.ndarray, pair: tuple[int, int], near: tuple[slice, slice]) -> np.ndarray:
        one, other = (self.alone(widths, layer)[part] for layer, part in zip(pair, near, strict=True))
        more, wider = (self.steps[layer][part] - widths[layer] for layer, part in zip(pair, near, strict=True))
        # each curve takes the other layer's width as it is, and both hold what the pair costs now
        return np.asarray(one[:, None] + other + self.products[pair] * more[:, None] * wider)

    def total(self, rows: np.ndarray) -> np.ndarray:
        """Return Σ f_l(w_l) + Σ_{l<m} q_lm w_l w_m of each row of widths."""
        places = (np.searchsorted(step, rows[:, layer]) for layer, step in enumerate(self.steps))
        of_layers = np.sum([values[place] for values, place in zip(self.own, places, strict=True)], axis=0)
        return np.asarray(of_layers + np.einsum("nl,nl->n", rows @ self.products, rows) / 2)


def _prices(steps: Sequence[np.ndarray], budget: Budget) -> _Priced | None:
    """Return the costs as a function of each layer's width and products of two, or None if they are of another form.

    They follow from the costs with one layer, and with two, wider than the narrowest; whether they are the costs is
    tried at other widths.
    """
    low, high = np.array([[step[0], step[-1]] for step in steps]).T
    least, most = budget.costs(np.stack([low, high]))
    curves = [budget.costs(_with(low, layer, step)) - least for layer, step in enumerate(steps)]
    depth, products = len(steps), np.zeros((len(steps), len(steps)))
    for layer in range(depth - 1):
        rows = np.repeat(_with(low, layer, high[[layer]]), depth - layer - 1, axis=0)
        others = np.arange(layer + 1, depth)
        rows[np.arange(len(rows)), others] = high[others]
        beyond = budget.costs(rows) - least - curves[layer][-1] - [curves[other][-1] for other in others]
        beyond[abs(beyond) <= 1e-12 * abs(most)] = 0.0
        apart = (high[layer] - low[layer]) * (high - low)[others]
        products[layer, others] = np.divide(beyond, apart, out=np.zeros(len(others)), where=apart > 0)
    products += products.T
    # f_l is what the layer costs beside the narrowest others, less the products that it has with them
    curves = [
        cost - (products[layer] @ low) * step for layer, (cost, step) in enumerate(zip(curves, steps, strict=True))
    ]
    prices = _Priced(steps, budget.costs, curves, products)
    random = np.random.default_rng(0)
    rows = np.stack([low, high, *(np.array([random.choice(step) for step in steps]) for _ in range(64))])
    differences = prices.total(rows) - budget.costs(rows)
    return prices if np.ptp(differences) <= 1e-9 * abs(most) else None


def _searched(held: Sequence[np.ndarray], steps: Sequence[np.ndarray], budget: Budget, prices: _Asked) -> np.ndarray:
    """Return widths from taking away what is worth least for its cost, then filling and exchanging."""
    places = np.array([len(step) - 1 for step in steps])
    widths = np.array([step[-1] for step in steps])
    drops = np.array([_cheapest(widths, layer, places[layer], held, prices) for layer in range(len(steps))])
    while budget.costs(widths[None])[0] > budget.value:
        rates, gone, _ = drops.T
        layer = int(np.lexsort((gone, rates))[0])
        places[layer] = drops[layer, 2]
        widths[layer] = steps[layer][places[layer]]
        for other in {layer, *np.flatnonzero(prices.coupled[layer]).tolist()}:
            drops[other] = _cheapest(widths, other, places[other], held, prices)
    return _exchanged(widths, held, budget, prices)


def _cheapest(
    widths: np.ndarray, layer: int, place: int, held: Sequence[np.ndarray], prices: _Asked
) -> tuple[float, float, int]:
    """Return what a layer's cheapest step down loses for each unit saved, how many neurons go, and to which place."""
    step, cost = prices.steps[layer][: place + 1], prices.alone(widths, layer)[: place + 1]
    if place == 0:
        return np.inf, np.inf, 0
    saved, lost = cost[-1] - cost[:-1], held[layer][step[-1]] - held[layer][step[:-1]]
    rate = np.divide(lost, saved, out=np.full(place, np.inf), where=saved > 0)
    to = place - 1 - int(rate[::-1].argmin())  # of equals the one that takes the fewest neurons
    return float(rate[to]), float(step[-1] - step[to]), to


def _exchanged(widths: np.ndarray, held: Sequence[np.ndarray], budget: Budget, prices: _Asked) -> np.ndarray:
    """Return the widths after every change of one or two layers that fits and gains, the best one first."""
    while True:
        room = budget.value - budget.costs(widths[None])[0]
        gain, change = max(_changes(widths, held, room, prices), key=lambda pair: pair[0])
        if gain <= _worth(held, widths[None])[0] * 1e-12:
            return widths
        widths = widths.copy()
        for layer, width in change.items():
            widths[layer] = width


def _changes(
    widths: np.ndarray, held: Sequence[np.ndarray], room: float, prices: _Asked
) -> Iterator[tuple[float, dict[int, int]]]:
    """Yield the most that a change of each layer, and of it and another, gains within the room, and the change."""
    steps, depth = prices.steps, len(widths)
    near = [_near(step, width) for step, width in zip(steps, widths, strict=True)]
    gains = [held[layer][steps[layer]] - held[layer][widths[layer]] for layer in range(depth)]
    costs = []
    for layer, step in enumerate(steps):
        cost = prices.alone(widths, layer)
        costs.append(cost - cost[np.searchsorted(step, widths[layer])])
        yield _most(gains[layer], costs[layer] <= room, {layer: step})
    gained = [gains[layer][part] for layer, part in enumerate(near)]
    spent = [costs[layer][part] for layer, part in enumerate(near)]
    owner = np.repeat(np.arange(depth), [len(part) for part in gained])
    all_gained, all_spent = np.concatenate(gained), np.concatenate(spent)
    for layer, step in enumerate(steps):
        # what another, independent layer spends leaves room for this one's widest that fits
        place = np.searchsorted(spent[layer], room - all_spent, side="right") - 1
        free = (place >= 0) & ~prices.coupled[layer][owner] & (owner != layer)
        total = np.where(free, all_gained + gained[layer][place], -np.inf)
        best = int(total.argmax())
        other = int(owner[best])
        width = steps[other][near[other]][best - np.searchsorted(owner, other)]
        yield float(total[best]), {layer: step[near[layer]][place[best]], other: width}
        for other in np.flatnonzero(prices.coupled[layer][:layer]).tolist():
            pair = (other, layer)
            cost = prices.together(widths, pair, (near[other], near[layer]))
            here = np.searchsorted(steps[other][near[other]], widths[other])
            now = cost[here, np.searchsorted(step[near[layer]], widths[layer])]
            both = gained[other][:, None] + gained[layer]
            yield _most(both, cost - now <= room, {index: steps[index][near[index]] for index in pair})


def _most(gains: np.ndarray, fits: np.ndarray, choices: Mapping[int, np.ndarray]) -> tuple[float, dict[int, int]]:
    """Return the largest gain that fits, and the widths there of the layers that the dimensions run over."""
    allowed = np.where(fits, gains, -np.inf)
    places = np.unravel_index(int(allowed.argmax()), allowed.shape)
    chosen = {layer: int(step[at]) for (layer, step), at in zip(choices.items(), places, strict=True)}
    return float(allowed.max()), chosen


def _near(step: np.ndarray, width: int, reach: int = 16) -> slice:
    """Return where the widths are that are at most `reach` steps away."""
    place = int(np.searchsorted(step, width))
    return slice(max(0, place - reach), place + reach + 1)


def _with(widths: np.ndarray, layer: int, choices: np.ndarray) -> np.ndarray:
    """Return one row for each choice of one layer's width."""
    rows = np.repeat(widths[None], len(choices), axis=0)
    rows[:, layer] = choices
    return rows


def _worth(held: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return how much importance each row of widths holds."""
    worths: np.ndarray = np.sum([values[rows[:, layer]] for layer, values in enumerate(held)], axis=0)
    return worths
