"""What stands in for PyTorch's own recurrent layers and attention computes the same."""

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruning.discovery import Attention, Recurrent
from tests.foreign import floats

KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "tanh": nn.RNN,
    "ReLU": lambda *sizes, **settings: nn.RNN(*sizes, nonlinearity="relu", **settings),
}


def assert_same(one, other):
    leaves = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    for found, expected in leaves:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bias": False}, {"bidirectional": True}])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [True, False])
def test_a_recurrent_module_gives_outputs_states_and_gradients_of_pytorchs_own(kind, layers, settings, batched):
    own = KINDS[kind](3, 4, layers, **settings).double()
    other = Recurrent(copy.deepcopy(own))
    inputs = floats(5, 2, 3) if batched else floats(5, 3)
    rows = layers * (2 if "bidirectional" in settings else 1)
    batch = (5 if "batch_first" in settings else 2,) if batched else ()
    state = floats(rows, *batch, 4, seed=1)
    for given in (None, (state, state.tanh()) if kind == "LSTM" else state):
        found, expected = other(inputs, given), own(inputs, given)
        assert_same(found, expected)
        for module, results in ((other, found), (own, expected)):
            module.zero_grad()
            sum(leaf.square().sum() for leaf in pytree.tree_leaves(results)).backward()
        total = {name.replace("weight_hh", ""): p.grad.square().sum() for name, p in own.named_parameters()}
        assert sum(total.values()) > 0
        torch.testing.assert_close(
            sum(p.grad.square().sum() for p in other.parameters()), sum(p.grad.square().sum() for p in own.parameters())
        )


def test_dropout_between_layers_acts_in_training_alone():
    module = Recurrent(nn.GRU(3, 4, 2, dropout=0.5)).double()
    inputs = floats(5, 2, 3)
    assert torch.equal(module.eval()(inputs)[0], module(inputs)[0])
    assert not torch.equal(module.train()(inputs)[0], module(inputs)[0])


def test_a_packed_sequence_is_refused_in_one_sentence():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 3), torch.ones(2, 3)])
    with pytest.raises(TypeError, match="Expected a padded sequence, got a PackedSequence; call `pad_packed_sequence`"):
        Recurrent(nn.GRU(3, 4))(packed)


CAUSAL = torch.ones(5, 5).triu(1).bool()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"need_weights": False},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "need_weights": False},
        {"attn_mask": floats(5, 5), "average_attn_weights": False},
        {"attn_mask": floats(8, 5, 5)},
    ],
)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("batch_first", "bias"), [(True, True), (False, False)])
def test_attention_gives_what_pytorchs_own_gives(settings, padded, batch_first, bias):
    own = nn.MultiheadAttention(8, 4, batch_first=batch_first, bias=bias).double().eval()
    other = Attention.of(copy.deepcopy(own))
    inputs = floats(2, 5, 8) if batch_first else floats(5, 2, 8)
    hidden = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    if padded and settings.get("attn_mask") is not None and settings["attn_mask"].dtype != torch.bool:
        hidden = torch.zeros(2, 5, dtype=torch.float64).masked_fill(hidden, float("-inf"))  # PyTorch wants one type
    assert_same(
        other(inputs, inputs.tanh(), inputs.exp(), hidden, **settings),
        own(inputs, inputs.tanh(), inputs.exp(), hidden, **settings),
    )


def test_attention_takes_one_sequence_without_a_batch():
    own = nn.MultiheadAttention(8, 4).double().eval()
    inputs = floats(5, 8)
    assert_same(Attention.of(copy.deepcopy(own))(inputs, inputs, inputs), own(inputs, inputs, inputs))
