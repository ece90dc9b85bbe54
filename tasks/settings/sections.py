"""The sections of params.yaml: each one's fields, and which of its values contradict one another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pruning.core import options
from pruning.fusion.schemas import CHOICES
from pruning.fusion.taught import NEEDED, WEIGHTS
from pruning.signals.schemas import LEARNABLE, SIGNALS
from tasks.common.sources import file_of_source
from tasks.settings.bounds import (
    MOST,
    Bins,
    Clip,
    Count,
    Fraction,
    Rate,
    Ridge,
    Scale,
    Section,
    Seed,
    Several,
    Share,
    Temperature,
    expect_distinct,
)
from tasks.settings.budget import BudgetOf

if TYPE_CHECKING:
    Choice = str
    Weighed = str
else:  # the words that the tables know, of which a type checker cannot be told
    Choice, Weighed = Literal[CHOICES], Literal[*SIGNALS, *LEARNABLE]
COSTS = ("neurons", "parameters", "multiply_adds", "latency")
SAVED = "a file of saved weights, written learned/name.json"
OWN = "a function of yours in own/, written own.module:function"


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


class Surgeon(Section):
    """Settings of `surgeon`."""

    batches: Several
    damping: Ridge
    seed: Seed


Bound = Count | dict[str, Count]
"""For every layer, or for those that are named."""
Ratio = Annotated[float, Field(ge=0, le=1)]
Quota = dict[options.Half, Ratio]


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


MEASURES = ("rate", "budget", "snn_ratio", "quota")


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


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
NAME = "lower-case letters, digits and _, a letter first, at most 100 in all"


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
