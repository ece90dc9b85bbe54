"""Language models as files for other programs: what `torch.export` and ONNX need to know of a recurrence.

Whoever exports wants a graph for any number of steps T and columns B that runs fast. Both exporters stumble over the
recurrence: `torch.export` writes PyTorch's layers out step by step and so for one T only, as it does a loop; therefore
a copy of the model is captured whose recurrences are single operations of known shapes. PyTorch's own layers become its
fused kernels, or ONNX's `LSTM`, `GRU` and `RNN`; a spiking layer, for which there is neither, becomes a scan in both.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from pruning.core.modes import evaluating
from pruning.models.base import LanguageModel, State
from pruning.models.spiking import LIF

OPSET = 20
"""The version of ONNX's operations that graphs are written in."""


def program_of(model: LanguageModel) -> ExportedProgram:
    """Return the model in evaluation mode as a program `(tokens, state) → (logits, state)` in single precision.

    `torch.export.save` and `torch.export.load` need nothing of this library. Dimensions: `time` and `batch`, both free.

    Raises:
        ValueError: If a recurrence is no plain layer of PyTorch's and no `LIF`.
    """
    program = _captured(model, _Fused)
    for node in program.graph.nodes:
        if node.target in _KERNELS:
            inputs, *state = node.args[:-4]
            node.args = (inputs, state if len(state) > 1 else state[0], node.args[-4:], *_SETTINGS)
            node.target = _KERNELS[node.target]
    program.graph_module.recompile()
    return program


def onnx_of(model: LanguageModel) -> Any:
    """Return the model in evaluation mode as an `onnx.ModelProto` in single precision.

    Inputs: `tokens` and `state_<layer>_<number>`; outputs: `logits` and `next_state_<layer>_<number>`. A matrix that
    embedding and decoder share is stored once.

    Raises:
        ValueError: If a recurrence is no plain layer of PyTorch's and no `LIF`.
    """
    state = initial_state(model, 1)
    names = [f"state_{layer}_{number}" for layer, tensors in enumerate(state) for number in range(len(tensors))]
    with _unheard():
        program = torch.onnx.export(
            _captured(model, _Onnx),
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
    model: LanguageModel,
    other: LanguageModel,
    *,
    vocabulary: int,
    shapes: Sequence[tuple[int, int]],
    seed: int,
    share: float = 1.0,
) -> float:
    """Return the largest difference of two models' logits and states, relative to the largest such number.

    For each (T, B) both read two windows of random tokens, each carrying its own state from the first to the second;
    the first starts without a state.

    Args:
        model: What the other is measured against.
        other: Anything that is called like it.
        vocabulary: Number of token types.
        shapes: (T, B) of the windows.
        seed: Seed of the tokens.
        share: Share of the sequences that counts, those that differ least. Where a potential comes within rounding of
            its threshold, one model spikes and the other does not, and from there on the sequence is another one.
    """
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for time, batch in shapes:
        states: list[State | None] = [None, None]
        for _ in range(2):
            tokens = torch.randint(vocabulary, (time, batch), generator=generator)
            found = [_read(reader, tokens, state) for reader, state in zip((model, other), states, strict=True)]
            sequences.append(_distances(*(_numbers(logits, state) for logits, state in found)))
            states = [state for _, state in found]
    return torch.cat(sequences).quantile(share, interpolation="lower").item()


def _read(model: LanguageModel, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
    with evaluating(model), torch.no_grad():
        logits, after = model(tokens.to(next(model.parameters()).device), state)
    return logits, after


def _numbers(logits: Tensor, state: State) -> list[Tensor]:
    return [tensor.cpu().double() for tensor in (logits, *(tensor for layer in state for tensor in layer))]


def _distances(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the largest ∣a − b∣ / max ∣a∣ of each column of tensors (…, B, n) side by side, (B,)."""
    tiny = torch.finfo(torch.double).tiny
    apart = [(a - b).abs() / a.abs().max().clamp(min=tiny) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack([distance.movedim(-2, 0).flatten(1).amax(1) for distance in apart]).amax(0)


def _captured(model: LanguageModel, recurrence: type["_Fused | _Onnx"]) -> ExportedProgram:
    """Return a copy of the model, its recurrences replaced, as a graph with free T and B."""
    twin = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    state = initial_state(twin, 3)  # the example's T and B: any but 0 and 1, which torch.export takes for constants
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.RNNBase):
            twin.set_submodule(name, recurrence(_kind(name, module), module))
        elif isinstance(module, LIF):
            twin.set_submodule(name, _Scanned(module))
    example = (torch.zeros(2, 3, dtype=torch.long), state)
    return torch.export.export(twin, example, dynamic_shapes=_dimensions(state, Dim("time"), Dim("batch")))


def _dimensions(state: State, time: Any, batch: Any) -> tuple[Any, ...]:
    """Return which dimensions of (tokens, state) are free."""
    return {0: time, 1: batch}, [tuple({tensor.ndim - 2: batch} for tensor in layer) for layer in state]


def _kind(name: str, module: nn.RNNBase) -> str:
    """Return which of `_STAND_INS` a layer is, or refuse one that is none."""
    plain = (module.num_layers, module.bidirectional, module.bias, module.batch_first, module.proj_size)
    if plain != (1, False, True, False, 0):
        raise ValueError(f"Expected a plain recurrence of one layer to export, got {name}: {module}.")
    return module.mode.lower()


_SETTINGS = (True, 1, 0.0, False, False, False)
"""Of PyTorch's kernels: with biases, one layer, no dropout, no training, one direction, time before batch."""


@torch.library.custom_op("pruning::lstm", mutates_args=())
def _lstm(
    inputs: Tensor, hidden: Tensor, cell: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Stand for `aten::lstm` while a graph is captured; `program_of` puts that in its place, and so likewise below."""
    weights = [weight_ih, weight_hh, bias_ih, bias_hh]
    outputs, hidden, cell = torch.ops.aten.lstm.input(inputs, [hidden, cell], weights, *_SETTINGS)
    return outputs, hidden, cell


@_lstm.register_fake
def _(inputs: Tensor, hidden: Tensor, cell: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return inputs.new_empty(*inputs.shape[:2], hidden.shape[2]), torch.empty_like(hidden), torch.empty_like(cell)


def _stand_in(kind: str, kernel: Any) -> Any:
    """Return what stands for a kernel whose state is one tensor while a graph is captured."""

    @torch.library.custom_op(f"pruning::{kind}", mutates_args=())
    def stand_in(
        inputs: Tensor, hidden: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs, after = kernel(inputs, hidden, [weight_ih, weight_hh, bias_ih, bias_hh], *_SETTINGS)
        return outputs, after

    @stand_in.register_fake
    def _(inputs: Tensor, hidden: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return inputs.new_empty(*inputs.shape[:2], hidden.shape[2]), torch.empty_like(hidden)

    return stand_in


_STAND_INS: dict[str, Any] = {
    "lstm": _lstm,
    "gru": _stand_in("gru", torch.ops.aten.gru.input),
    "rnn_tanh": _stand_in("rnn_tanh", torch.ops.aten.rnn_tanh.input),
    "rnn_relu": _stand_in("rnn_relu", torch.ops.aten.rnn_relu.input),
}
_KERNELS = {getattr(torch.ops.pruning, kind).default: getattr(torch.ops.aten, kind).input for kind in _STAND_INS}
"""What stands for a kernel → the kernel."""


class _Fused(nn.Module):
    """A recurrent layer's parameters, under the same names, and one operation."""

    def __init__(self, kind: str, layer: nn.RNNBase) -> None:
        super().__init__()
        self.stand_in = _STAND_INS[kind]
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, inputs: Tensor, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        before = state if isinstance(state, tuple) else (state,)
        outputs, *after = self.stand_in(inputs, *before, *self.parameters())
        return outputs, tuple(after)


class _Onnx(nn.Module):
    """A recurrent layer's parameters in ONNX's order of gates, and ONNX's operation.

    PyTorch's gates are input, forget, cell, output (LSTM) and reset, update, new (GRU); ONNX's are input, output,
    forget, cell and update, reset, hidden. Both multiply what a GRU's recurrent matrix gives by the reset gate.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor

    def __init__(self, kind: str, layer: nn.RNNBase) -> None:
        super().__init__()
        self.operation, order, attributes = _ONNX[kind]
        self.attributes = {"hidden_size": layer.hidden_size, **attributes}
        gates = {name: parameter.detach().chunk(len(order)) for name, parameter in layer.named_parameters()}
        own = {name: torch.cat([chunks[gate] for gate in order])[None] for name, chunks in gates.items()}
        self.register_buffer("weight_ih", own["weight_ih_l0"])
        self.register_buffer("weight_hh", own["weight_hh_l0"])
        self.register_buffer("bias", torch.cat([own["bias_ih_l0"], own["bias_hh_l0"]], dim=1))

    def forward(self, inputs: Tensor, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        before = state if isinstance(state, tuple) else (state,)
        (time, batch), width = inputs.shape[:2], self.attributes["hidden_size"]
        outputs, *after = torch.onnx.ops.symbolic_multi_out(
            self.operation,
            (inputs, self.weight_ih, self.weight_hh, self.bias, None, *before),
            attrs=self.attributes,
            dtypes=(inputs.dtype,) * (1 + len(before)),
            shapes=((time, 1, batch, width), *((1, batch, width) for _ in before)),
            version=OPSET,
        )
        return outputs.squeeze(1), tuple(after)


_ONNX: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", (0,), {"activations": ["Relu"]}),
}
"""Kind of layer → ONNX's operation, the order in which it wants PyTorch's gates, and its other attributes."""


class _Scanned(nn.Module):
    """A spiking layer whose steps are one scan; see `LIF` for the dynamics."""

    def __init__(self, layer: LIF) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, ...], _offset: None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        layer, decay = self.layer, self.layer.leak.sigmoid()

        def step(memory: tuple[Tensor, ...], entering: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            spikes, potential = memory
            fed = entering if layer.weight_hh is None else entering + spikes @ layer.weight_hh.T
            charged = fed + decay * potential
            fires = (charged - layer.threshold >= 0).to(charged.dtype)
            return (fires, charged - layer.threshold * fires), fires.clone()

        after, spikes = scan(step, state, F.linear(inputs, layer.weight_ih, layer.bias), dim=0)
        return spikes, after


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
