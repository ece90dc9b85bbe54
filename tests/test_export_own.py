"""Networks of a user's own as programs and ONNX graphs: the same numbers for any batch and steps, or one sentence."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pruning
from pruning.core.neurons import select
from pruning.discovery.running import tensors_in
from tests.discovery.test_forms import Network
from tests.foreign import floats, tokens, transformers
from tests.networks import WordModel


def real(*shape: int) -> Tensor:
    return floats(*shape).float()


def tagger(cell: str = "LSTM", **settings: Any) -> nn.Module:
    made = getattr(nn, cell)(3, 6, 2, batch_first=True, bidirectional=True, **settings)
    width = 2 * (made.proj_size or 6)
    return Network(lambda self, x: self.out(self.rnn(x)[0]), rnn=made, out=nn.Linear(width, 2))


def attending() -> nn.Module:
    def run(self: Any, x: Tensor) -> Tensor:
        outputs, state = self.rnn(x)
        return self.out((outputs * state[-1][:, None]).sum(1))

    return Network(run, rnn=nn.GRU(3, 6, batch_first=True, bias=False), out=nn.Linear(6, 2))


def starting() -> nn.Module:
    def run(self: Any, x: Tensor) -> Tensor:
        return self.out(self.rnn(x, self.start.expand(-1, len(x), -1).contiguous())[0][:, -1])

    parts = {"rnn": nn.GRU(3, 6, batch_first=True), "start": nn.Parameter(torch.ones(1, 1, 6))}
    return Network(run, **parts, out=nn.Linear(6, 2))


def images() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.Sequential(
        nn.Embedding(11, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 2)
    )


def packed(cell: str, reads: str, **settings: Any) -> nn.Module:
    def run(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
        sequences = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, state = self.rnn(sequences)
        if reads == "outputs":
            return self.out(pad_packed_sequence(outputs, batch_first=True, padding_value=-1.0)[0])
        hidden = state[0] if isinstance(state, tuple) else state
        return self.out(torch.cat([*(state[1] if reads == "cells" else hidden)][-2:], dim=1))

    rnn = getattr(nn, cell)(3, 6, 2, batch_first=True, bidirectional=True, **settings)
    return Network(run, rnn=rnn, out=nn.Linear(12, 2))


def lengthy(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return sequences with noise behind their lengths, which nobody may read, and these."""
    return real(len(lengths), max(lengths), 3), torch.tensor(lengths)


PACKED = [lengthy(3, 5, 1), lengthy(2, 9, 9, 1, 4, 7)]
OWN: dict[str, tuple[Callable[[], nn.Module], list[tuple[Any, ...]]]] = {
    "stacked, both directions": (tagger, [(real(2, 4, 3),), (real(5, 9, 3),), (real(1, 1, 3),)]),
    "ReLU, both directions": (lambda: tagger("RNN", nonlinearity="relu"), [(real(2, 4, 3),), (real(5, 9, 3),)]),
    "an example of one": (tagger, [(real(1, 4, 3),), (real(5, 9, 3),)]),
    "attention by the last state": (attending, [(real(2, 4, 3),), (real(5, 9, 3),)]),
    "a learned state of as many rows": (starting, [(real(2, 4, 3),), (real(5, 9, 3),)]),
    "packed outputs": (lambda: packed("LSTM", "outputs"), PACKED),
    "last states of packed sequences": (lambda: packed("GRU", "hidden"), PACKED),
    "last states of packed sequences without biases": (lambda: packed("LSTM", "hidden", bias=False), PACKED),
    "images": (images, [(real(2, 3, 6, 6),), (real(5, 3, 8, 9),)]),
    "a Transformer": (transformer, [(tokens(2, 4),), (tokens(5, 9),)]),
    "a language model with its state": (
        WordModel,
        [(tokens(t, b), (torch.ones(2, b, 5), torch.ones(2, b, 5))) for t, b in ((4, 2), (9, 5))],
    ),
}


def smaller(name: str, *, equal: bool) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return a network without some neurons, as many in each layer or not, and inputs of several sizes."""
    make, inputs = OWN[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().eval()
    found = pruning.discover(network, inputs[0])
    widths = {
        layer.name: max(1, layer.width // 2 - (not equal) * (place % 2)) for place, layer in enumerate(found.layers())
    }
    return select(found, {layer.name: torch.arange(widths[layer.name]) for layer in found.layers()}), inputs


def answers(network: Any, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(network(*inputs))


def run_onnx(graph: onnx.ModelProto, inputs: tuple[Any, ...]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    feed = dict(zip([put.name for put in session.get_inputs()], [t.numpy() for t in tensors_in(inputs)], strict=True))
    return [torch.from_numpy(np.asarray(array)) for array in session.run(None, feed)]


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("name", OWN)
def test_the_loaded_program_of_a_users_network_gives_the_same_for_any_batch_and_steps(name: str, equal: bool) -> None:
    model, inputs = smaller(name, equal=equal)
    file = io.BytesIO()
    torch.export.save(pruning.program_of(model), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for given in inputs:
        for one, other in zip(answers(loaded, given), answers(model, given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_onnxruntime_gives_the_same_of_a_users_network_for_any_batch_and_steps(name: str) -> None:
    model, inputs = smaller(name, equal=False)
    graph = pruning.onnx_of(model)
    onnx.checker.check_model(graph, full_check=True)
    for given in inputs:
        for one, other in zip(run_onnx(graph, given), answers(model, given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_module_of_pytorchs_is_one_operation_of_a_layer_in_onnx_and_one_kernel_in_a_program() -> None:
    model, _ = smaller("stacked, both directions", equal=True)
    assert [node.op_type for node in pruning.onnx_of(model).graph.node if node.op_type in ("LSTM", "Loop")] == 2 * [
        "LSTM"
    ]
    nodes = [str(node.target) for node in pruning.program_of(model).graph.nodes]
    assert sum("lstm" in node for node in nodes) == 1


def test_onnx_tells_what_an_lstms_cells_remember_after_packed_sequences() -> None:
    network = packed("LSTM", "cells").eval()
    graph = pruning.onnx_of(network, PACKED[0])
    for given in PACKED:
        torch.testing.assert_close(run_onnx(graph, given), answers(network, given), rtol=1e-5, atol=1e-5)


def test_a_model_of_transformers_is_exported_by_names_and_without_its_cache() -> None:
    library = transformers()
    settings = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4}
    network = library.LlamaForCausalLM(library.LlamaConfig(vocab_size=11, **settings)).eval()
    found = pruning.discover(network, {"input_ids": tokens(2, 4)})
    model = select(found, {layer.name: torch.arange(0, layer.width, 2) for layer in found.layers()})
    program = pruning.program_of(model).module()
    text = tokens(5, 9)
    with torch.no_grad():
        expected = model(input_ids=text).logits
        torch.testing.assert_close(program(input_ids=text).logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run_onnx(pruning.onnx_of(model), (text,))[0], expected, rtol=1e-5, atol=1e-5)
    assert network.config.use_cache


def test_what_adapt_gave_and_a_network_with_inputs_are_exported_and_stay_as_they_were() -> None:
    network = images()
    network[0].weight.requires_grad_(False)
    model = pruning.adapt(network, real(2, 3, 6, 6), criterion=nn.CrossEntropyLoss())
    with torch.no_grad():
        expected = network.eval()(real(5, 3, 4, 4))
    network.train()
    for program in (pruning.program_of(model), pruning.program_of(network, real(2, 3, 6, 6))):
        torch.testing.assert_close(program.module()(real(5, 3, 4, 4)), expected)
    assert all(module.training for module in network.modules())
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, *[True] * 5]


def test_steps_that_a_networks_own_code_counts_are_as_many_as_in_the_example() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 6)
        for step in x.unbind(1):
            state = torch.tanh(self.enter(step) + self.back(state))
        return self.out(state)

    network = Network(run, enter=nn.Linear(3, 6), back=nn.Linear(6, 6), out=nn.Linear(6, 2))
    program = pruning.program_of(network, real(2, 4, 3)).module()
    assert program(real(7, 4, 3)).shape == (7, 2)
    with pytest.raises(AssertionError, match="Guard failed"):
        program(real(7, 5, 3))


def test_sizes_of_a_pruned_networks_own_code_follow_beside_sizes_that_are_left_free() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 6)
        for step in x.unbind(1):
            state = torch.tanh(self.enter(step) + self.back(state))
        return self.out(state)

    network = Network(run, enter=nn.Linear(3, 6), back=nn.Linear(6, 6), out=nn.Linear(6, 2))
    model = select(pruning.discover(network, real(2, 4, 3)), {"enter": torch.tensor([4, 1])})
    inputs = real(7, 4, 3)
    torch.testing.assert_close(pruning.program_of(model).module()(inputs), model(inputs))


def test_where_pytorch_cannot_leave_an_images_sides_free_the_examples_are() -> None:
    def run(self: Any, x: Tensor) -> Tensor:
        image = torch.relu(self.enter(x))
        image = nn.functional.avg_pool2d(image, image.size(3))
        return self.out(image.view(image.size(0), -1))

    network = Network(run, enter=nn.Conv2d(3, 6, 3, stride=2, padding=1), out=nn.Linear(6, 2))
    program, inputs = pruning.program_of(network, real(2, 3, 8, 8)).module(), real(7, 3, 8, 8)
    torch.testing.assert_close(program(inputs), network(inputs))


def remembering(self: Any, x: Tensor) -> Tensor:
    outputs, state = self.rnn(x, self.state)
    self.state = state.detach()
    return self.out(outputs)


def deciding(self: Any, x: Tensor) -> Tensor:
    return self.out(x) if x.sum() > 0 else -self.out(x)


REFUSALS: dict[str, tuple[Callable[[], nn.Module], Any, Callable[..., Any]]] = {
    "got one that reads what an LSTM's cells remember; let it read those": (
        lambda: packed("LSTM", "cells"),
        PACKED[0],
        pruning.program_of,
    ),
    "Expected a network that keeps nothing from call to call": (
        lambda: Network(remembering, rnn=nn.GRU(3, 6), out=nn.Linear(6, 2), state=torch.zeros(1, 2, 6)),
        real(4, 2, 3),
        pruning.onnx_of,
    ),
    "Expected a recurrence without a projection for ONNX, got rnn: LSTM(3, 6, proj_size=2": (
        lambda: tagger(proj_size=2),
        real(2, 4, 3),
        pruning.onnx_of,
    ),
    "Expected a network that torch.export can follow, got ": (
        lambda: Network(deciding, out=nn.Linear(3, 2)),
        real(2, 3),
        pruning.program_of,
    ),
    "Expected dense tensors, got a sparse one, which a graph has no form for": (
        lambda: Network(lambda self, x: torch.sparse.mm(x, self.enter.T), enter=real(6, 3)),
        real(4, 3).to_sparse(),
        pruning.onnx_of,
    ),
    "Expected example inputs to export Network with, got none": (tagger, None, pruning.program_of),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_what_no_graph_can_hold_is_refused_with_one_sentence(sentence: str) -> None:
    make, inputs, function = REFUSALS[sentence]
    with pytest.raises(ValueError, match=r"^Expected [^\n]*\.$") as refusal:
        function(make(), inputs)
    assert sentence in str(refusal.value)


def test_a_deployed_network_is_scripted_where_the_original_could_be() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 6, 2, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0])

    found = pruning.discover(Tagger().eval(), real(2, 4, 3))
    deployed = pruning.deployed(select(found, {layer.name: torch.arange(3) for layer in found.layers()}))
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(deployed)
    torch.testing.assert_close(scripted(real(5, 9, 3)), deployed(real(5, 9, 3)))


def test_a_state_that_goes_in_and_out_has_the_width_in_a_graph_that_it_had():
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRUCell(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.cell(x, h)
            return self.out(h), h

    smaller = select(pruning.discover(Stepped(), (real(3, 3), real(3, 6))), {"cell": torch.tensor([4, 1])})
    graph, program = pruning.onnx_of(smaller), pruning.program_of(smaller)
    names, given = [one.name for one in graph.graph.input], (real(5, 3), real(5, 6))
    run = onnxruntime.InferenceSession(graph.SerializeToString()).run
    told = run(None, dict(zip(names, (part.numpy() for part in given), strict=True)))
    assert told[1].shape == (5, 6)
    for answers in (program.module()(*given), map(torch.from_numpy, told)):
        for one, other in zip(answers, smaller(*given), strict=True):
            torch.testing.assert_close(one, other)


def test_a_module_that_is_called_by_a_word_of_pythons_is_refused_by_that_word():
    network = Network(lambda self, x: self.parts["in"](x), parts=nn.ModuleDict({"in": nn.Linear(3, 6)}))
    for graph_of in (pruning.program_of, pruning.onnx_of):
        with pytest.raises(ValueError, match="that PyTorch can write into code, got 'in', a word of Python's"):
            graph_of(network, real(2, 3))


def test_a_network_that_is_called_with_packed_sequences_is_refused_for_that():
    def run(self: Any, packed: Any) -> Tensor:
        return self.out(pad_packed_sequence(self.rnn(packed)[0])[0])

    network = Network(run, rnn=nn.GRU(3, 6), out=nn.Linear(6, 2)).float()
    packed = pack_padded_sequence(real(4, 2, 3), torch.tensor([4, 2]))
    for inputs in (packed, (packed,)):
        with pytest.raises(ValueError, match="Expected tensors to follow the network with, got a packed sequence"):
            pruning.program_of(network, inputs)


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Answering(nn.Sequential):
    def forward(self, x: torch.Tensor) -> Any:
        return Answer(super().forward(x))


def test_what_stands_in_a_dataclass_is_given_by_its_fields() -> None:
    network, x = Answering(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(5, 2)
    given = pruning.program_of(network, x).module()(x)
    assert given.keys() == {"logits"}
    torch.testing.assert_close(given["logits"], network(x).logits)
    assert isinstance(network(x), Answer)
    assert [node.op_type for node in pruning.onnx_of(network, x).graph.node] == ["Gemm", "Relu", "Gemm"]


def test_a_dimension_of_one_is_exported_without_a_word(caplog):
    logging.getLogger("torch._export.non_strict_utils").addHandler(caplog.handler)  # which PyTorch keeps to itself
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 1))
    program = pruning.program_of(network, torch.ones(2, 1, 4, 4))
    assert program.module()(torch.ones(5, 1, 6, 7)).shape == (5, 1, 4, 5)
    assert "specialized" not in caplog.text
