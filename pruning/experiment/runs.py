"""From a dense model and its texts alone to a pruning: what is not known yet is measured first."""

from pruning.core.progress import Track, silently
from pruning.experiment.measured import MEASURED, Calibration
from pruning.experiment.measuring import USUAL, Effort, calibrate
from pruning.experiment.trials import Pruning, Selection, Texts, Treatment, prune_and_train
from pruning.experiment.variants import TRADITIONAL
from pruning.models.base import LanguageModel


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
    >>> effort = {"hessian": {"probes": 2, "stability": 0.0}, "activations": {"activation_samples": 4, "bins": 4}}
    >>> pruned = run_traditional_pruning(model, texts, retain=0.5, treatment=treatment, seed=1, effort=effort)
    >>> pruned.variant, pruned.size.neurons
    ('traditional', 3)

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
    calibration = calibration or calibrate(
        model, texts.calibration, ("activations", "hessian"), effort=effort, seed=seed, track=track
    )
    selection = Selection(variant=TRADITIONAL, retain=retain)
    return prune_and_train(model, texts, calibration, selection, treatment=treatment, seed=seed, track=track)


def run_enhanced_pruning(
    model: LanguageModel,
    texts: Texts,
    selection: Selection,
    *,
    treatment: Treatment,
    seed: int,
    effort: Effort = USUAL,
    calibration: Calibration | None = None,
    track: Track = silently,
) -> Pruning:
    """Return the model pruned by an enhanced importance: cut, repaired, fine-tuned.

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
    >>> effort = {"weights": {"threshold": 0.1, "bins": 4}, "activations": {"activation_samples": 4, "bins": 4}}
    >>> known = pruning.calibrate(model, text, ["weights"], effort=effort, seed=1)
    >>> half = pruning.Selection(retain=0.5, variant="weights")
    >>> pruned = run_enhanced_pruning(model, texts, half, treatment=treatment, seed=1, calibration=known)
    >>> pruned.variant, pruned.size.neurons
    ('weights', 3)

    Args:
        model: The dense model; it is left as it was.
        texts: What is read for what.
        selection: Which neurons stay: by which variant, and how many.
        treatment: What follows the choice.
        seed: Seed of probes, sampled labels and of the extra training.
        effort: Settings of the signals that have to be measured.
        calibration: What is known already; without it, every signal is measured.
        track: Shows progress.

    Raises:
        ValueError: For `learned` with neither measured removals nor saved weights.
    """
    calibration = calibration or calibrate(model, texts.calibration, MEASURED, effort=effort, seed=seed, track=track)
    return prune_and_train(model, texts, calibration, selection, treatment=treatment, seed=seed, track=track)
