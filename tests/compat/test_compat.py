"""The older interface: names and arguments as they were, numbers as the library gives them."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pruning
from pruning.compat import enhanced_hessian_pruner, improved_importance_calculation
from pruning.compat.advanced_importance_calculator import AdvancedImportanceCalculator
from pruning.compat.enhanced_hessian_pruner import EnhancedHessianPruner, PruningResult
from pruning.compat.files import write_table
from pruning.compat.improved_importance_calculation import ImprovedImportanceCalculator, adaptive_retention_rate
from pruning.core.neurons import NeuronLayer, Slice, select
from pruning.data.schemas import VOCABULARY
from pruning.data.windows import Window, Windows
from pruning.evaluation.measures import loss_of
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.models.base import LanguageModel
from pruning.selection.retention import adaptive_retention_rate as library_rate
from pruning.signals.activations import activations
from pruning.signals.cooperative import cooperative
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.schemas import CRITERIA, WEIGHTS
from pruning.signals.weights import components_of, weights
from tests.projects import ROOT
from tests.tiny import bytes_of, scaled_by_hand, tensors_of, text, tiny, weighted_by_hand

WORDS, HIDDEN = 12, 6
LOSS = nn.CrossEntropyLoss()
RECURRENT = "rnn.weight_hh_l0"


class RNNModel(nn.Module):
    """The recurrent model of PyTorch's word-language-model example, in small."""

    def __init__(self, kind: str = "LSTM", layers: int = 1, *, longer: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Embedding(WORDS, HIDDEN)
        self.drop = nn.Dropout(0.4)
        self.rnn = getattr(nn, kind)(HIDDEN, HIDDEN, layers)
        self.decoder = nn.Linear(HIDDEN, WORDS)
        self.count, self.pair, self.longer = layers, kind == "LSTM", longer
        self.asked: list[int] = []
        for place, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(place))
        self.double().train()

    def forward(self, tokens: Tensor, hidden: Any) -> tuple[Any, ...]:
        found, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        logits = self.decoder(found).view(-1, WORDS)
        return (logits, hidden, found, [found]) if self.longer else (logits, hidden)

    def init_hidden(self, examples: int) -> Any:
        self.asked.append(examples)
        zeros = next(self.parameters()).new_zeros(self.count, examples, HIDDEN)
        return (zeros, zeros.clone()) if self.pair else zeros


class Stateful(nn.Module):
    """One of the library's models in the form of the older interface."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.inner = model

    def init_hidden(self, _examples: int) -> None:
        return None

    def forward(self, tokens: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        return self.inner(tokens, hidden)


def batches(count: int = 9, *, examples: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(WORDS, (5 * count + 1, examples), generator=generator)
    return [(tokens[i : i + 5], tokens[i + 1 : i + 6].flatten()) for i in range(0, 5 * count, 5)]


def traces(widths: Sequence[int], seed: int = 3) -> list[list[float]]:
    random = np.random.default_rng(seed)
    return [random.random(width).tolist() for width in widths]


def named(model: nn.Module, *names: str) -> list[tuple[str, nn.Parameter]]:
    return [(name, model.get_parameter(name)) for name in names]


def improved(model: nn.Module, loader: Any = None, criterion: Any = None, **switches: bool) -> list[float]:
    """Return the scores of the recurrent layer."""
    calculator = ImprovedImportanceCalculator(**switches)
    found = calculator.compute_enhanced_importance(
        model, named(model, RECURRENT), traces([HIDDEN]), loader, criterion
    )  # fmt: skip
    return found[RECURRENT]


def traditional_by_hand(model: nn.Module) -> np.ndarray:
    gates = model.get_parameter(RECURRENT).detach().view(-1, HIDDEN, HIDDEN)
    return np.array(traces([HIDDEN])[0]) * gates.square().mean((0, 2)).numpy()


def test_the_older_names_take_exactly_the_older_arguments() -> None:
    made = inspect.signature(ImprovedImportanceCalculator)
    assert {name: one.default for name, one in made.parameters.items()} == {
        "use_activation_analysis": True,
        "use_gradient_analysis": True,
        "use_structural_analysis": True,
        "activation_samples": 100,
    }
    computed = list(inspect.signature(ImprovedImportanceCalculator.compute_enhanced_importance).parameters.values())
    names = ["self", "model", "modules", "channel_trace", "dataloader", "criterion", "device"]
    assert [one.name for one in computed] == names
    assert [one.default for one in computed[4:]] == [None, None, None]
    for rate in (adaptive_retention_rate, ImprovedImportanceCalculator().adaptive_retention_rate):
        given = inspect.signature(rate).parameters
        assert {name: one.default for name, one in given.items()} == {
            "importance_scores": inspect.Parameter.empty,
            "network_type": "mixed",
        }


def test_the_older_pruner_takes_exactly_the_older_arguments() -> None:
    made = inspect.signature(EnhancedHessianPruner).parameters
    assert list(made) == ["model", "trace_file_name", "use_advanced_importance", "importance_fusion_strategy"]
    assert [one.default for one in made.values()][2:] == [True, "adaptive"]
    asked = inspect.signature(EnhancedHessianPruner.make_pruned_model).parameters
    assert list(asked) == [
        "self", "dataloader", "criterion", "device", "snn_ratio", "seed", "batch_size", "bptt", "ntokens",
        "comparison_analysis", "save_results",
    ]  # fmt: skip
    assert [one.default for one in asked.values()][-2:] == [True, True]


def test_without_a_loader_scores_are_the_mean_of_scaled_weights_and_traditional_importance() -> None:
    model = RNNModel()
    layer = NeuronLayer("rnn", "rnn", HIDDEN, (Slice(RECURRENT, dim=0, blocks=4),), (), "rnn")
    own = weighted_by_hand(components_of(layer, tensors_of(model), threshold=0.1, bins=32), WEIGHTS.shares)
    expected = (scaled_by_hand(own) + scaled_by_hand(traditional_by_hand(model))) / 2
    assert improved(model) == pytest.approx(expected)
    assert improved(model, criterion=LOSS) == pytest.approx(expected)


def test_with_every_analysis_off_the_traces_alone_decide() -> None:
    model = RNNModel()
    off = {f"use_{name}_analysis": False for name in ("activation", "gradient", "structural")}
    assert improved(model, batches(), LOSS, **off) == pytest.approx(scaled_by_hand(traditional_by_hand(model)))


@pytest.mark.parametrize(
    ("switch", "gone"),
    [("activation", {"activations"}), ("gradient", {"gradients"}), ("structural", {"weights", "cooperative"})],
)
def test_a_switch_turns_off_its_own_signals_alone(switch: str, gone: set[str]) -> None:
    model = RNNModel()
    calculator = AdvancedImportanceCalculator(**{f"use_{switch}_analysis": False}, fusion_strategy="simple")
    table = calculator.compute_importance_table(model, named(model, RECURRENT), traces([HIDDEN]), batches(), LOSS)
    left = {"weights", "hessian", "activations", "gradients", "cooperative"} - gone
    assert set(table.columns) == {"layer", "neuron", "fused", *left, *(f"{name}_share" for name in left)}
    expected = np.mean([scaled_by_hand(table[name]) for name in left], axis=0)
    assert table["fused"].to_numpy() == pytest.approx(expected)
    scores = improved(model, batches(), LOSS, **{f"use_{switch}_analysis": False})
    assert scores == pytest.approx(expected)
    assert scores != pytest.approx(improved(model, batches(), LOSS))


def test_what_a_model_says_is_what_the_librarys_functions_see_of_it(windows: Windows) -> None:
    model = tiny(widths=(7, 6))
    names = ["lstm.0.weight_ih_l0", "lstm.0.weight_hh_l0", "lstm.1.weight_hh_l0"]
    table = AdvancedImportanceCalculator().compute_importance_table(
        Stateful(model), [(name, model.get_parameter(name)) for name in names], traces([7, 7, 6]), windows, LOSS
    )
    seen, covariances = activations(model, windows, activation_samples=100, bins=32)
    wired = cooperative(model, covariances, strong=0.75)
    for name in names:
        own, layer = table[table["layer"] == name], name.removesuffix(".weight_ih_l0").removesuffix(".weight_hh_l0")
        assert own["activations"].to_numpy() == pytest.approx(seen[seen["layer"] == layer]["importance"].to_numpy())
        if "weight_hh" in name:  # the matrix that wires its neurons to each other
            expected = wired[wired["layer"] == layer]["importance"].to_numpy()
            assert own["cooperative"].to_numpy() == pytest.approx(expected)


def test_gradients_are_those_of_a_gate_on_the_neurons_own_rows() -> None:
    model, own = RNNModel().eval(), batches(2)
    gate = torch.ones(HIDDEN, dtype=torch.float64, requires_grad=True)
    hidden, found = model.init_hidden(4), []
    for data, targets in own:
        gated = {RECURRENT: model.get_parameter(RECURRENT).detach() * gate.repeat(4)[:, None]}
        output, hidden = torch.func.functional_call(model, gated, (data, hidden))
        hidden = tuple(state.detach() for state in hidden)
        found.append(torch.autograd.grad(LOSS(output, targets), gate)[0])
    g = torch.stack(found)
    size, deviation, spread = g.abs().mean(0), g.std(0), g.abs().std(0)
    components = {
        "magnitude": size, "stability": size / (size + spread), "signal_to_noise": g.mean(0).abs() / deviation,
        "sign_consistency": g.sign().mean(0).abs(),
    }  # fmt: skip
    shares = {"magnitude": 0.4, "stability": 0.2, "signal_to_noise": 0.2, "sign_consistency": 0.2}
    table = AdvancedImportanceCalculator().compute_importance_table(
        model, named(model, RECURRENT), traces([HIDDEN]), own, LOSS
    )
    assert table["gradients"].to_numpy() == pytest.approx(weighted_by_hand(components, shares))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_layers_inside_a_stacked_network_are_seen_as_if_each_stood_alone(kind: str) -> None:
    model = RNNModel(kind, layers=2)
    lower = getattr(nn, kind)(HIDDEN, HIDDEN).double()
    lower.load_state_dict({name: p for name, p in model.rnn.state_dict().items() if name.endswith("_l0")})
    alone = RNNModel(kind)
    alone.encoder, alone.rnn = model.encoder, lower
    tables = [
        AdvancedImportanceCalculator(use_gradient_analysis=False).compute_importance_table(
            one, named(one, RECURRENT), traces([HIDDEN]), batches()
        )
        for one in (model, alone)
    ]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("strategy", ["simple", "adaptive", "learned"])
def test_every_parameter_of_a_model_has_a_finite_score_for_each_trace_and_stays_as_it_was(strategy: str) -> None:
    model = RNNModel(layers=1 if strategy == "learned" else 2, longer=True)
    model.rnn.requires_grad_(False)
    model.decoder.bias.grad = torch.ones(WORDS, dtype=torch.float64)
    pairs = named(model, RECURRENT, "decoder.bias") if strategy == "learned" else list(model.named_parameters())
    given = traces([HIDDEN if "rnn" in name else len(p) for name, p in pairs])
    before, random = bytes_of(tensors_of(model)), torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    calculator = AdvancedImportanceCalculator(fusion_strategy=strategy, measured_neurons=1000)
    found = [calculator.compute_enhanced_importance(model, pairs, given, batches(3), LOSS) for _ in range(2)]
    assert found[0] == found[1]
    assert {name: len(scores) for name, scores in found[0].items()} == {
        name: len(own) for (name, _), own in zip(pairs, given, strict=True)
    }
    assert all(0 <= score <= 1 for scores in found[0].values() for score in scores)
    assert bytes_of(tensors_of(model)) == before
    assert all(module.training for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.requires_grad for p in model.rnn.parameters())
    assert model.encoder.weight.requires_grad
    assert model.encoder.weight.grad is None
    assert model.decoder.bias.grad.sum() == WORDS


def test_a_hidden_state_is_asked_for_once_and_again_when_the_number_of_examples_changes() -> None:
    model = RNNModel()
    improved(model, [*batches(3), *batches(2, examples=3)], LOSS)
    assert model.asked == [4, 3]


def test_a_shuffling_loader_gives_the_same_scores_each_time_and_leaves_the_random_state() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    data = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(data, data[:, 0].gt(0).long()), batch_size=8, shuffle=True)
    random = torch.get_rng_state()
    modules = [("0.weight", network[0].weight), ("2.weight", network[2].weight), ("0.bias", network[0].bias)]
    found = [
        ImprovedImportanceCalculator(activation_samples=3).compute_enhanced_importance(
            network, modules, traces([7, 3, 7]), loader, LOSS
        )
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), random)


def test_a_module_in_place_of_a_parameter_stands_for_all_its_own_parameters() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    (given,) = traces([7])
    calculator = ImprovedImportanceCalculator(use_structural_analysis=False)
    found = calculator.compute_enhanced_importance(network, [("first", network[0])], [given])
    own = torch.cat([network[0].weight, network[0].bias[:, None]], dim=1).detach()
    assert found["first"] == pytest.approx(scaled_by_hand(np.array(given) * own.square().mean(1).numpy()))


def test_traces_may_be_numbers_tensors_or_nested_lists_of_estimates() -> None:
    model, (given,) = RNNModel(), traces([HIDDEN])
    forms = [
        given,
        torch.tensor(given, dtype=torch.float64),
        [torch.tensor([[value]], dtype=torch.float64) for value in given],
        [[value + 1, [value - 1, np.float64(value)]] for value in given],
    ]
    calculator = ImprovedImportanceCalculator()
    found = [calculator.compute_enhanced_importance(model, named(model, RECURRENT), [form]) for form in forms]
    assert all(one[RECURRENT] == pytest.approx(found[0][RECURRENT]) for one in found)


def test_as_many_traces_as_rows_score_each_row_of_stacked_gates() -> None:
    model = RNNModel()
    (given,) = traces([4 * HIDDEN])
    calculator = ImprovedImportanceCalculator(use_structural_analysis=False)
    found = calculator.compute_enhanced_importance(model, named(model, RECURRENT), [given])
    rows = model.get_parameter(RECURRENT).detach().square().mean(1).numpy()
    assert found[RECURRENT] == pytest.approx(scaled_by_hand(np.array(given) * rows))


def test_channels_of_a_convolution_are_its_neurons() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    data = torch.randn(6, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = AdvancedImportanceCalculator().compute_importance_table(
        network, [("0.weight", network[0].weight)], traces([4]), [(data, torch.tensor([0, 1, 2, 0, 1, 2]))] * 2, LOSS
    )
    with torch.no_grad():
        size = network[0](data).abs().mean((0, 2, 3))
    assert table["activations"].nunique() == 4
    assert len(size) == len(table)


def test_gradients_need_a_criterion_and_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = RNNModel()
    without = improved(model, batches())
    assert "Without a criterion no gradient is known" in caplog.text
    assert without == pytest.approx(improved(model, batches(), LOSS, use_gradient_analysis=False))


def test_what_a_very_wide_layer_says_is_not_kept_and_that_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RNNModel()
    monkeypatch.setattr(improved_importance_calculation, "WIDEST", HIDDEN - 1)
    table = AdvancedImportanceCalculator().compute_importance_table(
        model, named(model, RECURRENT), traces([HIDDEN]), batches(), LOSS
    )
    assert "What the neurons of rnn.weight_hh_l0 say is not seen" in caplog.text
    assert not table[["activations", "cooperative", "activations_share", "cooperative_share"]].any(axis=None)


def test_learned_fusion_needs_measured_removals_or_what_measures_them() -> None:
    model = RNNModel()
    calculator = AdvancedImportanceCalculator(fusion_strategy="learned")
    given = (model, named(model, RECURRENT), traces([HIDDEN]))
    with pytest.raises(ValueError, match="Expected a loader and a criterion"):
        calculator.compute_enhanced_importance(*given)
    removals = pd.DataFrame({"layer": RECURRENT, "neuron": range(HIDDEN)})
    removals = removals.assign(loss_increase=traditional_by_hand(model), standard_error=1e-9)
    found = calculator.compute_fusion(*given, removals=removals)
    assert found.report["fell_back"].all() or found.report["held_out"].gt(0.9).all()
    again = calculator.compute_fusion(*given, weights=pruning.fusion.fused.to_plain(found.weighing))
    assert again.importance["fused"].tolist() == pytest.approx(found.importance["fused"].tolist())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modules": []}, r"Expected at least one pair \(name, parameter\) in modules, got none\."),
        ({"modules": [RECURRENT]}, r"Expected pairs \(name, parameter\) in modules, got str\."),
        ({"modules": [(RECURRENT, 3)]}, "Expected a parameter or a module under the name .*, got int"),
        ({"modules": [("w", torch.zeros(24, 6))]}, "Expected parameters of the model in modules, got 'w'"),
        ({"channel_trace": []}, "Expected traces for each of 1 modules, got 0 lists"),
        ({"channel_trace": [[1.0] * 5]}, "Expected a trace for each of 24 rows of 'rnn.weight_hh_l0', .* got 5"),
        ({"channel_trace": [[]]}, "Expected a trace for each of 24 rows"),
        ({"channel_trace": [[1.0] * 5 + [float("nan")]]}, "Expected a finite trace for each neuron of .*, got nan"),
        ({"channel_trace": [[1.0] * 5 + [[]]]}, r"Expected a finite trace for each neuron of .*, got \[\]"),
        ({"dataloader": []}, r"Expected at least one batch \(data, targets\) from the loader, got none"),
        ({"dataloader": [torch.zeros(3)]}, r"Expected batches \(data, targets\) from the loader, got Tensor"),
        ({"criterion": lambda *_: torch.tensor(float("nan"))}, "Expected one finite number as the .* loss, got nan"),
        ({"criterion": lambda *_: torch.tensor(1.0)}, "Expected a loss that depends on the modules' parameters"),
        ({"criterion": lambda *_: 1.0}, "Expected one finite number as the criterion's loss, got float"),
        ({"device": "meta"}, "Expected a model on meta, got one on cpu"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(change: Mapping[str, Any], sentence: str) -> None:
    model = RNNModel()
    usual = {"modules": named(model, RECURRENT), "channel_trace": traces([HIDDEN]), "dataloader": batches(2)}
    with pytest.raises(ValueError, match=sentence):
        ImprovedImportanceCalculator().compute_enhanced_importance(model, **{**usual, "criterion": LOSS, **change})
    assert model.training


def test_weights_that_are_no_numbers_and_names_given_twice_are_refused() -> None:
    model = RNNModel()
    twice = named(model, RECURRENT, RECURRENT)
    with pytest.raises(ValueError, match=r"Expected each name once in modules, got .* twice"):
        ImprovedImportanceCalculator().compute_enhanced_importance(model, twice, traces([HIDDEN, HIDDEN]))
    model.rnn.weight_hh_l0.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Expected finite weights in 'rnn.weight_hh_l0', got others"):
        improved(model)
    with pytest.raises(ValueError, match="Unknown fusion 'best'; known"):
        AdvancedImportanceCalculator(fusion_strategy="best")


def test_the_retention_rate_is_the_librarys_whatever_form_the_scores_have() -> None:
    scores = np.random.default_rng(0).random(30) ** 9
    expected = library_rate(scores, "snn")
    for form in (scores, scores.tolist(), torch.tensor(scores), {"a": scores[:9].tolist(), "b": scores[9:]}):
        assert adaptive_retention_rate(form, "snn") == expected
    assert ImprovedImportanceCalculator().adaptive_retention_rate([1.0] * 9) == 0.6
    with pytest.raises(ValueError, match="Expected at least one score, got none"):
        adaptive_retention_rate([])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few probes and little said."""
    monkeypatch.setattr(enhanced_hessian_pruner, "PROBES", 16)
    monkeypatch.setattr(enhanced_hessian_pruner, "STABILITY", -1.0)


def pruned(pruner: EnhancedHessianPruner, loader: Any, *, ratio: float = 0.4, **changes: Any) -> PruningResult:
    settings = {"device": "cpu", "seed": 1, "batch_size": 4, "bptt": 6, "ntokens": 20, "criterion": LOSS}
    return pruner.make_pruned_model(**{"dataloader": loader, "snn_ratio": ratio, **settings, **changes})


@pytest.fixture
def few(windows: Windows) -> list[Window]:
    return list(windows)[:6]


@pytest.mark.usefixtures("short")
def test_the_pruners_choice_is_the_librarys_by_the_same_signals(tmp_path: Path, few: list[Window]) -> None:
    model = tiny(widths=(7, 6))
    result = pruned(EnhancedHessianPruner(model, str(tmp_path / "traces.npy")), few)
    traced = hessian(model, few, probes=16, stability=-1.0, seed=1)  # type: ignore[arg-type]
    seen, covariances = activations(model, few, activation_samples=100, bins=32)  # type: ignore[arg-type]
    keys = traced[["layer", "neuron"]]
    tables = {
        "weights": weights(model, threshold=0.1, bins=32),
        "hessian": traced,
        "activations": seen,
        "gradients": gradients(model, few, batches=100),  # type: ignore[arg-type]
        "cooperative": cooperative(model, covariances, strong=0.75),
        "surgeon": keys.assign(importance=0.0),
        "criteria": keys.assign(**dict.fromkeys(CRITERIA, 0.0)),
    }
    expected = fuse(tables, Fusing(strategy="adaptive", seed=1))
    pd.testing.assert_series_equal(result.importance["fused"], expected["fused"])
    relative = expected["fused"] / expected.groupby("layer")["fused"].transform("mean")
    best = expected.loc[relative.nlargest(8).index]  # 0.6 × 13, rounded
    assert result.kept_neurons == {layer: sorted(own) for layer, own in best.groupby("layer")["neuron"]}
    smaller = select(model, {layer: torch.tensor(own) for layer, own in result.kept_neurons.items()})
    assert bytes_of(tensors_of(result.model)) == bytes_of(tensors_of(smaller))


@pytest.mark.usefixtures("short")
def test_with_a_comparison_the_traditional_choice_stands_beside(tmp_path: Path, few: list[Window]) -> None:
    model = tiny(widths=(7, 6))
    kept, smaller, comparison = pruned(EnhancedHessianPruner(model, str(tmp_path / "traces")), few)
    alone = pruned(EnhancedHessianPruner(model, str(tmp_path / "traces"), use_advanced_importance=False), few)
    assert comparison.kept_neurons == alone.kept_neurons
    assert bytes_of(tensors_of(comparison.model)) == bytes_of(tensors_of(alone.model))
    assert comparison.losses["dense"] == loss_of(model, few).mean
    assert comparison.losses["chosen"] == loss_of(smaller, few).mean
    assert comparison.losses["traditional"] == loss_of(alone.model, few).mean
    for layer, share in comparison.overlap.items():
        both = set(kept[layer]) & set(alone.kept_neurons[layer])
        assert share == len(both) / max(len(kept[layer]), len(alone.kept_neurons[layer]))
    assert alone.importance is None


@pytest.mark.usefixtures("short")
def test_without_a_comparison_or_saving_there_are_two_answers_and_the_trace_file_alone(
    tmp_path: Path, few: list[Window]
) -> None:
    pruner = EnhancedHessianPruner(tiny(widths=(7, 6)), str(tmp_path / "of" / "traces.pt"))
    result = pruned(pruner, few, comparison_analysis=False, save_results=False)
    kept, model = result
    assert model.widths() == tuple(len(own) for own in kept.values())
    assert (result.comparison, result.files) == (None, {})
    assert set(result.retention["variant"]) == {"enhanced"}
    assert [path.name for path in (tmp_path / "of").iterdir()] == ["traces.pt"]


@pytest.mark.usefixtures("short")
def test_results_are_saved_beside_the_trace_file_as_they_are_returned(tmp_path: Path, few: list[Window]) -> None:
    result = pruned(EnhancedHessianPruner(tiny(widths=(7, 6)), str(tmp_path / "traces.parquet")), few)
    assert {path.name for path in tmp_path.iterdir()} == {
        "traces.parquet", "traces.retention.parquet", "traces.importance.parquet",
    }  # fmt: skip
    for name in ("retention", "importance"):
        pd.testing.assert_frame_equal(pd.read_parquet(result.files[name]), getattr(result, name))
    assert set(result.retention["variant"]) == {"enhanced", "traditional"}


@pytest.mark.usefixtures("short")
def test_traces_are_computed_once_and_then_read(
    tmp_path: Path, few: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = tiny(widths=(7, 6)), tmp_path / "traces"
    first = pruned(EnhancedHessianPruner(model, str(file), use_advanced_importance=False), few)
    written = file.read_bytes()
    monkeypatch.setattr(enhanced_hessian_pruner, "hessian", None)
    again = pruned(EnhancedHessianPruner(model, str(file), use_advanced_importance=False), few, seed=2)
    assert again.kept_neurons == first.kept_neurons
    assert file.read_bytes() == written


@pytest.mark.usefixtures("short")
def test_a_trace_file_of_another_model_or_of_something_else_is_refused(tmp_path: Path, few: list[Window]) -> None:
    file = tmp_path / "traces"
    pruned(EnhancedHessianPruner(tiny(widths=(7, 6)), str(file), use_advanced_importance=False), few)
    other = EnhancedHessianPruner(tiny(widths=(7, 6), seed=1), str(file))
    with pytest.raises(ValueError, match=r"Expected the hessian of this model in .*, got that of another; give"):
        pruned(other, few)
    file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"Expected the table 'hessian' in .*, got something else"):
        pruned(other, few)
    with pytest.raises(ValueError, match=r"Expected the table 'hessian' in .*, got a folder"):
        pruned(EnhancedHessianPruner(tiny(widths=(7, 6)), str(tmp_path)), few)
    corpus = pd.DataFrame({"token": [0], "text": ["a"], "count": [1]})
    write_table(file, VOCABULARY, corpus, {})
    with pytest.raises(ValueError, match=r"Expected the table 'hessian' in .*, got 'vocabulary'"):
        pruned(other, few)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(tmp_path: Path) -> None:
    frame = pd.DataFrame({"token": [0], "text": ["a"], "count": [1]})
    write_table(tmp_path / "some", VOCABULARY, frame, {})
    with pytest.raises(ValueError, match="Expected the columns"):
        write_table(tmp_path / "some", VOCABULARY, frame[["token"]], {})
    assert [path.name for path in tmp_path.iterdir()] == ["some"]
    assert len(pd.read_parquet(tmp_path / "some")) == 1


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("family", "kinds"), [("lstm + snn", {"lstm", "snn"}), ("snn", {"snn"}), ("gru", {"gru"})])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_of_a_ratio_spiking_neurons_keep_that_share_and_others_the_rest_at_least_one_in_each_layer(
    tmp_path: Path, few: list[Window], family: str, kinds: set[str], ratio: float
) -> None:
    model = tiny(widths=(8, 6), family=family)
    pruner = EnhancedHessianPruner(model, str(tmp_path / "traces"), use_advanced_importance=False)
    result = pruned(pruner, few, ratio=ratio)
    for kind in kinds:
        widths = {layer.name: layer.width for layer in model.layers() if layer.name.startswith(kind)}
        share = ratio if kind == "snn" else 1 - ratio
        kept = [len(result.kept_neurons[name]) for name in widths]
        assert min(kept) >= 1
        assert sum(kept) == max(len(widths), int(share * sum(widths.values()) + 0.5))


@pytest.mark.usefixtures("short")
def test_a_tensor_of_tokens_is_cut_into_windows_of_the_given_shape(tmp_path: Path) -> None:
    tokens, model = text(81), tiny(widths=(7, 6))
    columns = tokens[:80].view(4, 20).T
    cut = [(columns[i : min(i + 6, 19)], columns[i + 1 : i + 7]) for i in (0, 6, 12, 18)]
    found = [
        pruned(EnhancedHessianPruner(model, str(tmp_path / f"{place}"), use_advanced_importance=False), loader)
        for place, loader in enumerate((cut, columns, tokens, [(data, targets.flatten()) for data, targets in cut]))
    ]
    for one in found:
        pd.testing.assert_frame_equal(one.retention, found[0].retention)


@pytest.mark.usefixtures("short")
def test_learned_fusion_measures_removals_itself_and_leaves_the_model(tmp_path: Path, few: list[Window]) -> None:
    model = tiny(widths=(11, 10))
    before = bytes_of(tensors_of(model))
    result = pruned(EnhancedHessianPruner(model, str(tmp_path / "t"), importance_fusion_strategy="learned"), few)
    assert sum(map(len, result.kept_neurons.values())) == 13  # 0.6 × 21, rounded
    assert bytes_of(tensors_of(model)) == before


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("kind", "longer"), [("LSTM", False), ("GRU", True)])
def test_a_users_recurrent_model_comes_back_smaller_and_of_its_own_class(
    tmp_path: Path, kind: str, longer: bool
) -> None:
    model, own = RNNModel(kind, 2, longer=longer), batches()
    before, random = bytes_of(tensors_of(model)), torch.get_rng_state()
    settings = {"batch_size": 4, "bptt": 5, "ntokens": WORDS, "device": None}
    result = pruned(EnhancedHessianPruner(model, str(tmp_path / "traces")), own, **settings)
    kept, smaller, comparison = result
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    output, hidden, *_ = smaller(own[0][0], smaller.init_hidden(4))
    assert type(smaller) is RNNModel
    assert output.shape == (20, WORDS)
    assert smaller(own[1][0], hidden)[0].isfinite().all()
    assert sum(map(len, kept.values())) == int(0.6 * HIDDEN * len(kept) + 0.5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert comparison.losses["dense"] == pytest.approx(_carried_loss(model, own))
    assert comparison.losses["chosen"] == pytest.approx(_carried_loss(smaller, own))
    assert bytes_of(tensors_of(model)) == before


def _carried_loss(model: Any, own: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the mean loss over batches, written out."""
    hidden, losses = model.eval().init_hidden(4), []
    with torch.no_grad():
        for data, targets in own:
            output, hidden, *_ = model(data, hidden)
            losses.append(LOSS(output, targets).item())
    return float(np.mean(losses))


@pytest.mark.usefixtures("short")
def test_a_users_classifier_without_a_hidden_state_is_pruned_too(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    data = torch.randn(48, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(data, data.argmax(1) % 3), batch_size=8)
    pruner = EnhancedHessianPruner(network, str(tmp_path / "traces"), importance_fusion_strategy="simple")
    kept, smaller, _ = pruned(pruner, loader, ntokens=3)
    assert (smaller[0].out_features, smaller[2].out_features) == tuple(len(own) for own in kept.values())
    assert sum(map(len, kept.values())) == 17  # 0.6 × 28, rounded
    assert smaller(data).shape == (48, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"snn_ratio": 1.5}, r"Expected snn_ratio in \[0, 1\], got 1.5"),
        ({"ntokens": 21}, r"Expected a model of 21 tokens \(ntokens\), got one of 20"),
        ({"criterion": lambda output, _: output.square().mean()}, "Expected the cross-entropy as criterion"),
        ({"device": "meta"}, "Expected a model on meta, got one on cpu"),
        ({"dataloader": []}, r"Expected at least one batch \(data, targets\)"),
        ({"dataloader": torch.zeros(2, 2, 2)}, r"Expected tokens \(n,\) or in columns"),
        ({"dataloader": text(50), "batch_size": 0}, "Expected batch_size and bptt of at least 1, got 0 and 6"),
    ],
)
def test_what_cannot_be_pruned_by_is_refused_before_anything_is_written(
    tmp_path: Path, few: list[Window], change: dict[str, Any], sentence: str
) -> None:
    pruner = EnhancedHessianPruner(tiny(widths=(7, 6)), str(tmp_path / "traces"))
    with pytest.raises(ValueError, match=sentence):
        pruned(pruner, few, **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short")
def test_a_model_in_which_no_neuron_is_found_is_refused(tmp_path: Path) -> None:
    network = nn.Linear(5, 3).double()
    pruner = EnhancedHessianPruner(network, str(tmp_path / "traces"))
    with pytest.raises(ValueError, match="Expected a model with a layer that can be pruned, got none"):
        pruned(pruner, [(torch.ones(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))], ntokens=3)


def test_a_fusion_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown fusion 'best'; known: \['simple', 'adaptive', 'learned'\]"):
        EnhancedHessianPruner(tiny(), "traces", importance_fusion_strategy="best")


def test_the_guides_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs/guides/older-interface.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(snippet, scope)  # noqa: S102 - the guide's own words
    assert sum(map(len, scope["kept"].values())) == sum(scope["smaller"].widths())
    assert (tmp_path / "traces.parquet").is_file()
