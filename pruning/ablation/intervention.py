"""Importance by causal analysis: what removal does to the answers, and what the labels say of that, at first order."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch

from pruning.ablation.oracle import Ablation, oracle
from pruning.core.neurons import expect_finite
from pruning.core.progress import Track, silently
from pruning.core.statistics import ClusteredMean
from pruning.core.tables import table, unmeasured
from pruning.core.workers import Map, in_turn
from pruning.data.windows import Batches
from pruning.models.base import LanguageModel, Measurable
from pruning.signals.gradients import gates_of_each
from pruning.signals.schemas import INTERVENTION

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """How much text an intervention reads.

    >>> Intervention(tokens=1000, batches=10).words
    64

    Attributes:
        tokens: Tokens that every neuron's divergence is measured on; three thousand give it to a reliability of 0.9.
        batches: At most so many labelled batches are read.
        label_share: What the label term counts for; 0 leaves it out.
        words: As in `Ablation`.
        seed: Seed of the words drawn.
        most: Of a network that is none of the families, where every neuron costs a reading: from how many neurons on
            nothing is measured, and a warning says so. None for no limit.
    """

    tokens: int = 3000
    batches: int = 10**9
    label_share: float = 1.0
    words: int | Literal["all"] = 64
    seed: int = 1
    most: int | None = None


def intervention(
    model: Measurable,
    windows: Batches,
    labelled: Batches,
    settings: Intervention | None = None,
    *,
    track: Track = silently,
    map: Map = in_turn,
) -> pd.DataFrame:
    """Return the `intervention` table: what the removal of each neuron costs on text that was not trained on.

    With p the dense model's answers, δz the change of the logits by removal and y the labels, the loss rises by

        KL(dense ‖ without the neuron) + E[(p − y) · δz].

    The divergence needs no label, is no smaller than 0 and known well from little text: every neuron is really removed
    for it (the intervention do(h = 0) of Pearl 2009; Chattopadhyay et al. 2019 for neural networks). The second term is
    −∂L/∂m of the neuron's gate m at first order. On text that the model was trained on it says what was overfitted, not
    what helps, so its labels must come from elsewhere.

    It predicts the removal of *one* neuron. To choose a set that is repaired afterwards, `surgeon` is better.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> measured = intervention(unread, text, text, Intervention(tokens=32))
    >>> abs(measured["importance"][0].item()) < 1e-6, bool((measured["divergence"] > -1e-6).all())
    (True, True)

    Args:
        model: A model whose layers have readers of their own.
        windows: Any text (or other batches), such as the training's: its labels are not used.
        labelled: Text that the model was not trained on, nor is to be judged by.
        settings: How much of both is read.
        track: Shows progress.
        map: Who computes: each worker removes its share of the neurons, and differentiates some labelled batches.

    Raises:
        ValueError: If there are fewer than two windows of either.
    """
    expect_finite(model)
    settings = settings or Intervention()
    layers = [(layer.name, layer.width) for layer in model.layers()]
    count = sum(width for _, width in layers)
    if settings.most is not None and count > settings.most and not isinstance(model, LanguageModel):
        logger.warning(
            "Not measured: intervention, because each of %d neurons costs a reading and at most %d are to be removed.",
            count,
            settings.most,
        )
        return unmeasured(INTERVENTION, layers)
    ablation = Ablation(neurons="all", tokens=settings.tokens, words=settings.words, seed=settings.seed)
    frame = oracle(model, windows, ablation, track=track, map=map)[
        ["layer", "neuron", "divergence", "divergence_error"]
    ]
    terms = label_terms(model, labelled, settings.batches, track, map)
    places = [*zip(frame["layer"], frame["neuron"], strict=True)]  # sorted by name, as `model.layers()` need not be
    frame["label_term"] = [float(terms[layer].mean[neuron]) for layer, neuron in places]
    frame["label_error"] = [float(terms[layer].standard_error[neuron]) for layer, neuron in places]
    share = settings.label_share
    frame["importance"] = frame["divergence"] + share * frame["label_term"]
    frame["standard_error"] = np.hypot(frame["divergence_error"], share * frame["label_error"])
    return table(INTERVENTION, frame)


def label_terms(
    model: Measurable, labelled: Batches, batches: int, track: Track, map: Map = in_turn
) -> dict[str, ClusteredMean]:
    """Return −∂L/∂m of every neuron, nat/token, by layer; a batch is a cluster.

    Raises:
        ValueError: If fewer than two batches have targets.
    """
    pairs, layers, read = model.pairs(labelled), model.layers(), 0
    terms = {layer.name: ClusteredMean.empty(layer.width) for layer in layers}
    count = min(batches, len(pairs))
    for gates in gates_of_each(model, layers, pairs, count, track=track, what="intervention", map=map):
        if gates is None:
            continue
        weight, slopes = gates
        for name, values in slopes.items():
            terms[name].update(-weight * values[None], torch.tensor([weight], dtype=torch.float64))
        read += 1
    if read < 2:
        raise ValueError(f"Expected at least two batches with targets for `intervention`, got {read}.")
    return terms
