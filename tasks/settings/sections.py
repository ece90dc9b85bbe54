"""The sections of params.yaml: text, training, judging, and all of them together."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pruning.core import options
from tasks.common.sources import file_of_source
from tasks.settings.bounds import (
    MOST,
    Clip,
    Count,
    Fraction,
    Rate,
    Scale,
    Section,
    Seed,
    Share,
    Temperature,
    expect_distinct,
)
from tasks.settings.choosing import Fuse, Prune, Reconstruct, Variant
from tasks.settings.signals import (
    Activations,
    CalibrationSettings,
    Cooperative,
    Criteria,
    Gradients,
    Hessian,
    Intervention,
    Oracle,
    Surgeon,
    Weights,
)

COSTS = ("neurons", "parameters", "multiply_adds", "latency")
OWN = "a function of yours in own/, written own.module:function"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
NAME = "lower-case letters, digits and _, a letter first, at most 100 in all"


class Model(Section):
    """Where a model of the user's own comes from, in place of `train`'s."""

    source: Annotated[str, Field(description=OWN)] | None

    @model_validator(mode="after")
    def source_exists(self) -> "Model":
        """Refuse a source outside `own/`, or a function that is not there; neither is run."""
        if self.source is not None:
            file_of_source(self.source, "model.source")
        return self


class Compute(Section):
    """Where every stage computes that runs a model, and how precisely a GPU multiplies float32."""

    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|mps|xpu|cuda|cuda:[0-9]{1,2})$", description="auto, cpu, cuda, cuda:1, mps or xpu"),
    ]
    float32: Literal["highest", "high", "medium"]


class CorpusSettings(Section):
    """Settings of `prepare`."""

    source: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", description="a path to a folder or a text file")]
    tokens: options.Tokens
    vocabulary: Annotated[int, Field(ge=3, le=MOST)]
    lowercase: bool
    valid: Fraction
    test: Fraction
    calibration: Annotated[float, Field(ge=0, le=0.5)]
    seed: Seed

    @model_validator(mode="after")
    def leaves_text_to_train_on(self) -> "CorpusSettings":
        """Refuse splits that take all the text."""
        if self.valid + self.test >= 1:
            raise ValueError(f"Expected corpus.valid + corpus.test below 1, got {self.valid + self.test}")
        return self


class Learning(Section):
    """What `train` and `finetune` share."""

    batch: Count
    bptt: Count
    epochs: Count
    portion: Share
    learning_rate: Rate
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, le=100)]
    clip: Clip
    patience: Count
    seed: Seed

    @model_validator(mode="after")
    def decays_less_than_all(self) -> "Learning":
        """Refuse a decay that takes more than the whole weight in one step."""
        place = type(self).__name__.lower()
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"Expected {place}.weight_decay below {1 / self.learning_rate:g} with {place}.learning_rate "
                f"{self.learning_rate:g}, got {self.weight_decay:g}"
            )
        return self


class Train(Learning):
    """Settings of `train`."""

    family: options.Family
    embedding: Count
    widths: Annotated[list[Count], Field(min_length=1)]
    decoder: options.Decoder
    dropout: Annotated[float, Field(ge=0, lt=1)]
    type: options.TrainingType
    softmax: options.Softmax
    sampled: Count
    nonlinearity: options.Nonlinearity
    cell: options.RecurrentCell
    snn_widths: Annotated[list[Count], Field(min_length=1)]
    recurrent: bool
    leak: Fraction
    threshold: Scale
    slope: Scale
    least_rate: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def layers_fit(self) -> "Train":
        """Refuse halves of different numbers of layers, and a tied decoder that the last layer does not fit."""
        last = [self.widths[-1]]
        if self.family == "mixed":
            options.check_halves(self.widths, self.snn_widths, "train.")
            last += [self.snn_widths[-1]]
        options.check_tied(self.decoder, self.embedding, last, "train.")
        return self


class Finetune(Learning):
    """Settings of `finetune`; what is null is as `train` has it."""

    type: options.TrainingType | None
    softmax: options.Softmax | None
    sampled: Count | None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None
    distillation: Annotated[float, Field(ge=0, le=1)]
    temperature: Temperature


class Evaluate(Section):
    """Settings of `evaluate`."""

    batch: Count
    bptt: Count


class Timing(Section):
    """Settings of `timing`."""

    repeats: Count


class Compare(Section):
    """Settings of `compare`."""

    control: str


class PathSettings(Section):
    """Settings of `path`."""

    retain: Annotated[list[Fraction], Field(min_length=1)]
    repair: options.Repair
    repeats: Count

    @model_validator(mode="after")
    def models_have_names_of_their_own(self) -> "PathSettings":
        """Refuse shares that are written alike to six digits, by which the models are called; 1 is the dense one's."""
        expect_distinct([f"{share:g}" for share in (1.0, *self.retain)], "path.retain, to six digits and beside 1,")
        return self


class Promotion(Section):
    """What a variant must fulfil to be promoted: how near to the dense one, at which share of its cost."""

    tolerance: Annotated[float, Field(ge=0, le=10)]
    cost: Annotated[str, Field(pattern=f"^({'|'.join(COSTS)})$", description=f"one of {', '.join(COSTS)}")]
    at_most: Annotated[float, Field(gt=0, le=10)]


class Sections(Section):
    """All of params.yaml."""

    compute: Compute
    model: Model
    corpus: CorpusSettings
    train: Train
    calibration: CalibrationSettings
    weights: Weights
    hessian: Hessian
    activations: Activations
    gradients: Gradients
    cooperative: Cooperative
    surgeon: Surgeon
    intervention: Intervention
    criteria: Criteria
    oracle: Oracle
    fuse: Fuse
    prune: Prune
    reconstruct: Reconstruct
    variants: Annotated[dict[Name, Variant], Field(min_length=1, description=NAME)]
    finetune: Finetune
    evaluate: Evaluate
    timing: Timing
    compare: Compare
    path: PathSettings
    promotion: Promotion
