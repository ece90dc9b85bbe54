"""The experiment's options: names, defaults and bounds, each an option of the command line of the same name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pruning.experiment.choices import VARIANTS
from tasks.common.parameters import Unexpected
from tasks.common.wording import nearest

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """The options of the experiment; each is an option of the command line of the same name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str | None = Field(None, description="a dense model, its vocabulary beside it; else the pipeline's")
    corpus: str | None = Field(None, description="a folder of published splits, with --checkpoint")
    to: str = Field("data/experiment", description="where cells, tables and the report go")
    variants: list[str] = Field(list(VARIANTS), description="choices of neurons to compare")
    keep: list[Share] = Field([0.9, 0.75, 0.5, 0.35, 0.25], description="shares of neurons to keep")
    calibrations: Annotated[int, Field(ge=1, le=7)] = Field(3, description="seeds of calibration at the middle share")
    trainings: Count = Field(3, description="dense models from different seeds; 1 with --checkpoint")
    scope: Literal["layer", "global"] = Field("layer", description="what importance is compared across")
    floor: Count = Field(8, description="fewest neurons of a layer")
    repair: Literal["none", "mean", "ridge", "imitate"] = Field("ridge", description="what follows removal")
    imitation: Count = Field(112_000, description="tokens that --repair imitate reads")
    portion: Annotated[float, Field(gt=0, le=1)] = Field(0.05, description="of the training text, for fine-tuning")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="highest one of fine-tuning")
    distillation: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="share of dense in what it minimises")
    batch: Count = Field(20, description="columns of a fine-tuning window")
    bptt: Count = Field(35, description="steps of a fine-tuning window")
    judged: Count = Field(30_000, description="validation tokens that perplexity is measured on, at most")
    oracle_neurons: Count | Literal["all"] = Field("all", description="neurons whose removal is measured")
    oracle_tokens: Annotated[int, Field(ge=200)] = Field(
        25_000, description="validation tokens for it, others than judged"
    )
    sets: Annotated[int, Field(ge=0)] = Field(24, description="sets of a layer's neurons removed together; 0 for none")
    probes: Annotated[int, Field(ge=2)] | None = Field(None, description="of the Hessian, in place of params.yaml's")
    windows: Annotated[int, Field(ge=8)] | None = Field(None, description="of every other signal, likewise at most")

    @field_validator("variants")
    @classmethod
    def known(cls, variants: list[str]) -> list[str]:
        """Refuse a variant that there is none of."""
        for name in variants:
            if name not in VARIANTS:
                raise ValueError(f"Unknown variant {name!r}; known: {list(VARIANTS)}.{nearest(name, VARIANTS)}")
        return variants

    @model_validator(mode="after")
    def belong_together(self) -> "Settings":
        """Refuse a checkpoint without its corpus, and shares or variants given twice."""
        if (self.checkpoint is None) != (self.corpus is None):
            raise ValueError("Expected --checkpoint and --corpus together, got only one of them.")
        for name in ("keep", "variants"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise ValueError(f"Expected different values for --{name}, got {getattr(self, name)}.")
        return self


QUICK: Mapping[str, Any] = {
    "variants": ["random", "traditional", "simple", "learned", "surgeon"],
    "keep": [0.75, 0.5, 0.25],
    "calibrations": 2,
    "trainings": 1,
    "portion": 0.01,
    "judged": 10_000,
    "oracle_neurons": 96,
    "oracle_tokens": 5_000,
    "sets": 8,
    "probes": 16,
    "windows": 8,
}
"""What `--quick` stands for: a look at the whole in a few minutes, too coarse for conclusions."""


def settings_from(given: Mapping[str, Any], *, quick: bool) -> Settings:
    """Return the settings, checked.

    Raises:
        Unexpected: With one sentence on the first value that is wrong.
    """
    try:
        return Settings(**{**(QUICK if quick else {}), **given})
    except ValidationError as error:
        raise Unexpected(_sentence(error.errors()[0])) from None


def option_of(field: str) -> str:
    """Return what a setting is called on the command line.

    >>> option_of("oracle_tokens")
    '--oracle-tokens'
    """
    return f"--{field.replace('_', '-')}"


def unknown(option: str) -> str:
    """Return the sentence on an option that does not exist."""
    known = [option_of(field) for field in Settings.model_fields]
    return f"Unknown option {option!r}; known: {known}.{nearest(option, known)}"


def _sentence(error: Any) -> str:
    """Return what was wrong with an option as one sentence."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name = option_of(str(error["loc"][0]))
    if error["type"] == "extra_forbidden":
        return unknown(name)
    wanted = error["msg"].removeprefix("Input should be ")
    hint = nearest(str(error["input"]), wanted.split("'")[1::2])
    return f"Expected {name} to be {wanted}, got {error['input']!r}.{hint}"
