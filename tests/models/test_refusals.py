"""What is refused where nothing else asks for it: each sentence at the door that a user comes through."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.models import build
from pruning.models.cells import recurrent_cell
from tests.discovery.test_forms import Network
from tests.foreign import floats

INPUTS = floats(4, 3)
SETTINGS = {"vocabulary": 20, "embedding": 4, "widths": [5], "decoder": "untied", "dropout": 0.0}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def adapted(loss: Any = None, **settings: Any) -> Any:
    return pruning.adapt(network(), INPUTS, loss=loss, **settings)


def weights_in_a_list() -> nn.Module:
    def run(self: Any, inputs: Tensor) -> Tensor:
        return self.out(self.rnn(inputs)[0]) * self.rnn._flat_weights[0].sum()

    return Network(run, rnn=nn.GRU(3, 6), out=nn.Linear(6, 2)).double()


def loss_of(loss: Any, targets: Any) -> Any:
    return pruning.evaluate(adapted(loss), [(INPUTS, targets)])


REFUSED: dict[str, Callable[[], Any]] = {
    "ask nothing else of it than its class says.": lambda: pruning.discover(weights_in_a_list(), floats(5, 2, 3)),
    "Unknown block '9'; known: [].": lambda: pruning.shorten(pruning.discover(network(), INPUTS), ["9"]),
    "Expected `loss` or its older name `criterion`, got both.": lambda: adapted(nn.MSELoss(), criterion=nn.MSELoss()),
    "Expected a loss (outputs, targets) → one number, such as nn.CrossEntropyLoss(), got str": lambda: adapted("mse"),
    "Unknown direction 'up' of a metric; known: ['higher', 'lower'].": lambda: pruning.Metric(len, better="up"),
    "Expected one number from a metric, got a tensor of shape (4, 2); let it": lambda: pruning.evaluate(
        adapted(nn.MSELoss(), metrics={"apart": pruning.Metric(lambda a, b: a - b, better="lower")}),
        [(INPUTS, floats(4, 2))],
    ),
    "Expected labels and their lengths as targets for CTC, got": lambda: loss_of(nn.CTCLoss(), ()),
    "Expected class numbers in one tensor as targets, got": lambda: loss_of(
        nn.CrossEntropyLoss(), [torch.zeros(4).long(), torch.zeros(4).long()]
    ),
    "Unknown family 'cnn'; known: [": lambda: build("cnn", **SETTINGS),
    "Unknown decoder 'half'; known: [": lambda: build("lstm", **{**SETTINGS, "decoder": "half"}),
    "Unknown nonlinearity 'gelu'; known: ['relu', 'tanh'].": lambda: build("rnn", **SETTINGS, nonlinearity="gelu"),
    "Unknown cell 'mgu'; known: [": lambda: recurrent_cell("mgu"),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_is_refused_is_said_in_one_sentence_that_is_true(sentence):
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        REFUSED[sentence]()
