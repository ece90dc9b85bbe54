"""Readers refitted on what they read: exactly where nothing is lost, and by least squares where something is."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pruning
from pruning.core.neurons import named_buffers, named_tensors, select
from pruning.core.reading import Reading
from pruning.repair.reconstruction import reconstruct
from pruning.repair.refitting import _Refit
from tests.networks import Net


def linear_of_last_state(net, x):
    outputs, (hidden, _) = net.rnn(x)
    return net.out(torch.cat([hidden[-1], outputs[:, -1]], 1)) + net.each(outputs).mean(1)


def of_packed(net, x, lengths):
    packed, hidden = net.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    outputs, _ = pad_packed_sequence(packed, batch_first=True)
    return net.out(outputs).sum(1) + net.last(hidden[-1])


def looped(net, x):
    hidden = x.new_zeros(len(x), net.cell.hidden_size)
    for step in range(x.shape[1]):
        hidden = net.cell(x[:, step], hidden)
    return net.out(hidden)


def residual(net, x):
    one = F.relu(net.norm(net.stem(x)))
    for inner, outer in ((net.a, net.b), (net.c, net.d)):
        one = F.relu(one + outer(F.relu(inner(one))))
    return net.head(one.mean((2, 3)))


def attending(net, x):
    outputs, _ = net.rnn(x)
    weights = net.score(outputs).tanh().softmax(1)
    return net.out((weights * outputs).sum(1))


def by_operations(net, x):
    hidden = torch.tanh(F.linear(x, net.first.weight))
    wide = torch.einsum("btd,ed->bte", hidden, net.second.weight)
    flat = torch.addmm(net.second.bias, hidden.flatten(0, 1), net.second.weight.T.contiguous())
    return wide + hidden @ net.second.weight.mT + flat.view_as(wide)


def of_heads(net, x):
    heads = torch.einsum("bti,hid->bthd", x, net.first).tanh()
    return torch.einsum("bthd,hde->bte", heads, net.second)


def from_the_left(net, x):
    hidden = (net.first @ x.mT).tanh()  # (batch, neurons, steps)
    return F.bilinear(hidden.mT, x, net.both) + (net.second @ hidden).mT


def convolved(net, x):
    return net.out(F.relu(net.wide(F.relu(net.first(x)))).flatten(1))


def weight(*shape):
    return nn.Parameter(torch.randn(*shape) / 2)


def draw(*shape):
    return torch.randn(*shape)


LENGTHS = torch.tensor([7, 5, 3, 1])
CASES = {
    "a recurrence, the last state and the last step": lambda: (
        Net(linear_of_last_state, rnn=nn.LSTM(4, 6, batch_first=True), out=nn.Linear(12, 3), each=nn.Linear(6, 3)),
        (draw(4, 7, 4),),
    ),
    "both directions, in two layers": lambda: (
        Net(
            lambda net, x: net.out(net.rnn(x)[1][-2:].transpose(0, 1).flatten(1)),
            rnn=nn.GRU(4, 6, 2, batch_first=True, bidirectional=True),
            out=nn.Linear(12, 3),
        ),
        (draw(4, 7, 4),),
    ),
    "packed sequences": lambda: (
        Net(of_packed, rnn=nn.GRU(4, 6, batch_first=True), out=nn.Linear(6, 3), last=nn.Linear(6, 3)),
        (draw(4, 7, 4), LENGTHS),
    ),
    "a cell in a loop": lambda: (Net(looped, cell=nn.GRUCell(4, 6), out=nn.Linear(6, 3)), (draw(4, 7, 4),)),
    "a padded residual network": lambda: (
        Net(
            residual,
            stem=nn.Conv2d(2, 6, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(6),
            a=nn.Conv2d(6, 8, 3, padding=1),
            b=nn.Conv2d(8, 6, 3, padding=1, bias=False),
            c=nn.Conv2d(6, 5, 3, padding=1),
            d=nn.Conv2d(5, 6, 1),
            head=nn.Linear(6, 3),
        ),
        (draw(4, 2, 7, 7),),
    ),
    "states that attention weighs": lambda: (
        Net(attending, rnn=nn.LSTM(4, 6, batch_first=True), score=nn.Linear(6, 1), out=nn.Linear(6, 3)),
        (draw(4, 7, 4),),
    ),
    "operations on parameters": lambda: (
        Net(by_operations, first=nn.Linear(4, 6), second=nn.Linear(6, 3)),
        (draw(4, 7, 4),),
    ),
    "heads with a matrix each": lambda: (
        Net(of_heads, first=weight(6, 4, 2), second=weight(6, 2, 3)),
        (draw(4, 7, 4),),
    ),
    "matrices on the left, and a bilinear map": lambda: (
        Net(from_the_left, first=weight(6, 4), second=weight(3, 6), both=weight(3, 6, 4)),
        (draw(4, 7, 4),),
    ),
    "strides, dilation and a depthwise convolution": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False),
            nn.Conv2d(6, 8, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(8, 3, 1, stride=2),
        ),
        (draw(3, 2, 12, 12),),
    ),
    "a transposed convolution and a flattened image": lambda: (
        Net(
            convolved,
            first=nn.ConvTranspose2d(2, 6, 4, 2, 1),
            wide=nn.ConvTranspose2d(6, 5, 3, 2, 1),
            out=nn.Linear(5 * 15 * 15, 3),
        ),
        (draw(3, 2, 4, 4),),
    ),
    "autocast": lambda: (
        Net(lambda net, x: reduced(net, x), a=nn.Linear(4, 8), b=nn.Linear(8, 3)),
        (draw(16, 4),),
    ),
}


def reduced(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.b(net.a(x).relu()).float()


def repeating(found):
    """Let neuron 1 of every layer be a copy of neuron 0, and return what is kept without it."""
    tensors = {**named_tensors(found), **named_buffers(found)}
    for layer in found.layers():
        for piece in (*layer.owned, *layer.buffers):
            rows = piece.split(tensors[piece.parameter]).clone()
            rows[1] = rows[0]
            tensors[piece.parameter] = piece.join(rows, tensors[piece.parameter])
    found.load_state_dict(tensors)
    return {layer.name: torch.tensor([n for n in range(layer.width) if n != 1]) for layer in found.layers()}


@pytest.mark.parametrize("kind", CASES)
def test_a_neuron_that_repeats_another_is_removed_without_loss_whatever_reads_it(kind, caplog):
    torch.manual_seed(0)
    network, inputs = CASES[kind]()
    found = pruning.discover(network.eval(), inputs)
    assert len(found.layers()) >= 1
    keep = repeating(found)
    data = [tuple(draw(*x.shape) if x.is_floating_point() else x for x in inputs) for _ in range(8)]
    repaired, cut = reconstruct(found, keep, data=data, repair="ridge"), select(found, keep)
    assert not caplog.records
    with torch.no_grad():
        dense = found(*inputs)
        lost, left = ((model(*inputs) - dense).abs().max() for model in (cut, repaired))
    assert lost > 1e-3
    assert left < (0.3 if kind == "autocast" else 0.02) * lost


def reads_of(model, piece, data):
    """Return what a reader reads on all batches, (samples, width)."""
    seen = []
    with torch.no_grad(), Reading(model, [piece], lambda _, read: seen.append(read)):
        for inputs in data:
            model(inputs)
    parts = [read.of(piece) for read in seen]
    return torch.cat([v if times is None else v.repeat_interleave(times.long(), 0) for v, times in parts]).double()


def test_readers_of_the_second_layer_are_fitted_by_least_squares_from_the_pruned_networks_states_to_the_dense_ones():
    torch.manual_seed(0)
    network = Net(
        lambda net, x: net.out(net.b(net.a(x).tanh()).tanh().mean(1)),
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 5),
        out=nn.Linear(5, 2),
    )
    found = pruning.discover(network, draw(40, 4, 3))
    keep = {"a": torch.tensor([0, 2, 5]), "b": torch.tensor([4, 1])}
    data = [draw(200, 4, 3) for _ in range(8)]
    repaired = reconstruct(found, keep, data=data, repair="ridge")
    (first, second), (_, cut) = found.layers(), repaired.layers()
    wanted = reads_of(found, second.read[0], data) @ network.out.weight.detach().double().T
    own = reads_of(repaired, cut.read[0], data)
    assert own.shape == (1600, 2)
    ones = own.new_ones(len(own), 1)
    solution = torch.linalg.lstsq(torch.cat([own, ones], 1), wanted + network.out.bias.detach().double()).solution
    assert torch.allclose(repaired.network.out.weight.double(), solution[:-1].T, atol=1e-2)
    assert torch.allclose(repaired.network.out.bias.double(), solution[-1], atol=1e-2)
    assert first.name == "a"


def test_a_padded_convolution_is_refitted_on_the_zeros_around_an_image_as_often_as_it_reads_each():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 3, 3, stride=2, padding=1))
    found = pruning.discover(network, draw(2, 2, 8, 8))
    data = [draw(20, 2, 8, 8) for _ in range(8)]
    (layer,) = found.layers()
    repaired = reconstruct(found, {"0": torch.tensor([0, 3])}, data=data, repair="ridge")
    with torch.no_grad():
        hidden = torch.sigmoid(network[0](torch.cat(data)))
    patches = F.unfold(hidden, 3, padding=1, stride=2)  # (images, 4 · 9, places)
    samples = patches.view(len(hidden), 4, -1).movedim(1, -1).reshape(-1, 4).double()
    assert len(reads_of(found, layer.read[0], data)) == len(samples)
    inputs = torch.cat([samples[:, [0, 3]], torch.ones(len(samples), 1)], 1)
    solution = torch.linalg.lstsq(inputs, samples[:, [1, 2]]).solution
    weights = network[2].weight.detach().double()
    expected = weights[:, [0, 3]] + torch.einsum("kp,opij->okij", solution[:2], weights[:, [1, 2]])
    bias = network[2].bias.detach().double() + torch.einsum("p,opij->o", solution[2], weights[:, [1, 2]])
    assert torch.allclose(repaired.network[2].weight.double(), expected, atol=1e-3)
    assert torch.allclose(repaired.network[2].bias.double(), bias, atol=1e-3)


def test_what_an_lstm_reads_beside_its_state_stands_in_for_lost_neurons_too():
    """The second layer reads what is left of the first, in order, beside its own state of the step before."""
    torch.manual_seed(0)
    network = Net(lambda net, x: net.out(net.rnn(x)[0][:, -1]), rnn=nn.LSTM(2, 5, 2), out=nn.Linear(5, 2))
    found = pruning.discover(network.double(), draw(6, 3, 2).double())
    data = [draw(60, 40, 2).double() for _ in range(8)]
    done, kept = {"rnn.0": torch.tensor([3, 0, 1])}, torch.tensor([0, 2, 4])
    (layer,) = [layer for layer in found.layers() if layer.name == "rnn.1"]
    repaired = found.resized([5, 5])
    repaired.load_state_dict({**named_tensors(found), **named_buffers(found)})
    _Refit(found, repaired, layer, kept, done, "ridge").learn(data, cut=False)
    upper = found.network.rnn.get_submodule("1")
    smaller = select(found, done)
    beside, own, wanted = [], [], []
    for inputs in data:
        states = [model.network.rnn.get_submodule("0")(inputs)[0] for model in (found, smaller)]
        dense, pruned = (
            torch.cat([out.new_zeros(1, 40, 5), out[:-1]])
            for out in (upper(states[0])[0], smaller.network.rnn.get_submodule("1")(states[1])[0])
        )
        beside.append(states[1].flatten(0, 1))
        own.append(pruned.flatten(0, 1)[:, kept])
        wanted.append(dense.flatten(0, 1) @ upper.weight_hh_l0.T)
    x, h, y = (torch.cat(parts).detach() for parts in (beside, own, wanted))
    solution = torch.linalg.lstsq(torch.cat([h, x, torch.ones(len(h), 1)], 1), y).solution
    new = repaired.network.rnn.get_submodule("1")
    torch.testing.assert_close(new.weight_hh_l0[:, kept], solution[:3].T, rtol=0, atol=3e-3)
    gained = new.weight_ih_l0 - upper.weight_ih_l0
    torch.testing.assert_close(gained[:, done["rnn.0"]], solution[3:6].T, rtol=0, atol=3e-3)
    assert not gained[:, [2, 4]].any()
    torch.testing.assert_close(new.bias_hh_l0 - upper.bias_hh_l0, solution[6], rtol=0, atol=3e-3)


def test_what_has_nothing_to_do_with_what_is_kept_is_left_out_of_the_fit():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(40))
    found = pruning.discover(network, draw(3, 40))
    keep, data, other = {"0": torch.arange(20)}, [draw(3, 40) for _ in range(8)], draw(2000, 40)
    repaired, cut = reconstruct(found, keep, data=data, repair="ridge"), select(found, keep)
    with torch.no_grad():
        errors = [(model(other) - found(other)).square().mean() for model in (repaired, cut)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("repair", ["mean", "ridge"])
def test_a_tied_reader_keeps_its_weights_and_the_others_are_refitted(repair, caplog):
    torch.manual_seed(0)
    embedding = nn.Embedding(9, 6)
    network = Net(
        lambda net, x: F.linear(
            net.embedding(x) + net.mixed(net.embedding(x)).tanh() * 0, net.embedding.weight, net.bias
        ),
        embedding=embedding,
        mixed=nn.Linear(6, 6),
        bias=nn.Parameter(torch.zeros(9)),
    )
    tokens = torch.randint(9, (4, 5))
    found = pruning.discover(network, tokens)
    (layer,) = [layer for layer in found.layers() if layer.tied]
    keep = {layer.name: torch.tensor([0, 1, 4])}
    with caplog.at_level(logging.WARNING):
        repaired = reconstruct(found, keep, data=[torch.randint(9, (4, 5)) for _ in range(8)], repair=repair)
    assert torch.equal(repaired.network.embedding.weight, embedding.weight[:, [0, 1, 4]])
    assert not torch.equal(repaired.network.bias, network.bias)
    assert "embedding.weight, which reads layer" in caplog.text


def test_neither_data_nor_covariances_is_refused_and_so_is_no_batch():
    found = pruning.discover(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"Expected data or covariances to repair by 'ridge', got neither"):
        reconstruct(found, {"0": torch.tensor([0])}, repair="ridge")
    with pytest.raises(ValueError, match=r"Expected at least one batch to refit readers on, got none"):
        reconstruct(found, {"0": torch.tensor([0])}, data=[], repair="ridge")


def test_a_network_with_nothing_removed_stays_as_it_is_and_no_hook_or_state_is_left():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).train()
    found = pruning.discover(network, draw(4, 2))
    same = reconstruct(found, {"0": torch.arange(3)}, data=[draw(4, 2)], repair="ridge")
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), found.parameters(), strict=True))
    assert same.training
    assert found.training


def test_what_a_configuration_says_is_tried_for_the_repaired_network_alone(monkeypatch):
    torch.manual_seed(0)
    found = pruning.discover(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 2)), draw(4, 2))
    tried = []
    monkeypatch.setattr("pruning.discovery.discovered.follow_widths", lambda *_: tried.append(1) or ())
    keep = {layer.name: torch.arange(layer.width - 1) for layer in found.layers()}
    reconstruct(found, keep, data=[draw(4, 2), draw(4, 2)], repair="ridge")
    assert (len(keep), len(tried)) == (2, 1)


def test_one_batch_alone_is_parted_so_that_some_of_it_can_be_held_out():
    torch.manual_seed(0)
    found = pruning.discover(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)), draw(4, 2))
    keep, batch = {"0": torch.tensor([0, 1, 4])}, draw(400, 2)
    repaired, cut = reconstruct(found, keep, data=[batch], repair="ridge"), select(found, keep)
    with torch.no_grad():
        assert (repaired(batch) - found(batch)).square().mean() < 0.9 * (cut(batch) - found(batch)).square().mean()


def test_readers_of_wide_layers_are_refitted_on_data_by_as_few_directions_as_the_neurons_have():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 40), nn.Identity(), nn.Linear(40, 3))  # all that 40 neurons say is 2 numbers
    data = [torch.randn(30, 2) for _ in range(6)]
    found = pruning.discover(network, data[0])
    smaller = reconstruct(found, {"0": torch.arange(0, 40, 4)}, data=data, repair="ridge", rank=3)
    assert torch.allclose(smaller(data[0]), network(data[0]), atol=1e-3)


def deep(net, x):
    return net.last(net.c(net.b(net.a(x).tanh()).tanh()).tanh())


def of_a_deep_network():
    torch.manual_seed(0)
    sizes = {"a": (3, 6), "b": (6, 5), "c": (5, 4), "last": (4, 2)}
    network = Net(deep, **{name: nn.Linear(*size) for name, size in sizes.items()})
    keep = {"a": torch.tensor([0, 2, 5]), "b": torch.tensor([4, 1])}
    return pruning.discover(network, draw(40, 3)), keep, [draw(50, 3) for _ in range(6)]


def test_but_for_the_first_batch_a_network_runs_only_until_the_readers_have_read(monkeypatch):
    found, keep, data = of_a_deep_network()
    linear, read = F.linear, []
    monkeypatch.setattr(F, "linear", lambda *given: read.append(tuple(given[1].shape)) or linear(*given))
    reconstruct(found, keep, data=data, repair="ridge")
    both_networks_and_whether_the_cut_moves_anything = 3
    assert read.count((2, 4)) == len(keep) * both_networks_and_whether_the_cut_moves_anything
    assert read.count((5, 6)) > len(data)


def of_a_loop():
    torch.manual_seed(0)
    found = pruning.discover(Net(looped, cell=nn.RNNCell(3, 5), out=nn.Linear(5, 2)), draw(4, 2, 3))
    return found, {found.layers()[0].name: torch.tensor([0, 2])}, [draw(9, steps, 3) for steps in (2, 5, 9, 3)]


def of_a_loop_that_is_short_at_first():
    found, keep, data = of_a_loop()
    return found, keep, [data[0][:, :1], *data]


def by_experts(net, x):
    hidden = net.a(x).relu()
    chosen = net.choose(x).argmax(-1)
    given = torch.zeros(len(x), 2)
    for number, expert in enumerate((net.first, net.second)):
        at = (chosen == number).nonzero()[:, 0]
        given = given.index_add(0, at, expert(hidden[at])) if len(at) else given
    return given


def of_experts_the_last_of_which_the_first_batch_does_not_reach():
    torch.manual_seed(0)
    sizes = {"a": (3, 6), "choose": (3, 2), "first": (6, 2), "second": (6, 2)}
    network = Net(by_experts, **{name: nn.Linear(*size) for name, size in sizes.items()})
    found, data = pruning.discover(network, draw(40, 3)), [draw(60, 3) for _ in range(5)]
    to_the_first = data[0][network.choose(data[0]).argmax(-1) == 0]
    return found, {"a": torch.tensor([0, 2, 5])}, [to_the_first, *(batch[: len(to_the_first)] for batch in data)]


def as_deep_as_it_is_asked(net, x):
    hidden = net.a(x).tanh()
    for _ in range(int(x[0, 0].abs())):
        hidden = torch.tanh(hidden + net.b(hidden))
    return net.last(hidden)


def of_a_loop_that_the_first_batch_takes_once():
    torch.manual_seed(0)
    sizes = {"a": (3, 6), "b": (6, 6), "last": (6, 2)}
    network = Net(as_deep_as_it_is_asked, **{name: nn.Linear(*size) for name, size in sizes.items()})
    data = [torch.cat([torch.full((1, 3), depth), draw(20, 3)]) for depth in (1.5, 3.5, 2.5, 4.5)]
    return pruning.discover(network, data[1]), {"a": torch.tensor([0, 2, 5])}, data


@pytest.mark.parametrize(
    "made",
    [
        of_a_deep_network,
        of_a_loop,
        of_a_loop_that_the_first_batch_takes_once,
        of_a_loop_that_is_short_at_first,
        of_experts_the_last_of_which_the_first_batch_does_not_reach,
    ],
)
def test_a_network_that_runs_only_until_its_readers_have_read_is_repaired_to_the_same_bytes(made, monkeypatch):
    found, keep, data = made()
    early = reconstruct(found, keep, data=data, repair="ridge").state_dict()
    monkeypatch.setattr("pruning.repair.refitting._keeps", lambda _: True)
    whole = reconstruct(found, keep, data=data, repair="ridge").state_dict()
    assert all(torch.equal(early[name], whole[name]) for name in whole)


def of_three(net, x):
    hidden = net.a(x).tanh()
    return net.last(hidden) + torch.einsum("bi,oi,o->bo", hidden, net.weight, net.gain)


def test_a_reader_that_cannot_be_refitted_is_named_with_what_uses_it(caplog):
    torch.manual_seed(0)
    own = {"weight": nn.Parameter(torch.randn(2, 6)), "gain": nn.Parameter(torch.randn(2))}
    found = pruning.discover(Net(of_three, a=nn.Linear(3, 6), last=nn.Linear(6, 2), **own), draw(4, 3))
    reconstruct(found, {"a": torch.tensor([0, 2, 5])}, data=[draw(9, 3)] * 2, repair="ridge")
    assert "weight, which reads layer a, because it is used by einsum, of which it is not known what is" in caplog.text


def test_a_reader_that_no_batch_reaches_is_named_with_that(caplog):
    found, keep, (first, *_) = of_experts_the_last_of_which_the_first_batch_does_not_reach()
    reconstruct(found, keep, data=[first] * 2, repair="ridge")
    assert "second.weight, which reads layer a, because in none of the batches it read anything." in caplog.text
