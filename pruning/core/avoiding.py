"""Widths that layers step over, since their network's code does something else with them, or stops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruning.core.neurons import NeuronLayer, PrunableModule


def avoided_in(model: PrunableModule) -> dict[str, tuple[int, ...]]:
    """Return the layers that must not have some widths → these; see `NeuronLayer`."""
    return {layer.name: layer.avoided for layer in model.layers() if layer.avoided}


def expect_width(layers: Iterable[NeuronLayer], widths: Mapping[str, int]) -> None:
    """Refuse widths with which a network's code does something else.

    Raises:
        ValueError: If a layer is to have a width that it must not have; the sentence names the nearest that it may.
    """
    for layer in layers:
        width = widths.get(layer.name, layer.width)
        if width in layer.avoided and width != layer.width:
            near = min({*range(1, layer.width + 1)} - {*layer.avoided}, key=lambda size: (abs(size - width), -size))
            raise ValueError(
                f"Expected another number of neurons in layer {layer.name!r} than {width}, with which the network's "
                f"own code does something else, or stops; keep {near}."
            )
