"""The experiment's pieces: one dense model pruned by each choice of neurons, then the same repair and training."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pruning.batching import Window, Windows
from pruning.comparison import PHASES
from pruning.distillation import Imitation, Teacher, imitate
from pruning.evaluation import Size, size_of
from pruning.fusion import Fusion, fusion
from pruning.layers import Keep, select
from pruning.models.base import LanguageModel
from pruning.oracle import cluster_losses
from pruning.progress import Track, silently
from pruning.reconstruction import reconstruct
from pruning.retention import keep_of, retention
from pruning.sensitivity import sensitivities
from pruning.signals.activations import Covariances, activations
from pruning.signals.cooperative import cooperative
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.surgeon import surgeon
from pruning.signals.weights import weights
from pruning.statistics import ClusteredMean
from pruning.tables import BESIDE, CRITERIA, SIGNALS
from pruning.training import Recipe, train

MEASURED = ("activations", *(name for name in SIGNALS if name != "activations"), *BESIDE, "criteria")
"""What `measure` knows, in an order in which nothing precedes what it needs."""
FOLDS = 5
"""Parts that measured neurons are cut into where weights are learned."""

Effort = Mapping[str, Mapping[str, Any]]
"""Signal → the settings of its function, but for the seed."""
USUAL: Effort = {
    "weights": {"threshold": 0.1, "bins": 32},
    "hessian": {"probes": 60, "stability": 0.9},
    "activations": {"activation_samples": 100, "bins": 32},
    "gradients": {"batches": 100},
    "cooperative": {"strong": 0.75},
    "surgeon": {"batches": 20, "damping": 1e-4},
    "criteria": {"batches": 20, "bins": 8, "classes": 8, "ridge": 1e-4},
}
"""An effort of a minute or two for a thousand neurons on two cores."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a variant chooses neurons by.

    Attributes:
        by: `fused`, a signal whose importance is taken as it is, or `random`.
        strategy: How signals are fused.
        signals: Which ones.
        scope: The choice's own scope of comparison (see `retention`); empty for the experiment's.
    """

    by: str = "fused"
    strategy: str = "simple"
    signals: tuple[str, ...] = SIGNALS
    scope: str = ""


VARIANTS = {
    "random": Choice(by="random"),
    "traditional": Choice(by="hessian"),
    "weights": Choice(signals=("weights",)),
    "weights+activations": Choice(signals=("weights", "activations")),
    "weights+activations+gradients": Choice(signals=("weights", "activations", "gradients")),
    "simple": Choice(),
    "adaptive": Choice(strategy="adaptive"),
    "learned": Choice(strategy="learned"),
    "surgeon": Choice(by="surgeon", scope="absolute"),
}
"""The steps of the comparison. `simple` to `learned` fuse all signals; `learned` weighs the field's criteria too."""
CONTROL, TRADITIONAL, RANDOM = "dense", "traditional", "random"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is read for what.

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
class Calibration:
    """What is known of a dense model from one stretch of text and one seed.

    Attributes:
        tables: Signal → its table; of `MEASURED`, as many as are needed.
        covariances: Each layer's outputs, in groups of text.
        seed: Seed of probes, sampled labels, folds and the random control.
    """

    tables: Mapping[str, pd.DataFrame]
    covariances: Covariances
    seed: int


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
    def perplexity(self) -> float:
        """exp(cross-entropy)."""
        return math.exp(min(self.mean, 700.0))

    def above(self, other: "Losses") -> tuple[float, float]:
        """Return how much larger the mean loss is than another model's, nat/token, and the paired standard error."""
        found = ClusteredMean.empty(1)
        found.update((self.sums - other.sums)[:, None], self.tokens)
        return float(found.mean), float(found.standard_error)


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


def run_traditional_pruning(
    model: LanguageModel,
    texts: Texts,
    *,
    retain: float,
    treatment: Treatment,
    seed: int,
    effort: Effort = USUAL,
    calibration: Calibration | None = None,
    track: Track = silently,
) -> Pruning:
    """Return the model pruned by the traditional importance, Hessian trace × ‖w‖² / n: cut, repaired, fine-tuned.

    Args:
        model: The dense model; it is left as it was.
        texts: What is read for what.
        retain: Share of neurons to keep, in (0, 1).
        treatment: What follows the choice.
        seed: Seed of probes and of the extra training.
        effort: Settings of the signals that have to be measured.
        calibration: What is known already; without it, it is measured.
        track: Shows progress.
    """
    found = calibration or calibrate(
        model, texts.calibration, ("activations", "hessian"), effort=effort, seed=seed, track=track
    )
    return prune_and_train(
        model, texts, found, variant=TRADITIONAL, retain=retain, treatment=treatment, seed=seed, track=track
    )


def run_enhanced_pruning(
    model: LanguageModel,
    texts: Texts,
    *,
    retain: float,
    treatment: Treatment,
    seed: int,
    variant: str = "simple",
    effort: Effort = USUAL,
    calibration: Calibration | None = None,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
    track: Track = silently,
) -> Pruning:
    """Return the model pruned by an enhanced importance: cut, repaired, fine-tuned.

    Args:
        model: The dense model; it is left as it was.
        texts: What is read for what.
        retain: Share of neurons to keep, in (0, 1).
        treatment: What follows the choice.
        seed: Seed of probes, sampled labels and of the extra training.
        variant: A key of `VARIANTS`.
        effort: Settings of the signals that have to be measured.
        calibration: What is known already; without it, every signal is measured.
        oracle: Measured removals, which `learned` needs.
        weights: Saved weights in their place (see `fusion.to_plain`).
        track: Shows progress.

    Raises:
        ValueError: For an unknown variant, or `learned` with neither measured removals nor saved weights.
    """
    choice_of(variant)
    found = calibration or calibrate(model, texts.calibration, MEASURED, effort=effort, seed=seed, track=track)
    return prune_and_train(
        model, texts, found, variant=variant, retain=retain, treatment=treatment, seed=seed, oracle=oracle,
        weights=weights, track=track,
    )  # fmt: skip


def run_dense_control(
    model: LanguageModel, texts: Texts, *, treatment: Treatment, seed: int, training: int = 0
) -> Pruning:
    """Return the dense model and the dense model after the same extra training, in the form of a pruning.

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


def prune_and_train(
    model: LanguageModel,
    texts: Texts,
    calibration: Calibration,
    *,
    variant: str,
    retain: float,
    treatment: Treatment,
    seed: int,
    training: int = 0,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
    track: Track = silently,
) -> Pruning:
    """Return the model pruned by a variant from a calibration that is known; see `run_enhanced_pruning`."""
    separate = model.decoupled()
    keep = chosen(calibration, variant, retain=retain, treatment=treatment, oracle=oracle, weights=weights)
    repaired = _repaired(separate, keep, calibration.covariances, texts.calibration, treatment, track)
    models = {
        "pruned": select(separate, keep),
        "reconstructed": repaired,
        "finetuned": _finetuned(repaired, model, texts, treatment, seed),
    }
    losses = {phase: losses_of(models[phase], texts.judged) for phase in track(PHASES, f"{variant} {retain:.0%}")}
    return Pruning(
        variant=variant, retain=retain, calibration=calibration.seed, training=training, keep=keep, losses=losses,
        size=size_of(models["pruned"]), models=models,
    )  # fmt: skip


def chosen(
    calibration: Calibration,
    variant: str,
    *,
    retain: float,
    treatment: Treatment,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Keep:
    """Return the kept neurons of each layer by a variant."""
    importance = importance_of(calibration, variant, oracle=oracle, weights=weights)
    scope = choice_of(variant).scope or treatment.scope
    retained = retention(
        importance, variant=variant, by="importance", retain=retain, floor=treatment.floor, scope=scope
    )
    return keep_of(retained)


def importance_of(
    calibration: Calibration,
    variant: str,
    *,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return what a variant ranks neurons by: `layer`, `neuron`, `importance`."""
    choice, tables = choice_of(variant), calibration.tables
    keys = tables["activations"][["layer", "neuron"]]
    if choice.by == "random":
        return keys.assign(importance=np.random.default_rng(calibration.seed).random(len(keys)))
    if choice.by != "fused":
        return keys.assign(importance=tables[choice.by]["importance"])
    fused = fused_by(calibration, choice, oracle=oracle, weights=weights)
    return keys.assign(importance=fused.importance["fused"])


def fused_by(
    calibration: Calibration,
    choice: Choice,
    *,
    oracle: pd.DataFrame | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Fusion:
    """Return the fusion of a choice; only a learned one looks at measured removals and the field's criteria."""
    learned = choice.strategy == "learned"
    return fusion(
        calibration.tables,
        strategy=choice.strategy,
        seed=calibration.seed,
        signals=choice.signals,
        folds=FOLDS,
        oracle=oracle if learned and weights is None else None,
        criteria=calibration.tables["criteria"][["layer", "neuron", *CRITERIA]] if learned else None,
        weights=weights if learned else None,
    )


def choice_of(variant: str) -> Choice:
    """Return what a variant chooses by.

    Raises:
        ValueError: If there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; known: {list(VARIANTS)}.")
    return VARIANTS[variant]


def calibrate(
    model: LanguageModel,
    windows: Windows,
    names: Sequence[str],
    *,
    effort: Effort,
    seed: int,
    track: Track = silently,
) -> Calibration:
    """Measure signals on one stretch of text; `activations` is always among them, for the repair reads its states."""
    tables: dict[str, pd.DataFrame] = {}
    covariances: Covariances = {}
    for name in MEASURED:
        if name == "activations" or name in names:
            tables[name], covariances = measure(
                name, model, windows, covariances, effort=effort, seed=seed, track=track
            )
    return Calibration(tables, covariances, seed)


def measure(
    name: str,
    model: LanguageModel,
    windows: Windows,
    covariances: Covariances,
    *,
    effort: Effort,
    seed: int,
    track: Track = silently,
) -> tuple[pd.DataFrame, Covariances]:
    """Return a signal's table, and the covariances of the layers' outputs: those given, or `activations`' own.

    Args:
        name: One of `MEASURED`.
        model: The dense model; it may be tied.
        windows: Calibration text.
        covariances: What `activations` gave, for `cooperative` and `surgeon`.
        effort: The signal's settings.
        seed: Seed of probes and sampled labels.
        track: Shows progress.

    Raises:
        ValueError: For an unknown signal.
    """
    if name not in MEASURED:
        raise ValueError(f"Unknown signal {name!r}; known: {list(MEASURED)}.")
    separate, own = model.decoupled(), dict(effort[name])
    if name == "activations":
        return activations(separate, windows, **own, track=track)
    if name == "weights":
        return weights(separate, **own), covariances
    if name == "cooperative":
        return cooperative(separate, covariances, **own), covariances
    if name == "surgeon":
        damping = own.pop("damping")
        moments = sensitivities(separate, windows, **own, seed=seed, track=track)
        return surgeon(covariances, moments, damping=damping), covariances
    if name == "gradients":
        return gradients(separate, windows, **own, track=track), covariances
    measured = hessian if name == "hessian" else criteria
    return measured(separate, windows, **own, seed=seed, track=track), covariances


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
    learner = copy.deepcopy(model)
    teacher = Teacher.of(dense, share=treatment.distillation)
    glance = _glance(texts.judged)
    for _ in train(learner, texts.training, glance, recipe=treatment.recipe, seed=seed, teacher=teacher):
        continue
    return learner.eval()


def _glance(windows: Windows) -> Windows:
    """Return one column of the first window: what training validates on, though nothing depends on it here."""
    window = windows[0]
    return Windows(window.targets[:, 0], first=int(window.tokens[0, 0]), batch=1, bptt=len(window.targets))
