"""One dense model pruned by each choice of neurons, then the same repair and the same extra training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pruning.ablation.losses import cluster_losses
from pruning.core.devices import twin_of
from pruning.core.neurons import Keep, select
from pruning.core.progress import Track, silently
from pruning.core.statistics import ClusteredMean
from pruning.data.windows import Window, Windows
from pruning.evaluation.comparison import PHASES
from pruning.evaluation.measures import Size, size_of
from pruning.experiment.choices import importance_of
from pruning.experiment.measured import Calibration
from pruning.experiment.variants import CONTROL, choice_of
from pruning.models.base import LanguageModel
from pruning.repair.imitation import Imitation, imitate
from pruning.repair.reconstruction import reconstruct
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from pruning.signals.activations import Covariances
from pruning.training.distillation import Teacher
from pruning.training.loop import train
from pruning.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is read for what.

    >>> import torch, pruning
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> len(Texts(calibration=text, training=text, judged=text).judged)
    10

    Attributes:
        calibration: Training text that signals and repairs are measured on.
        training: Training text for the extra training; its batch and length are the training's.
        judged: Text that nothing was trained on, chosen by, or fitted to.
    """

    calibration: Windows
    training: Windows
    judged: Windows


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What follows a choice, the same for all.

    >>> import pruning
    >>> recipe = pruning.Recipe(
    ...     epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
    ... )
    >>> imitation = pruning.Imitation(tokens=32, learning_rate=0.01, warmup=0.1, clip=1.0)
    >>> treatment = Treatment(
    ...     scope="layer", floor=1, repair="ridge", imitation=imitation, recipe=recipe, distillation=0.0
    ... )
    >>> treatment.repair
    'ridge'

    Attributes:
        scope: What importance is compared across (see `retention`).
        floor: Fewest neurons of a layer.
        repair: `none`, `mean`, `ridge` or `imitate` (`ridge`, then imitation).
        imitation: How to imitate.
        recipe: The extra training.
        distillation: Share of the dense model in what the extra training minimises.
    """

    scope: str
    floor: int
    repair: str
    imitation: Imitation
    recipe: Recipe
    distillation: float


@dataclass(frozen=True)
class Losses:
    """A model's losses on the judged text, kept by clusters so that models can be compared on the same tokens.

    Attributes:
        sums: Summed loss of each column of each window, (clusters,) float64, nat.
        tokens: How many tokens each holds, (clusters,).
    """

    sums: Tensor
    tokens: Tensor

    @property
    def mean(self) -> float:
        """Cross-entropy, nat/token."""
        return float(self.sums.sum() / self.tokens.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over the text, nat/token."""
        whole = ClusteredMean.empty(1)
        whole.update(self.sums[:, None], self.tokens)
        return float(whole.standard_error)

    @property
    def perplexity(self) -> float:
        """exp(cross-entropy)."""
        return math.exp(min(self.mean, 700.0))

    def above(self, other: "Losses") -> tuple[float, float]:
        """Return how much larger the mean loss is than another model's, nat/token, and the paired standard error."""
        difference = ClusteredMean.empty(1)
        difference.update((self.sums - other.sums)[:, None], self.tokens)
        return float(difference.mean), float(difference.standard_error)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What one choice kept and what became of it.

    Attributes:
        variant: A key of `VARIANTS`, or `dense`.
        retain: Share of the neurons that was to be kept.
        calibration: Seed of the calibration that the choice came from.
        training: Which dense model, by the seed of its training.
        keep: Layer → kept neurons, ascending.
        losses: Phase (`pruned`, `reconstructed`, `finetuned`) → losses on the judged text.
        size: What the smaller model costs.
        models: Phase → model; empty if the result was read from a file.
    """

    variant: str
    retain: float
    calibration: int
    training: int
    keep: Keep
    losses: Mapping[str, Losses]
    size: Size
    models: Mapping[str, LanguageModel] = field(default_factory=dict)


def run_dense_control(
    model: LanguageModel, texts: Texts, *, treatment: Treatment, seed: int, training: int = 0
) -> Pruning:
    """Return the dense model and the dense model after the same extra training, in the form of a pruning.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> recipe = pruning.Recipe(
    ...     epochs=1, portion=1.0, learning_rate=0.01, warmup=0.1, weight_decay=0.0, clip=1.0, patience=1
    ... )
    >>> imitation = pruning.Imitation(tokens=32, learning_rate=0.01, warmup=0.1, clip=1.0)
    >>> treatment = pruning.Treatment(
    ...     scope="layer", floor=1, repair="ridge", imitation=imitation, recipe=recipe, distillation=0.0
    ... )
    >>> texts = pruning.Texts(calibration=text, training=text, judged=text)
    >>> dense = run_dense_control(model, texts, treatment=treatment, seed=1)
    >>> dense.variant, sorted(dense.losses)
    ('dense', ['finetuned', 'pruned', 'reconstructed'])

    Args:
        model: The dense model; it is left as it was.
        texts: What is read for what.
        treatment: The extra training.
        seed: Its seed.
        training: Which dense model it is, by the seed of its training.
    """
    trained = _finetuned(model, model, texts, treatment, seed)
    before = losses_of(model, texts.judged)
    return Pruning(
        variant=CONTROL,
        retain=1.0,
        calibration=0,
        training=training,
        keep={layer.name: torch.arange(layer.width) for layer in model.decoupled().layers()},
        losses=dict(zip(PHASES, (before, before, losses_of(trained, texts.judged)), strict=True)),
        size=size_of(model),
        models=dict(zip(PHASES, (model, model, trained), strict=True)),
    )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which neurons stay: by which variant, and how many.

    >>> Selection(retain=0.5).variant
    'simple'

    Attributes:
        retain: Share of neurons to keep, in (0, 1).
        variant: A key of `VARIANTS`.
        oracle: Measured removals, which `learned` needs.
        weights: Saved weights in their place (see `fusion.to_plain`).

    Raises:
        ValueError: For an unknown variant.
    """

    retain: float
    variant: str = "simple"
    oracle: pd.DataFrame | None = None
    weights: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        choice_of(self.variant)


def prune_and_train(
    model: LanguageModel,
    texts: Texts,
    calibration: Calibration,
    selection: Selection,
    *,
    treatment: Treatment,
    seed: int,
    training: int = 0,
    track: Track = silently,
) -> Pruning:
    """Return the model pruned from a calibration that is known; see `runs.run_enhanced_pruning`."""
    separate, variant, retain = model.decoupled(), selection.variant, selection.retain
    keep = chosen(calibration, selection, treatment)
    repaired = _repaired(separate, keep, calibration.covariances, texts.calibration, treatment, track)
    models = {
        "pruned": select(separate, keep),
        "reconstructed": repaired,
        "finetuned": _finetuned(repaired, model, texts, treatment, seed),
    }
    losses = {
        phase: losses_of(models[phase], texts.judged) for phase in track(PHASES, f"{variant} {retain:.0%}, phases")
    }
    return Pruning(
        variant=variant, retain=retain, calibration=calibration.seed, training=training, keep=keep, losses=losses,
        size=size_of(models["pruned"]), models=models,
    )  # fmt: skip


def chosen(calibration: Calibration, selection: Selection, treatment: Treatment) -> Keep:
    """Return the kept neurons of each layer."""
    variant, retain = selection.variant, selection.retain
    importance = importance_of(calibration, variant, oracle=selection.oracle, weights=selection.weights)
    scope = choice_of(variant).scope or treatment.scope
    allocation = Allocation(retain=retain, floor=treatment.floor, scope=scope)
    return keep_of(retention(importance, allocation, variant=variant, by="importance"))


def losses_of(model: LanguageModel, windows: Sequence[Window]) -> Losses:
    """Return a model's losses, summed over each column of each window."""
    sums, tokens = zip(*cluster_losses(model, windows), strict=True)
    return Losses(torch.cat(sums).cpu().double(), torch.cat(tokens).cpu().double())


def _repaired(
    model: LanguageModel, keep: Keep, covariances: Covariances, windows: Windows, treatment: Treatment, track: Track
) -> LanguageModel:
    if treatment.repair != "imitate":
        return reconstruct(model, keep, covariances, repair=treatment.repair)
    smaller = reconstruct(model, keep, covariances, repair="ridge")
    return imitate(smaller, model, windows, imitation=treatment.imitation, track=track)


def _finetuned(
    model: LanguageModel, dense: LanguageModel, texts: Texts, treatment: Treatment, seed: int
) -> LanguageModel:
    """Return the model as the last epoch of the extra training leaves it."""
    learner = twin_of(model)
    teacher = Teacher.of(dense, share=treatment.distillation)
    glance = _glance(texts.judged)
    for _ in train(learner, texts.training, glance, recipe=treatment.recipe, seed=seed, teacher=teacher):
        continue
    return learner.eval()


def _glance(windows: Windows) -> Windows:
    """Return one column of the first window: what training validates on, though nothing depends on it here."""
    window = windows[0]
    return Windows(window.targets[:, 0], first=int(window.tokens[0, 0]), batch=1, bptt=len(window.targets))
