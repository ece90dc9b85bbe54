"""The graph of cooperation: who works with whom in a layer, all of it as a matrix and its strongest edges as lines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pruning.core.neurons import Keep, PrunableModule, named_tensors
from pruning.core.statistics import merged
from pruning.pictures.canvas import drawn, sheet, short, shown_layers
from pruning.pictures.importance import kept_of
from pruning.pictures.style import INK, KEPT, REMOVED, SMALL
from pruning.signals.activations import Covariances
from pruning.signals.cooperative import edges_of, recurrent_coupling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pruning.pictures.figure import Picture

MOST = 4
"""Layers that one picture shows, unless they are named."""
NAMED = 28
"""Neurons on a circle, at most: as many as have room for their numbers."""
LINES = 60
"""Edges on a circle, at most."""
GROUPED = 6000
"""Neurons at most that are put in order: that takes memory and time with their square."""
CELLS = 400
"""Rows of a matrix at most; of more neurons, each cell is the mean of several."""


def cooperation_edges(model: PrunableModule, covariances: Covariances) -> dict[str, Tensor]:
    """Return the weight of each edge of the graph of `pruning.cooperative`, layer → (width, width), symmetric.

    Args:
        model: The network that was measured.
        covariances: What `pruning.activations` gave of it.
    """
    tensors = named_tensors(model)
    return {
        layer.name: edges_of(
            merged(covariances[layer.name]).correlation.abs().cpu(), recurrent_coupling(layer, tensors)
        )
        for layer in model.layers()
        if layer.name in covariances
    }


@drawn
def cooperation(
    edges: Mapping[str, Tensor], keep: Keep | None = None, *, layers: Sequence[str] | None = None
) -> "Picture":
    """Return a picture with a row for each layer: all edges as a matrix, and the strongest ones between neurons.

    In the matrix neurons stand beside those that they work with, so that groups are squares along the diagonal. On the
    circle are the neurons of the strongest edges, in the same order.

    Args:
        edges: What `cooperation_edges` gave.
        keep: Kept neurons of each layer, of those that are not whole; None: nothing is said of what is removed.
        layers: Which layers, by default the first `MOST`.

    Raises:
        ValueError: For an unknown layer.
    """
    names, others = shown_layers(list(edges), layers, MOST)
    picture = sheet(4.3 * len(names) + 0.8)
    rows = picture.subplots(len(names), 2, squeeze=False)
    for (left, right), name in zip(rows, names, strict=True):
        weights = edges[name].double().numpy()
        order, stays = grouped(weights), kept_of(name, len(weights), keep)
        image = _matrix(left, weights[np.ix_(order, order)], name)
        picture.colorbar(image, ax=left, label="weight of the edge", shrink=0.85)
        _circle(right, weights, order, stays, split=keep is not None)
    picture.suptitle(f"The graph of cooperation: which neurons say and hear the same{others}")
    return picture


def grouped(weights: np.ndarray) -> np.ndarray:
    """Return an order of neurons in which those that work together stand together, (width,).

    >>> grouped(np.array([[0, 0.1, 0.9], [0.1, 0, 0.2], [0.9, 0.2, 0]])).tolist()
    [1, 0, 2]

    Args:
        weights: Of the edges, (width, width), symmetric, in [0, 1], zero on the diagonal.
    """
    if not 3 <= len(weights) <= GROUPED:
        return np.arange(len(weights))
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import, and no number needs it
    from scipy.spatial.distance import squareform

    apart = 1 - np.clip((weights + weights.T) / 2, 0, 1)
    np.fill_diagonal(apart, 0)
    order: np.ndarray = leaves_list(linkage(squareform(apart, checks=False), method="average"))
    return order


def strongest(weights: np.ndarray, *, neurons: int = NAMED, lines: int = LINES) -> list[tuple[int, int, float]]:
    """Return the strongest edges among the neurons of the strongest edges as (neuron, neuron, weight), falling.

    >>> strongest(np.array([[0, 0.1, 0.9], [0.1, 0, 0.2], [0.9, 0.2, 0]]), neurons=2)
    [(0, 2, 0.9)]

    Args:
        weights: Of the edges.
        neurons: How many neurons the edges may have between them.
        lines: How many edges, at most.
    """
    rows, columns = np.triu_indices(len(weights), k=1)
    order = np.argsort(-weights[rows, columns], kind="stable")
    order = order[weights[rows, columns][order] > 0]
    among: set[int] = set()
    for row, column in zip(rows[order], columns[order], strict=True):
        both = among | {int(row), int(column)}
        if len(both) > neurons:
            break
        among = both
    inside = np.isin(rows[order], list(among)) & np.isin(columns[order], list(among))
    edges = zip(rows[order][inside][:lines], columns[order][inside][:lines], strict=True)
    return [(int(row), int(column), float(weights[row, column])) for row, column in edges]


def _matrix(axes: "Axes", weights: np.ndarray, name: str) -> Any:
    """Draw all edges, neighbours in the order beside each other."""
    several = -(-len(weights) // CELLS)
    if several > 1:
        starts = np.arange(0, len(weights), several)
        sizes = np.diff([*starts, len(weights)])
        summed = np.add.reduceat(np.add.reduceat(weights, starts, axis=0), starts, axis=1)
        weights = summed / np.outer(sizes, sizes)
    width = len(weights) * several
    image = axes.imshow(weights, cmap="cividis", vmin=0, interpolation="nearest", extent=(0, width, width, 0))
    axes.grid(visible=False)
    axes.locator_params(integer=True, min_n_ticks=2)  # there is no neuron 2.5
    of_several = "" if several == 1 else f", means of {several} × {several}"
    axes.set_title(f"{short(name, 20)}: all {len(weights) if several == 1 else width:,} neurons{of_several}")
    axes.set_xlabel("neurons, beside those they work with")
    axes.set_ylabel("neurons, in the same order")
    return image


def _circle(axes: "Axes", weights: np.ndarray, order: np.ndarray, stays: np.ndarray, *, split: bool) -> None:
    """Draw the strongest edges between numbered neurons on a circle."""
    axes.set_axis_off()
    axes.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
    edges = strongest(weights)
    if not edges:
        axes.set_title("no two neurons work together")
        return
    among = {neuron for one, other, _ in edges for neuron in (one, other)}
    circle = [int(neuron) for neuron in order if neuron in among]
    angles = {neuron: 2 * np.pi * place / len(circle) for place, neuron in enumerate(circle)}
    places = {neuron: np.array([np.cos(angle), np.sin(angle)]) for neuron, angle in angles.items()}
    least, most = edges[-1][2], edges[0][2]
    for one, other, weight in reversed(edges):
        strength = (weight - least) / (most - least) if most > least else 1.0
        line = np.stack([places[one], places[other]])
        axes.plot(*line.T, color=INK, linewidth=0.6 + 2.0 * strength, alpha=0.25 + 0.55 * strength, zorder=1)
    for neuron in circle:
        x, y = places[neuron]
        colour = KEPT if stays[neuron] or not split else REMOVED
        axes.plot(x, y, "o", color=colour, markersize=8, markeredgecolor=INK, zorder=2)
        turn = np.degrees(angles[neuron])
        away = turn + 180 if 90 < turn < 270 else turn
        axes.text(1.12 * x, 1.12 * y, str(neuron), rotation=away, rotation_mode="anchor", va="center", fontsize=SMALL,
                  ha="right" if 90 < turn < 270 else "left")  # fmt: skip
    said = "\nkept neurons dark, removed ones light" if split else ""
    axes.set_title(f"strong edges of {len(circle)} neurons, {least:.2f} to {most:.2f}{said}")
