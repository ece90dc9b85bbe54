"""How neurons are chosen and what is left repaired: `fuse`, `prune`, `reconstruct`, and what a variant says itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pruning.core import options
from pruning.fusion.schemas import CHOICES
from pruning.fusion.taught import NEEDED, WEIGHTS
from pruning.signals.schemas import LEARNABLE, SIGNALS
from tasks.settings.bounds import Clip, Count, Fraction, Rate, Section, Seed, Several, Share, expect_distinct
from tasks.settings.budget import BudgetOf

if TYPE_CHECKING:
    Choice = str
    Weighed = str
else:  # the words that the tables know, of which a type checker cannot be told
    Choice, Weighed = Literal[CHOICES], Literal[*SIGNALS, *LEARNABLE]
SAVED = "a file of saved weights, written learned/name.json"
Bound = Count | dict[str, Count]
"""For every layer, or for those that are named."""
Ratio = Annotated[float, Field(ge=0, le=1)]
Quota = dict[options.Half, Ratio]
MEASURES = ("rate", "budget", "snn_ratio", "quota")
"""What says how many neurons stay, or of which kind."""


class Fuse(Section):
    """Settings of `fuse`."""

    strategy: options.Strategy
    signals: Annotated[list[Weighed], Field(min_length=1)]
    folds: Several
    calibration: options.Calibrated
    removed: Annotated[list[Fraction], Field(min_length=1)]
    batches: Count
    weights: Annotated[str, Field(pattern=r"^learned/[^/\x00-\x1f]+\.json$", description=SAVED)] | None
    seed: Seed

    @model_validator(mode="after")
    def signals_can_be_weighed(self) -> "Fuse":
        """Refuse a signal named twice, what the strategy would not weigh, and none of the signals."""
        expect_distinct(self.signals, "fuse.signals")
        further = [name for name in self.signals if name in LEARNABLE]
        weighed = {"learned": [*LEARNABLE], "adaptive": [*WEIGHTS] if set(NEEDED) & set(further) else [*NEEDED]}
        known = [name for name in weighed.get(self.strategy, []) if name not in SIGNALS]
        left_out = [name for name in further if name not in known]
        if left_out and self.weights is None:
            raise ValueError(
                f"Expected fuse.strategy: learned for {left_out[0]!r} among fuse.signals, got {self.strategy!r}, which "
                f"weighs {[*SIGNALS, *known]} alone"
            )
        if len(further) == len(self.signals):
            raise ValueError(f"Expected one or more of {list(SIGNALS)} among fuse.signals, got {self.signals}")
        return self

    @model_validator(mode="after")
    def removes_more_and_more(self) -> "Fuse":
        """Refuse shares that do not rise."""
        expect_distinct(self.removed, "fuse.removed")
        if self.removed != sorted(self.removed):
            raise ValueError(f"Expected the shares of fuse.removed in rising order, got {self.removed}")
        return self


class Prune(Section):
    """Settings of `prune`."""

    retain: Share
    floor: Bound
    ceiling: Bound | None
    multiple: Count
    scope: options.Scope
    rate: options.HowMany
    budget: BudgetOf | None
    snn_ratio: Ratio | None
    quota: Quota | None
    otherwise: Choice | None
    tied: options.Decoupling

    @model_validator(mode="after")
    def has_one_measure(self) -> "Prune":
        """Refuse two settings that both say how many neurons stay, or both of which kind."""
        check_measures(self.model_dump(), "prune")
        return self


def check_measures(prune: Mapping[str, Any], place: str) -> None:
    """Refuse contradictions among what `place` says of how many neurons stay."""
    options.check_measures(**{name: prune[name] for name in MEASURES}, place=f"{place}.")


class Reconstruct(Section):
    """Settings of `reconstruct`."""

    repair: options.Repair
    tokens: Count
    learning_rate: Rate
    warmup: Annotated[float, Field(ge=0, lt=1)]
    clip: Clip


class Variant(Section):
    """One variant: what it chooses by, and its own values of anything in `prune`, and its own repair."""

    by: Choice
    retain: Share | None = None
    floor: Bound | None = None
    ceiling: Bound | None = None
    multiple: Count | None = None
    scope: options.Scope | None = None
    rate: options.HowMany | None = None
    budget: BudgetOf | None = None
    snn_ratio: Ratio | None = None
    quota: Quota | None = None
    otherwise: Choice | None = None
    tied: options.Decoupling | None = None
    repair: options.Repair | None = None
