"""Recurrent layers of PyTorch's whose subclass has a forward of its own, which is what is measured."""

import torch
from torch import nn

import pruning


class LastState(nn.LSTM):
    """Gives the last state instead of the pair of both."""

    def forward(self, inputs, hx=None):
        outputs, (hidden, _) = super().forward(inputs, hx)
        return outputs, hidden[-1]


class Halved(nn.GRU):
    """Gives half of its outputs."""

    def forward(self, inputs, hx=None):
        outputs, hidden = super().forward(inputs, hx)
        return outputs / 2, hidden


class Net(nn.Module):
    def __init__(self, rnn, which):
        super().__init__()
        self.rnn, self.out, self.which = rnn, nn.Linear(8, 3), which

    def forward(self, x):
        outputs = self.rnn(x)
        return self.out(outputs[1] if self.which else outputs[0][:, -1])


def test_a_subclass_that_gives_something_else_than_its_layer_is_measured_by_every_signal():
    torch.manual_seed(0)
    data = [(torch.randn(6, 5, 4), torch.arange(6) % 3) for _ in range(4)]
    found = pruning.discover(Net(LastState(4, 8, batch_first=True), 1), data[0][0])
    importance = pruning.importance(found, data, nn.CrossEntropyLoss())
    assert len(importance.table) == 8


def test_where_neurons_are_tapped_a_subclass_computes_what_it_computes():
    torch.manual_seed(0)
    inputs = torch.randn(6, 5, 4)
    model = pruning.adapt(Net(Halved(4, 8, batch_first=True), 0), inputs, loss=nn.CrossEntropyLoss())
    torch.testing.assert_close(model.tapped(inputs)[0], model(inputs))
