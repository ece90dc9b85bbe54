"""Stacked and bidirectional recurrent layers of unequal width that are called, and carry state, as PyTorch's own."""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from pruning.core.devices import without_values
from pruning.core.stepping import one_step

State: TypeAlias = tuple[Tensor, ...]
Module = TypeVar("Module", bound=nn.Module)
_WEIGHT = re.compile(r"((?:weight|bias)_\w\w)_l(\d+(?:_reverse)?)")
"""What PyTorch calls a weight of a part: its kind, and the part."""


class Recurrent(nn.Module):
    """What an `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, each layer and direction being a module of its own.

    A stacked `nn.LSTM(num_layers=2)` cannot hold layers of unequal width. Its state can, if it keeps its shape: the
    state taken and returned is (layers · directions, B, `hidden_size`) as it was before any neuron was removed, each
    part holding its neurons first and zeros behind, which nobody reads. So a user's code that makes, detaches or
    carries states runs unchanged. Where this code reads a state as wide as the neurons are many (a product with the
    outputs, a normalisation, a cell), all layers and directions are as wide (`even`), and so is the state; one that is
    given may be wider. `Recurrent.of` gives an instance that is also one of PyTorch's own class and answers
    what a user's code asks of it (`isinstance`, `weight_hh_l0`, `batch_first`, …).

    Attributes:
        mode: `LSTM`, `GRU`, `RNN_TANH` or `RNN_RELU`.
        hidden_size: Width of the state, that of the layers before pruning, unless they are even; of what cells
            remember, if it is projected.
        proj_size: Width of what is given if that is a projection of it, else 0.
        even: Whether the state is as wide as the layers, which are all as wide.
        num_layers: How many layers lie on each other.
        bidirectional: Whether each layer has a second part that reads the sequence backwards.
        batch_first: Whether sequences are (B, T, …) instead of (T, B, …).
        dropout: Probability of dropping an activation between layers in training.
    """

    def __init__(self, like: nn.RNNBase) -> None:
        nn.Module.__init__(self)
        self.mode = like.mode
        self.input_size, self.hidden_size, self.num_layers = like.input_size, like.hidden_size, like.num_layers
        self.bidirectional, self.batch_first, self.dropout = like.bidirectional, like.batch_first, like.dropout
        self.bias, self.proj_size, self.even = like.bias, like.proj_size, False
        for index, (name, suffix) in enumerate(self._parts()):
            inputs = self.input_size if index < self._directions else self._width * self._directions
            part = _like(like, inputs)
            for parameter in list(part._parameters):
                part.register_parameter(parameter, like.get_parameter(parameter.replace("_l0", suffix)))
            part._init_flat_weights()
            part.train(like.training)
            self.add_module(name, part)
        self.training = like.training

    @staticmethod
    def of(like: nn.RNNBase) -> "Recurrent":
        """Return what computes the same as `like`, with its parameters, and is of its class too."""
        return _STANDING[type(like)](like)

    @property
    def _width(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _parts(self) -> list[tuple[str, str]]:
        """Return the name of each layer's each direction, and what PyTorch appends to its parameters' names."""
        endings = ("", "_reverse")[: self._directions]
        return [(f"{layer}{end}", f"_l{layer}{end}") for layer in range(self.num_layers) for end in endings]

    def __getattr__(self, name: str) -> Any:
        """Return a part's weight under the name that PyTorch's own module has for it."""
        part, weight = self._place(name)
        return super().__getattr__(name) if part is None else getattr(part, weight)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part's weight under the name that PyTorch's own module has for it."""
        part, weight = self._place(name)
        if part is None:
            nn.Module.__setattr__(self, name, value)
        else:
            setattr(part, weight, value)

    def _place(self, name: str) -> tuple[nn.Module | None, str]:
        """Return the part that a weight belongs to by PyTorch's name for it, and its name there."""
        match = _WEIGHT.fullmatch(name)
        part = match and self.__dict__.get("_modules", {}).get(match[2])
        return (part, f"{match[1]}_l0") if match and part else (None, name)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | State | None = None) -> tuple[Any, Tensor | State]:  # noqa: A002
        """Return the last layer's outputs and the state, shaped as PyTorch's own."""
        state: State | None = (hx,) if isinstance(hx, Tensor) else hx
        if isinstance(input, PackedSequence):
            return self._packed(input, state)
        if input.ndim == 3:
            outputs, after = self._run(input, state)
            return outputs, _as_given(after)
        batch = 0 if self.batch_first else 1  # one sequence without a batch
        outputs, after = self._run(input.unsqueeze(batch), state and tuple(part.unsqueeze(1) for part in state))
        return outputs.squeeze(batch), _as_given(tuple(part.squeeze(1) for part in after))

    def _packed(self, packed: PackedSequence, state: State | None) -> tuple[PackedSequence, Tensor | State]:
        """Return what `forward` does, of sequences of unequal length, the longest first in the state that parts see."""
        data, sizes, order, back = packed
        state = state if state is None or order is None else tuple(part.index_select(1, order) for part in state)
        outputs, after = self._run(data, state, sizes)
        after = after if back is None else tuple(part.index_select(1, back) for part in after)
        return PackedSequence(outputs, sizes, order, back), _as_given(after)

    def _run(self, hidden: Tensor, state: State | None, sizes: Tensor | None = None) -> tuple[Tensor, State]:
        """Return what `forward` does, of a batch of sequences; packed ones if their sizes are given."""
        carried: list[State] = []
        outputs: list[Tensor] = []
        turned = None if sizes is None or not self.bidirectional else _turned(sizes).to(hidden.device)
        for index, (name, suffix) in enumerate(self._parts()):
            before = None if state is None else tuple(part[index : index + 1] for part in state)
            found, after = self._part(name, hidden, before, sizes, turned, backwards="reverse" in suffix)
            outputs.append(found)
            carried.append(after)
            if len(outputs) == self._directions:
                hidden = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
                outputs = []
                if index + 1 < self.num_layers * self._directions and self.dropout:
                    hidden = F.dropout(hidden, self.dropout, self.training)
        kinds, widths = zip(*carried, strict=True), (self._width, self.hidden_size)
        return hidden, tuple(
            torch.cat([part if self.even else _padded(part, width) for part in kind])
            for kind, width in zip(kinds, widths, strict=False)
        )

    def _part(
        self,
        name: str,
        hidden: Tensor,
        state: State | None,
        sizes: Tensor | None,
        turned: Tensor | None,
        *,
        backwards: bool,
    ) -> tuple[Tensor, State]:
        """Return what one direction of one layer gives for each step, in the order of the steps, and its state."""
        part: Any = self.get_submodule(name)
        widths = (part.proj_size or part.hidden_size, part.hidden_size)
        before = state and tuple(piece[..., :width].contiguous() for piece, width in zip(state, widths, strict=False))
        given = before if before is None or len(before) > 1 else before[0]

        def turn(steps: Tensor) -> Tensor:
            if not backwards:
                return steps
            return steps.flip(1 if self.batch_first else 0) if turned is None else steps.index_select(0, turned)

        if sizes is None and (stepped := one_step(part, hidden, before)) is not None:
            return stepped
        if sizes is None:
            outputs, after = part(turn(hidden), given)
        else:
            packed, after = part(PackedSequence(turn(hidden), sizes), given)
            outputs = packed.data
        return turn(outputs), (after if isinstance(after, tuple) else (after,))

    def flatten_parameters(self) -> None:
        """Lay out each part's weights as the fused kernel of a GPU likes them."""
        for name, _ in self._parts():
            part: Any = self.get_submodule(name)
            part.flatten_parameters()

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """Each part's weights, in PyTorch's order."""
        return [list(self.get_submodule(name)._parameters.values()) for name, _ in self._parts()]  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Return what stands in the module's line: its kind and the width of its state."""
        return f"{self.mode}, hidden_size={self.hidden_size}"

    _apply = nn.Module._apply
    __setstate__ = nn.Module.__setstate__

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and saved: the parts keep their own weights."""
        return self.__dict__.copy()


class RecurrentLSTM(Recurrent, nn.LSTM):  # type: ignore[misc]
    """What stands in for an `nn.LSTM`."""


class RecurrentGRU(Recurrent, nn.GRU):  # type: ignore[misc]
    """What stands in for an `nn.GRU`."""


class RecurrentRNN(Recurrent, nn.RNN):  # type: ignore[misc]
    """What stands in for an `nn.RNN`."""

    @property
    def nonlinearity(self) -> str:
        """The function that bends what each step gives: `tanh` or `relu`."""
        return self.mode.removeprefix("RNN_").lower()


_STANDING: dict[type[nn.RNNBase], type[Recurrent]] = {
    nn.LSTM: RecurrentLSTM,
    nn.GRU: RecurrentGRU,
    nn.RNN: RecurrentRNN,
}


def is_recurrent(module: nn.Module) -> bool:
    """Return whether the module is one that `Recurrent` can stand for: of PyTorch's own classes, with its own weights.

    Of one whose weights something sets before each call (weight drop) a copy would not be told.
    """
    return type(module) in _STANDING and all(name in module._parameters for name in _weights_of(module))


def _weights_of(module: Any) -> Sequence[str]:
    """Return the names that PyTorch gives to the weights of a recurrent module."""
    names: Sequence[str] = module._flat_weights_names
    return names


def unstacked(module: Module) -> Module:
    """Return a module in which each layer and direction of recurrent layers is a module of its own.

    It shares everything else with `module`, which is left as it was: parameters, buffers and other submodules.
    """
    parts = [part for part in module.modules() if isinstance(part, nn.RNNBase) and is_recurrent(part)]
    if not any(part.num_layers > 1 or part.bidirectional for part in parts):
        return module
    if is_recurrent(module):
        return cast(Module, Recurrent.of(cast(nn.RNNBase, module)))
    twin = copy.copy(module)
    twin._modules = {name: below and unstacked(below) for name, below in module._modules.items()}
    return twin


class Narrowed(nn.Linear):
    """A linear layer that reads its inputs from a padded state: some parts of the last dimension.

    Attributes:
        parts: Where each part that is read begins, and how long it is.
    """

    parts: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, linear: nn.Linear) -> "Narrowed":
        """Return a layer with the parameters of `linear`, which reads all."""
        with without_values():
            found = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        found.weight, found.bias = linear.weight, linear.bias
        found.parts = ((0, linear.in_features),)
        return found.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that PyTorch gives it
        """Return W times the parts that are read, plus the bias."""
        if tuple(self.parts) == ((0, input.shape[-1]),):  # all of it, by the operations that a plain layer has
            return super().forward(input)
        return super().forward(torch.cat([input.narrow(-1, start, length) for start, length in self.parts], dim=-1))


def _like(like: nn.RNNBase, inputs: int) -> nn.RNNBase:
    """Return one layer in one direction of the kind of `like`, its parameters not yet meaningful."""
    extra: dict[str, Any] = {"nonlinearity": like.nonlinearity} if isinstance(like, nn.RNN) else {}
    extra |= {"proj_size": like.proj_size} if like.proj_size else {}
    with without_values():
        make: Callable[..., nn.RNNBase] = type(like)
        return make(inputs, like.hidden_size, bias=like.bias, batch_first=like.batch_first, **extra)


def _padded(state: Tensor, width: int) -> Tensor:
    """Return a state (1, B, n) with zeros behind its neurons, (1, B, width)."""
    missing = width - state.shape[-1]
    return F.pad(state, (0, missing)) if missing else state


def _turned(sizes: Tensor) -> Tensor:
    """Return, for each row of a packed sequence's data, the row that lies there when every sequence is read backwards.

    >>> _turned(torch.tensor([2, 1, 1]))  # one sequence of three steps and one of a single one
    tensor([3, 1, 2, 0])
    """
    steps, first = torch.arange(len(sizes)).repeat_interleave(sizes), sizes.cumsum(0) - sizes
    sequences = torch.arange(len(steps)) - first[steps]
    lengths = (sizes[:, None] > torch.arange(int(sizes[0]))).sum(0)
    return first[lengths[sequences] - 1 - steps] + sequences


def _as_given(state: State) -> Tensor | State:
    """Return a state as PyTorch's own module gives it: a pair of an LSTM, else a tensor."""
    return state if len(state) > 1 else state[0]
