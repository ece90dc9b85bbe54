"""The covariance of each layer's activations on disk, so that no later stage reads the text again."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import tensor

from pruning.signals.activations import Covariances
from pruning.statistics import Covariance
from tasks.common.writing import replacing


def write_covariances(path: Path, covariances: Covariances) -> None:
    """Write count, mean and co-moments of each layer and group of text."""
    content = {}
    for layer, groups in covariances.items():
        for group, state in enumerate(groups):
            content[f"{layer}/{group}/count"] = tensor(state.count)
            content[f"{layer}/{group}/mean"] = state.mean
            content[f"{layer}/{group}/products"] = state.products
    with replacing(path) as aside:
        save_file(content, aside)


def read_covariances(path: Path) -> dict[str, list[Covariance]]:
    """Return what `write_covariances` wrote."""
    content = load_file(path)
    layers: dict[str, list[Covariance]] = {}
    for place in sorted((key.rsplit("/", 1)[0] for key in content if key.endswith("/mean")), key=_layer_and_group):
        state = Covariance(int(content[f"{place}/count"]), content[f"{place}/mean"], content[f"{place}/products"])
        layers.setdefault(_layer_and_group(place)[0], []).append(state)
    return layers


def _layer_and_group(place: str) -> tuple[str, int]:
    layer, group = place.rsplit("/", 1)
    return layer, int(group)
