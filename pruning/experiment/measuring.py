"""How every signal of a dense model is measured on one stretch of text with one seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pruning.ablation.intervention import Intervention, intervention
from pruning.core.options import expect_known
from pruning.core.progress import Track, silently
from pruning.core.sketches import rank_of
from pruning.core.workers import Map, in_turn
from pruning.data.windows import Batches
from pruning.experiment.measured import MEASURED, Calibration
from pruning.models.base import Measurable
from pruning.signals.activations import Covariances, activations
from pruning.signals.cooperative import cooperative
from pruning.signals.criteria import criteria
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.sensitivity import sensitivities
from pruning.signals.surgeon import surgeon
from pruning.signals.weights import weights

Effort = Mapping[str, Mapping[str, Any]]
"""Signal → the settings of its function, but for the seed."""
USUAL: Effort = {
    "weights": {"threshold": 0.1, "bins": 32},
    "hessian": {"probes": 60, "stability": 0.9},
    "activations": {"activation_samples": 100, "bins": 32},
    "gradients": {"batches": 100},
    "cooperative": {"strong": 0.75},
    "surgeon": {"batches": 20, "damping": 1e-4},
    "intervention": {"tokens": 3000, "batches": 100, "label_share": None, "words": 64, "most": None},
    "criteria": {"batches": 20, "bins": 8, "classes": 8, "ridge": 1e-4},
}
"""An effort of a minute or two for a thousand neurons on two cores."""


def calibrate(
    model: Measurable,
    windows: Batches,
    names: Sequence[str],
    *,
    effort: Effort,
    seed: int,
    labelled: Batches | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> Calibration:
    """Measure signals on one stretch of text; `activations` is always among them, for the repair reads its states.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> found = calibrate(model, text, ["weights"], effort=USUAL, seed=1)
    >>> sorted(found.tables)
    ['activations', 'weights']
    """
    tables: dict[str, pd.DataFrame] = {}
    covariances: Covariances = {}
    for name in MEASURED:
        if name == "activations" or name in names:
            tables[name], covariances = measure(
                name, model, windows, covariances, effort=effort, seed=seed, labelled=labelled, track=track, map=map
            )
    return Calibration(tables, covariances, seed)


def measure(
    name: str,
    model: Measurable,
    windows: Batches,
    covariances: Covariances,
    *,
    effort: Effort,
    seed: int,
    labelled: Batches | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> tuple[pd.DataFrame, Covariances]:
    """Return a signal's table, and the covariances of the layers' outputs: those given, or `activations`' own.

    Args:
        name: One of `MEASURED`.
        model: The dense model; it may be tied.
        windows: Calibration text.
        covariances: What `activations` gave, for `cooperative` and `surgeon`.
        effort: The signal's settings.
        seed: Seed of probes, sampled labels and words.
        labelled: What is read where true labels are looked at: text that the model was not trained on. By default the
            calibration text.
        track: Shows progress.
        map: Who computes.

    Raises:
        ValueError: For an unknown signal.
    """
    expect_known("signal", MEASURED, name)
    separate, settings = model.decoupled(), dict(effort[name])
    judged = windows if labelled is None else labelled
    if name == "activations":
        return activations(separate, windows, **settings, track=track, map=map)
    if name == "weights":
        return weights(separate, **settings), covariances
    if name == "cooperative":
        return cooperative(separate, covariances, **settings), covariances
    if name == "criteria":
        settings.setdefault("rank", rank_of(covariances))
    if name == "surgeon":
        damping = settings.pop("damping")
        moments = sensitivities(
            separate, windows, **settings, seed=seed, rank=rank_of(covariances), track=track, map=map
        )
        return surgeon(covariances, moments, damping=damping), covariances
    if name == "gradients":
        return gradients(separate, judged, **settings, track=track, map=map), covariances
    if name == "intervention":
        removing = Intervention(**settings, seed=seed)
        trained = None if judged is windows else windows
        return intervention(separate, judged, judged, removing, trained=trained, track=track, map=map), covariances
    measured = hessian if name == "hessian" else criteria
    return measured(separate, judged, **settings, seed=seed, track=track, map=map), covariances
