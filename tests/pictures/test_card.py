"""A neuron's card: each of its numbers is what one finds by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pruning
from pruning.core.hooks import record
from pruning.core.neurons import named_tensors, select
from pruning.core.statistics import merged
from pruning.data.windows import Windows
from pruning.experiment.measuring import USUAL, calibrate
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.pictures.neuron import card_of
from pruning.signals.cooperative import edges_of, recurrent_coupling
from tests.tiny import text, tiny

WORDS = [f"w{number}" for number in range(20)]
TOKENS = text(240)


@pytest.fixture(scope="module")
def known():
    model = tiny("untied", widths=(6, 5), spread=0.6)
    windows = Windows(TOKENS, first=0, batch=3, bptt=8)
    found = calibrate(model, windows, ["weights", "cooperative"], effort=USUAL, seed=1)
    tables = {name: found.tables[name] for name in ("weights", "activations", "cooperative")}
    importance = fuse(tables, Fusing(strategy="simple", seed=1, signals=list(tables)))
    return model, windows, found, importance


def card(known, layer="lstm.1", neuron=2, **more):
    model, windows, found, importance = known
    how = {"importance": importance, "covariances": found.covariances, "tables": found.tables, "words": WORDS, **more}
    return card_of(model, layer, neuron, batches=windows, **how)


def test_ranks_and_errors_are_those_of_the_tables(known):
    _, _, found, importance = known
    scores = card(known).scores.set_index("signal")
    own = importance[importance["layer"] == "lstm.1"].reset_index(drop=True)
    for name in ("weights", "activations", "cooperative", "fused"):
        assert scores.loc[name, "rank"] == own[name].rank(ascending=False)[2]
        assert scores.loc[name, "of"] == 5
    table = found.tables["cooperative"].set_index(["layer", "neuron"])
    assert scores.loc["cooperative", "standard_error"] == table["standard_error"]["lstm.1", 2]
    assert "hessian" not in scores.index


def test_partners_are_the_heaviest_edges(known):
    model, _, found, _ = known
    layer = model.layers()[1]
    correlation = merged(found.covariances["lstm.1"]).correlation
    edges = edges_of(correlation.abs(), recurrent_coupling(layer, named_tensors(model)))[2]
    partners = card(known).partners
    assert len(partners) == 4
    assert partners["edge"].tolist() == sorted((edges[i].item() for i in range(5) if i != 2), reverse=True)
    first = int(partners["neuron"][0])
    assert partners["correlation"][0] == pytest.approx(float(correlation[2, first]))


def test_what_it_costs_is_what_surgery_saves(known):
    model, *_ = known
    smaller = select(model, {"lstm.1": torch.tensor([0, 1, 3, 4])})
    before, after = (pruning.size_of(each) for each in (model, smaller))
    assert card(known).saved == {
        "parameters": before.parameters - after.parameters,
        "multiply_adds": before.multiply_adds - after.multiply_adds,
    }


def test_removal_and_variants_are_told_where_they_are_known(known):
    removals = pd.DataFrame({"layer": "lstm.1", "neuron": [1, 2], "loss_increase": [0.5, 0.25], "standard_error": 0.01})
    table = pd.DataFrame({"layer": "lstm.1", "neuron": range(5), "rank": [5, 4, 3, 2, 1], "kept": [0, 0, 1, 1, 1]})
    found = card(known, removals=removals, kept={"enhanced": table.astype({"kept": bool})})
    assert found.removal == {"loss_increase": 0.25, "standard_error": 0.01, "rank": 2, "of": 2}
    assert "kept by: enhanced (rank 3)" in str(found)
    assert "measured removal: loss +0.25 ± 0.01 nat/target, 2 of 2 measured in its layer" in str(found)
    assert "measured removal: not measured" in str(card(known))


def test_it_fires_after_the_tokens_with_the_highest_mean_activation(known):
    model, windows, *_ = known
    seen, tokens, state = [], [], None
    with torch.no_grad(), record(model, model.layers()[1:], lambda _, own: seen.append(own[:, 2])):
        for window in windows:
            _, state = model(window.tokens, state)
            tokens.append(window.tokens.flatten())
    values, read = torch.cat(seen).numpy(), torch.cat(tokens).numpy()
    firing = card(known).firing
    np.testing.assert_allclose(firing.values, values)
    means = {f"w{token}": values[read == token].mean() for token in np.unique(read) if (read == token).sum() >= 5}
    assert dict(zip(firing.labels["label"], firing.labels["mean"], strict=True)) == pytest.approx(means)
    assert firing.labels["mean"].is_monotonic_decreasing
    (height, words), *_ = firing.moments
    assert height == pytest.approx(values.max())
    assert words[-1] == f"w{read[values.argmax()]}"


def test_a_card_is_drawn_with_its_ranks_and_partners(known):
    found = card(known)
    picture = found.plot()
    ranks, partners, values, labels = picture.axes
    assert [bar.get_width() for bar in partners.patches][::-1] == found.partners["edge"].tolist()
    assert len(ranks.patches) == len(found.scores)
    assert sum(bar.get_height() for bar in values.patches) == len(found.firing.values)
    assert len(labels.patches) == len(found.firing.highest) + len(found.firing.lowest) == 16
    assert "lstm.1, neuron 2 of 5 (rnn)" in picture.get_suptitle()


def test_a_layer_is_named_or_numbered_and_others_are_refused(known):
    assert card(known, "1", 0).layer.name == card(known, 1, 0).layer.name == "lstm.1"
    with pytest.raises(ValueError, match=r"Unknown layer 'gru.0'; known: \['lstm.0', 'lstm.1'\]."):
        card(known, "gru.0")
    with pytest.raises(ValueError, match=r"Expected a layer from 0 to 1, got 7; they are \['lstm.0', 'lstm.1'\]."):
        card(known, "7")
    with pytest.raises(ValueError, match=r"Expected a neuron of lstm.1 from 0 to 4, got 5."):
        card(known, neuron=5)


def test_a_users_network_has_cards_that_tell_classes_and_need_no_words():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network[0].weight.data[0], network[0].bias.data[0] = torch.tensor([9.0, 0, 0]), 0
    inputs = torch.randn(64, 3)
    batches = list(zip(inputs.split(16), (inputs[:, 0] > 0).long().split(16), strict=True))
    importance = pruning.importance(network, batches, nn.CrossEntropyLoss(), signals=["weights"])
    found = importance.card(0, 0, keep=0.5)
    assert found.firing.labels["label"].tolist() == ["class 1", "class 0"]
    assert found.firing.labels["mean"].tolist()[1] == 0
    assert list(found.kept) == ["keep=0.5"]
    assert found.saved == {"parameters": 6, "multiply_adds": 5}
    assert found.plot().image().startswith(b"\x89PNG")
    assert "class 1" in str(found)
    values = found.plain()
    assert values["highest"][0]["label"] == "class 1"
    assert values["kept"]["keep=0.5"]["kept"] in (True, False)


def test_a_lone_neuron_has_neither_partners_nor_a_price():
    model = tiny("untied", widths=(3, 1))
    windows = Windows(TOKENS, first=0, batch=3, bptt=8)
    found = calibrate(model, windows, ["weights"], effort=USUAL, seed=1)
    tables = {name: found.tables[name] for name in ("weights", "activations")}
    importance = fuse(tables, Fusing(strategy="simple", seed=1, signals=list(tables)))
    lone = card((model, windows, found, importance), "lstm.1", 0)
    assert (lone.saved, len(lone.partners)) == ({}, 0)
    lone.plot().image()


def test_words_that_are_not_those_of_the_model_are_refused(known):
    with pytest.raises(ValueError, match=r"Expected the text of each of the model's 20 tokens, got 3."):
        card(known, words=["a", "b", "c"])
