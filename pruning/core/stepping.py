"""One step of recurrent layers by PyTorch's cells, which on a processor are faster than its kernels for sequences."""

from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

MOST = 32
"""Sequences side by side up to which cells are faster: on Zen 4 by a tenth at 32; at 64 the kernel has caught up."""
FLAT = 8
"""Outputs for each input from which on a linear layer's matrix is read by columns: then few rows take half the time."""
State: TypeAlias = tuple[Tensor, ...]
Module = TypeVar("Module", bound=nn.Module)
_TYPES = (torch.float32, torch.float64)
_CELLS = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}


def one_step(layer: nn.RNNBase, inputs: Tensor, state: State | None) -> tuple[Tensor, State] | None:
    """Return what a layer of PyTorch's gives a single step of few sequences, up to rounding, in a fraction of the time.

    PyTorch hands an LSTM on a processor to oneDNN, which prepares a sequence, lays out the weights anew at every call,
    and multiplies one row slowly; the cells of all kinds multiply and bend in two or three calls.

    >>> layer = nn.LSTM(3, 4)
    >>> with torch.no_grad():
    ...     outputs, (hidden, cell) = one_step(layer, torch.ones(1, 2, 3), None)
    ...     torch.allclose(outputs, layer(torch.ones(1, 2, 3))[0])
    True
    >>> one_step(layer, torch.ones(5, 2, 3), None) is None
    True

    Args:
        layer: An `nn.LSTM`, `nn.GRU` or `nn.RNN` of any number of layers.
        inputs: (1, B, n), or (B, 1, n) if the layer's batch comes first.
        state: Tensors (layers, B, width), one for each that the layer carries; None for zeros.

    Returns:
        The outputs and the state, as the layer shapes them; None where its own forward is to run: longer sequences,
        many of them, gradients, other devices and half precision, states that are projected, two directions, whoever
        watches the layer by hooks or counts operations, and whatever captures a graph, which is to serve sequences too.
    """
    if not (type(layer) in _STEPPING or isinstance(layer, _Stepping)) or _watched(layer):
        return None
    return _by_cells(layer, inputs, state)


def stepping(network: Module) -> Module:
    """Return the network itself, whose recurrent layers of PyTorch's give single steps as `one_step` does.

    They stay PyTorch's in all else: their class is one below its own, of the same name. The matrix of a linear layer of
    many more outputs than inputs, a decoder, then lies in memory by columns: a single row is multiplied by it as fast
    as it is read, where products with its many short rows take two to three times as long. Its shape, its name and its
    numbers are as they were. One that an embedding shares stays, for that reads rows.

    Args:
        network: It is changed.
    """
    parameters = [id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False)]
    for layer in network.modules():
        if type(layer) in _STEPPING:
            layer.__class__ = _STEPPING[type(layer)]
        elif isinstance(layer, nn.Linear) and parameters.count(id(layer.weight)) == 1 and _is_flat(layer.weight):
            layer.weight.data = layer.weight.data.t().contiguous().t()
    return network


def _is_flat(weight: Tensor) -> bool:
    return weight.ndim == 2 and weight.shape[0] >= FLAT * weight.shape[1] and weight.is_contiguous()


def _watched(layer: nn.Module) -> bool:
    """Return whether somebody sees the layer's forward, or put another in its place."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def _by_cells(layer: nn.RNNBase, inputs: Tensor, state: State | None) -> tuple[Tensor, State] | None:
    """Return what `one_step` does, whoever asks."""
    if not _is_short(layer, inputs) or layer.bidirectional or layer.proj_size or (layer.training and layer.dropout):
        return None
    cell: Any = _CELLS[layer.mode]
    along = 1 if layer.batch_first else 0
    step, weights = inputs.squeeze(along), layer._flat_weights
    each = len(weights) // layer.num_layers
    if state is None:
        zeros = step.new_zeros(layer.num_layers, len(step), layer.hidden_size)
        state = (zeros, zeros) if layer.mode == "LSTM" else (zeros,)
    carried: list[State] = []
    for index in range(layer.num_layers):
        before = (state[0][index], state[1][index]) if len(state) == 2 else state[0][index]
        after = cell(step, before, *weights[index * each : (index + 1) * each])
        carried.append(after if isinstance(after, tuple) else (after,))
        step = carried[-1][0]
    if len(carried) == 1:
        return step.unsqueeze(along), tuple([part.unsqueeze(0) for part in carried[0]])
    return step.unsqueeze(along), tuple(map(torch.stack, zip(*carried, strict=True)))


def _is_short(layer: nn.RNNBase, inputs: Tensor) -> bool:
    """Return whether the inputs are a single step of few sequences on a processor, and only numbers are asked for.

    What captures a graph is asked about before any shape: to it, a look at a shape is a promise about all shapes. A
    mode that counts operations would count others where hooks watch the layer. What most calls fail by comes first.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    mode = _get_current_dispatch_mode()
    if torch._C._is_tracing() or torch.compiler.is_compiling() or getattr(mode, "counts", False):
        return False
    if not inputs.is_cpu or inputs.dtype not in _TYPES or inputs.ndim != 3:
        return False
    first, second, _ = inputs.shape
    steps, sequences = (second, first) if layer.batch_first else (first, second)
    return steps == 1 and 0 < sequences <= MOST


class _Stepping(nn.Module):
    """A recurrent layer of PyTorch's that gives single steps by cells."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - the name that PyTorch gives it
        """Return what PyTorch's layer gives, its outputs and its state."""
        layer: Any = self
        if isinstance(input, Tensor):
            state = (hx,) if isinstance(hx, Tensor) else hx
            if (stepped := _by_cells(layer, input, state)) is not None:
                outputs, after = stepped
                outputs = outputs.clone()  # what code writes into them, as `relu_` does, is not written into the state
                return outputs, after if layer.mode == "LSTM" else after[0]
        given: tuple[Any, Any] = super().forward(input, hx)
        return given


def runs_as_its_own(module: nn.Module) -> bool:
    """Return whether a module computes what one of PyTorch's recurrent layers does, not what a subclass makes of it."""
    own = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward, _Stepping.forward)
    return isinstance(module, nn.RNNBase) and type(module).forward in own


class LSTM(_Stepping, nn.LSTM):
    """An `nn.LSTM` that gives single steps by cells."""


class GRU(_Stepping, nn.GRU):
    """An `nn.GRU` that gives single steps by cells."""


class RNN(_Stepping, nn.RNN):
    """An `nn.RNN` that gives single steps by cells."""


_STEPPING: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
