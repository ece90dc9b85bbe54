"""Which settings of params.yaml are best for a budget of training, as docs/results has measured them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.common.parameters import Unexpected

VARIANT = "surgeon"
"""The variant of params.yaml that the recipes are for."""
SETTLED = 5
"""Passes over its text from which on a dense model counts as trained to the end. Those that were measured had had 0.35
and 30; what holds in between is not known."""


@dataclass(frozen=True)
class Recipe:
    """What to set for a budget of training.

    Attributes:
        settled: Whether it is for dense models that were trained to the end.
        epochs: Passes over the training text from which on it is the one to take.
        settings: Names as `dvc exp run -S` takes them → values, beside those that say the budget itself.
        page: Where it was measured.
    """

    settled: bool
    epochs: float
    settings: Mapping[str, Any]
    page: str


RECIPES = (
    Recipe(
        settled=False,
        epochs=0.0,
        settings={
            "reconstruct.repair": "imitate",
            "finetune.learning_rate": 1e-3,
            "finetune.distillation": 0.5,
            "finetune.dropout": None,
        },
        page="docs/results/default-run.md",
    ),
    Recipe(
        settled=False,
        epochs=0.5,
        settings={
            "reconstruct.repair": "ridge",
            "finetune.learning_rate": 1.6e-2,
            "finetune.distillation": 0.0,
            "finetune.dropout": None,
        },
        page="docs/results/while-training.md",
    ),
    Recipe(
        settled=True,
        epochs=0.0,
        settings={
            "reconstruct.repair": "imitate",
            "finetune.learning_rate": 8e-3,
            "finetune.distillation": 0.7,
            "finetune.dropout": 0.0,
        },
        page="docs/results/budgets.md",
    ),
)
"""For each kind of dense model, by rising budgets."""


def recipe_for(epochs: float, trained: float) -> Recipe:
    """Return the recipe for so many passes, of a dense model that was trained for so many.

    >>> recipe_for(1, 0.35).settings["finetune.distillation"], recipe_for(3, 30).settings["finetune.dropout"]
    (0.0, 0.0)

    Args:
        epochs: Of the budget.
        trained: Of the dense model.
    """
    return [each for each in RECIPES if each.settled == (trained >= SETTLED) and each.epochs <= epochs][-1]


def recommended(keep: float, epochs: float, trained: float) -> dict[str, Any]:
    """Return the settings for a share of the neurons and a budget of training.

    >>> recommended(0.5, 3, 0.35)["finetune.epochs"], recommended(0.5, 0.25, 0.35)["finetune.portion"]
    (3, 0.25)

    Args:
        keep: Share of the neurons that stay, in (0, 1].
        epochs: Passes over the training text: a part of one, or whole ones.
        trained: Passes that the dense model was trained for.

    Raises:
        Unexpected: For a share outside its range, no training at all, or more than one epoch that are not whole ones.
    """
    if not 0 < keep <= 1:
        raise Unexpected(f"Expected --keep in (0, 1], got {keep:g}.")
    if not 0 < epochs < math.inf or (epochs > 1 and epochs != round(epochs)):
        raise Unexpected(f"Expected --epochs of part of an epoch (0.25) or of whole ones (1, 3), got {epochs:g}.")
    recipe = recipe_for(epochs, trained)
    budget = {"finetune.epochs": max(1, round(epochs)), "finetune.portion": float(min(1, epochs))}
    return {"prune.retain": keep, **budget, **recipe.settings}
