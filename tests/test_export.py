"""A model as a program and as an ONNX graph: the same numbers for any length, batch and kind of decoder."""

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pruning.export import initial_state, largest_difference, onnx_of, program_of
from pruning.models.base import LanguageModel, State
from tests.tiny import EMBEDDING, VOCABULARY, bytes_of, tensors_of, tiny

KINDS = ("untied", "tied", "projected")
SHAPES = ((1, 1), (1, 5), (9, 1), (7, 3), (40, 2))
OPERATIONS = {
    "gru": ["GRU"],
    "tanh": ["RNN"],
    "relu": ["RNN"],
    "snn": ["Scan"],
    "feed-forward snn": ["Scan"],
    "lstm + snn": ["LSTM", "Scan"],
    "relu + feed-forward snn": ["RNN", "Scan"],
}
"""ONNX's operations of one layer of each family but the LSTM."""
every_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind: str, **changes: Any) -> LanguageModel:
    return tiny(kind, dtype=torch.float32, **changes)


def reloaded(model: LanguageModel) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program_of(model), file)
    file.seek(0)
    return torch.export.load(file).module()


def run_onnx(graph: onnx.ModelProto, tokens: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    flat = [tensor.numpy() for layer in state for tensor in layer]
    feed = dict(zip([put.name for put in session.get_inputs()], [tokens.numpy(), *flat], strict=True))
    logits, *after = [torch.from_numpy(array) for array in session.run(None, feed)]
    found = iter(after)
    return logits, [tuple(next(found) for _ in layer) for layer in state]


def windows(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, *shape), generator=torch.Generator().manual_seed(sum(shape)))


@every_kind
def test_the_loaded_program_gives_the_same_logits_for_any_length_and_batch_state_carried(kind: str) -> None:
    model = model_of(kind)
    loaded = reloaded(model)
    for shape in SHAPES:
        ours = theirs = initial_state(model, shape[1])
        for tokens in windows(shape):
            with torch.no_grad():
                (expected, ours), (found, theirs) = model(tokens, ours), loaded(tokens, theirs)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_kind
def test_onnxruntime_gives_the_same_logits_for_any_length_and_batch_state_carried(kind: str) -> None:
    model = model_of(kind)
    graph = onnx_of(model)
    onnx.checker.check_model(graph, full_check=True)
    for shape in SHAPES:
        ours = theirs = initial_state(model, shape[1])
        for tokens in windows(shape):
            with torch.no_grad():
                expected, ours = model(tokens, ours)
            found, theirs = run_onnx(graph, tokens, theirs)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            for mine, others in zip(ours, theirs, strict=True):
                torch.testing.assert_close(others, mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", OPERATIONS)
def test_every_family_leaves_as_a_program_and_as_a_graph_of_one_operation_a_layer_that_compute_the_same(
    family: str,
) -> None:
    model = model_of("projected", widths=(5, 4), family=family)
    loaded, graph = reloaded(model), onnx_of(model)
    onnx.checker.check_model(graph, full_check=True)
    kinds = [node.op_type for node in graph.graph.node if node.op_type in ("LSTM", "GRU", "RNN", "Scan")]
    assert kinds == 2 * OPERATIONS[family]
    for shape in SHAPES:
        ours = program = elsewhere = initial_state(model, shape[1])
        for tokens in windows(shape):
            with torch.no_grad():
                (expected, ours), (found, program) = model(tokens, ours), loaded(tokens, program)
            again, elsewhere = run_onnx(graph, tokens, elsewhere)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
            for mine, one, other in zip(flat(ours), flat(program), flat(elsewhere), strict=True):
                torch.testing.assert_close(one, mine, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-5)


def flat(state: State) -> list[torch.Tensor]:
    return [tensor for layer in state for tensor in layer]


@every_kind
def test_an_onnx_graph_holds_one_lstm_a_layer_and_each_number_once(kind: str) -> None:
    model = model_of(kind, widths=(5, 8, EMBEDDING))
    graph = onnx_of(model).graph
    assert sum(node.op_type == "LSTM" for node in graph.node) == 3
    stored = sum(
        int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    )
    assert stored == sum(parameter.numel() for parameter in model.parameters())


def test_an_onnx_graph_names_what_it_reads_and_gives() -> None:
    graph = onnx_of(model_of("untied")).graph
    state = [f"state_{layer}_{number}" for layer in range(2) for number in range(2)]
    assert [put.name for put in graph.input] == ["tokens", *state]
    assert [put.name for put in graph.output] == ["logits", *(f"next_{name}" for name in state)]
    assert [size.dim_param for size in graph.input[0].type.tensor_type.shape.dim] == ["time", "batch"]


@every_kind
def test_exporting_leaves_the_model_and_the_random_state_as_they_were(kind: str) -> None:
    model = model_of(kind, dropout=0.5).train()
    before, random = bytes_of(tensors_of(model)), torch.get_rng_state()
    program_of(model)
    onnx_of(model)
    assert bytes_of(tensors_of(model)) == before
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_differs_from_itself_by_nothing_and_from_another_by_much() -> None:
    settings: dict[str, Any] = {"vocabulary": VOCABULARY, "shapes": SHAPES, "seed": 1}
    model = model_of("untied")
    assert largest_difference(model, model, **settings) == 0
    assert largest_difference(model, model_of("untied", seed=1), **settings) > 0.1


def test_a_difference_that_only_a_carried_state_has_is_seen() -> None:
    class Forgetful(nn.Module):
        def __init__(self, model: LanguageModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
            found: tuple[torch.Tensor, State] = self.model(tokens, None)
            return found if state is None else (found[0], state)

    model = model_of("untied")
    difference = largest_difference(model, Forgetful(model), vocabulary=VOCABULARY, shapes=[(2, 2)], seed=1)  # type: ignore[arg-type]
    assert difference > 0.01


def test_of_spiking_models_the_sequences_count_in_which_no_spike_was_flipped() -> None:
    class Flipping(nn.Module):
        """Gives one column of each window of several other logits."""

        def __init__(self, model: LanguageModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
            logits, state = self.model(tokens, state)
            logits[:, 1:2] += 1
            return logits, state

    model = model_of("untied", family="snn")
    settings: dict[str, Any] = {"vocabulary": VOCABULARY, "shapes": [(3, 10)], "seed": 1}
    assert largest_difference(model, Flipping(model), **settings) > 0.01  # type: ignore[arg-type]
    assert largest_difference(model, Flipping(model), **settings, share=0.8) == 0  # type: ignore[arg-type]
    assert largest_difference(model, model_of("untied", family="snn", seed=1), **settings, share=0.8) > 0.1


def test_a_difference_that_is_no_number_is_none_however_few_sequences_count() -> None:
    model, broken = model_of("untied"), model_of("untied")
    nn.init.constant_(broken.decoder.bias, torch.nan)
    settings: dict[str, Any] = {"vocabulary": VOCABULARY, "shapes": [(3, 10)], "seed": 1, "share": 0.8}
    assert np.isnan(largest_difference(model, broken, **settings))
