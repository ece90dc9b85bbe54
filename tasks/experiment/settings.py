"""What experiment/params.yaml may hold; the settings of signals, training and repair are those of params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from pruning.core import options
from pruning.experiment.variants import VARIANTS
from tasks.common.pipeline import EXPERIMENT, PARAMETERS
from tasks.settings.bounds import Count, Fraction, Rate, Section, Share, validated

STRETCHES = 7
"""Stretches of the training text that signals can be measured on: each seed begins this fraction further on."""

SEED = 1
"""Of what is the same everywhere: the extra training, which neurons are removed, sets of neurons, the bootstrap."""

if TYPE_CHECKING:
    Variant: TypeAlias = str
else:
    Variant = Literal[tuple(VARIANTS)]


class Source(Section):
    """The dense model, its vocabulary and its corpus: the pipeline's, or those of a published checkpoint."""

    model: str
    vocabulary: str
    corpus: str

    @property
    def published(self) -> bool:
        """Whether the model is a file of weights that somebody published, and no folder of ours."""
        return Path(self.model).suffix == ".safetensors"


class TreatmentSettings(Section):
    """What follows each choice."""

    scope: Literal["layer", "global"]
    floor: Count
    repair: options.Repair
    imitation: Count
    portion: Share
    learning_rate: Rate
    distillation: Annotated[float, Field(ge=0, le=1)]
    batch: Count
    bptt: Count


class Validation(Section):
    """How the validation text is divided."""

    removed: Annotated[int, Field(ge=200)]
    judged: Count


class Removal(Section):
    """Whose removal is measured."""

    neurons: Annotated[int, Field(ge=2)] | Literal["all"]


class Joint(Section):
    """How many sets are removed together."""

    sets: Annotated[int, Field(ge=0)]


class Effort(Section):
    """Limits in place of what params.yaml says of signals."""

    probes: Annotated[int, Field(ge=2)] | None
    windows: Annotated[int, Field(ge=8)] | None


class Experiment(Section):
    """All of experiment/params.yaml."""

    source: Source
    choices: Annotated[list[Variant], Field(min_length=1)]
    keep: list[Fraction]
    middle: Fraction
    texts: list[Annotated[int, Field(ge=0, le=STRETCHES - 1)]]
    models: list[Count]
    treatment: TreatmentSettings
    validation: Validation
    removal: Removal
    joint: Joint
    effort: Effort

    @model_validator(mode="after")
    def belong_together(self) -> "Experiment":
        """Refuse what is named twice, texts without the first one, and other models than a published one."""
        for name in ("choices", "keep", "texts", "models"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"Expected different values for {name}, got {values}")
        if self.middle in self.keep:
            raise ValueError(f"Expected keep to hold other shares than middle ({self.middle:g}), got {self.keep}")
        if 0 not in self.texts:
            raise ValueError(f"Expected 0 among texts, for it is what each share is measured with, got {self.texts}")
        if self.source.published and self.models:
            raise ValueError(f"Expected models: [] beside a published model, got {self.models}")
        return self


def checked(values: Mapping[str, Any]) -> Experiment:
    """Return the values of experiment/params.yaml, checked.

    Raises:
        Unexpected: With one sentence on the first value that is missing, unknown or out of bounds.
    """
    return validated(Experiment, values, str(EXPERIMENT / PARAMETERS))
