"""What follows from slices alone: gathering, checking and counting."""

import pytest
import torch

from pruning.core.neurons import NeuronLayer, Slice, cut, gather, mask, masking, named_tensors, removed_neurons, select
from tests.tiny import bytes_of, tensors_of, tiny


def test_gathering_returns_every_number_of_a_neuron_and_of_no_other():
    model = tiny(widths=(5, 6))
    tensors = named_tensors(model)
    for index, layer in enumerate(model.layers()):
        for neuron, found in enumerate(gather(layer.owned, tensors)):
            own = [
                tensors[f"lstm.{index}.{what}_l0"][gate * layer.width + neuron].flatten()
                for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                for gate in range(4)
            ]
            assert sorted(found.tolist()) == sorted(torch.cat(own).tolist())


def test_gathering_what_is_read_returns_the_columns_of_every_reader():
    model = tiny(widths=(5, 6))
    tensors = named_tensors(model)
    first, last = model.layers()
    assert torch.equal(
        gather(first.read, tensors)[3],
        torch.cat([tensors["lstm.0.weight_hh_l0"][:, 3], tensors["lstm.1.weight_ih_l0"][:, 3]]),
    )
    assert torch.equal(
        gather(last.read, tensors)[5],
        torch.cat([tensors["lstm.1.weight_hh_l0"][:, 5], tensors["decoder.weight"][:, 5]]),
    )


def test_positions_of_stacked_copies_stand_block_after_block():
    piece = Slice("weight", dim=0, blocks=3)
    assert piece.indices(torch.tensor([0, 2]), width=4).tolist() == [0, 2, 4, 6, 8, 10]


def test_a_slice_of_a_part_of_a_dimension_holds_that_part_alone():
    piece = Slice("weight", dim=1, blocks=2, start=3, length=4)
    tensor = torch.arange(16.0).reshape(2, 8)
    assert piece.split(tensor).tolist() == [[[3, 11], [5, 13]], [[4, 12], [6, 14]]]
    assert piece.indices(torch.tensor([1]), width=2).tolist() == [4, 6]


def test_a_neuron_may_have_consecutive_places_in_each_block():
    piece = Slice("weight", dim=0, blocks=2, start=1, length=12, size=3)
    assert piece.indices(torch.tensor([1, 0]), width=2).tolist() == [4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]
    tensor = torch.arange(14)[:, None]
    assert piece.split(tensor).tolist() == [[[1, 2, 3], [7, 8, 9]], [[4, 5, 6], [10, 11, 12]]]
    assert torch.equal(piece.join(piece.split(tensor), tensor), tensor)
    layer = NeuronLayer("heads", "head", 2, owned=(piece,), read=(), output="heads")
    assert cut([layer], {"heads": torch.tensor([1])}, {"weight": tensor})["weight"].flatten().tolist() == [
        *(0, 4, 5, 6),
        *(10, 11, 12, 13),
    ]


def test_statistics_are_cut_with_their_neurons_where_they_are_given():
    layer = NeuronLayer("l", "conv", 3, (Slice("w", 0),), (Slice("v", 1),), "l", buffers=(Slice("mean", 0),))
    tensors = {"w": torch.eye(3), "v": torch.eye(3), "mean": torch.arange(3)}
    keep = {"l": torch.tensor([2, 1])}
    assert cut([layer], keep, tensors)["mean"].tolist() == [2, 1]
    del tensors["mean"]
    assert list(cut([layer], keep, tensors)) == ["w", "v"]


def test_layers_that_share_a_readers_columns_keep_their_own():
    model = tiny(widths=(7, 6), family="lstm + snn")
    smaller = select(model, {"lstm.0": torch.tensor([3, 0]), "snn.0": torch.tensor([2])})
    for name in ("lstm.1.weight_ih_l0", "snn.1.weight_ih"):
        assert torch.equal(named_tensors(smaller)[name], named_tensors(model)[name][:, [3, 0, 4 + 2]])
    assert [(piece.start, piece.length) for layer in smaller.layers()[:2] for piece in layer.read[1:]] == [
        (0, 2),
        (0, 2),
        (2, 1),
        (2, 1),
    ]


@pytest.mark.parametrize("act", [select, mask])
@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ({"lstm.7": [0]}, r"Unknown layer 'lstm.7'; known: \['lstm.0', 'lstm.1'\]."),
        ({"lstm.1": []}, "Expected at least one kept neuron in layer 'lstm.1', got none."),
        ({"lstm.0": [1, 2, 1]}, r"Expected distinct neurons 0 to 6 in layer 'lstm.0', got \[1, 2, 1\]."),
        ({"lstm.0": [0, 7]}, r"Expected distinct neurons 0 to 6 in layer 'lstm.0', got \[0, 7\]."),
        ({"lstm.0": [-1]}, r"Expected distinct neurons 0 to 6 in layer 'lstm.0', got \[-1\]."),
    ],
)
def test_a_choice_that_is_not_a_set_of_neurons_is_refused(act, keep, sentence):
    with pytest.raises(ValueError, match=sentence):
        act(tiny(), {name: torch.tensor(kept, dtype=torch.long) for name, kept in keep.items()})


@pytest.mark.parametrize("act", [select, mask])
@pytest.mark.parametrize(
    ("kept", "got"),
    [([0, 2], "list"), (range(2), "range"), (torch.arange(7) > 3, "torch.bool"), (torch.ones(2), "torch.float32")],
)
def test_neurons_that_are_not_named_by_whole_numbers_in_a_tensor_are_refused_with_how_to_name_them(act, kept, got):
    sentence = f"Expected a tensor of the numbers of the neurons that stay in layer 'lstm.0', got {got}; give `torch"
    with pytest.raises(TypeError, match=sentence):
        act(tiny(), {"lstm.0": kept})


def test_a_layer_that_is_not_named_keeps_everything():
    assert select(tiny(), {"lstm.1": torch.tensor([0, 2])}).widths() == (7, 2)


def test_removed_neurons_are_those_that_are_not_kept():
    first, last = tiny().layers()
    keep = {"lstm.0": torch.tensor([6, 1, 4])}
    assert removed_neurons(first, keep).tolist() == [0, 2, 3, 5]
    assert removed_neurons(last, keep).tolist() == []


@pytest.mark.parametrize("act", [select, mask])
@pytest.mark.parametrize("training", [True, False])
def test_the_result_has_the_mode_and_the_type_of_the_model(act, training):
    model = tiny(dtype=torch.float32).train(training)
    result = act(model, {"lstm.0": torch.tensor([3])})
    assert result.training is training
    assert {parameter.dtype for parameter in result.parameters()} == {torch.float32}


def test_a_model_that_is_masked_for_a_while_computes_what_a_masked_one_does_and_is_then_as_it_was(windows):
    model, keep = tiny(), {"lstm.0": torch.tensor([0, 2])}
    before, expected = bytes_of(tensors_of(model)), mask(model, keep)(windows[0].tokens)[0]
    with masking(model, keep):
        assert torch.equal(model(windows[0].tokens)[0], expected)
    assert bytes_of(tensors_of(model)) == before
    with pytest.raises(KeyError), masking(model, keep):
        raise KeyError
    assert bytes_of(tensors_of(model)) == before


def test_what_loses_nothing_in_its_order_is_not_copied_and_another_order_is_made():
    layer = NeuronLayer("l", "dense", 3, owned=(Slice("w", dim=0),), read=(Slice("v", dim=1),), output="l")
    tensors = {"w": torch.arange(3.0), "v": torch.arange(6.0).reshape(2, 3)}
    whole = cut([layer], {"l": torch.arange(3)}, tensors)
    assert whole["w"] is tensors["w"]
    assert whole["v"] is tensors["v"]
    assert cut([layer], {"l": torch.tensor([2, 1, 0])}, tensors)["v"].tolist() == [[2, 1, 0], [5, 4, 3]]
