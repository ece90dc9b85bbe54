"""The three properties of every family: relabelling, removing, keeping all; and its sizes."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pruning.core.neurons import mask, select
from pruning.data.windows import IGNORED, Windows
from pruning.evaluation.measures import size_of
from pruning.models import build, describe, rebuild
from pruning.models import settings as model_settings
from tasks.common.parameters import Unexpected
from tasks.settings.parameters import checked
from tests.projects import ROOT
from tests.tiny import (
    DECODERS,
    EMBEDDING,
    FAMILIES,
    SIGNALS,
    VOCABULARY,
    WIDTHS,
    bytes_of,
    logits_of,
    permutations,
    subsets,
    tensors_of,
    text,
    tiny,
    twin_of,
)

WINDOWS = Windows(text(90), first=0, batch=3, bptt=7)
model_of = cache(tiny)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_shape = pytest.mark.parametrize(
    ("decoder", "widths"), [(decoder, widths) for decoder in DECODERS for widths in WIDTHS.values()]
)
few_examples = settings(max_examples=3)


@cache
def known_logits(decoder: str, widths: tuple[int, ...], family: str) -> torch.Tensor:
    return logits_of(model_of(decoder, widths, family), WINDOWS)


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


@every_family
@every_shape
def test_the_model_equals_the_unrolled_twin(decoder, widths, family):
    model = model_of(decoder, widths, family)
    twin = twin_of(model)
    expected = torch.cat([twin(window.tokens) for window in WINDOWS])
    assert expected.std() > 0.1
    assert largest(known_logits(decoder, widths, family) - expected) <= 1e-12


@every_family
@every_shape
def test_an_offset_is_added_to_what_every_reader_reads(decoder, widths, family):
    model, window = model_of(decoder, widths, family), WINDOWS[0]
    twin = twin_of(model)
    twin.offsets = [
        torch.randn(*window.tokens.shape, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for width in model.widths()
    ]
    offsets = {layer.name: offset for layer, offset in zip(model.layers(), twin.offsets, strict=True)}
    features, _ = model.features(window.tokens, None, offsets)
    assert largest(model.decode(features) - twin(window.tokens)) <= 1e-12


@every_family
@every_shape
@few_examples
@given(data=st.data())
def test_relabelling_neurons_changes_no_logit(decoder, widths, family, data):
    model = model_of(decoder, widths, family)
    relabelled = select(model, data.draw(permutations(model)))
    assert largest(logits_of(relabelled, WINDOWS) - known_logits(decoder, widths, family)) <= 1e-12


@every_family
@pytest.mark.parametrize(("decoder", "widths"), [("projected", WIDTHS[1]), ("untied", WIDTHS[3])])
@pytest.mark.parametrize("signal", ["weights", "activations", "gradients", "cooperative"])
@settings(max_examples=2)
@given(data=st.data())
def test_relabelling_neurons_relabels_their_importance(decoder, widths, family, signal, data):
    model = model_of(decoder, widths, family)
    order = data.draw(permutations(model))
    before, after = known_importance(signal, model), importance_of(signal, select(model, order))
    for layer, values in before.items():
        np.testing.assert_allclose(after[layer], values[order[layer]], atol=1e-9)


def importance_of(signal, model):
    table = SIGNALS[signal](model, WINDOWS)
    return {layer: rows.to_numpy() for layer, rows in table.groupby("layer")["importance"]}


known_importance = cache(importance_of)


@every_family
@every_shape
@few_examples
@given(data=st.data())
def test_removing_neurons_equals_masking_them(decoder, widths, family, data):
    model = model_of(decoder, widths, family)
    keep = data.draw(subsets(model))
    removed = logits_of(select(model, keep), WINDOWS)
    masks = [
        torch.tensor([float(neuron in keep[layer.name]) for neuron in range(layer.width)], dtype=torch.float64)
        for layer in model.layers()
    ]
    twin = twin_of(model, masks)
    masked = torch.cat([twin(window.tokens) for window in WINDOWS])
    assert largest(removed - masked) <= 1e-12
    assert largest(removed - logits_of(mask(model, keep), WINDOWS)) <= 1e-12


@every_family
@every_shape
def test_keeping_all_changes_nothing(decoder, widths, family):
    model = model_of(decoder, widths, family)
    same = select(model, {layer.name: torch.arange(layer.width) for layer in model.layers()})
    assert same is not model
    assert bytes_of(tensors_of(same)) == bytes_of(tensors_of(model))
    assert describe(same)[0] == describe(model)[0]


@pytest.mark.parametrize("act", [select, mask])
@pytest.mark.parametrize("decoder", DECODERS)
@every_family
def test_the_original_is_left_as_it_was(act, decoder, family):
    model = tiny(decoder, family=family)
    before, config = bytes_of(tensors_of(model)), describe(model)[0]
    smaller = act(model, {layer.name: torch.tensor([0, 2]) for layer in model.layers()})
    for parameter in smaller.parameters():
        torch.nn.init.zeros_(parameter)
    assert bytes_of(tensors_of(model)) == before
    assert describe(model)[0] == config


@every_family
@every_shape
@few_examples
@given(data=st.data())
def test_a_pruned_model_is_an_ordinary_one_with_smaller_widths(decoder, widths, family, data):
    model = model_of(decoder, widths, family)
    keep = data.draw(subsets(model))
    smaller = select(model, keep)
    kept = tuple(len(keep[layer.name]) for layer in model.layers())
    shape = {"widths": kept[::2], "snn_widths": kept[1::2]} if "snn_widths" in describe(model)[0] else {"widths": kept}
    assert describe(smaller)[0] == {**describe(model)[0], **shape}
    assert smaller.widths() == tuple(layer.width for layer in smaller.layers()) == kept
    again = rebuild(*describe(smaller))
    assert torch.equal(logits_of(again.eval(), WINDOWS), logits_of(smaller, WINDOWS))


GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}


def expected_layer(half, read, width):
    """Return (matrices, vectors) of a layer of one kind from closed forms."""
    if half in GATES:
        return GATES[half] * width * (width + read), 2 * GATES[half] * width
    return width * (read + (width if half == "snn" else 0)), 3 * width


def expected_size(family, decoder, rows):
    """Return (parameters, multiply-adds) from closed forms; `rows` are the widths of each layer's halves."""
    inputs = (EMBEDDING, *(sum(row) for row in rows[:-1]))
    layers = [
        expected_layer(half, read, width)
        for read, row in zip(inputs, rows, strict=True)
        for half, width in zip(family.split(" + "), row, strict=True)
    ]
    recurrent, vectors = (sum(numbers) for numbers in zip(*layers, strict=True))
    last, embedded = sum(rows[-1]), VOCABULARY * EMBEDDING
    if decoder == "tied":
        return embedded + recurrent + vectors + VOCABULARY, recurrent + embedded
    if decoder in ("untied", "tied, then untied"):
        matrix = VOCABULARY * last
        return embedded + recurrent + vectors + matrix + VOCABULARY, recurrent + matrix
    matrix = EMBEDDING * last
    return (
        embedded + recurrent + vectors + matrix + EMBEDDING + VOCABULARY,
        recurrent + matrix + embedded,
    )


def rows_of(family, flat):
    """Return flat widths as those of each layer's halves."""
    halves = len(family.split(" + "))
    return [tuple(flat[place : place + halves]) for place in range(0, len(flat), halves)]


@pytest.mark.parametrize("decoder", [*DECODERS, "tied"])
@pytest.mark.parametrize("widths", WIDTHS.values())
@every_family
def test_sizes_follow_from_the_widths(decoder, widths, family):
    model = model_of(decoder, widths, family)
    size = size_of(model)
    assert (size.parameters, size.multiply_adds) == expected_size(family, decoder, rows_of(family, model.widths()))
    assert size.neurons == sum(widths)


@every_family
@every_shape
@settings(max_examples=2)
@given(data=st.data())
def test_sizes_of_a_pruned_model_follow_from_its_widths(decoder, widths, family, data):
    model = model_of(decoder, widths, family)
    keep = data.draw(subsets(model))
    size = size_of(select(model, keep))
    kept = tuple(len(keep[layer.name]) for layer in model.layers())
    expected = expected_size(family, decoder, rows_of(family, kept))
    assert (size.neurons, size.parameters, size.multiply_adds) == (sum(kept), *expected)


@pytest.mark.parametrize("how", ["project", "untie"])
@pytest.mark.parametrize("training", [True, False])
@every_family
def test_a_decoupled_model_is_an_equal_one(how, training, family):
    tied = tiny("tied", family=family).train(training)
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
    with pytest.raises(ValueError, match=r"Expected widths to end with embedding \(6\) for a tied decoder, got 5"):
        tiny("tied", (7, 5))


def test_a_tied_decoder_needs_halves_that_are_together_as_wide_as_the_embedding():
    with pytest.raises(ValueError, match=r"end with, together, embedding \(6\) for a tied decoder, got 5"):
        tiny("tied", (7, 5), "lstm + snn")


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("tanh", {"nonlinearity": "gelu"}, r"Unknown nonlinearity 'gelu'; known: \['relu', 'tanh'\]."),
        ("snn", {"leak": 1.0}, r"Expected a leak in \(0, 1\), got 1.0."),
        ("snn", {"threshold": 0.0}, "Expected threshold and slope above 0, got 0.0 and 2.0."),
        ("snn", {"slope": -1.0}, "Expected threshold and slope above 0, got 0.5 and -1.0."),
        ("snn", {"least_rate": 1.0}, r"Expected a least_rate in \[0, 1\), got 1.0."),
        ("lstm + snn", {"cell": "sltm"}, r"Unknown cell 'sltm'; known: \['gru', 'lstm', 'rnn_relu', 'rnn_tanh'\]."),
        ("lstm + snn", {"snn_widths": (3,)}, r"Expected as many snn_widths as widths \(2\) for family mixed, got 1\."),
    ],
)
def test_a_setting_that_a_family_does_not_know_is_refused(family, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**{**describe(tiny(family=family))[0], **changes})


def test_a_familys_settings_are_those_that_it_is_built_with():
    for family, own in FAMILIES.items():
        assert {"family", *model_settings(own["family"])} == set(describe(tiny(family=family))[0])


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


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.endswith("snn") or "+" in family])
def test_a_model_that_hears_nothing_predicts_each_type_as_often_as_it_was_told_to_expect(family):
    model = tiny(family=family)
    model.expect(torch.tensor([[0, 0, 0], [1, 3, IGNORED]]))
    silent = torch.zeros(1, model.decoder.in_features, dtype=torch.double)
    expected = torch.tensor([4, 2, 1, 2] + [1] * (VOCABULARY - 4)) / (VOCABULARY + 5)
    torch.testing.assert_close(model.decode(silent).softmax(-1)[0], expected.double())


@pytest.mark.parametrize("family", ["snn", "feed-forward snn"])
def test_a_spiking_model_starts_as_it_was_made_whatever_it_is_told_to_expect(family):
    model = tiny(family=family)
    before = bytes_of(tensors_of(model))
    model.expect(torch.tensor([0, 0, 0, 1]))
    assert bytes_of(tensors_of(model)) == before


def test_dropout_acts_in_training_only():
    model = tiny(dropout=0.5)
    assert torch.equal(logits_of(model, WINDOWS), logits_of(model, WINDOWS))
    model.train()
    assert not torch.equal(logits_of(model, WINDOWS), logits_of(model, WINDOWS))


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.resized([3] * len(m.widths())),
        lambda m: select(m, {}),
        lambda m: mask(m, {}),
        lambda m: rebuild(*describe(m)),
    ],
)
@every_family
def test_making_a_model_from_another_draws_no_global_random_number(make, family):
    model, before = tiny(family=family), torch.get_rng_state()
    make(model)
    assert torch.equal(torch.get_rng_state(), before)


def parameters(**train):
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    return {**values, "train": {**values["train"], **train}}


@pytest.mark.parametrize("family", ["lstm", "gru", "rnn", "snn", "mixed"])
def test_one_line_of_the_parameters_chooses_the_family(family):
    train = checked(parameters(family=family)).train.model_dump()
    model = build(family, vocabulary=VOCABULARY, **{name: train[name] for name in model_settings(family)[1:]})
    assert describe(model)[0]["family"] == family


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (
            {"family": "mixed", "snn_widths": [8]},
            r"Expected as many train.snn_widths as train.widths \(2\) for family mixed, got 1",
        ),
        (
            {"family": "mixed", "decoder": "tied"},
            r"Expected train.widths and train.snn_widths to end with, together, train.embedding \(128\) for a tied "
            "decoder, got 256",
        ),
    ],
)
def test_halves_that_do_not_fit_get_a_sentence(train, sentence):
    with pytest.raises(Unexpected, match=sentence):
        checked(parameters(**train))
