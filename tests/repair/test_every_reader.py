"""Of networks that nobody here wrote each reader is seen to read; of forms and kinds tests/discovery tells that."""

import pytest

import pruning
from tests.discovery.readers import assert_each_is_seen
from tests.foreign import made


@pytest.mark.parametrize("name", ["ResNet", "ViT", "GPT-2", "BERT", "translator", "concatenated"])
def test_each_reader_of_each_layer_is_seen_with_as_many_numbers_as_it_has_columns(name):
    network, inputs = made(name)
    assert_each_is_seen(pruning.discover(network, inputs), inputs)
