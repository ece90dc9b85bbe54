"""Which signals are measured of a network: those that were asked for, as far as its data and its loss allow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pruning.core.devices import seeded
from pruning.core.finite import expect_finite
from pruning.core.modes import differentiating, evaluating, thawed
from pruning.core.nested import tensors_in
from pruning.core.options import expect_known
from pruning.core.words import described
from pruning.data.batches import Pair, Unlabelled
from pruning.models.base import Measurable
from pruning.models.examples import Unjudged
from pruning.models.objectives import OF_INPUTS
from pruning.models.residuals import comes_from, nodes_of
from pruning.signals.schemas import BESIDE, CRITERIA, INTERVENTION, SIGNALS

MEASURED = ("activations", *(name for name in SIGNALS if name != "activations"), *BESIDE, "criteria")
"""All that can be measured, in the order in which it is."""
STRATEGIES = ("simple", "adaptive")
"""Fusions that need no measured removals."""
WITHOUT_LABELS = ("weights", "activations", "cooperative", "surgeon")
"""Signals that need no targets."""
LEARNING = frozenset({"hessian", "gradients", "criteria"})
"""Those that follow the loss's gradient to the weights."""


def measured_by(
    model: Measurable, pairs: Any, signals: Sequence[str] | None, by: str | None
) -> tuple[list[str], dict[str, str]]:
    """Return which signals to measure, what is chosen by among them, and why others are not, by the first batch."""
    usual = [name for name in (*SIGNALS, *BESIDE) if name != INTERVENTION.name]
    if isinstance(signals, str) or (signals is not None and not signals):
        raise ValueError(f"Expected a list of signals, such as ['weights'], got {described(signals)}.")
    expect_known("signal", [*SIGNALS, *BESIDE, "criteria"], *(signals or ()))
    chosen = "criteria" if by in CRITERIA else by
    asked = [*(signals or ()), *([chosen] if chosen in MEASURED else [])]
    wanted = list(dict.fromkeys([*(signals or usual), *asked]))
    first = next(iter(pairs), None)
    if first is None:
        raise ValueError("Expected at least one batch, got none.")
    if any(tensor.is_meta for tensor in tensors_in(tuple(first))):
        raise ValueError("Expected batches with numbers in them, got those of the device meta, which holds none.")
    unjudged = isinstance(model.objective(first[1]), Unjudged)
    if not unjudged and (not isinstance(first[1], Unlabelled) or _judges_alone(model, first)):
        _expect_loss(model, first, followed=not LEARNING.isdisjoint(wanted))
        return wanted, {}
    needing = [name for name in wanted if name not in WITHOUT_LABELS]
    lacked = next((name for name in needing if name in asked), None)
    if lacked is not None:
        lacking = "a loss" if unjudged and not isinstance(first[1], Unlabelled) else "targets"
        got = (
            "none; give `loss`"
            if lacking == "a loss"
            else f"batches of inputs alone; give (inputs, targets), {OF_INPUTS}"
        )
        raise ValueError(f"Expected {lacking} for the signal {lacked!r}, got {got}.")
    labelled = "it needs a loss, and there is none"
    alone = "it needs targets, and the batches have none" + ("" if unjudged else f" ({OF_INPUTS})")
    reasons = dict.fromkeys(needing, alone if isinstance(first[1], Unlabelled) else labelled)
    return [name for name in wanted if name in WITHOUT_LABELS], reasons


def _judges_alone(model: Measurable, first: Pair) -> bool:
    """Return whether the loss takes what the network gives and no targets, as one that compares embeddings."""
    with torch.no_grad(), evaluating(model), seeded(model, 0):
        outputs, _ = model.predicted(first.inputs)
        try:
            model.judged(outputs, first.targets)
        except Exception:  # whatever a user's code raises that is given no targets
            return False
    return True


def _expect_loss(model: Measurable, first: Pair, *, followed: bool) -> None:
    """Refuse a loss on the first batch that is no number, or that nothing can follow, before anything is measured.

    Args:
        model: That is judged.
        first: The first batch.
        followed: Whether its gradient is asked for.

    Raises:
        FloatingPointError: If weights are not finite.
        ValueError: If it is not finite, or does not depend on what the network gives.
    """
    inputs, targets = first
    if not model.weight(targets):
        return
    with torch.set_grad_enabled(followed), differentiating(model), seeded(model, 0), thawed(model):
        outputs, _ = model.predicted(inputs)
        known = nodes_of(*tensors_in(outputs), *model.parameters())
        loss = model.judged(outputs, targets)
        if followed and not comes_from(loss, known):
            raise ValueError(
                "Expected a loss that depends on what the network gives, got one whose gradient reaches neither that "
                "nor the weights; detach nothing on the way."
            )
    if not np.isfinite(number := float(loss.detach())):
        expect_finite(model)
        raise ValueError(
            f"Expected a finite loss, got {number} on the first batch; look for what the loss divides by, or inputs "
            "that are not finite."
        )


def ordered_otherwise(table: pd.DataFrame, by: str, fused: Sequence[str]) -> str:
    """Return of which layers neurons are chosen by `fused`, because `by` has no numbers of them; empty if of none.

    >>> table = pd.DataFrame({"layer": ["a", "b"], "surgeon": [0.5, np.nan], "fused": [0.1, 0.2]})
    >>> ordered_otherwise(table, "surgeon", ["activations"])
    "Chosen by 'fused', here of activations, since 'surgeon' has no numbers of them: the neurons of b."
    """
    without, ranked = (table[name].isna().groupby(table["layer"]).all() for name in (by, "fused"))
    layers = ", ".join(map(str, without.index[without & ~ranked]))
    of = ", ".join(fused)
    told = f"Chosen by 'fused', here of {of}, since {by!r} has no numbers of them: the neurons of {layers}."
    return told if layers else ""
