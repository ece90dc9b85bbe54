"""How many neurons are kept, and how they are shared out among layers and kinds: the settings of `retention`."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import get_args

from pruning.core.options import HowMany, Scope, check_measures, expect_known
from pruning.selection.budgets import Budget

SCOPES, RATES = get_args(Scope), get_args(HowMany)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How many neurons are kept, and how they are shared out; see `retention`.

    >>> Allocation(retain=0.5, floor=1, scope="global").rate
    'fixed'
    >>> Allocation(retain=0.5, floor=1, scope="global", snn_ratio=0.5, rate="adaptive")
    Traceback (most recent call last):
    ValueError: Expected snn_ratio or rate: adaptive, got both.

    Attributes:
        retain: Share of neurons to keep, in (0, 1].
        floor: Fewest neurons that a layer keeps, ≥ 1; one number, or layer → number, 1 where it is not named.
        scope: What is compared: `layer`, `global` or `absolute`.
        ceiling: Most neurons that a layer keeps; likewise, all where it is not named.
        multiple: What every width is a multiple of, unless the layer stays whole.
        rate: `fixed`: `retain` is the share; `adaptive`: the spread of the importance gives it.
        budget: What the kept neurons may cost; `retain` then has no say.
        snn_ratio: r in [0, 1]: keep 1 − r of the `rnn` neurons and r of the `snn` ones; `retain` then has no say.
        quota: Network type → its share of the kept neurons, summing to 1; it has no say where `retain` is all.
        otherwise: The column that ranks the layers of which the chosen one has no numbers; None refuses them.

    Raises:
        TypeError: If a width is bounded by no whole number.
        ValueError: For an unknown scope or rate, a number outside its range, or two measures of how many neurons stay.
    """

    retain: float
    floor: int | Mapping[str, int]
    scope: str
    ceiling: int | Mapping[str, int] | None = None
    multiple: int = 1
    rate: str = "fixed"
    budget: Budget | None = None
    snn_ratio: float | None = None
    quota: Mapping[str, float] | None = None
    otherwise: str | None = None

    def __post_init__(self) -> None:
        expect_known("scope", SCOPES, self.scope)
        expect_known("rate", RATES, self.rate)
        if not 0 < self.retain <= 1:
            raise ValueError(f"Expected retain in (0, 1], got {self.retain}.")
        if self.snn_ratio is not None and not 0 <= self.snn_ratio <= 1:
            raise ValueError(f"Expected snn_ratio in [0, 1], got {self.snn_ratio}.")
        for what, bound in (("multiple", self.multiple), ("floor", self.floor), ("ceiling", self.ceiling)):
            for number in bound.values() if isinstance(bound, Mapping) else (bound,):
                if number is not None and not isinstance(number, Integral):
                    raise TypeError(f"Expected a {what} that is a whole number of neurons, such as 8, got {number!r}.")
                if number is not None and number < 1:
                    raise ValueError(f"Expected a {what} of at least 1 neuron, got {number}.")
        check_measures(rate=self.rate, budget=self.budget, snn_ratio=self.snn_ratio, quota=self.quota)
