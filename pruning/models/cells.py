"""The kinds of recurrent cells: how a layer of each is made and run, and where it holds its neurons."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.core.devices import without_values
from pruning.core.neurons import NeuronLayer, Slice
from pruning.core.options import RecurrentCell, expect_known
from pruning.core.stepping import one_step
from pruning.models.spiking import LIF

LayerState: TypeAlias = tuple[Tensor, ...] | None
Run = Callable[[nn.Module, Tensor, LayerState, Tensor | None], tuple[Tensor, tuple[Tensor, ...]]]
"""(layer, inputs (T, B, n), state, offset (T, B, width) or None) → (outputs + offset, state): whoever reads the outputs
reads the offset too, the layer itself at its next step included."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of recurrent layer.

    Attributes:
        name: What its layers are called in a model, before their number.
        kind: The network type of its neurons: `rnn` or `snn`.
        make: (inputs, width) → a new layer, whose forward's first output is its neurons' activations.
        run: How a layer is run.
        owned: Slices of a layer that compute its neurons.
        recurrent: Slices of a layer that read its own outputs of the step before.
        reader: The slice of a layer that reads the layer below.
    """

    name: str
    kind: str
    make: Callable[[int, int], nn.Module]
    run: Run
    owned: tuple[Slice, ...]
    recurrent: tuple[Slice, ...]
    reader: Slice

    def layer(self, index: int, width: int, readers: tuple[Slice, ...]) -> NeuronLayer:
        """Return the layer of neurons number `index`, which `readers` read besides itself."""
        name = f"{self.name}.{index}"
        owned = tuple(_within(name, piece) for piece in self.owned)
        read = (*(_within(name, piece) for piece in self.recurrent), *readers)
        return NeuronLayer(name, self.kind, width, owned, read, output=name)

    def reader_of(self, index: int) -> Slice:
        """Return the slice of the layer number `index` that reads the layer below."""
        return _within(f"{self.name}.{index}", self.reader)


def _within(module: str, piece: Slice) -> Slice:
    """Return the slice of a model from that of its module."""
    return replace(piece, parameter=f"{module}.{piece.parameter}", bias=piece.bias and f"{module}.{piece.bias}")


def recurrent_cell(name: RecurrentCell) -> Cell:
    """Return one of PyTorch's own cells: LSTM, GRU, or Elman's with tanh or ReLU.

    Raises:
        ValueError: For a name that is none of them.
    """
    expect_known("cell", sorted(_RECURRENT), name)
    make, gates = _RECURRENT[name]
    owned = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Cell(
        name=name.partition("_")[0],
        kind="rnn",
        make=make,
        run=partial(_run, make),
        owned=tuple(Slice(f"{parameter}_l0", dim=0, blocks=gates) for parameter in owned),
        recurrent=(Slice("weight_hh_l0", dim=1, bias="bias_hh_l0"),),
        reader=Slice("weight_ih_l0", dim=1, bias="bias_ih_l0"),
    )


_RECURRENT: dict[str, tuple[Callable[[int, int], nn.RNNBase], int]] = {
    "lstm": (nn.LSTM, 4),
    "gru": (nn.GRU, 3),
    "rnn_tanh": (partial(nn.RNN, nonlinearity="tanh"), 1),
    "rnn_relu": (partial(nn.RNN, nonlinearity="relu"), 1),
}
"""Name → (how a layer is made, its gates)."""


def _run(
    make: Callable[[int, int], nn.RNNBase],
    layer: nn.Module,
    inputs: Tensor,
    state: LayerState,
    offset: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one of PyTorch's layers through its fused kernel, or a single step through its cell, whatever its state."""
    if offset is not None and isinstance(layer, nn.GRU):
        return _gru_with_offset(layer, inputs, state, offset)
    if offset is None and (stepped := one_step(cast(nn.RNNBase, layer), inputs, state)) is not None:
        return stepped
    before = state if state is None or len(state) > 1 else state[0]
    if offset is None:
        outputs, after = layer(inputs, before)
    else:
        outputs, after = _widened(make, layer, inputs, before, offset)
        outputs = outputs + offset
    return outputs, after if isinstance(after, tuple) else (after,)


def _widened(
    make: Callable[[int, int], nn.RNNBase], layer: nn.Module, inputs: Tensor, before: object, offset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...] | Tensor]:
    """Return what a layer gives whose recurrent matrix also reads the step before's offset.

    That enters as more inputs with W_hh as their weights, so the fused kernel serves.
    """
    with without_values():
        wider = make(inputs.shape[2] + offset.shape[2], offset.shape[2])
    weights: dict[str, Tensor] = dict(layer.named_parameters())
    weights["weight_ih_l0"] = torch.cat([weights["weight_ih_l0"], weights["weight_hh_l0"]], dim=1)
    earlier = torch.cat([torch.zeros_like(offset[:1]), offset[:-1]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")  # cuDNN copies them
        outputs, after = torch.func.functional_call(wider, weights, (torch.cat([inputs, earlier], dim=2), before))
    return outputs, after


def _gru_with_offset(
    layer: nn.GRU, inputs: Tensor, state: LayerState, offset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what a GRU gives whose recurrent matrix also reads the step before's offset, step by step.

    The matrix reads h + offset; the update gate carries h alone over, which is the neuron's own memory. So the offset
    is no more input (the reset gate multiplies what the matrix gives), and the fused kernel does not serve.
    """
    hidden = inputs.new_zeros(offset.shape[1:]) if state is None else state[0][0]
    read, outputs = hidden, []
    weights = [layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    for projected, added in zip(F.linear(inputs, *weights[:2]), offset, strict=True):
        recurrent_part = F.linear(read, *weights[2:])
        (reset, update, content), (own_reset, own_update, own_content) = (
            projected.chunk(3, 1),
            recurrent_part.chunk(3, 1),
        )
        kept = (update + own_update).sigmoid()
        hidden = (1 - kept) * (content + (reset + own_reset).sigmoid() * own_content).tanh() + kept * hidden
        read = hidden + added
        outputs.append(read)
    return torch.stack(outputs), (hidden[None],)


def spiking_cell(*, recurrent: bool, leak: float, threshold: float, slope: float, least_rate: float = 0.0) -> Cell:
    """Return the leaky integrate-and-fire cell with these settings; see `LIF`."""
    recurrent_weights = ("weight_hh",) if recurrent else ()
    return Cell(
        name="snn",
        kind="snn",
        make=partial(LIF, recurrent=recurrent, leak=leak, threshold=threshold, slope=slope, least_rate=least_rate),
        run=lambda layer, inputs, state, offset: layer(inputs, state, offset),
        owned=tuple(
            Slice(parameter, dim=0) for parameter in ("weight_ih", *recurrent_weights, "bias", "leak", "threshold")
        ),
        recurrent=tuple(Slice(parameter, dim=1, bias="bias") for parameter in recurrent_weights),
        reader=Slice("weight_ih", dim=1, bias="bias"),
    )
