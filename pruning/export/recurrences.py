"""What stands for recurrences while a graph is captured: single operations of known shapes, whatever the steps.

`torch.export` writes PyTorch's layers out step by step and so for one number of steps only. Here each becomes one
operation, which `fused` then makes PyTorch's fused kernel, or ONNX's `LSTM`, `GRU` and `RNN`; a spiking layer, for
which there is neither, becomes a scan in both.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from pruning.discovery.recurrent import Recurrent
from pruning.export.packed import last, lengths_of, turned, unequal, within
from pruning.models.spiking import LIF

OPSET = 20
"""The version of ONNX's operations that graphs are written in."""
State = tuple[Tensor, ...]


def standing(network: nn.Module, *, onnx: bool) -> nn.Module:
    """Return the network itself, its recurrent layers standing for one operation each.

    Args:
        network: It is changed, and computes what it did.
        onnx: Whether the operations are ONNX's or PyTorch's.

    Raises:
        ValueError: For ONNX, if a layer projects its states, which none of its operations does.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, LIF):
            if not name:
                return _Scanned(module)
            network.set_submodule(name, _Scanned(module))
        elif isinstance(module, Recurrent):
            module.__dict__["_packed"] = partial(unequal, module)
        elif isinstance(module, nn.RNNBase) and is_plain(module):
            if onnx:
                _rearrange(name, module)
            module.__class__ = type(type(module).__name__, (_Onnx if onnx else _Fused, type(module)), {})
    return network


def check_known(program: ExportedProgram) -> None:
    """Refuse a program that reads what no kernel tells.

    Raises:
        ValueError: If it reads what an LSTM's cells remember after a packed sequence.
    """
    program.graph.eliminate_dead_code()
    if any(node.target is torch.ops.pruning.no_cell.default for node in program.graph.nodes):
        raise ValueError(
            "Expected a network that reads of packed sequences their outputs or last hidden states, "
            "got one that reads what an LSTM's cells remember; let it read those."
        )


def fused(program: ExportedProgram) -> ExportedProgram:
    """Return the program with PyTorch's kernels in place of what stood for them."""
    for node in program.graph.nodes:
        if node.target in _KERNELS:
            inputs, *state, weights, biased, layers, bidirectional = node.args
            settings = (biased, layers, 0.0, False, bidirectional, False)
            node.args = (inputs, state if len(state) > 1 else state[0], weights, *settings)
            node.target = _KERNELS[node.target]
    program.graph_module.recompile()
    return program


def is_plain(module: nn.RNNBase) -> bool:
    """Return whether a layer runs as PyTorch's own does."""
    return type(module).forward in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)


class Standing(nn.Module):
    """A recurrent layer of PyTorch's, called as that is, whose steps are one operation."""

    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    mode: str
    bias: bool
    batch_first: bool
    bidirectional: bool

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002
        """Return what PyTorch's layer gives, its outputs and its state."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        alone = input.ndim == 2
        steps = input.unsqueeze(1) if alone else input.transpose(0, 1) if self.batch_first else input
        torch._check(steps.shape[2] == self.input_size)  # type: ignore[no-untyped-call]
        state = hx if hx is None or isinstance(hx, tuple) else (hx,)
        if state is None:
            state = self._zeros(steps)
        elif alone:
            state = tuple(part.unsqueeze(1) for part in state)
        outputs, after = self._run(steps, state)
        if alone:
            outputs, after = outputs.squeeze(1), tuple(part.squeeze(1) for part in after)
        elif self.batch_first:
            outputs = outputs.transpose(0, 1)
        return outputs, after if len(after) > 1 else after[0]

    def _packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """Return what `forward` does, of sequences that are padded; see `packed`."""
        steps, sizes, order, back = packed
        lengths = lengths_of(sizes, steps.shape[1])
        state = hx if hx is None or isinstance(hx, tuple) else (hx,)
        state = state if state is None or order is None else tuple(part.index_select(1, order) for part in state)
        outputs, after = self.over(steps, state, lengths)
        after = after if back is None else tuple(part.index_select(1, back) for part in after)
        return PackedSequence(outputs, sizes, order, back), after if len(after) > 1 else after[0]

    def over(self, steps: Tensor, state: State | None, lengths: Tensor) -> tuple[Tensor, State]:
        """Return the outputs (T, B, n) and the last state of padded sequences of these lengths."""
        torch._check(steps.shape[2] == self.input_size)  # type: ignore[no-untyped-call]
        return self._run(steps, self._zeros(steps) if state is None else state, lengths)

    def flatten_parameters(self) -> None:
        """Leave the parameters as they lie."""

    def _zeros(self, steps: Tensor) -> State:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: 2 if self.mode == "LSTM" else 1]
        return tuple(steps.new_zeros(rows, steps.shape[1], width) for width in widths)

    def _run(self, steps: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the outputs (T, B, n) and the state of inputs (T, B, n), padded if there are lengths."""
        raise NotImplementedError


@torch.library.custom_op("pruning::lstm", mutates_args=())
def _lstm(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: list[Tensor],
    biased: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stand for `aten::lstm` while a graph is captured; `fused` puts that in its place, and so likewise below."""
    settings = (biased, layers, 0.0, False, bidirectional, False)
    outputs, hidden, cell = torch.ops.aten.lstm.input(inputs, [hidden, cell], weights, *settings)
    return outputs, hidden, cell


@_lstm.register_fake
def _(
    inputs: Tensor, hidden: Tensor, cell: Tensor, _weights: Any, _biased: bool, _layers: int, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs_like(inputs, hidden, bidirectional), torch.empty_like(hidden), torch.empty_like(cell)


def _stand_in(kind: str, kernel: Any) -> Any:
    """Return what stands for a kernel whose state is one tensor while a graph is captured."""

    @torch.library.custom_op(f"pruning::{kind}", mutates_args=())
    def stand_in(
        inputs: Tensor, hidden: Tensor, weights: list[Tensor], biased: bool, layers: int, bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        outputs, after = kernel(inputs, hidden, weights, biased, layers, 0.0, False, bidirectional, False)
        return outputs, after

    @stand_in.register_fake
    def _(
        inputs: Tensor, hidden: Tensor, _weights: Any, _biased: bool, _layers: int, bidirectional: bool
    ) -> tuple[Tensor, Tensor]:
        return _outputs_like(inputs, hidden, bidirectional), torch.empty_like(hidden)

    return stand_in


def _outputs_like(inputs: Tensor, hidden: Tensor, bidirectional: bool) -> Tensor:
    return inputs.new_empty(*inputs.shape[:2], hidden.shape[2] * (2 if bidirectional else 1))


_STAND_INS: dict[str, Any] = {
    "LSTM": _lstm,
    "GRU": _stand_in("gru", torch.ops.aten.gru.input),
    "RNN_TANH": _stand_in("rnn_tanh", torch.ops.aten.rnn_tanh.input),
    "RNN_RELU": _stand_in("rnn_relu", torch.ops.aten.rnn_relu.input),
}
_KERNELS = {
    getattr(torch.ops.pruning, kind.lower()).default: getattr(torch.ops.aten, kind.lower()).input for kind in _STAND_INS
}
"""What stands for a kernel → the kernel."""


class _Fused(Standing):
    """A layer whose steps PyTorch's kernel does, all layers and directions of it at once."""

    def _run(self, steps: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        weights: list[Tensor] = list(self.parameters(recurse=False))
        if lengths is not None:
            return self._rows(steps, state, lengths, weights)
        outputs, *after = _STAND_INS[self.mode](steps, *state, weights, self.bias, self.num_layers, self.bidirectional)
        return outputs, tuple(after)

    def _rows(self, steps: Tensor, state: State, lengths: Tensor, weights: list[Tensor]) -> tuple[Tensor, State]:
        """Return what each layer and direction gives by itself, for a kernel knows no lengths."""
        directions = 2 if self.bidirectional else 1
        each = len(weights) // (self.num_layers * directions)
        carried: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                row = layer * directions + direction
                before = tuple(part[row : row + 1] for part in state)
                read = turned(steps, lengths) if direction else steps
                own = weights[row * each : (row + 1) * each]
                given, *after = _STAND_INS[self.mode](read, *before, own, self.bias, 1, False)
                hidden = last(given, lengths)
                carried.append((hidden, *(_no_cell(cell) for cell in after[1:])))
                outputs.append(within(turned(given, lengths) if direction else given, lengths))
            steps = torch.cat(outputs, dim=2)
        return steps, tuple(map(torch.cat, zip(*carried, strict=True)))


@torch.library.custom_op("pruning::no_cell", mutates_args=())
def _no_cell(cell: Tensor) -> Tensor:
    """Stand for what a cell remembers after the last step of a padded sequence, which no kernel tells."""
    return cell.clone()


@_no_cell.register_fake
def _(cell: Tensor) -> Tensor:
    return torch.empty_like(cell)


def _operation(operation: str, inputs: Any, attributes: dict[str, Any], shapes: list[Any]) -> Any:
    """Return what an operation of ONNX gives, as many tensors as there are shapes, while a graph is captured."""
    return torch.onnx.ops.symbolic_multi_out(
        operation, inputs, attrs=attributes, dtypes=[inputs[0].dtype] * len(shapes), shapes=shapes, version=OPSET
    )


_symbolic: Any = torch._dynamo.allow_in_graph(_operation)  # type: ignore[no-untyped-call]
"""The same, which who reads code instead of running it leaves as it is."""


class _Onnx(Standing):
    """A layer whose steps ONNX's operation does, one operation a layer.

    Its parameters lie in ONNX's order of gates. PyTorch's are input, forget, cell, output (LSTM) and reset, update, new
    (GRU); ONNX's are input, output, forget, cell and update, reset, hidden. Both multiply what a GRU's recurrent matrix
    gives by the reset gate.
    """

    def _run(self, steps: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        directions = 2 if self.bidirectional else 1
        carried = []
        for layer in range(self.num_layers):
            rows = slice(layer * directions, (layer + 1) * directions)
            before = state if self.num_layers == 1 else tuple(part[rows] for part in state)
            steps, after = self._layer(layer, steps, before, directions, lengths)
            carried.append(after)
        return steps, carried[0] if len(carried) == 1 else tuple(map(torch.cat, zip(*carried, strict=True)))

    def _layer(
        self, layer: int, steps: Tensor, before: State, directions: int, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        operation, _, attributes = _ONNX[self.mode]
        if directions == 2:
            attributes = {**attributes, "direction": "bidirectional"}
            if "activations" in attributes:
                attributes["activations"] = 2 * attributes["activations"]
        weights = (getattr(self, f"onnx_{kind}_{layer}", None) for kind in ("ih", "hh", "bias"))
        (time, batch), width = steps.shape[:2], self.hidden_size
        outputs, *after = _symbolic(
            operation,
            (steps, *weights, None if lengths is None else lengths.to(torch.int32), *before),
            {"hidden_size": width, **attributes},
            [(time, directions, batch, width), *((directions, batch, width) for _ in before)],
        )
        found = outputs.squeeze(1) if directions == 1 else outputs.transpose(1, 2).flatten(2)
        return found, tuple(after)


def _rearrange(name: str, module: Any) -> None:
    """Let a layer hold its parameters as ONNX wants them: of each layer all directions together, gates in order."""
    if module.proj_size:
        raise ValueError(f"Expected a recurrence without a projection for ONNX, got {name or 'it'}: {module}.")
    order = _ONNX[module.mode][1]
    held = {key: parameter.detach().chunk(len(order)) for key, parameter in module.named_parameters(recurse=False)}
    ordered = {key: torch.cat([chunks[gate] for gate in order]) for key, chunks in held.items()}
    endings = ("", "_reverse")[: 2 if module.bidirectional else 1]
    for layer in range(module.num_layers):
        for kind in ("ih", "hh"):
            rows = [ordered[f"weight_{kind}_l{layer}{end}"] for end in endings]
            module.register_buffer(f"onnx_{kind}_{layer}", torch.stack(rows))
        if module.bias:
            biases = [torch.cat([ordered[f"bias_{kind}_l{layer}{end}"] for kind in ("ih", "hh")]) for end in endings]
            module.register_buffer(f"onnx_bias_{layer}", torch.stack(biases))
    for key in held:
        del module._parameters[key]


_ONNX: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "LSTM": ("LSTM", (0, 3, 1, 2), {}),
    "GRU": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "RNN_TANH": ("RNN", (0,), {"activations": ["Tanh"]}),
    "RNN_RELU": ("RNN", (0,), {"activations": ["Relu"]}),
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
