"""What is added to each reader of a layer by itself, against the gradients of gates on its neurons."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pruning
from pruning.signals.gradients import gate_gradients
from tests.networks import Net


def packed(net, x, lengths):
    sequences = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, _ = pad_packed_sequence(net.rnn(sequences)[0], batch_first=True)
    return net.out(outputs)[:, 0]


def stepped(net, x):
    state = None
    for step in range(x.shape[1]):
        state = net.cell(x[:, step], state)
    return net.out(state[0] if isinstance(state, tuple) else state)


def residual(net, x):
    one = F.relu(net.stem(x))
    two = F.relu(one + net.b(F.relu(net.a(one))))
    return net.out(two.mean((2, 3)))


def by_operations(net, x):
    hidden = net.first(x).tanh()
    again = net.first(x + 1).tanh()
    mixed = torch.einsum("...i,oi->...o", hidden, net.second.weight) + torch.einsum(
        "oi,ni->no", (net.second.weight, again)
    )
    return mixed + hidden @ net.second.weight.T + torch.addmm(net.second.bias, again, net.second.weight.mT)


def of_low_rank(net, x):
    hidden = x.new_zeros(len(x), 6)
    for step in range(x.shape[1]):
        given, before = x[:, step] @ net.one.T @ net.two.T, hidden @ net.three.T @ net.four.T
        hidden = torch.tanh(given + before)
    return net.out(hidden)


def at_two_paces(net, x):
    read = net.enter(x).tanh()
    return net.out(torch.cat([net.slow(read[:, ::2])[0][:, -1], net.fast(read)[0][:, -1]], 1))


def turned(net, x):
    read = net.enter(x).tanh()
    return net.out(read[:, -1]) + (net.other(read.flip(1)) * x[..., :3]).sum(1)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


LENGTHS = torch.tensor([7, 5, 3, 1])


def recurrent(kind, **settings):
    width = (2 if settings.get("bidirectional") else 1) * settings.get("proj_size", 6)
    rnn = getattr(nn, kind)(4, 6, batch_first=True, **settings)
    return lambda: (Net(packed, rnn=rnn, out=nn.Linear(width, 3)), (draw(4, 7, 4), LENGTHS))


def cell(kind):
    return lambda: (Net(stepped, cell=getattr(nn, kind)(4, 6), out=nn.Linear(6, 3)), (draw(4, 5, 4),))


def whole_and_by_steps(net, x):
    read, _ = net.rnn(net.emb(x))
    state = sum(net.step(net.emb(x)[:, step]).tanh() for step in range(x.shape[1]))
    return net.out(torch.cat([read[:, -1], state], 1))


def now_and_then(net, x):
    hidden = net.first(x).tanh()
    return net.out((net.now(hidden[:, 1:]) * net.then(hidden[:, :-1])).tanh().mean(1))


class Driven(nn.Module):
    """A cell of parameters of its own, whose module is given something else than what they read."""

    def __init__(self):
        super().__init__()
        self.enter, self.back = nn.Parameter(draw(6, 4)), nn.Parameter(draw(6, 6))

    def forward(self, values, state):
        return torch.tanh(F.linear(values, self.enter) + F.linear(state, self.back))


def driven(net, x):
    state = x.new_zeros(len(x), 6)
    for step in x.unbind(1):
        state = net.cell(step, state)
    return net.out(state)


def stream():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(lambda n, x: n.out(n.enc(n.emb(x)).mean(1)), emb=nn.Embedding(9, 8), enc=encoder, out=nn.Linear(8, 3))


CASES = {
    "packed sequences of an LSTM": recurrent("LSTM", bidirectional=True),
    "packed sequences of a GRU": recurrent("GRU"),
    "packed sequences of an RNN": recurrent("RNN", num_layers=2, nonlinearity="relu"),
    "an LSTM that projects": recurrent("LSTM", proj_size=3),
    "a recurrent layer without biases": recurrent("GRU", bias=False),
    "an LSTM's cell": cell("LSTMCell"),
    "a GRU's cell": cell("GRUCell"),
    "an RNN's cell": cell("RNNCell"),
    "a residual network": lambda: (
        Net(
            residual,
            stem=nn.Conv2d(2, 6, 3, padding=1),
            a=nn.Conv2d(6, 5, 3, padding=1, stride=2),
            b=nn.ConvTranspose2d(5, 6, 2, stride=2),
            out=nn.Linear(6, 3),
        ),
        (draw(4, 2, 6, 6),),
    ),
    "the stream of a Transformer": lambda: (stream(), (torch.randint(9, (4, 5)),)),
    "one reader of a whole sequence and one of each step": lambda: (
        Net(
            whole_and_by_steps,
            emb=nn.Embedding(9, 5),
            rnn=nn.GRU(5, 4, batch_first=True),
            step=nn.Linear(5, 3),
            out=nn.Linear(7, 3),
        ),
        (torch.randint(9, (4, 5)),),
    ),
    "readers of equally many other steps": lambda: (
        Net(now_and_then, first=nn.Linear(4, 6), now=nn.Linear(6, 5), then=nn.Linear(6, 5), out=nn.Linear(5, 3)),
        (draw(4, 5, 4),),
    ),
    "a cell of parameters that read something else than its module is given": lambda: (
        Net(driven, cell=Driven(), out=nn.Linear(6, 3)),
        (draw(4, 3, 4),),
    ),
    "a cell of matrices of low rank": lambda: (
        Net(
            of_low_rank,
            one=nn.Parameter(draw(2, 4)),
            two=nn.Parameter(draw(6, 2)),
            three=nn.Parameter(draw(3, 6)),
            four=nn.Parameter(draw(6, 3)),
            out=nn.Linear(6, 3),
        ),
        (draw(4, 5, 4),),
    ),
    "recurrent layers at two paces": lambda: (
        Net(
            at_two_paces,
            enter=nn.Linear(4, 6),
            slow=nn.GRU(6, 5, batch_first=True),
            fast=nn.GRU(6, 5, batch_first=True),
            out=nn.Linear(10, 3),
        ),
        (draw(4, 6, 4),),
    ),
    "readers of the steps in two orders": lambda: (
        Net(turned, enter=nn.Linear(4, 6), other=nn.Linear(6, 3), out=nn.Linear(6, 3)),
        (draw(4, 5, 4),),
    ),
    "operations on parameters": lambda: (
        Net(by_operations, first=nn.Linear(4, 6), second=nn.Linear(6, 3)),
        (draw(4, 4),),
    ),
}


def model_of(kind):
    torch.manual_seed(0)
    network, inputs = CASES[kind]()
    inputs = inputs if len(inputs) > 1 else inputs[0]
    return pruning.adapt(network.double().eval(), inputs, criterion=nn.CrossEntropyLoss()), inputs


@pytest.mark.parametrize("kind", CASES)
def test_what_is_added_to_each_reader_adds_up_to_the_gradients_by_gates_on_the_neurons(kind):
    model, inputs = model_of(kind)
    assert model.untappable(inputs) == {}
    targets, outputs = torch.tensor([0, 1, 2, 0]), model.outputs(inputs)
    logits, taps, _ = model.tapped(inputs)
    with torch.no_grad():
        torch.testing.assert_close(logits.detach(), model.predicted(inputs)[0], rtol=1e-9, atol=1e-12)
    gammas = torch.autograd.grad(model.judged(logits, targets), list(taps.values()))
    expected, _ = gate_gradients(model, model.layers(), inputs, targets, None)
    assert list(taps) == [layer.name for layer in model.layers()]
    assert model._scattered
    for name, gamma in zip(taps, gammas, strict=True):
        assert expected[name].abs().max() > 1e-7
        torch.testing.assert_close((gamma * outputs[name]).sum((0, 1)), expected[name], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind != "operations on parameters"])
def test_every_layer_has_an_order_of_removal_and_criteria(kind, caplog):
    model, inputs = model_of(kind)

    def batch():
        first, *others = inputs if isinstance(inputs, tuple) else (inputs,)
        new = draw(*first.shape) if first.is_floating_point() else torch.randint(9, first.shape)
        return (new, *others) if others else new

    data = [(batch(), torch.randint(3, (4,))) for _ in range(6)]
    with caplog.at_level(logging.WARNING):
        _, states = pruning.activations(model, data, activation_samples=6, bins=4)
        order = pruning.surgeon(states, pruning.sensitivities(model, data, batches=6, seed=1), damping=1e-3)
        found = pruning.criteria(model, data, batches=6, bins=4, classes=3, ridge=1e-3, seed=1)
    assert "Not measured" not in caplog.text
    assert order["place"].sort_values().tolist() == list(range(1, len(order) + 1))
    assert found.drop(columns=["layer"]).notna().all(axis=None)
