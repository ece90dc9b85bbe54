"""Weights of readers that their author's code uses outside the module that has them: in a penalty, or once more."""

import torch
from torch import nn
from torch.nn import functional as F

import pruning
from tests.networks import Net


def cell(forward):
    torch.manual_seed(0)
    return Net(forward, rnn=nn.RNN(3, 8, batch_first=True), out=nn.Linear(8, 2))


def penalised(network, inputs, _):
    weight = network.rnn.weight_hh_l0
    return (network(inputs), (weight @ weight.T - torch.eye(len(weight))).square().mean()), None


def test_a_penalty_by_the_product_of_a_weight_with_itself_leaves_the_repair_as_it_is():
    network = cell(lambda s, x: s.out(s.rnn(x)[0][:, -1]))
    data = [(torch.randn(20, 6, 3), torch.randn(20, 2)) for _ in range(4)]
    found, kept = pruning.discover(network, data[0][0]), {"rnn.0": torch.tensor([1, 2, 4, 7])}
    models = [
        pruning.adapt(found, data[0][0], loss=nn.MSELoss()),
        pruning.adapt(found, data[0][0], loss=lambda out, y: F.mse_loss(out[0], y) + out[1], call=penalised),
    ]
    plain, beside = (pruning.reconstruct(model, kept, data=data, repair="ridge").state_dict() for model in models)
    assert all(torch.equal(beside[name], tensor) for name, tensor in plain.items())


def test_a_recurrent_weight_that_code_reads_by_once_more_is_refitted_on_both_readings():
    network = cell(lambda s, x: s.out(F.linear(s.rnn(x)[0][:, -1], s.rnn.weight_hh_l0)))
    data = [(torch.randn(20, 6, 3), torch.randn(20, 2)) for _ in range(4)]
    found, kept = pruning.discover(network, data[0][0]), {"rnn.0": torch.tensor([1, 2, 4, 7])}
    repaired = pruning.reconstruct(pruning.adapt(found, data[0][0], loss=nn.MSELoss()), kept, data=data, repair="ridge")
    wanted = network(data[0][0])
    apart = [F.mse_loss(each(data[0][0]), wanted) for each in (repaired, pruning.select(found, kept))]
    assert apart[0] < apart[1]
