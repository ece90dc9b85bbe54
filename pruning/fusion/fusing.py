"""How signals are fused: the settings of `fusion`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pruning.core.options import Calibrated, Strategy, expect_known
from pruning.signals.schemas import SIGNALS

STRATEGIES, CALIBRATIONS = get_args(Strategy), get_args(Calibrated)


@dataclass(frozen=True, kw_only=True)
class Fusing:
    """How signals are fused; see `fusion`.

    >>> Fusing(strategy="adaptive", seed=1).calibration
    'none'

    Attributes:
        strategy: How to weigh the signals: `simple`, `adaptive` or `learned`.
        seed: Seed of the random control, of folds and of the bootstrap.
        signals: Which signals count, by default all that there are; the others' shares are 0.
        folds: Parts that the measured neurons are cut into for `learned`; by default as many as they suffice for,
            and at most five.
        calibration: `none`, `hessian`, `oracle`, `removal`, or a column of `fusion`'s `criteria` in nat/token.

    Raises:
        ValueError: For an unknown strategy or signal, or no signal at all.
    """

    strategy: str
    seed: int
    signals: Sequence[str] | None = None
    folds: int | None = None
    calibration: str = "none"

    def __post_init__(self) -> None:
        expect_strategy(self.strategy)
        expect_known("signal", SIGNALS, *(self.signals or ()))
        if self.signals is not None and not self.signals:
            raise ValueError(f"Expected at least one of the signals {list(SIGNALS)}, got none.")


def expect_strategy(name: str) -> None:
    """Refuse a strategy that there is none of.

    >>> expect_strategy("best")
    Traceback (most recent call last):
    ValueError: Unknown fusion 'best'; known: ['simple', 'adaptive', 'learned'].
    """
    expect_known("fusion", STRATEGIES, name)
