"""Networks that are drawn as users write them, a few of a fixed seed, and the twin that they are put beside."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pruning
from benchmarks.random_networks import blanks
from benchmarks.random_networks.checks import looked_into
from benchmarks.random_networks.drafts import drawn, source_of
from tests.foreign import floats


@pytest.mark.parametrize("seed", range(10))
def test_of_networks_that_are_drawn_neurons_are_found_and_rightly_removed(seed: int) -> None:
    finding = looked_into(drawn(1000 + seed), measured=False)
    assert (finding.wrong, finding.refused) == ({}, "")


def test_what_is_drawn_follows_from_the_seed_alone() -> None:
    assert source_of(drawn(7)) == source_of(drawn(7)) != source_of(drawn(8))


def test_the_twin_without_some_neurons_knows_nothing_of_who_reads_them() -> None:
    network = nn.Sequential(
        nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5), nn.Softmax(1), nn.Linear(5, 2)
    ).double()
    found = pruning.discover(network, floats(4, 3))
    keep = {"0": torch.tensor([1, 2, 5]), "3": torch.tensor([0, 4])}
    inputs = floats(2, 3)
    hidden = network[0](inputs)[:, [1, 2, 5]]
    hidden = nn.functional.layer_norm(hidden, (3,), network[1].weight[[1, 2, 5]], network[1].bias[[1, 2, 5]]).tanh()
    hidden = nn.functional.linear(hidden, network[3].weight[[0, 4]][:, [1, 2, 5]], network[3].bias[[0, 4]]).softmax(1)
    expected = nn.functional.linear(hidden, network[5].weight[:, [0, 4]], network[5].bias)
    given = blanks.without(network, found.layers(), keep, [inputs])
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


def test_a_neuron_that_goes_although_something_reads_it_is_seen() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    found = pruning.discover(network, floats(4, 3))
    keep, inputs = {"0": torch.tensor([0, 2])}, floats(2, 3)
    smaller = pruning.select(found, keep).network
    twin = blanks.without(network, found.layers(), keep, [inputs])
    torch.testing.assert_close(twin, smaller(inputs), rtol=0, atol=1e-12)
    with torch.no_grad():
        smaller[2].weight.copy_(network[2].weight[:, [0, 1]])
    assert not torch.allclose(twin, smaller(inputs))


def test_behind_the_end_of_a_shorter_sequence_a_neuron_that_is_no_more_is_none_either() -> None:
    packed = pack_padded_sequence(torch.tensor([[[1.0, float("nan")]] * 3] * 2), torch.tensor([3, 2]), batch_first=True)
    with blanks.passed_over():
        sequences, lengths = pad_packed_sequence(packed, batch_first=True)
    assert sequences[..., 0].tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    assert sequences[..., 1].isnan().all()
    assert lengths.tolist() == [3, 2]


def test_places_of_which_no_channel_is_left_are_none_behind_a_convolution_either() -> None:
    inputs = torch.ones(1, 2, 4)
    inputs[:, :, 2], inputs[:, 0, 1] = float("nan"), float("nan")
    alone, wide, back = nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 3, padding=1), nn.ConvTranspose1d(2, 3, 1, stride=2)
    with torch.no_grad(), blanks.passed_over():
        gone = [layer(inputs).isnan().all(1)[0].tolist() for layer in (alone, wide, back)]
    assert gone == [[False, False, True, False], [False] * 4, [False] * 4 + [True, False, False]]
