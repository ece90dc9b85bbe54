"""What one MLflow run holds, whatever it is of, in figures as fine as they are worth."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

POINTS = 2000
"""Steps of a curve at most; more cannot be seen and take a server minutes."""
DIGITS = 5
"""Of a figure that is no whole number; the tables beside it hold all of them."""
CURVES = ("train_loss", "valid_loss", "learning_rate")
"""Told as `curves/…`, a section of MLflow's page of charts that stands before all that is one number."""


@dataclass(frozen=True)
class Exported:
    """A model that a run holds as a program.

    Attributes:
        folder: Where the model is.
        hash: What DVC knows it by.
        vocabulary: The text of each token, one a line; empty where the model does not read tokens.
        text: How raw text becomes tokens; likewise.
    """

    folder: Path
    hash: str
    vocabulary: str = ""
    text: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """All that one MLflow run holds; `curves` is a `history` table, `system` the machine's load by time."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step"]))
    likelihood: bool = True  # whether losses have a perplexity
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # to be read in the browser
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)  # by the folder that they go to
    system: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["timestamp"]))
    model: Exported | None = None


def rounded(value: float) -> float:
    """Return a figure to five digits, a whole number as it is.

    >>> rounded(117.75454821), rounded(1806192)
    (117.75, 1806192.0)
    """
    return float(value) if float(value).is_integer() else float(f"{value:.{DIGITS}g}")


def metrics_of(record: Record) -> Iterator[Any]:
    """Yield final values, of each curve at most `POINTS` points, the last among them, and the machine's load."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for name, value in record.metrics.items():
        yield Metric(name, rounded(value), now, 0)
    for name in CURVES if len(record.curves) else ():
        known = record.curves.dropna(subset=name)
        for index in _thinned(len(known)):
            step, value = int(known["step"].iloc[index]), float(known[name].iloc[index])
            yield Metric(f"curves/{name}", rounded(value), now, step)
            if name.endswith("_loss") and record.likelihood:
                yield Metric(f"curves/{name.replace('loss', 'perplexity')}", rounded(np.exp(value)), now, step)
    yield from system_metrics(record.system)


def system_metrics(system: pd.DataFrame) -> Iterator[Any]:
    """Yield the machine's load as MLflow's own metrics of the system, which have a page of their own."""
    from mlflow.entities import Metric

    for name in (str(name) for name in system if name != "timestamp"):
        known = system.dropna(subset=name)
        for step, index in enumerate(_thinned(len(known))):
            when, value = int(known["timestamp"].iloc[index]), float(known[name].iloc[index])
            yield Metric(f"system/{name}", rounded(value), when, step)


def _thinned(number: int) -> np.ndarray:
    """Return which of so many points are told."""
    return np.unique(np.linspace(0, number - 1, min(number, POINTS)).round().astype(int))
