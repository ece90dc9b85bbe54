"""What a place in a layer's ranking is worth in loss, so that importance can be compared across layers.

A fused score orders the neurons of its layer; its size there says nothing of another layer. Either map keeps that
order and gives each place the loss that a removal at that place costs in that layer.

So continuous and spiking neurons compare too. Their raw numbers do not: a spike is 0 or 1, a tanh anything between −1
and 1, and the surrogate scales every derivative of a spike. But each half of a mixed network is a layer of its own, and
what its removal costs is measured in the network's own loss, forwards, where no surrogate takes part.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from pruning.core.neurons import mask
from pruning.core.progress import Track, silently
from pruning.data.windows import Batches
from pruning.evaluation.measures import loss_of
from pruning.fusion.weights import variance_reliability
from pruning.models.base import Measurable


def by_quantiles(scores: pd.DataFrame, by: str, losses: pd.DataFrame) -> np.ndarray:
    """Return each neuron's loss, nat/token: the quantile of its layer's losses at its place in the layer's ranking.

    Errors widen the spread of estimated losses, and a layer with larger errors would seem to have more neurons at
    both ends, so the losses are first drawn towards the layer's mean by √(var(true) / var(observed)).

    Args:
        scores: Columns `layer`, `neuron` and `by`.
        by: What ranks the neurons within their layer; equals get equal losses.
        losses: Columns `layer`, `loss_increase`, `standard_error`: measured or estimated, of all neurons or a sample.

    Raises:
        ValueError: For a layer without losses.
    """
    calibrated = np.empty(len(scores))
    for layer, places in scores.groupby("layer").indices.items():
        measured = losses[losses["layer"] == layer]
        if measured.empty:
            raise ValueError(f"Expected losses of every layer's neurons, got none of {layer!r}.")
        quantiles = np.sort(_without_noise(measured["loss_increase"].to_numpy(), measured["standard_error"].to_numpy()))
        at = (scores[by].iloc[places].rank().to_numpy() - 0.5) / len(places)
        calibrated[places] = np.interp(at, (np.arange(len(quantiles)) + 0.5) / len(quantiles), quantiles)
    return calibrated


def removal_curves(
    model: Measurable,
    windows: Batches,
    scores: pd.DataFrame,
    *,
    by: str,
    shares: Sequence[float],
    track: Track = silently,
) -> pd.DataFrame:
    """Return what removing a layer's least important neurons *together* costs: `layer`, `removed`, `loss_increase`.

    One reading of the windows for each layer and number of neurons, without repair. One neuron at a time misses what
    neurons do for each other (arXiv 2412.00143); this measures it.

    Args:
        model: The dense model, whose layers have readers of their own.
        windows: Text to measure the loss on.
        scores: Columns `layer`, `neuron` and `by`.
        by: What ranks the neurons.
        shares: Which shares of a layer are removed, ascending, in (0, 1).
        track: Shows progress.
    """
    dense = loss_of(model, windows).mean
    cases = [
        (layer, removed)
        for layer in model.layers()
        for removed in dict.fromkeys(round(share * layer.width) for share in shares)  # few neurons have fewer shares
    ]
    rows = []
    for layer, removed in track([case for case in cases if 0 < case[1] < case[0].width], "removal curves, cuts"):
        ordered = scores[scores["layer"] == layer.name].sort_values([by, "neuron"], kind="stable")
        masked = mask(model, {layer.name: torch.tensor(ordered["neuron"].to_numpy()[removed:])})
        rows.append((layer.name, removed, loss_of(masked, windows).mean - dense))
    return pd.DataFrame(rows, columns=["layer", "removed", "loss_increase"])


def by_curves(scores: pd.DataFrame, by: str, curves: pd.DataFrame) -> np.ndarray:
    """Return each neuron's loss, nat/token: what its layer's removal curve rises by at its place.

    Between measured points the curve is straight; its slopes are made never to fall (isotonic regression, weighted by
    the stretch that each covers), so that the ranking within the layer holds, and between the middles of two stretches
    the slope is linear. The sum over the least important k neurons is then about what the removal of those k costs.

    Args:
        scores: Columns `layer`, `neuron` and `by`.
        by: What ranked the neurons when the curves were measured.
        curves: What `removal_curves` gives.

    A layer of one neuron, which always stays, has no curve; its neuron's loss is 0.

    Raises:
        ValueError: For another layer without a curve.
    """
    from sklearn.isotonic import IsotonicRegression  # half a second that only this function needs

    calibrated = np.empty(len(scores))
    for layer, places in scores.groupby("layer").indices.items():
        curve = curves[curves["layer"] == layer].sort_values("removed")
        if curve.empty and len(places) == 1:
            calibrated[places] = 0.0
            continue
        if curve.empty:
            raise ValueError(f"Expected a removal curve of every layer, got none of {layer!r}.")
        removed = np.concatenate([[0], curve["removed"].to_numpy()])
        rises = np.diff(np.concatenate([[0.0], curve["loss_increase"].to_numpy()]))
        middles, stretches = (removed[1:] + removed[:-1]) / 2, np.diff(removed)
        slopes = IsotonicRegression(y_min=0.0).fit_transform(middles, rises / stretches, sample_weight=stretches)
        place = scores[by].iloc[places].rank().to_numpy() - 0.5
        order = 1e-9 * place / len(place) * max(slopes[-1], np.finfo(float).tiny)  # where the slope is flat
        calibrated[places] = np.interp(place, middles, slopes) + order
    return calibrated


def _without_noise(losses: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the losses drawn towards their mean, so that they vary as much as the true ones."""
    true = variance_reliability(losses, errors)
    return np.asarray(losses.mean() + np.sqrt(true) * (losses - losses.mean()))
