"""What is refused where nothing else asks for it: each sentence at the door that a user comes through."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
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


BATCHES = [(INPUTS, floats(4, 2))] * 2
HALF = {"0": torch.arange(3)}
ABLATION = pruning.Ablation(neurons=4, tokens=8, most=8, tolerance=0.1, words=4, seed=1)
RECIPE = pruning.Recipe(epochs=1, learning_rate=0.01, warmup=0.0, weight_decay=0.0, clip=1.0, patience=0, portion=1.0)
TAKES_A_NETWORK: dict[str, Callable[[Any], Any]] = {
    "select": lambda given: pruning.select(given, HALF),
    "mask": lambda given: pruning.mask(given, HALF),
    "weights": lambda given: pruning.weights(given, threshold=0.1, bins=4),
    "cooperative": lambda given: pruning.cooperative(given, {}, strong=0.5),
    "reconstruct": lambda given: pruning.reconstruct(given, HALF, data=BATCHES, repair="ridge"),
}
TAKES_A_LOSS: dict[str, Callable[[Any], Any]] = {
    "hessian": lambda given: pruning.hessian(given, BATCHES, probes=2, stability=0.0, seed=1),
    "activations": lambda given: pruning.activations(given, BATCHES, activation_samples=2, bins=4),
    "gradients": lambda given: pruning.gradients(given, BATCHES, batches=2),
    "sensitivities": lambda given: pruning.sensitivities(given, BATCHES, batches=2, seed=1),
    "criteria": lambda given: pruning.criteria(given, BATCHES, batches=2, bins=2, classes=2, ridge=0.1, seed=1),
    "intervention": lambda given: pruning.intervention(given, BATCHES, BATCHES),
    "oracle": lambda given: pruning.oracle(given, BATCHES, ablation=ABLATION),
    "joint_removal": lambda given: pruning.joint_removal(given, BATCHES, pd.DataFrame(), sets={}, tokens=8),
    "train": lambda given: next(pruning.train(given, BATCHES, BATCHES, recipe=RECIPE, seed=1)),
    "loss_of": lambda given: pruning.loss_of(given, BATCHES),
    "size_of": pruning.size_of,
    "memory_of": pruning.memory_of,
    "energy_of": lambda given: pruning.energy_of(given, BATCHES),
    "budget_of": lambda given: pruning.budget_of(given, kind="parameters", value=10),
    "side_by_side": lambda given: pruning.side_by_side({"dense": given}, "onnx"),
}


@pytest.mark.parametrize("name", TAKES_A_NETWORK | TAKES_A_LOSS)
def test_a_network_whose_neurons_nobody_looked_for_is_refused_with_what_finds_them(name: str) -> None:
    sentence = r"Expected a network whose neurons are known, got Sequential; `pruning.adapt\(network, inputs, loss=…"
    with pytest.raises(TypeError, match=sentence):
        (TAKES_A_NETWORK | TAKES_A_LOSS)[name](network())


@pytest.mark.parametrize("name", TAKES_A_LOSS)
def test_a_network_that_was_discovered_alone_is_refused_where_its_loss_or_its_batches_are_asked_for(name: str) -> None:
    with pytest.raises(TypeError, match="Expected a network that knows its loss and its batches, got one whose neur"):
        TAKES_A_LOSS[name](pruning.discover(network(), INPUTS))
