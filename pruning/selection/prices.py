"""What a change of one or two layers' widths costs: asked each time, or looked up where the costs' form allows."""

from collections.abc import Sequence

import numpy as np

from pruning.selection.costs import Costs


class AskedPrices:
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
        return self.costs(with_widths(widths, layer, self.steps[layer]))

    def together(self, widths: np.ndarray, pair: tuple[int, int], near: tuple[slice, slice]) -> np.ndarray:
        """Return what all costs, but for a constant, with some widths of two layers, (choices, choices)."""
        one, other = (self.steps[layer][part] for layer, part in zip(pair, near, strict=True))
        rows = np.concatenate([with_widths(row, pair[1], other) for row in with_widths(widths, pair[0], one)])
        return self.costs(rows).reshape(len(one), len(other))


class KnownPrices(AskedPrices):
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
        """Return what all costs, but for a constant, with each of one layer's widths, (choices,)."""
        return np.asarray(self.own[layer] + (self.products[layer] @ widths) * self.steps[layer])

    def together(self, widths: np.ndarray, pair: tuple[int, int], near: tuple[slice, slice]) -> np.ndarray:
        """Return what all costs, but for a constant, with some widths of two layers, (choices, choices)."""
        one, other = (self.alone(widths, layer)[part] for layer, part in zip(pair, near, strict=True))
        more, wider = (self.steps[layer][part] - widths[layer] for layer, part in zip(pair, near, strict=True))
        # each curve takes the other layer's width as it is, and both hold what the pair costs now
        return np.asarray(one[:, None] + other + self.products[pair] * more[:, None] * wider)

    def total(self, rows: np.ndarray) -> np.ndarray:
        """Return Σ f_l(w_l) + Σ_{l<m} q_lm w_l w_m of each row of widths."""
        places = (np.searchsorted(step, rows[:, layer]) for layer, step in enumerate(self.steps))
        of_layers = np.sum([values[place] for values, place in zip(self.own, places, strict=True)], axis=0)
        return np.asarray(of_layers + np.einsum("nl,nl->n", rows @ self.products, rows) / 2)


def known_prices(steps: Sequence[np.ndarray], costs: Costs) -> KnownPrices | None:
    """Return the costs as a function of each layer's width and products of two, or None if they are of another form.

    They follow from the costs with one layer, and with two, wider than the narrowest; whether they are the costs is
    tried at other widths.
    """
    low, high = np.array([[step[0], step[-1]] for step in steps]).T
    least, most = costs(np.stack([low, high]))
    curves = [costs(with_widths(low, layer, step)) - least for layer, step in enumerate(steps)]
    depth, products = len(steps), np.zeros((len(steps), len(steps)))
    for layer in range(depth - 1):
        rows = np.repeat(with_widths(low, layer, high[[layer]]), depth - layer - 1, axis=0)
        others = np.arange(layer + 1, depth)
        rows[np.arange(len(rows)), others] = high[others]
        beyond = costs(rows) - least - curves[layer][-1] - [curves[other][-1] for other in others]
        beyond[abs(beyond) <= 1e-12 * abs(most)] = 0.0
        apart = (high[layer] - low[layer]) * (high - low)[others]
        products[layer, others] = np.divide(beyond, apart, out=np.zeros(len(others)), where=apart > 0)
    products += products.T
    # f_l is what the layer costs beside the narrowest others, less the products that it has with them
    curves = [
        cost - (products[layer] @ low) * step for layer, (cost, step) in enumerate(zip(curves, steps, strict=True))
    ]
    prices = KnownPrices(steps, costs, curves, products)
    random = np.random.default_rng(0)
    rows = np.stack([low, high, *(np.array([random.choice(step) for step in steps]) for _ in range(64))])
    differences = prices.total(rows) - costs(rows)
    return prices if np.ptp(differences) <= 1e-9 * abs(most) else None


def with_widths(widths: np.ndarray, layer: int, choices: np.ndarray) -> np.ndarray:
    """Return one row for each choice of one layer's width."""
    rows = np.repeat(widths[None], len(choices), axis=0)
    rows[:, layer] = choices
    return rows
