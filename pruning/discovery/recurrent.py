"""Stacked and bidirectional recurrent layers of unequal width that are called, and carry state, as PyTorch's own."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

State: TypeAlias = tuple[Tensor, ...]


class Recurrent(nn.Module):
    """What an `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, each layer and direction being a module of its own.

    A stacked `nn.LSTM(num_layers=2)` cannot hold layers of unequal width. Its state can, if it keeps its shape: the
    state taken and returned is (layers · directions, B, `hidden_size`) as it was before any neuron was removed, each
    part holding its neurons first and zeros behind, which nobody reads. So a user's code that makes, detaches or
    carries states runs unchanged.

    Attributes:
        mode: `LSTM`, `GRU`, `RNN_TANH` or `RNN_RELU`.
        hidden_size: Width of the state, that of the layers before pruning.
        num_layers: How many layers lie on each other.
        bidirectional: Whether each layer has a second part that reads the sequence backwards.
        batch_first: Whether sequences are (B, T, …) instead of (T, B, …).
        dropout: Probability of dropping an activation between layers in training.
    """

    def __init__(self, like: nn.RNNBase) -> None:
        super().__init__()
        self.mode = like.mode
        self.input_size, self.hidden_size, self.num_layers = like.input_size, like.hidden_size, like.num_layers
        self.bidirectional, self.batch_first, self.dropout = like.bidirectional, like.batch_first, like.dropout
        self.bias = like.bias
        for index, (name, suffix) in enumerate(self._parts()):
            inputs = self.input_size if index < self._directions else self.hidden_size * self._directions
            part = _like(like, inputs)
            for parameter in list(part._parameters):
                part.register_parameter(parameter, like.get_parameter(parameter.replace("_l0", suffix)))
            part._init_flat_weights()
            part.train(like.training)
            self.add_module(name, part)
        self.train(like.training)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _parts(self) -> list[tuple[str, str]]:
        """Return the name of each layer's each direction, and what PyTorch appends to its parameters' names."""
        endings = ("", "_reverse")[: self._directions]
        return [(f"{layer}{end}", f"_l{layer}{end}") for layer in range(self.num_layers) for end in endings]

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> tuple[Tensor, Tensor | State]:  # noqa: A002
        """Return the last layer's outputs and the state, shaped as PyTorch's own.

        Raises:
            TypeError: For a packed sequence.
        """
        if isinstance(input, PackedSequence):
            raise TypeError("Expected a padded sequence, got a PackedSequence; call `pad_packed_sequence` first.")
        state: State | None = (hx,) if isinstance(hx, Tensor) else hx
        if input.ndim == 3:
            return self._run(input, state)
        batch = 0 if self.batch_first else 1  # one sequence without a batch
        outputs, after = self._run(input.unsqueeze(batch), state and tuple(part.unsqueeze(1) for part in state))
        alone = tuple(part.squeeze(1) for part in ((after,) if isinstance(after, Tensor) else after))
        return outputs.squeeze(batch), alone if isinstance(after, tuple) else alone[0]

    def _run(self, hidden: Tensor, state: State | None) -> tuple[Tensor, Tensor | State]:
        """Return what `forward` does, of a batch of sequences."""
        carried: list[State] = []
        outputs: list[Tensor] = []
        for index, (name, suffix) in enumerate(self._parts()):
            before = None if state is None else tuple(part[index : index + 1] for part in state)
            found, after = self._part(self.get_submodule(name), hidden, before, backwards="reverse" in suffix)
            outputs.append(found)
            carried.append(after)
            if len(outputs) == self._directions:
                hidden = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
                outputs = []
                if index + 1 < self.num_layers * self._directions and self.dropout:
                    hidden = F.dropout(hidden, self.dropout, self.training)
        whole = tuple(
            torch.cat([_padded(part, self.hidden_size) for part in kind]) for kind in zip(*carried, strict=True)
        )
        return hidden, whole if len(whole) > 1 else whole[0]

    def _part(self, part: nn.Module, hidden: Tensor, state: State | None, *, backwards: bool) -> tuple[Tensor, State]:
        """Return what one direction of one layer gives for each step, in the order of the steps, and its state."""
        time = 1 if self.batch_first else 0
        before = state and tuple(piece[..., : part.hidden_size].contiguous() for piece in state)
        outputs, after = part(
            hidden.flip(time) if backwards else hidden, before if before is None or len(before) > 1 else before[0]
        )
        return (outputs.flip(time) if backwards else outputs), (after if isinstance(after, tuple) else (after,))

    def flatten_parameters(self) -> None:
        """Lay out each part's weights as the fused kernel of a GPU likes them."""
        for name, _ in self._parts():
            part = self.get_submodule(name)
            assert isinstance(part, nn.RNNBase)  # noqa: S101 - for the type checker
            part.flatten_parameters()

    def extra_repr(self) -> str:
        """Return what stands in the module's line: its kind and the width of its state."""
        return f"{self.mode}, hidden_size={self.hidden_size}"


def is_recurrent(module: nn.Module) -> bool:
    """Return whether the module is one that `Recurrent` can stand for: of PyTorch's own classes, not projected."""
    return type(module) in (nn.LSTM, nn.GRU, nn.RNN) and not getattr(module, "proj_size", 0)


class Narrowed(nn.Linear):
    """A linear layer that reads its inputs from a padded state: some parts of the last dimension.

    Attributes:
        parts: Where each part that is read begins, and how long it is.
    """

    parts: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, linear: nn.Linear) -> "Narrowed":
        """Return a layer with the parameters of `linear`, which reads all."""
        with torch.device("meta"):
            found = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        found.weight, found.bias = linear.weight, linear.bias
        found.parts = ((0, linear.in_features),)
        return found.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that PyTorch gives it
        """Return W times the parts that are read, plus the bias."""
        return super().forward(torch.cat([input.narrow(-1, start, length) for start, length in self.parts], dim=-1))


def _like(like: nn.RNNBase, inputs: int) -> nn.RNNBase:
    """Return one layer in one direction of the kind of `like`, its parameters not yet meaningful."""
    extra = {"nonlinearity": like.nonlinearity} if isinstance(like, nn.RNN) else {}
    with torch.device("meta"):
        make: Callable[..., nn.RNNBase] = type(like)
        return make(inputs, like.hidden_size, bias=like.bias, batch_first=like.batch_first, **extra)


def _padded(state: Tensor, width: int) -> Tensor:
    """Return a state (1, B, n) with zeros behind its neurons, (1, B, width)."""
    missing = width - state.shape[-1]
    return F.pad(state, (0, missing)) if missing else state
