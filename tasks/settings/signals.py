"""How signals and the oracle measure: the sections of params.yaml that say how much they read, and of what."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pruning.core import options
from tasks.settings.bounds import Bins, Count, Fraction, Ridge, Section, Seed, Several, Share, expect_distinct


class CalibrationSettings(Section):
    """How signals read the training text."""

    batch: Count
    bptt: Count


class Weights(Section):
    """Settings of `weights`."""

    threshold: Annotated[float, Field(ge=0, le=1e6)]
    bins: Bins


class Hessian(Section):
    """Settings of `hessian`."""

    probes: Several
    stability: Annotated[float, Field(ge=0, le=1)]
    method: options.Curvature
    seed: Seed


class Activations(Section):
    """Settings of `activations`."""

    activation_samples: Several
    bins: Bins
    rank: Count | None


class Gradients(Section):
    """Settings of `gradients`."""

    batches: Several


class Cooperative(Section):
    """Settings of `cooperative`."""

    strong: Annotated[float, Field(ge=0, lt=1)]


class Surgeon(Section):
    """Settings of `surgeon`."""

    batches: Several
    damping: Ridge
    seed: Seed


class Intervention(Section):
    """Settings of `intervention`."""

    tokens: Count
    batches: Several
    label_share: Annotated[float, Field(ge=0, le=10)] | None
    words: Several | Literal["all"]
    most: Count | None
    seed: Seed


class Criteria(Section):
    """Settings of `criteria`."""

    batches: Several
    bins: Annotated[int, Field(ge=2, le=65536)]
    classes: Annotated[int, Field(ge=2, le=65536)]
    ridge: Ridge
    rank: Count | None
    seed: Seed


class Oracle(Section):
    """Settings of `oracle`."""

    neurons: Several | Literal["all"]
    tokens: Count
    most: Count
    tolerance: Annotated[float, Field(ge=0, lt=1)]
    words: Several | Literal["all"]
    joint: Annotated[list[Fraction], Field(min_length=1)]
    portion: Share
    seed: Seed

    @model_validator(mode="after")
    def most_is_no_less(self) -> "Oracle":
        """Refuse a budget that the first reading exceeds."""
        options.check_most(self.tokens, self.most, "oracle.")
        expect_distinct(self.joint, "oracle.joint")
        return self
