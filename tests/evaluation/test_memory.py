"""Memory counted from shapes, against counting by hand and against looking at every operation for every tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning.core.units import byte_count, in_bytes
from pruning.evaluation.memory import Trace, memory_of, traced
from pruning.models.adapting import adapt
from tests.tiny import DECODERS, FAMILIES, bytes_of, tensors_of, tiny


def adapted(network, *shape):
    return adapt(network.eval(), torch.randn(*shape), loss=nn.CrossEntropyLoss())


def test_a_chain_holds_what_its_widest_operation_reads_and_gives():
    memory = memory_of(adapted(nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)), 4, 10))
    assert vars(memory) == {"weights": 4 * (10 * 20 + 20 + 20 * 5 + 5), "state": 0, "activations": 4 * (20 + 20)}
    assert memory.total == memory.weights + memory.activations


def test_what_is_read_again_later_is_alive_until_then():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Linear(10, 30), nn.Linear(30, 10)

        def forward(self, inputs):
            return inputs + self.narrow(self.wide(inputs).tanh())

    assert memory_of(adapted(Skipping(), 4, 10)).activations == 4 * (10 + 30 + 30)


def test_images_hold_maps_of_one_example_and_changes_in_place_need_nothing():
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()]
    memory = memory_of(adapted(nn.Sequential(*parts, nn.Linear(8 * 36, 2)), 5, 3, 6, 6))
    assert memory.activations == 4 * (8 * 36 + 8 * 36 + 2 * 8)  # what the normalisation reads and gives, and by what
    counter = 8  # of batches, which the normalisation keeps
    assert memory.weights == 4 * (3 * 8 * 9 + 8 + 4 * 8 + 8 * 36 * 2 + 2) + counter


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_carries_its_state_and_holds_weights_once(decoder, family):
    model = tiny(decoder, family=family)
    memory = memory_of(model)
    _, state = model(torch.zeros(1, 1, dtype=torch.long))
    assert memory.state == 4 * sum(tensor.numel() for layer in state for tensor in layer)
    assert memory.weights == 4 * sum(parameter.numel() for parameter in model.parameters())
    logits = 4 * model.encoder.num_embeddings
    assert memory.activations > logits + memory.state  # the next state is there beside the logits


def test_int8_takes_a_byte_a_number_and_a_scale_a_row_and_leaves_vectors():
    memory = memory_of(adapted(nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)), 4, 10), numbers="int8")
    assert memory.weights == (200 + 4 * 20) + 4 * 20 + (100 + 4 * 5) + 4 * 5
    assert memory.activations == 160


@given(st.data())
def test_what_is_alive_is_what_was_given_and_is_still_read_or_kept(data):
    count = data.draw(st.integers(1, 6))
    gives = [{number} for number in range(1, count + 1)]
    reads = [data.draw(st.sets(st.integers(0, number), min_size=1)) for number in range(count)]
    sizes = {number: 3**number for number in range(count + 1)}
    kept = {count}
    expected = []
    for place in range(count):
        held = {
            each
            for each in sizes
            if each <= place + 1 and (each in kept or each == place + 1 or any(each in own for own in reads[place:]))
        }
        if place == 0:
            held |= {0}  # an input is there from the start, whoever reads it
        expected.append(sum(sizes[each] for each in held))
    assert Trace(reads, gives, sizes, kept).alive() == expected


def test_counting_leaves_the_model_and_the_random_state_as_they_were():
    model, random = tiny(dropout=0.5).train(), torch.get_rng_state()
    before = bytes_of(tensors_of(model))
    memory_of(model)
    assert bytes_of(tensors_of(model)) == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_single_precision_counts_whatever_the_model_is_in():
    assert memory_of(tiny(dtype=torch.float32)) == memory_of(tiny(dtype=torch.float64))


def test_a_network_that_reads_its_numbers_is_refused_in_one_sentence():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, inputs):
            hidden = self.wide(inputs).relu()
            return self.narrow(hidden) if hidden.max().item() > -1 else self.narrow(-hidden)

    with pytest.raises(ValueError, match="whose memory can be counted from shapes alone, got "):
        traced(adapted(Looking(), 4, 4))
    with pytest.raises(ValueError, match=r"Unknown numbers 'int4'; known: \['float32', 'int8'\]"):
        memory_of(tiny(), numbers="int4")


@pytest.mark.parametrize("word", ["", "KiB", "12foo", "1 2", "1e", "-3"])
def test_what_is_no_number_of_bytes_is_refused(word):
    with pytest.raises(ValueError, match="Expected bytes, a number alone or with a unit of"):
        byte_count(word)


def test_bytes_are_told_in_words_that_say_them():
    assert [in_bytes(number) for number in (0, 1023, 2048, 1536, 123_456_789)] == [
        "0 B",
        "1023 B",
        "2 KiB",
        "1.5 KiB",
        "118 MiB",
    ]
    assert byte_count(in_bytes(2048)) == 2048
