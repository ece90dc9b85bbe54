"""The three properties of a family, for the LSTM: relabelling, removing, keeping all; and its sizes."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.batching import Windows
from pruning.evaluation import size_of
from pruning.layers import select, silence
from pruning.models import build, describe, rebuild
from tests.models import (
    DECODERS,
    EMBEDDING,
    SIGNALS,
    VOCABULARY,
    WIDTHS,
    Unrolled,
    bytes_of,
    logits_of,
    permutations,
    subsets,
    tensors_of,
    text,
    tiny,
)

WINDOWS = Windows(text(90), first=0, batch=3, bptt=7)
model_of = cache(tiny)
every_model = pytest.mark.parametrize(
    ("decoder", "widths"), [(decoder, widths) for decoder in DECODERS for widths in WIDTHS.values()]
)


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


@every_model
def test_the_model_equals_the_unrolled_twin(decoder, widths):
    model = model_of(decoder, widths)
    twin = Unrolled(tensors_of(model))
    expected = torch.cat([twin(window.tokens) for window in WINDOWS])
    assert expected.std() > 0.1
    assert largest(logits_of(model, WINDOWS) - expected) <= 1e-12


@every_model
def test_an_offset_is_added_to_what_every_reader_reads(decoder, widths):
    model, window = model_of(decoder, widths), WINDOWS[0]
    twin = Unrolled(tensors_of(model))
    twin.offsets = [
        torch.randn(*window.tokens.shape, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for width in widths
    ]
    offsets = {layer.name: offset for layer, offset in zip(model.layers(), twin.offsets, strict=True)}
    features, _ = model.features(window.tokens, None, offsets)
    assert largest(model.decode(features) - twin(window.tokens)) <= 1e-12


@every_model
@given(data=st.data())
def test_relabelling_neurons_changes_no_logit(decoder, widths, data):
    model = model_of(decoder, widths)
    relabelled = select(model, data.draw(permutations(model)))
    assert largest(logits_of(relabelled, WINDOWS) - logits_of(model, WINDOWS)) <= 1e-12


@every_model
@pytest.mark.parametrize("signal", ["weights", "activations", "gradients", "cooperative"])
@settings(max_examples=2)
@given(data=st.data())
def test_relabelling_neurons_relabels_their_importance(decoder, widths, signal, data):
    model = model_of(decoder, widths)
    order = data.draw(permutations(model))
    before, after = importance_of(signal, model), importance_of(signal, select(model, order))
    for layer, values in before.items():
        np.testing.assert_allclose(after[layer], values[order[layer]], atol=1e-9)


def importance_of(signal, model):
    table = SIGNALS[signal](model, WINDOWS)
    return {layer: rows.to_numpy() for layer, rows in table.groupby("layer")["importance"]}


@every_model
@given(data=st.data())
def test_removing_neurons_equals_masking_them(decoder, widths, data):
    model = model_of(decoder, widths)
    keep = data.draw(subsets(model))
    removed = logits_of(select(model, keep), WINDOWS)
    masks = [
        torch.tensor([float(neuron in keep[layer.name]) for neuron in range(layer.width)], dtype=torch.float64)
        for layer in model.layers()
    ]
    twin = Unrolled(tensors_of(model), masks)
    masked = torch.cat([twin(window.tokens) for window in WINDOWS])
    assert largest(removed - masked) <= 1e-12
    assert largest(removed - logits_of(silence(model, keep), WINDOWS)) <= 1e-12


@every_model
def test_keeping_all_changes_nothing(decoder, widths):
    model = model_of(decoder, widths)
    same = select(model, {layer.name: torch.arange(layer.width) for layer in model.layers()})
    assert same is not model
    assert bytes_of(tensors_of(same)) == bytes_of(tensors_of(model))
    assert describe(same)[0] == describe(model)[0]


@pytest.mark.parametrize("act", [select, silence])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_original_is_left_as_it_was(act, decoder):
    model = tiny(decoder)
    before, config = bytes_of(tensors_of(model)), describe(model)[0]
    smaller = act(model, {"lstm.0": torch.tensor([1, 4]), "lstm.1": torch.tensor([0, 2, 3])})
    for parameter in smaller.parameters():
        torch.nn.init.zeros_(parameter)
    assert bytes_of(tensors_of(model)) == before
    assert describe(model)[0] == config


@every_model
@given(data=st.data())
def test_a_pruned_model_is_an_ordinary_one_with_smaller_widths(decoder, widths, data):
    model = model_of(decoder, widths)
    keep = data.draw(subsets(model))
    smaller = select(model, keep)
    kept = tuple(len(keep[layer.name]) for layer in model.layers())
    config = describe(smaller)[0]
    assert config == {**describe(model)[0], "widths": kept}
    assert [layer.width for layer in smaller.layers()] == list(kept)
    again = rebuild(*describe(smaller))
    assert torch.equal(logits_of(again.eval(), WINDOWS), logits_of(smaller, WINDOWS))


def expected_size(decoder, widths):
    """Return (parameters, multiply-adds) from closed forms."""
    inputs = (EMBEDDING, *widths[:-1])
    recurrent = sum(4 * width * (width + read) for read, width in zip(inputs, widths, strict=True))
    biases = sum(8 * width for width in widths)
    last, embedded = widths[-1], VOCABULARY * EMBEDDING
    if decoder == "tied":
        return embedded + recurrent + biases + VOCABULARY, recurrent + embedded
    if decoder in ("untied", "tied, then untied"):
        matrix = VOCABULARY * last
        return embedded + recurrent + biases + matrix + VOCABULARY, recurrent + matrix
    matrix = EMBEDDING * last
    return (
        embedded + recurrent + biases + matrix + EMBEDDING + VOCABULARY,
        recurrent + matrix + embedded,
    )


@pytest.mark.parametrize("decoder", [*DECODERS, "tied"])
@pytest.mark.parametrize("widths", WIDTHS.values())
def test_sizes_follow_from_the_widths(decoder, widths):
    size = size_of(model_of(decoder, widths))
    assert (size.parameters, size.multiply_adds) == expected_size(decoder, widths)
    assert size.neurons == sum(widths)


@every_model
@settings(max_examples=3)
@given(data=st.data())
def test_sizes_of_a_pruned_model_follow_from_its_widths(decoder, widths, data):
    model = model_of(decoder, widths)
    keep = data.draw(subsets(model))
    size = size_of(select(model, keep))
    kept = tuple(len(keep[layer.name]) for layer in model.layers())
    assert (size.neurons, size.parameters, size.multiply_adds) == (sum(kept), *expected_size(decoder, kept))


@pytest.mark.parametrize("how", ["project", "untie"])
@pytest.mark.parametrize("training", [True, False])
def test_a_decoupled_model_is_an_equal_one(how, training):
    tied = tiny("tied").train(training)
    decoupled = tied.decoupled(how)
    assert largest(logits_of(decoupled, WINDOWS) - logits_of(tied, WINDOWS)) <= 1e-12
    assert decoupled.training is training
    assert decoupled.decoupled(how) is decoupled


@pytest.mark.parametrize("how", ["project", "untie"])
def test_a_decoupled_model_shares_no_memory_with_the_tied_one(how):
    tied = tiny("tied")
    before = bytes_of(tensors_of(tied))
    for parameter in tied.decoupled(how).parameters():
        torch.nn.init.zeros_(parameter)
    assert bytes_of(tensors_of(tied)) == before


def test_a_tied_model_refuses_to_say_its_layers():
    with pytest.raises(
        ValueError, match=r"Expected a decoder with columns of its own, got a tied one; call `decoupled"
    ):
        tiny("tied").layers()


def test_a_tied_decoder_needs_a_last_layer_as_wide_as_the_embedding():
    with pytest.raises(
        ValueError, match=r"Expected a last layer as wide as the embedding \(6\) for a tied decoder, got 5"
    ):
        tiny("tied", (7, 5))


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="Expected sizes of at least 1"):
        tiny(widths=(5, 0))


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown family 'gruu'; known: \[.*'lstm'.*\]."):
        build("gruu", vocabulary=VOCABULARY)


def test_weights_of_another_configuration_are_refused():
    config, tensors = describe(tiny())
    with pytest.raises(ValueError, match=r"Expected the weights of .*, got others"):
        rebuild({**config, "widths": (7, 5)}, tensors)


def test_dropout_acts_in_training_only():
    model = tiny(dropout=0.5)
    assert torch.equal(logits_of(model, WINDOWS), logits_of(model, WINDOWS))
    model.train()
    assert not torch.equal(logits_of(model, WINDOWS), logits_of(model, WINDOWS))


@pytest.mark.parametrize(
    "make",
    [lambda m: m.resized((3, 2)), lambda m: select(m, {}), lambda m: silence(m, {}), lambda m: rebuild(*describe(m))],
)
def test_making_a_model_from_another_draws_no_global_random_number(make):
    model, before = tiny(), torch.get_rng_state()
    make(model)
    assert torch.equal(torch.get_rng_state(), before)
