"""How what is measured in stretches of text becomes a signal's table, with the spread between them as its error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import pandas as pd
from torch import Tensor

from pruning.core.modes import carried
from pruning.core.neurons import NeuronLayer
from pruning.core.sketches import numbers_of
from pruning.core.statistics import jackknife_error, merged
from pruning.core.tables import Table, table
from pruning.signals.scaling import signal_rows

GROUPS = 8
"""Consecutive stretches of text kept apart, so that the spread between them gives standard errors."""
LARGEST = 2**29
"""Bytes that the covariances of all layers and groups may take together, as long as there are two groups."""


class Sampled(Protocol):
    """What some text has told."""

    @property
    def samples(self) -> int:
        """Observations so far."""


class Measured(Protocol):
    """Mergeable statistics of one layer, from which a signal's components follow."""

    @property
    def components(self) -> dict[str, Tensor]:
        """The components of the signal by name, each (width,)."""

    @property
    def importance(self) -> Tensor:
        """Weighted sum of the scaled components, (width,)."""

    @property
    def samples(self) -> int:
        """Observations so far."""

    def merge(self, other: Self) -> Self:
        """Return the state of both samples together."""


State = TypeVar("State", bound=Measured)
Counted = TypeVar("Counted", bound=Sampled)
Group = TypeVar("Group")


def by_layer(layers: Iterable[NeuronLayer], groups: Sequence[Mapping[str, Group]]) -> dict[str, list[Group]]:
    """Return each layer's state in each of the groups of text that were read and ran it."""
    return {layer.name: [group[layer.name] for group in groups if layer.name in group] for layer in layers}


def state_after(batches: Iterable[Any], state: Any, passed: Callable[[Any, Any, Any], Any]) -> Any:
    """Return the state after batches that `passed` (inputs, targets, state) reads; what leaves none needs not be read.

    It is cut off from what computed it.
    """
    for inputs, targets in batches:
        state = carried(passed(inputs, targets, state))
        if state is None:
            break
    return state


def groups_that_fit(layers: Iterable[NeuronLayer], rank: int | None = None) -> int:
    """Return into how many groups text is split where each has a covariance of each layer, width² float64 numbers.

    Of sketches of a rank (see `covariance_of`) it is as many numbers as these have.

    It is `GROUPS`, or as many as fit `LARGEST`, but at least two, for one tells no error: a layer of 4,096 neurons has
    four of 128 MiB. Fewer groups make the error itself less certain, and no number but the error another.
    """
    each = 8 * sum(numbers_of(layer.width, rank) for layer in layers)
    return max(2, min(GROUPS, LARGEST // max(each, 1)))


def expect_several(count: int, signal: str) -> None:
    """Refuse to measure a signal on fewer than two batches, before any work: nothing would tell its error.

    Raises:
        ValueError: If there are fewer than two.
    """
    if count < 2:
        raise ValueError(
            f"Expected at least two batches for {signal}, whose spread is its error, got {count}; "
            "read more of them, or make more and smaller batches."
        )


def never_run(layer: str) -> str:
    """Return what is said of a layer that belongs to a path that no batch takes."""
    return (
        f"Expected batches to run every layer, got none that runs {layer}; give some of each path that the network "
        "takes."
    )


def filled(groups: Sequence[Counted], signal: str) -> list[Counted]:
    """Return the groups in which something was seen: a target may be ignored, and a layer may not run.

    Raises:
        ValueError: If there are fewer than two.
    """
    read = [group for group in groups if group.samples]
    if len(read) < 2:
        raise ValueError(
            f"Expected targets that count in at least two stretches of the text for {signal}, got {len(read)}; "
            "the others hold ignored ones alone, or do not run the layer."
        )
    return read


def grouped_table(schema: Table, layers: Mapping[str, Sequence[State]]) -> pd.DataFrame:
    """Return the signal's table: the merged groups' components, the jackknife over groups as standard error."""
    parts = []
    for layer, groups in layers.items():
        whole = merged(groups)
        error = jackknife_error(groups, lambda state: state.importance)
        parts.append(signal_rows(layer, whole.components, whole.importance, error, whole.samples))
    return table(schema, pd.concat(parts, ignore_index=True))
