"""Single steps of recurrent layers: what PyTorch's own give, by cells where that is faster, and seen by hooks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.core.stepping import MOST, one_step, stepping
from tests.networks import WordModel
from tests.tiny import VOCABULARY, tiny

LAYERS = {
    "lstm": lambda: nn.LSTM(3, 5),
    "gru": lambda: nn.GRU(3, 5),
    "tanh": lambda: nn.RNN(3, 5),
    "relu without biases": lambda: nn.RNN(3, 5, nonlinearity="relu", bias=False),
    "two layers, batch first": lambda: nn.LSTM(3, 5, num_layers=2, batch_first=True),
}


def tensors(state: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a state in whatever shape PyTorch gives it."""
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_by_cells_is_that_of_pytorchs_kernel_from_zeros_and_from_a_state(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name]().to(dtype)
    inputs = torch.randn(4, 1, 3, dtype=dtype) if layer.batch_first else torch.randn(1, 4, 3, dtype=dtype)
    state = None
    with torch.no_grad():
        for _ in range(2):
            expected, after = layer(inputs, state)
            found = one_step(layer, inputs, None if state is None else tensors(state))
            assert found is not None
            torch.testing.assert_close(found[0], expected)
            torch.testing.assert_close(found[1], tensors(after))
            state = after


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LSTM(3, 5), (2, 1, 3)),
        (nn.LSTM(3, 5), (1, MOST + 1, 3)),
        (nn.LSTM(3, 5), (1, 3)),
        (nn.LSTM(3, 5).bfloat16(), (1, 1, 3)),
        (nn.LSTM(3, 5, bidirectional=True), (1, 1, 3)),
        (nn.LSTM(3, 5, proj_size=2), (1, 1, 3)),
    ],
    ids=["sequence", "many", "alone", "half", "both ways", "projected"],
)
def test_what_cells_do_not_do_is_left_to_the_layer(layer: nn.LSTM, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert one_step(layer, torch.zeros(shape, dtype=layer.weight_ih_l0.dtype), None) is None


def test_whoever_asks_for_gradients_or_watches_a_layer_gets_its_own_forward() -> None:
    layer, inputs = nn.LSTM(3, 5), torch.zeros(1, 1, 3)
    assert one_step(layer, inputs, None) is None
    with torch.no_grad():
        assert one_step(layer, inputs, None) is not None
        with layer.register_forward_hook(lambda *_: None):
            assert one_step(layer, inputs, None) is None


def test_what_captures_a_graph_gets_the_layers_own_forward_which_serves_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, inputs = nn.LSTM(3, 5), torch.zeros(1, 1, 3)
    with torch.no_grad():
        for place in (torch._C, "_is_tracing"), (torch.compiler, "is_compiling"):
            with monkeypatch.context() as patched:
                patched.setattr(*place, lambda: True)
                assert one_step(layer, inputs, None) is None


@pytest.mark.parametrize("family", ["lstm", "gru", "tanh"])
def test_a_language_model_reads_step_by_step_what_it_reads_at_once(family: str) -> None:
    model = tiny(family=family)
    tokens = torch.randint(VOCABULARY, (6, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, last = model(tokens)
        state, found = None, []
        for step in tokens:
            logits, state = model(step[None], state)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found), expected)
    torch.testing.assert_close(state, last)


def test_the_step_of_a_language_model_runs_no_kernel_for_sequences() -> None:
    model = tiny()
    with torch.no_grad(), torch.profiler.profile() as seen:
        model(torch.zeros(1, 1, dtype=torch.long))
    called = {event.key for event in seen.key_averages()}
    assert "aten::lstm_cell" in called
    assert "aten::lstm" not in called


def test_a_users_network_is_deployed_with_steps_that_give_what_it_gave() -> None:
    torch.manual_seed(1)
    network = WordModel().eval()
    found = pruning.discover(network, (torch.zeros(5, 2, dtype=torch.long), network.init_hidden(2)))
    smaller = pruning.select(found, {"rnn.0": torch.tensor([0, 2, 3]), "rnn.1": torch.tensor([1, 2, 4])})
    plain, quick = pruning.deployed(smaller), pruning.deployed(smaller, steps=True)
    assert isinstance(quick.rnn, nn.LSTM)
    assert str(quick) == str(plain)
    copied, state, before = copy.deepcopy(quick), None, None
    with torch.no_grad():
        for token in torch.tensor([[[1, 2]], [[3, 0]], [[4, 4]]]):
            expected, before = plain(token, before)
            logits, state = copied(token, state)
            torch.testing.assert_close(logits, expected)
            torch.testing.assert_close(state, before)


def test_a_layer_that_steps_does_the_rest_as_pytorchs_own() -> None:
    torch.manual_seed(1)
    layer = nn.GRU(3, 5)
    quick = stepping(copy.deepcopy(layer))
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 3), torch.zeros(1, 3)])
    for inputs in (torch.ones(4, 2, 3), torch.ones(1, 3)):
        torch.testing.assert_close(quick(inputs), layer(inputs))
    torch.testing.assert_close(quick(packed)[1], layer(packed)[1])
    quick(torch.ones(1, 1, 3))[0].sum().backward()
    assert quick.weight_hh_l0.grad is not None


@pytest.mark.parametrize("name", LAYERS)
def test_what_code_writes_into_the_outputs_of_a_step_is_not_written_into_the_state(name: str) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name]()
    quick, inputs = stepping(copy.deepcopy(layer)), torch.ones(1, 1, 3)
    with torch.no_grad():
        for _ in range(2):
            outputs, state = quick(inputs)
            outputs.fill_(7.0)
            torch.testing.assert_close(state, layer(inputs)[1])


def test_a_deployed_decoder_lies_by_columns_and_is_in_all_else_what_it_was(tmp_path: Path) -> None:
    sizes = {"vocabulary": 90, "embedding": 6, "widths": [5], "dropout": 0.0}
    untied, tied = (pruning.build("lstm", decoder=decoder, **sizes) for decoder in ("untied", "projected"))
    quick, token = pruning.deployed(untied, steps=True), torch.zeros(1, 1, dtype=torch.long)
    assert quick.decoder.weight.stride() == copy.deepcopy(quick).decoder.weight.stride() == (1, 90)
    assert untied.decoder.weight.is_contiguous()
    assert pruning.deployed(tied, steps=True).encoder.weight.is_contiguous()
    for name, tensor in untied.state_dict().items():
        assert torch.equal(quick.state_dict()[name], tensor)
    torch.testing.assert_close(quick(token)[0], untied(token)[0])
    pruning.save(quick, tmp_path)
    assert torch.equal(pruning.restore(untied, tmp_path).decoder.weight, untied.decoder.weight)
