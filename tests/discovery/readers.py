"""Each reader of a network that is found, seen while it runs."""

from typing import Any

import torch
from torch import Tensor

from pruning.core.reading import Read, Reading
from pruning.discovery import Discovered


def assert_each_is_seen(found: Discovered, inputs: Any) -> None:
    """Check that each reader of each layer is seen to read, and as many numbers as it has columns for the layer."""
    found = found.eval()
    pieces = [(layer, piece) for layer in found.layers() for piece in layer.read]
    seen: dict[int, list[bool]] = {}

    def observe(number: int, read: Read) -> None:
        layer, piece = pieces[number]
        values: Tensor = read.of(piece)[0]
        seen.setdefault(number, []).append(values.shape[1] == layer.width)

    with torch.no_grad(), Reading(found, [piece for _, piece in pieces], observe):
        found(**inputs) if isinstance(inputs, dict) else found(*inputs)
    assert [piece.parameter for number, (_, piece) in enumerate(pieces) if number not in seen] == []
    assert all(all(right) for right in seen.values())
