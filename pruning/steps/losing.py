"""What a network loses by the share of neurons that it keeps: cut, and cut and repaired, at several shares."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pruning.core.holding import holding
from pruning.core.progress import Track, silently
from pruning.data.batches import Unlabelled
from pruning.models.base import Measurable
from pruning.models.examples import Unjudged
from pruning.models.objectives import Objective
from pruning.steps.comparing import COMPARED, differences, distance
from pruning.steps.given import limited
from pruning.steps.measuring import SHARES, Importance
from pruning.steps.removing import prune

PHASES = {"removed": "none", "repaired": "ridge"}
"""What is done to a network that lost neurons → the repair of `pruning.prune`."""


def errors_by_share(
    importance: Importance,
    shares: Sequence[float] = SHARES,
    *,
    data: Any = None,
    layers: Sequence[str] | None = None,
    track: Track = silently,
) -> pd.DataFrame:
    """Return what the network loses at each share: columns `phase`, `retain`, `error`, `standard_error`.

    The error is the loss above the dense network's on the same batches, per target; without a loss it is how far
    outputs are from the dense network's. The standard error is that of the mean over batches.

    Args:
        importance: What `pruning.importance` gave.
        shares: Of the neurons, each in (0, 1].
        data: Batches that the error is measured on, by default those of the importance, which flatter the repair.
        layers: Those that neurons may be taken from.
        track: Shows progress.

    Raises:
        ValueError: For a share outside (0, 1].
    """
    dense = importance.model.decoupled()
    pairs = importance.data if data is None else limited(dense, data, COMPARED, seed=1)
    rows = []
    for share in track(list(shares), "errors, shares"):
        for phase, repair in PHASES.items():
            smaller = prune(importance.model, importance, share, repair=repair, layers=layers)
            error, spread = risen(smaller, dense, pairs)
            rows.append({"phase": phase, "retain": share, "error": error, "standard_error": spread})
    whole = [{"phase": phase, "retain": 1.0, "error": 0.0, "standard_error": 0.0} for phase in PHASES]
    return pd.DataFrame(rows + ([] if 1.0 in shares else whole))


def unit_of(importance: Importance) -> str:
    """Return what errors of a network are measured in, for an axis."""
    with torch.random.fork_rng(devices=[]):
        _, targets = next(iter(importance.data))
    objective = importance.model.objective(targets)
    if _unjudged(objective, targets):
        return "distance of outputs from the dense network's"
    return "loss above the dense network's, " + ("nat per target" if objective.likelihood else "per target")


def _unjudged(objective: Any, targets: Any) -> bool:
    return isinstance(objective, Unjudged) or isinstance(targets, Unlabelled)


def risen(model: Measurable, dense: Measurable, pairs: Any) -> tuple[float, float]:
    """Return how much larger a model's loss is than the dense one's, the mean over batches, and its standard error.

    Args:
        model: With the same outputs.
        dense: What it is compared with.
        pairs: Batches, of which the first `COMPARED` are read.
    """

    def difference(objective: Objective, outputs: Any, taught: Any, targets: Any) -> float:
        if _unjudged(objective, targets):
            return distance(objective, outputs, taught, targets)
        with holding(model):
            after = model.judged(outputs, targets)
        with holding(dense):
            return float(after - dense.judged(taught, targets))

    each = differences(model, dense, pairs, difference)
    spread = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return float(np.mean(each)), float(spread)
