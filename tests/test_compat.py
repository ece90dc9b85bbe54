"""The older interface: names and arguments as they were, numbers as the library gives them."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.batching import Windows
from pruning.compat.advanced_importance_calculator import AdvancedImportanceCalculator
from pruning.compat.improved_importance_calculation import ImprovedImportanceCalculator, adaptive_retention_rate
from pruning.layers import NeuronLayer, Slice, gather
from pruning.models.base import LanguageModel
from pruning.signals.cooperative import cooperative
from pruning.signals.weights import components_of
from pruning.tables import WEIGHTS
from tests.models import scaled_by_hand, tensors_of, text, tiny, weighted_by_hand

WORDS, HIDDEN = 12, 6


class RNNModel(nn.Module):
    """The recurrent model of PyTorch's word-language-model example, in small."""

    def __init__(self, kind: str = "LSTM", layers: int = 1, *, tied: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, HIDDEN)
        self.drop = nn.Dropout(0.4)
        self.rnn = getattr(nn, kind)(HIDDEN, HIDDEN, layers)
        self.decoder = nn.Linear(HIDDEN, WORDS)
        if tied:
            self.decoder.weight = self.encoder.weight
        self.shape, self.pair = (layers, HIDDEN), kind == "LSTM"
        self.asked: list[int] = []
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
        self.double().train()

    def forward(self, tokens: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        found, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        return self.decoder(found).view(-1, WORDS), hidden

    def init_hidden(self, examples: int) -> Any:
        self.asked.append(examples)
        zeros = next(self.parameters()).new_zeros(self.shape[0], examples, self.shape[1])
        return (zeros, zeros.clone()) if self.pair else zeros


def batches(count: int = 9, *, examples: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(WORDS, (5 * count + 1, examples), generator=generator)
    return [(tokens[i : i + 5], tokens[i + 1 : i + 6].flatten()) for i in range(0, 5 * count, 5)]


def traces(widths: Sequence[int], seed: int = 3) -> list[list[float]]:
    random = np.random.default_rng(seed)
    return [random.random(width).tolist() for width in widths]


def named(model: nn.Module, *names: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, model.get_parameter(name)) for name in names]


LOSS = nn.CrossEntropyLoss()
RECURRENT = "rnn.weight_hh_l0"


def test_the_older_names_take_exactly_the_older_arguments() -> None:
    made = inspect.signature(ImprovedImportanceCalculator)
    assert str(made.replace(return_annotation=inspect.Signature.empty)) == (
        "(use_activation_analysis: bool = True, use_gradient_analysis: bool = True, "
        "use_structural_analysis: bool = True, activation_samples: int = 100)"
    )
    computed = list(inspect.signature(ImprovedImportanceCalculator.compute_enhanced_importance).parameters.values())
    names = ["self", "model", "modules", "channel_trace", "dataloader", "criterion", "device"]
    assert [one.name for one in computed] == names
    assert [one.default for one in computed[4:]] == [None, None, None]
    for rate in (adaptive_retention_rate, ImprovedImportanceCalculator().adaptive_retention_rate):
        assert list(inspect.signature(rate).parameters) == ["importance_scores", "network_type"]
        assert inspect.signature(rate).parameters["network_type"].default == "mixed"


def test_without_a_loader_scores_are_the_mean_of_scaled_weights_and_traditional_importance() -> None:
    model = RNNModel()
    (given,) = traces([HIDDEN])
    found = ImprovedImportanceCalculator().compute_enhanced_importance(model, named(model, RECURRENT), [given])
    layer = NeuronLayer("rnn", "rnn", HIDDEN, (Slice(RECURRENT, dim=0, blocks=4),), (), "rnn")
    own = gather(layer.owned, tensors_of(model))
    weights = weighted_by_hand(components_of(layer, tensors_of(model), threshold=0.1, bins=32), WEIGHTS)
    hessian = np.array(given) * own.square().mean(1).numpy()
    assert found[RECURRENT] == pytest.approx((scaled_by_hand(weights) + scaled_by_hand(hessian)) / 2)


def test_with_every_analysis_off_the_traces_alone_decide() -> None:
    model = RNNModel()
    (given,) = traces([HIDDEN])
    calculator = ImprovedImportanceCalculator(False, False, False)
    found = calculator.compute_enhanced_importance(model, named(model, RECURRENT), [given], batches(), LOSS)
    gates = model.get_parameter(RECURRENT).detach().view(4, HIDDEN, HIDDEN)
    assert found[RECURRENT] == pytest.approx(scaled_by_hand(np.array(given) * gates.square().mean((0, 2)).numpy()))


def test_the_signals_of_a_model_are_those_that_the_librarys_functions_give_of_it() -> None:
    model = tiny(widths=(7,), decoder="untied")
    windows = Windows(text(470), first=0, batch=4, bptt=6)
    names = ["lstm.0.weight_ih_l0", "lstm.0.weight_hh_l0"]
    table = AdvancedImportanceCalculator().compute_importance_table(
        Stateful(model), [(name, model.get_parameter(name)) for name in names], traces([7, 7]),
        [(window.tokens, window.targets) for window in windows], LOSS,
    )  # fmt: skip
    from pruning.signals.activations import activations

    seen, covariances = activations(model, windows, activation_samples=100, bins=32)
    wired = cooperative(model, covariances, strong=0.75)
    own = table[table["layer"] == names[1]]
    assert own["activations"].to_numpy() == pytest.approx(seen["importance"].to_numpy())
    assert own["cooperative"].to_numpy() == pytest.approx(wired["importance"].to_numpy())


class Stateful(nn.Module):
    """One of the library's models in the form of the older interface."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.inner = model

    def init_hidden(self, _examples: int) -> None:
        return None

    def forward(self, tokens: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        return self.inner(tokens, hidden)
