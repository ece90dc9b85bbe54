"""How a model leaves this library: as a program that PyTorch alone can run, and as an ONNX graph.

Both read tokens (T, B) and every tensor of the state, give logits (T, B, V) and the state after, and take any T and B.
`torch.export` writes an `nn.LSTM` out step by step and so for one T only; therefore a copy of the model is captured
whose recurrences are single operations of known shapes: PyTorch's fused kernel for one, ONNX's `LSTM` for the other.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pruning.evaluation import evaluating
from pruning.models.base import LanguageModel, State

OPSET = 20
"""The version of ONNX's operations that graphs are written in."""


def program_of(model: LanguageModel) -> ExportedProgram:
    """Return the model in evaluation mode as a program `(tokens, state) → (logits, state)` in single precision.

    `torch.export.save` and `torch.export.load` need nothing of this library. Dimensions: `time` and `batch`, both free.

    Raises:
        ValueError: If a recurrence is not a plain one-layer `nn.LSTM`.
    """
    program = _captured(model, _FusedLSTM)
    for node in program.graph.nodes:
        if node.target is torch.ops.pruning.lstm.default:
            inputs, hidden, cell, *weights = node.args
            node.target = torch.ops.aten.lstm.input
            node.args = (inputs, [hidden, cell], weights, *_SETTINGS)
    program.graph_module.recompile()
    return program


def onnx_of(model: LanguageModel) -> Any:
    """Return the model in evaluation mode as an `onnx.ModelProto` in single precision.

    Inputs: `tokens` and `state_<layer>_<number>`; outputs: `logits` and `next_state_<layer>_<number>`. A matrix that
    embedding and decoder share is stored once.

    Raises:
        ValueError: If a recurrence is not a plain one-layer `nn.LSTM`.
    """
    state = initial_state(model, 1)
    names = [f"state_{layer}_{number}" for layer, tensors in enumerate(state) for number in range(len(tensors))]
    with _unheard():
        program = torch.onnx.export(
            _captured(model, _OnnxLSTM),
            dynamo=True,
            verbose=False,
            optimize=False,  # folding constants would store a shared matrix and its transpose
            opset_version=OPSET,
            input_names=["tokens", *names],
            output_names=["logits", *(f"next_{name}" for name in names)],
            dynamic_shapes=_dimensions(state, "time", "batch"),
        )
    assert program is not None  # noqa: S101 - it is None for the older exporter only
    return program.model_proto


def initial_state(model: LanguageModel, batch: int) -> State:
    """Return the state that `batch` columns start from: zeros, of the shapes that the model carries."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        _, state = model(torch.zeros(1, batch, dtype=torch.long, device=device))
    return [tuple(torch.zeros_like(tensor) for tensor in layer) for layer in state]


def largest_difference(
    model: LanguageModel, other: LanguageModel, *, vocabulary: int, shapes: Sequence[tuple[int, int]], seed: int
) -> float:
    """Return the largest difference of two models' logits and states, relative to the largest such number.

    For each (T, B) both read two windows of random tokens, each carrying its own state from the first to the second;
    the first starts without a state.
    """
    generator = torch.Generator().manual_seed(seed)
    largest = 0.0
    for time, batch in shapes:
        states: list[State | None] = [None, None]
        for _ in range(2):
            tokens = torch.randint(vocabulary, (time, batch), generator=generator)
            found = [_read(reader, tokens, state) for reader, state in zip((model, other), states, strict=True)]
            largest = max(largest, _distance(*(_numbers(logits, state) for logits, state in found)))
            states = [state for _, state in found]
    return largest


def _read(model: LanguageModel, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
    with evaluating(model), torch.no_grad():
        logits, after = model(tokens.to(next(model.parameters()).device), state)
    return logits, after


def _numbers(logits: Tensor, state: State) -> list[Tensor]:
    return [tensor.cpu().double() for tensor in (logits, *(tensor for layer in state for tensor in layer))]


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest max ∣a − b∣ / max ∣a∣ of tensors side by side."""
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


def _captured(model: LanguageModel, recurrence: type["_FusedLSTM | _OnnxLSTM"]) -> ExportedProgram:
    """Return a copy of the model, its recurrences replaced, as a graph with free T and B."""
    twin = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    state = initial_state(twin, 3)  # the example's T and B: any but 0 and 1, which torch.export takes for constants
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.RNNBase):
            _check_plain(name, module)
            twin.set_submodule(name, recurrence(module))
    example = (torch.zeros(2, 3, dtype=torch.long), state)
    return torch.export.export(twin, example, dynamic_shapes=_dimensions(state, Dim("time"), Dim("batch")))


def _dimensions(state: State, time: Any, batch: Any) -> tuple[Any, ...]:
    """Return which dimensions of (tokens, state) are free."""
    return {0: time, 1: batch}, [tuple({1: batch} for _ in layer) for layer in state]


def _check_plain(name: str, module: nn.RNNBase) -> None:
    plain = isinstance(module, nn.LSTM) and (module.num_layers, module.bidirectional, module.bias) == (1, False, True)
    if not plain or module.batch_first or module.proj_size:
        raise ValueError(f"Expected a plain one-layer LSTM to export, got {name}: {module}.")


_SETTINGS = (True, 1, 0.0, False, False, False)
"""Of `aten::lstm`: with biases, one layer, no dropout, no training, one direction, time before batch."""


@torch.library.custom_op("pruning::lstm", mutates_args=())
def _lstm(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Stand for `aten::lstm` while a graph is captured; `program_of` puts that in its place."""
    weights = [weight_ih, weight_hh, bias_ih, bias_hh]
    outputs, hidden, cell = torch.ops.aten.lstm.input(inputs, [hidden, cell], weights, *_SETTINGS)
    return outputs, hidden, cell


@_lstm.register_fake
def _(inputs: Tensor, hidden: Tensor, cell: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return inputs.new_empty(*inputs.shape[:2], hidden.shape[2]), torch.empty_like(hidden), torch.empty_like(cell)


class _FusedLSTM(nn.Module):
    """An `nn.LSTM`'s parameters, under the same names, and one operation."""

    def __init__(self, lstm: nn.RNNBase) -> None:
        super().__init__()
        for name, parameter in lstm.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, hidden, cell = _lstm(inputs, *state, *self.parameters())
        return outputs, (hidden, cell)


class _OnnxLSTM(nn.Module):
    """An `nn.LSTM`'s parameters in ONNX's order of gates (input, output, forget, cell), and ONNX's operation."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor

    def __init__(self, lstm: nn.RNNBase) -> None:
        super().__init__()
        own = {name: _gates_for_onnx(parameter.detach()) for name, parameter in lstm.named_parameters()}
        self.width = lstm.hidden_size
        self.register_buffer("weight_ih", own["weight_ih_l0"])
        self.register_buffer("weight_hh", own["weight_hh_l0"])
        self.register_buffer("bias", torch.cat([own["bias_ih_l0"], own["bias_hh_l0"]], dim=1))

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        time, batch = inputs.shape[:2]
        outputs, hidden, cell = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (inputs, self.weight_ih, self.weight_hh, self.bias, None, *state),
            attrs={"hidden_size": self.width},
            dtypes=(inputs.dtype,) * 3,
            shapes=((time, 1, batch, self.width), (1, batch, self.width), (1, batch, self.width)),
            version=OPSET,
        )
        return outputs.squeeze(1), (hidden, cell)


def _gates_for_onnx(parameter: Tensor) -> Tensor:
    """Return (1, 4 H, …): one direction, PyTorch's gates (input, forget, cell, output) in ONNX's order."""
    enter, forget, content, leave = parameter.chunk(4)
    return torch.cat([enter, leave, forget, content])[None]


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep to itself what PyTorch's exporter says of its own insides: torchvision is missing, its axes have names."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        try:
            yield
        finally:
            logger.setLevel(before)
