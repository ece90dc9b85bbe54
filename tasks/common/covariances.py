"""The covariance of each layer's activations on disk, so that no later stage reads the text again."""

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, tensor

from pruning.core.sketches import Sketch
from pruning.core.statistics import Covariance
from pruning.signals.activations import Covariances
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew
from tasks.common.tables import Layer
from tasks.common.weights import read_weights
from tasks.common.writing import replacing


def write_covariances(path: Path, covariances: Covariances) -> None:
    """Write count, mean and co-moments, or a sketch of these, of each layer and group of text."""
    content = {}
    for layer, groups in covariances.items():
        for group, state in enumerate(groups):
            content[f"{layer}/{group}/count"] = tensor(state.count)
            content[f"{layer}/{group}/mean"] = state.mean
            if isinstance(state, Sketch):
                content[f"{layer}/{group}/rank"] = tensor(state.rank)
                content[f"{layer}/{group}/squares"] = state.squares
                content[f"{layer}/{group}/rows"] = state.rows.contiguous()
            else:
                content[f"{layer}/{group}/products"] = state.products
    with replacing(path) as aside:
        save_file(content, aside)


def read_covariances(path: Path, layers: Iterable[Layer] | None = None) -> dict[str, list[Covariance]]:
    """Return what `write_covariances` wrote.

    Args:
        path: The file.
        layers: Of the model that they must be of, all of them and no others.

    Raises:
        Unexpected: If the file is missing or damaged, or lacks something of these layers.
    """
    content = read_weights(path)
    states: dict[str, list[Covariance]] = {}
    try:
        for place in sorted({key.rsplit("/", 1)[0] for key in content}, key=_layer_and_group):
            states.setdefault(_layer_and_group(place)[0], []).append(_state(content, place))
    except (KeyError, ValueError, RuntimeError) as error:
        raise Unexpected(f"Expected count, mean and products in {path}, got others ({error}); {anew(path)}.") from error
    widths = {layer.name: layer.width for layer in layers} if layers is not None else {}
    for name in widths:
        got = {len(state.mean) for state in states.get(name, [])}
        if got != {widths[name]}:
            raise Unexpected(
                f"Expected {widths[name]} neurons of layer {name!r} in {path}, got {sorted(got) or 'none'}; "
                f"{anew(path)}."
            )
    return states


def _state(content: dict[str, Tensor], place: str) -> Covariance:
    """Return what stands at a place, taken out of the content."""
    count, mean = (content.pop(f"{place}/{part}") for part in ("count", "mean"))
    if f"{place}/rank" not in content:
        products = content.pop(f"{place}/products")
        if mean.ndim != 1 or products.shape != (len(mean), len(mean)):
            raise ValueError(f"{place} has the shapes {tuple(mean.shape)} and {tuple(products.shape)}")
        return Covariance(int(count), mean, products)
    rank, squares, rows = (content.pop(f"{place}/{part}") for part in ("rank", "squares", "rows"))
    if mean.ndim != 1 or squares.shape != mean.shape or rows.ndim != 2 or rows.shape[1:] != mean.shape:
        raise ValueError(f"{place} has the shapes {tuple(mean.shape)}, {tuple(squares.shape)} and {tuple(rows.shape)}")
    return Sketch(int(count), mean, squares, rows, int(rank))


def _layer_and_group(place: str) -> tuple[str, int]:
    layer, group = place.rsplit("/", 1)
    return layer, int(group)
