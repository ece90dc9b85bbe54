"""Which widths hold the most importance within a budget."""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from pruning.core.options import FIRING, BudgetKind, Numbers, expect_known
from pruning.core.units import byte_count
from pruning.core.words import described
from pruning.data.windows import Batches
from pruning.models.base import Measurable, expect_measurable
from pruning.selection.costs import Costs, size_costs
from pruning.selection.energy import Spikes, spikes_of
from pruning.selection.memory import memory_costs
from pruning.selection.prices import AskedPrices, known_prices

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
        spikes: What neurons cost by how often they fire, of budgets that this decides; see `ordered`.
        order: Layer → the numbers of its neurons, those that stay longest first; by default the most important ones.
    """

    kind: str
    value: float
    layers: tuple[str, ...]
    costs: Costs
    spikes: Spikes | None = None
    order: Mapping[str, np.ndarray] | None = None

    @property
    def unit(self) -> str:
        """What a number of it is a number of, in a sentence."""
        return {"memory": "bytes of memory", "energy": "pJ of energy"}.get(self.kind, self.kind)

    def ordered(self, worths: Mapping[str, np.ndarray]) -> "Budget":
        """Return the budget for neurons of such importance: where each has a price of its own, it orders them.

        Args:
            worths: Layer → importance of its neurons.
        """
        if self.spikes is None:
            return self
        order = self.spikes.order(worths)
        return replace(self, order=order, costs=self.spikes.costs(order))


def budget_of(
    model: Measurable,
    *,
    kind: str,
    value: float | str,
    target: Numbers = "float32",
    latency: Costs | None = None,
    data: Batches | None = None,
) -> Budget:
    """Return a budget for smaller versions of `model`.

    Of synaptic operations and energy, each neuron costs what its firing rate says: its spikes are what its readers add
    up. So such a budget ranks a layer's neurons by importance for what they cost (`Spikes.order`), and a choice within
    it is one by the rates of the whole network. In a smaller one neurons fire otherwise: `met` measures and asks again.

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
            `memory` (of one step, see `memory_of`), or of a spiking network `synaptic_operations` or `energy` (pJ),
            both for one token (see `energy_of`).
        value: The most that is allowed; for latency in the unit of `latency`, for memory bytes, or such as `512KiB`.
        target: For memory: what the weights are held in, `float32` or `int8`.
        latency: For latency: widths (n, layers) → how long each takes, as `measured_latency` or `interpolated` give.
        data: For synaptic operations and energy: text (or other batches) that firing rates are measured on.

    Raises:
        ValueError: For an unknown kind, latency or firing rates without a measurement, a network without spiking
            neurons where these are asked for, or what `memory_costs` refuses.
    """
    expect_measurable(model)
    layers = tuple(layer.name for layer in model.layers())
    expect_known("budget", KINDS, kind)
    if kind == "latency":
        if not callable(latency):
            raise ValueError(
                f"Expected how long each choice of widths takes for a budget of latency, got {described(latency)}; "
                "give `latency`, in seconds as `value` then is: "
                "pruning.selection.costs.measured_latency(importance.model, batch=1, repeats=100, points=4)[0]."
            )
        return Budget(kind, float(value), layers, latency)
    if kind in FIRING:
        if data is None:
            raise ValueError(
                f"Expected text to measure firing rates on for a budget of {kind}, got nothing; give `data`."
            )
        spikes = spikes_of(model, kind, data)
        numbers = {layer.name: np.arange(layer.width) for layer in model.layers()}
        return Budget(kind, float(value), layers, spikes.costs(numbers), spikes)
    if kind == "memory":
        return Budget(kind, byte_count(value), layers, memory_costs(model, numbers=target))
    return Budget(kind, float(value), layers, size_costs(model, kind))


def allowed_widths(
    width: int, *, floor: int, ceiling: int | None, multiple: int, avoided: Collection[int] = ()
) -> np.ndarray:
    """Return the widths that a layer may have, ascending: multiples within [floor, ceiling], or all of the layer.

    >>> allowed_widths(20, floor=6, ceiling=None, multiple=8).tolist()
    [8, 16, 20]
    >>> allowed_widths(8, floor=5, ceiling=None, multiple=1, avoided=[6]).tolist()
    [5, 7, 8]

    Args:
        width: The layer's own.
        floor: The fewest neurons, if it has so many.
        ceiling: The most.
        multiple: What a width is a multiple of.
        avoided: Those that it must not have, see `NeuronLayer`.

    Raises:
        ValueError: If there is none.
    """
    low, high = min(floor, width), width if ceiling is None else min(ceiling, width)
    multiples = [number for number in range(multiple, high + 1, multiple) if number >= low]
    whole = [width] if high == width and width % multiple else []
    widths = [number for number in multiples + whole if number not in avoided]
    if not multiples + whole:
        raise ValueError(
            f"Expected a width between a floor of {low} and a ceiling of {high} that is a multiple of {multiple}, "
            "got none."
        )
    if not widths:
        raise ValueError(
            f"Expected a width of {multiples + whole} with which the network's own code does nothing else, got none; "
            "raise the ceiling or lower the floor."
        )
    return np.array(widths)


def widths_within(
    worths: Mapping[str, np.ndarray], choices: Mapping[str, np.ndarray], budget: Budget
) -> dict[str, int]:
    """Return each layer's width: those that hold the most importance within the budget.

    What a choice costs depends on how many neurons a layer keeps and not on which, or these stand in an order (see
    `Budget.ordered`). So the best choice keeps the first of each layer, and only the widths are searched: all
    combinations up to `EXACT` of them, and then the answer is the optimum. Beyond that, layers start whole, and again
    and again the step is taken that loses the least importance for each unit of cost saved, with the cost computed anew
    (multiply-adds are products of widths); what room is left is then filled, and exchanges between two layers are made
    while they gain. For costs that are linear in the widths this loses at most one step's importance against the
    optimum.

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
    held = [_held(worths[layer], None if budget.order is None else budget.order[layer]) for layer in budget.layers]
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


def _held(worth: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Return how much the first 0, 1, 2, … neurons in an order hold, by default the most important, (width + 1,)."""
    positive = np.maximum(worth, 0.0)
    ordered = np.sort(positive)[::-1] if order is None else positive[order]
    return np.concatenate([[0.0], np.cumsum(ordered)])


def _check_possible(steps: Sequence[np.ndarray], budget: Budget) -> None:
    extremes = np.array([[step[0] for step in steps], [step[-1] for step in steps]])
    least, most = budget.costs(extremes)
    if not budget.value >= least:
        sizes = ", ".join(f"{layer} {step[0]}" for layer, step in zip(budget.layers, steps, strict=True))
        raise ValueError(
            f"Expected a budget of at least {least:.12g} {budget.unit}, what the narrowest widths cost ({sizes}; "
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
    around = getattr(budget.costs, "nearby", None)  # of costs that are the largest of several
    costs = budget.costs if around is None else around(np.array([step[-1] for step in steps]))
    prices = known_prices(steps, costs)
    if prices is not None:
        widths = _searched(held, steps, budget, prices)
        if budget.costs(widths[None])[0] <= budget.value:
            return widths
    return _searched(held, steps, budget, AskedPrices(steps, budget.costs))


def _searched(
    held: Sequence[np.ndarray], steps: Sequence[np.ndarray], budget: Budget, prices: AskedPrices
) -> np.ndarray:
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
    widths: np.ndarray, layer: int, place: int, held: Sequence[np.ndarray], prices: AskedPrices
) -> tuple[float, float, int]:
    """Return what a layer's cheapest step down loses for each unit saved, how many neurons go, and to which place."""
    step, cost = prices.steps[layer][: place + 1], prices.alone(widths, layer)[: place + 1]
    if place == 0:
        return np.inf, np.inf, 0
    saved, lost = cost[-1] - cost[:-1], held[layer][step[-1]] - held[layer][step[:-1]]
    rate = np.divide(lost, saved, out=np.full(place, np.inf), where=saved > 0)
    to = place - 1 - int(rate[::-1].argmin())  # of equals the one that takes the fewest neurons
    return float(rate[to]), float(step[-1] - step[to]), to


def _exchanged(widths: np.ndarray, held: Sequence[np.ndarray], budget: Budget, prices: AskedPrices) -> np.ndarray:
    """Return the widths after every change of one or two layers that fits and gains, the best one first."""
    margin = 0.0  # by which prices, where they are not the costs themselves, were once too low
    while True:
        room = budget.value - budget.costs(widths[None])[0] - margin
        gain, change = max(_changes(widths, held, room, prices), key=lambda pair: pair[0])
        if gain <= _worth(held, widths[None])[0] * 1e-12:
            return widths
        changed = widths.copy()
        for layer, width in change.items():
            changed[layer] = width
        over = budget.costs(changed[None])[0] - budget.value
        margin += max(over, 0.0)
        widths = widths if over > 0 else changed


def _changes(
    widths: np.ndarray, held: Sequence[np.ndarray], room: float, prices: AskedPrices
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


def _worth(held: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return how much importance each row of widths holds."""
    worths: np.ndarray = np.sum([values[rows[:, layer]] for layer, values in enumerate(held)], axis=0)
    return worths
