"""What is known of one dense model from one stretch of text and one seed: the tables of its signals."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from pruning.signals.activations import Covariances
from pruning.signals.schemas import BESIDE, SIGNALS

MEASURED = ("activations", *(name for name in SIGNALS if name != "activations"), *BESIDE, "criteria")
"""What `measure` knows, in an order in which nothing precedes what it needs."""


@dataclass(frozen=True)
class Calibration:
    """What is known of a dense model from one stretch of text and one seed.

    Attributes:
        tables: Signal → its table; of `MEASURED`, as many as are needed.
        covariances: Each layer's outputs, in groups of text.
        seed: Seed of probes, sampled labels, folds and the random control.
    """

    tables: Mapping[str, pd.DataFrame]
    covariances: Covariances
    seed: int
