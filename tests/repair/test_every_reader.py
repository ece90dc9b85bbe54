"""Whatever form a network is written in, each reader of each layer that is found is seen to read."""

import pytest
import torch

import pruning
from pruning.core.reading import Reading
from tests import foreign
from tests.discovery import test_forms, test_kinds

NETWORKS = {
    **{f"form {name}": (test_forms.made, name) for name in test_forms.FORMS},
    **{f"kind {name}": (test_kinds.made, name) for name in test_kinds.KINDS},
    **{name: (foreign.made, name) for name in ("ResNet", "ViT", "GPT-2", "BERT", "translator", "concatenated")},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_reader_of_each_layer_is_seen_with_as_many_numbers_as_it_has_columns(kind):
    made, name = NETWORKS[kind]
    network, inputs = made(name)
    found = pruning.discover(network, inputs).eval()
    pieces = [(layer, piece) for layer in found.layers() for piece in layer.read]
    seen = {}

    def observe(number, read):
        layer, piece = pieces[number]
        seen.setdefault(number, []).append(read.of(piece)[0].shape[1] == layer.width)

    with torch.no_grad(), Reading(found, [piece for _, piece in pieces], observe):
        found(**inputs) if isinstance(inputs, dict) else found(*inputs)
    assert [piece.parameter for number, (_, piece) in enumerate(pieces) if number not in seen] == []
    assert all(all(right) for right in seen.values())
