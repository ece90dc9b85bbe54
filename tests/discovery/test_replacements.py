"""What stands in for PyTorch's own recurrent layers and attention computes the same."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import pruning
from pruning.core.neurons import mask
from pruning.discovery import Attention, Recurrent
from pruning.discovery.recurrent import unstacked
from tests.discovery.test_forms import Network
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
    other = Recurrent.of(copy.deepcopy(own))
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
    module = Recurrent.of(nn.GRU(3, 4, 2, dropout=0.5)).double()
    inputs = floats(5, 2, 3)
    assert torch.equal(module.eval()(inputs)[0], module(inputs)[0])
    assert not torch.equal(module.train()(inputs)[0], module(inputs)[0])


@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [2, 5, 1, 4]])
@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_sequence_is_read_as_pytorchs_own_module_reads_it(kind, settings, lengths):
    own = KINDS[kind](3, 4, **settings).double()
    other = Recurrent.of(copy.deepcopy(own))
    packed = nn.utils.rnn.pack_sequence([floats(n, 3, seed=n) for n in lengths], enforce_sorted=False)
    state = floats(4 if "bidirectional" in settings else 1, 4, 4, seed=9)
    for given in (None, (state, state.tanh()) if kind == "LSTM" else state):
        (found, after), (expected, before) = other(packed, given), own(packed, given)
        assert isinstance(found, nn.utils.rnn.PackedSequence)
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two)
        assert_same(after, before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_for_a_recurrent_module_answers_as_pytorchs_own(kind):
    own = KINDS[kind](3, 4, 2, batch_first=True, bidirectional=True, dropout=0.1)
    other = Recurrent.of(copy.deepcopy(own))
    assert isinstance(other, type(own))
    assert isinstance(other, nn.RNNBase)
    numbers = "mode input_size hidden_size num_layers batch_first bidirectional dropout bias proj_size training"
    for name in [*numbers.split(), *(["nonlinearity"] if isinstance(own, nn.RNN) else [])]:
        assert getattr(other, name) == getattr(own, name)
    for name, weight in own.named_parameters():
        assert torch.equal(getattr(other, name), weight)
        assert torch.equal(other.get_parameter(name), weight)
        assert hasattr(other, name)
    assert not hasattr(other, "weight_hh_l2")
    assert not hasattr(other, "weight_hr_l0")
    assert_same(other.all_weights, own.all_weights)
    other.flatten_parameters()
    other.weight_hh_l1_reverse = nn.Parameter(torch.ones(own.weight_hh_l1.shape))
    assert torch.equal(other.get_submodule("1_reverse").weight_hh_l0, torch.ones(own.weight_hh_l1.shape))
    with pytest.raises(AttributeError, match="has no attribute 'weight_hh_l9'"):
        other.weight_hh_l9  # noqa: B018 - asking is what is tested
    again = pickle.loads(pickle.dumps(other))  # noqa: S301 - its own
    inputs = torch.ones(2, 5, 3)
    assert_same(again.eval()(inputs), other.eval()(inputs))
    assert other.to(torch.float64)(inputs.double())[0].dtype == torch.float64


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


def test_heads_that_give_their_weights_to_nobody_are_exact_as_a_dropout_of_none_draws_nothing():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 2)

        def forward(self, inputs):
            return self.out(self.attention(inputs, inputs, inputs)[0])

    found = pruning.discover(Reading(), torch.randn(2, 5, 8))
    assert {layer.name: layer.exact for layer in found.layers()} == {"attention": True, "attention.out_proj": True}


def test_attention_takes_one_sequence_without_a_batch():
    own = nn.MultiheadAttention(8, 4).double().eval()
    inputs = floats(5, 8)
    assert_same(Attention.of(copy.deepcopy(own))(inputs, inputs, inputs), own(inputs, inputs, inputs))


def test_a_network_is_unstacked_beside_itself_and_shares_its_parameters():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict({"rnn": nn.LSTM(3, 4, 2, bidirectional=True)})
            self.out = nn.Linear(8, 2)

        def forward(self, inputs):
            return self.out(self.body["rnn"](inputs)[0])

    own, inputs = Tagger().double(), floats(5, 2, 3)
    apart = unstacked(own)
    assert type(own.body["rnn"]) is nn.LSTM
    assert {"body.rnn.0.weight_hh_l0", "body.rnn.1_reverse.weight_ih_l0"} <= dict(apart.named_parameters()).keys()
    assert {id(p) for p in apart.parameters()} == {id(p) for p in own.parameters()}
    assert apart.out is own.out
    assert_same(apart(inputs), own(inputs))
    assert unstacked(own.out) is own.out


class Dropped(nn.Module):
    """Weight drop: in each call the recurrent weight is another parameter, some of which is zero in training."""

    def __init__(self, module, *, within, names=("weight_hh_l0",)):
        super().__init__()
        self.module, self.within, self.names = module, within, names
        for name in names:
            weight = getattr(module, name)
            delattr(module, name)
            (module if within else self).register_parameter(f"{name}_raw", nn.Parameter(weight.data))
        module.flatten_parameters = self.nothing

    def nothing(self):
        """Stand in for what would lay out weights that are not there."""

    def forward(self, *given):
        for name in self.names:
            raw = getattr(self.module if self.within else self, f"{name}_raw")
            weight = nn.functional.dropout(raw, 0.5, self.training)
            setattr(self.module, name, weight if self.within else weight.clone())
        return self.module.forward(*given) if self.within else self.module(*given)


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_recurrent_module_whose_weight_another_sets_in_each_call_is_cut_as_it_is(kind, within):
    rnn = Dropped(KINDS[kind](5, 8), within=within)
    network = Network(
        lambda s, x: s.out(s.rnn(s.read(x).relu())[0]), read=nn.Linear(3, 5), rnn=rnn, out=nn.Linear(8, 2)
    )
    found = pruning.discover(network.double().eval(), floats(4, 2, 3))
    assert [(layer.name, layer.kind, layer.width) for layer in found.layers()] == [
        ("read", "dense", 5),
        ("rnn.module", "rnn", 8),
    ]
    keep = {"read": torch.tensor([3, 0]), "rnn.module": torch.tensor([6, 1, 3])}
    smaller = pruning.select(found, keep)
    assert_same(smaller(floats(7, 1, 3)), mask(found, keep)(floats(7, 1, 3)))
    assert smaller.network.rnn.module.hidden_size == 3


def test_a_module_of_several_layers_whose_weights_another_sets_is_one_layer_that_nobody_sees_within():
    names = tuple(f"weight_hh_l{part}" for part in ("0", "0_reverse", "1", "1_reverse"))
    rnn = Dropped(nn.LSTM(5, 8, 2, bidirectional=True), within=False, names=names)
    network = Network(
        lambda s, x: s.out(s.rnn(s.read(x).relu())[0]), read=nn.Linear(3, 5), rnn=rnn, out=nn.Linear(16, 2)
    )
    data = [(torch.randn(4, 2, 3), torch.randn(4, 2, 2)) for _ in range(2)]
    found = pruning.discover(network, data[0][0])
    assert [(layer.name, layer.width) for layer in found.layers()] == [("read", 5), ("rnn.module", 8)]
    importance = pruning.importance(found, data, nn.MSELoss(), signals=["activations", "surgeon"])
    assert importance.table["layer"].value_counts().to_dict() == {"rnn.module": 8, "read": 5}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 3, "vdim": 5}])
def test_the_values_of_a_single_head_lose_dimensions(settings, weights, tmp_path):
    def run(self, inputs):
        hidden = self.enter(inputs).tanh()
        keys, values = (self.other(inputs), self.another(inputs)) if settings.get("vdim") else (hidden, hidden)
        return self.out(self.mixed(hidden, keys, values, need_weights=weights)[0])

    def made():
        torch.manual_seed(0)
        mixed = nn.MultiheadAttention(7, 1, batch_first=True, **settings)
        parts = {"enter": nn.Linear(4, 7), "other": nn.Linear(4, 3), "another": nn.Linear(4, 5), "out": nn.Linear(7, 2)}
        return Network(run, mixed=mixed, **parts).double().eval()

    model, inputs = pruning.discover(made(), floats(2, 5, 4)), floats(3, 5, 4)
    assert {layer.name: layer.width for layer in model.layers()}["mixed"] == 7
    keep = {"mixed": torch.tensor([6, 1, 4])}
    smaller = pruning.select(model, keep)
    assert_same(smaller(inputs), mask(model, keep)(inputs))
    pruning.save(smaller, tmp_path / "smaller")
    assert_same(pruning.restore(made(), tmp_path / "smaller")(inputs), smaller(inputs))
