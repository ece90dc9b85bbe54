"""What the readers of neurons read while a model runs, wherever a parameter is used: by a module or an operation."""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pruning.core.neurons import Slice
from pruning.core.operands import storage_of

Column = tuple[str, int]
"""A parameter, and the dimension of it that is summed over."""


@dataclass(frozen=True)
class Read:
    """What one use of a parameter multiplies it by.

    Attributes:
        column: The parameter and its dimension that has a place for each number of what is read.
        values: What is read, (…, places).
        repeats: How often each of (…) is read, whole numbers; None where once. A convolution reads the border of an
            image less often than its middle; what it puts around the image is a part of what it reads.
        constant: Whether what is the same wherever it is read adds the same everywhere, so that a bias can give it.
        beside: Another parameter's columns, and what they multiply, (…, places), where both products are added up
            before anything else is made of them: what a recurrent layer reads beside its own state.
    """

    column: Column
    values: Tensor
    repeats: Tensor | None = None
    constant: bool = True
    beside: tuple[Column, Tensor] | None = None

    def of(self, piece: Slice) -> tuple[Tensor, Tensor | None]:
        """Return what a slice reads, (samples, width), and how often each sample; a neuron's places are samples."""
        own = replace(piece, dim=self.values.ndim - 1).split(self.values)
        values = own.flatten(1).T
        if self.repeats is None:
            return values, None
        times = self.repeats.expand(self.values.shape[:-1]).flatten()
        times = times.repeat(len(values) // max(len(times), 1))
        return values[times > 0], times[times > 0]


Observe = Callable[[int, Read], None]
"""Called with a slice's number and what it reads, each time that it reads."""


class Reading(TorchFunctionMode):
    """A mode in which each use of some parameters as readers is observed, and nothing is dropped at random.

    Each operation is seen as it was called: a product, a convolution, a recurrent layer or cell. Views of parameters
    and their copies in another type are known by the memory that they share, or were copied from.

    Attributes:
        used: Parameter → the other operations that compute something of it.
        asked: Whether the network's code asked for a number that it computed, and so may read otherwise the next time.

    >>> network = nn.Linear(2, 1)
    >>> with torch.no_grad(), Reading(network, [Slice("weight", dim=1)], lambda _, read: print(read.values.tolist())):
    ...     _ = network(torch.tensor([[1.0, 2.0]]))
    [[1.0, 2.0]]
    """

    def __init__(self, model: nn.Module, pieces: Iterable[Slice], observe: Observe) -> None:
        super().__init__()
        self._pieces: dict[Column, list[int]] = {}
        for number, piece in enumerate(pieces):
            self._pieces.setdefault((piece.parameter, piece.dim), []).append(number)
        self._observe = observe
        self.used: dict[str, set[str]] = {}
        self.asked = False
        reading = {name for name, _ in self._pieces}
        self._own = {storage_of(held): name for name, held in model.named_parameters() if name in reading}
        self._known: dict[int, list[_Known]] = {}
        for name, parameter in model.named_parameters():
            self._know(parameter, [(name, dim) for dim in range(parameter.ndim)])

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and note what parameters read by it."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        found = self.run(function, args, kwargs)
        self.asked |= name in _ASKING
        read: set[str] = set()
        if name in _READERS:
            for weight, axis, values, extra in _READERS[name](args, kwargs, found):
                column = self._column(weight, axis) if isinstance(weight, Tensor) else None
                if column is None or storage_of(values) == storage_of(weight):
                    continue  # a weight that meets itself, as in `W @ W.T` of a penalty, reads no neurons
                read.add(column[0])
                for number in self._pieces.get(column, ()):
                    self._observe(number, Read(column, values, **extra | self._beside(**extra)))
        self._note(name, args, found, read)
        return found

    def _note(self, name: str, args: tuple[Any, ...], found: object, read: set[str]) -> None:
        """Note of which parameters, but those that read by it, an operation computes something that is no view."""
        if not isinstance(found, Tensor) or name in _COPIES:
            return
        for part in (each for given in args for each in (given if isinstance(given, (tuple, list)) else [given])):
            own = self._own.get(storage_of(part)) if isinstance(part, Tensor) else None
            if own is not None and own not in read and storage_of(found) != storage_of(part):
                self.used.setdefault(own, set()).add(name.strip("_"))

    def _beside(self, beside: tuple[Tensor, Tensor] | None = None, **_: object) -> dict[str, Any]:
        column = None if beside is None else self._column(beside[0], 1)
        return {"beside": None if beside is None or column is None else (column, beside[1])}

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the operation gives; nothing is dropped at random, and copies of parameters are known."""
        name = getattr(function, "__name__", "")
        if name.rstrip("_") in _DROPOUTS:
            return kwargs["input"] if "input" in kwargs else args[0]
        found = function(*args, **kwargs)
        if name in _COPIES:
            self._copied(args, found)
        return found

    def _know(self, tensor: Tensor, columns: Sequence[Column | None]) -> None:
        known = _Known(weakref.ref(tensor), tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), columns)
        self._known.setdefault(storage_of(tensor), []).append(known)

    def _column(self, tensor: Tensor, axis: int) -> Column | None:
        """Return which dimension of which parameter an axis of a tensor runs along, from end to end."""
        size, stride, first = tensor.shape[axis], tensor.stride(axis), tensor.storage_offset()
        for known in self._known.get(storage_of(tensor), ()):
            inside = known.first <= first < known.first + max(math.prod(known.shape), 1)
            if known.tensor() is None or not inside:
                continue
            likely = [
                column
                for dim, column in enumerate(known.columns)
                if known.shape[dim] == size and (known.strides[dim] == stride or size == 1)
            ]  # a dimension of size 1 may have any stride
            if likely:
                return next((column for column in likely if column in self._pieces), likely[0])
        return None

    def _copied(self, args: tuple[Any, ...], copy: object) -> None:
        """Know a parameter's copy."""
        source = args[0] if args else None
        if not isinstance(source, Tensor) or not isinstance(copy, Tensor) or source.shape != copy.shape:
            return
        if storage_of(copy) != storage_of(source) and self._known.get(storage_of(source)):
            self._known[storage_of(copy)] = []  # what lay there before is gone
            self._know(copy, [self._column(source, axis) for axis in range(source.ndim)])


@dataclass(frozen=True)
class _Known:
    """A tensor that lies in memory as parameters do: its shape, and which dimension of a parameter each axis is."""

    tensor: Callable[[], Tensor | None]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    columns: Sequence[Column | None]


Use = tuple[Any, int, Tensor, dict[str, Any]]
"""What may be a parameter, its axis that is summed over, what it multiplies, (…, places), and more of a `Read`."""


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`linear(x, W (out, in), b)`."""
    values, weight = _named(args, kwargs, "input", "weight")
    if weight.ndim == 2:
        yield weight, 1, values, {}


def _product(args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`x @ W`, or `W @ x`."""
    one, other = _named(args, kwargs, "input", "mat2" if "mat2" in kwargs else "other")
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        yield other, -2 if other.ndim > 1 else 0, one, {}
        yield one, -1, other.mT if other.ndim > 1 else other, {}


def _turned_product(args: tuple[Any, ...], _kwargs: dict[str, Any], found: object) -> Iterator[Use]:
    """`W.__rmatmul__(x)`."""
    yield from _product(args[::-1], {}, found)


def _added_product(args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`addmm(b, x, W (in, out))`."""
    _, values, weight = _named(args, kwargs, "input", "mat1", "mat2")
    yield weight, -2, values, {}


def _bilinear(args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`bilinear(x, y, W (out, in of x, in of y), b)`: what is constant in one of them goes with the other."""
    one, other, weight = _named(args, kwargs, "input1", "input2", "weight")
    yield weight, 1, one, {"constant": False}
    yield weight, 2, other, {"constant": False}


def _summed(args: tuple[Any, ...], _kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`einsum("…i,io->…o", x, W)`, of two tensors; each index that is summed over may be what is read."""
    equation, *rest = args
    operands = rest[0] if rest and isinstance(rest[0], (list, tuple)) else rest
    for one, other in letters(equation, operands):
        yield operands[1], other, operands[0].movedim(one, -1), {"constant": False}
        yield operands[0], one, operands[1].movedim(other, -1), {"constant": False}


def letters(equation: object, operands: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the axes of two operands of an `einsum`, in pairs, that are summed over together.

    >>> letters("bhi,hio->bo", [0, 0])
    [(1, 0), (2, 1)]
    """
    if not isinstance(equation, str) or len(operands) != 2:
        return []
    terms, arrow, result = equation.replace(" ", "").partition("->")
    one, other = terms.split(",")
    summed = [letter for letter in one if letter in other and letter.isalpha() and letter not in result and arrow]
    return [(_axis(one, letter), _axis(other, letter)) for letter in summed]


def _axis(term: str, letter: str) -> int:
    """Return which axis a letter of a term is; counted from the end where others come before it unnamed."""
    before, _, after = term.partition(letter)
    return -len(after) - 1 if "..." in before else len(before)


def _convolved(args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`conv(x (N, C, …), W (out, in, …), b, stride, padding, dilation, groups)`: it reads the zeros around, too.

    Of several groups each is a sample, read by rows of its own, so that a constant adds something else to each.
    """
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    values, weight, _, stride, padding, dilation, groups = _named(
        args, {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | kwargs, *names
    )
    if groups != 1 and weight.shape[1] == 1:
        return
    kernel = weight.shape[2:]
    stride, dilation = (_each(number, len(kernel)) for number in (stride, dilation))
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if padding == "same":
        around = [(whole // 2, whole - whole // 2) for whole in reach]
    else:
        around = [(size, size) for size in _each(0 if padding == "valid" else padding, len(kernel))]
    values = values if values.ndim == weight.ndim else values.unsqueeze(0)
    if any(size for sizes in around for size in sizes):
        values = F.pad(values, [size for sizes in reversed(around) for size in sizes])
    sizes = values.shape[2:]
    extra: dict[str, Any] = {}
    if any(size > 1 for size in (*kernel, *stride)):
        results = [(size - far - 1) // step + 1 for size, far, step in zip(sizes, reach, stride, strict=True)]
        one, other = (values.new_ones(1, 1, *shape, dtype=torch.float32) for shape in (results, kernel))
        spread: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(kernel) - 1]
        repeats = spread(one, other, stride=tuple(stride), dilation=tuple(dilation))
        unread = [size - reached for size, reached in zip(sizes, repeats.shape[2:], strict=True)]
        extra = {"repeats": F.pad(repeats, [size for rest in reversed(unread) for size in (0, rest)])[:, 0].round()}
    values = values.movedim(1, -1)
    if groups != 1:
        values, extra = values.unflatten(-1, (groups, -1)), {name: part[..., None] for name, part in extra.items()}
        extra["constant"] = False
    yield weight, 1, values, extra


def _transposed(args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`conv_transpose(x (N, C, …), W (in, out, …), …)`: a constant adds something else at each place."""
    values, weight = _named(args, kwargs, "input", "weight")
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    if groups == 1:
        yield weight, 0, values.movedim(1 - weight.ndim, -1), {"constant": False}


def _recurrent(args: tuple[Any, ...], _kwargs: dict[str, Any], found: Any) -> Iterator[Use]:
    """`lstm(x, (h, c), weights, …)` and its kin, one layer in one direction; of packed sequences with their sizes."""
    packed = isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple))
    values, _, weights, _, layers, _, _, two_ways = (args[0], *args[2:9]) if packed else args[:8]
    if layers > 1 or two_ways:
        return
    yield weights[0], 1, values, {}
    yield weights[1], 1, previous(args, found), {"beside": (weights[0], values)}


def _gated(args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> Iterator[Use]:
    """`gru(x, h, weights, …)`: its reset gate multiplies its own matrix's product before both are added up."""
    for weight, axis, values, _ in _recurrent(args, kwargs, found):
        yield weight, axis, values, {}


def previous(args: Sequence[Any], found: Any) -> Tensor:
    """Return what a recurrent layer's own matrix reads, shaped as its outputs: at each step those of the step before.

    Args:
        args: What PyTorch's function of the layer's kind was called with.
        found: What it gave.
    """
    packed = isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple))
    state, outputs = args[2] if packed else args[1], found[0]
    first = state[0] if isinstance(state, Tensor) else state[0][0]
    if packed:
        sizes = args[1].tolist()
        starts = [sum(sizes[:step]) for step in range(len(sizes))]
        earlier = [outputs[start : start + size] for start, size in zip(starts, sizes[1:], strict=False)]
        return torch.cat([first[: sizes[0]], *earlier])
    time = 1 if args[8] else 0
    return torch.cat([first.unsqueeze(time), outputs.narrow(time, 0, outputs.shape[time] - 1)], dim=time)


def _stepped(args: tuple[Any, ...], _kwargs: dict[str, Any], _: object) -> Iterator[Use]:
    """`lstm_cell(x, (h, c), W, W, b, b)` and its kin."""
    values, state, own, back = args[:4]
    yield own, 1, values, {}
    yield back, 1, state if isinstance(state, Tensor) else state[0], {}


_READERS: dict[str, Callable[[tuple[Any, ...], dict[str, Any], Any], Iterator[Use]]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "_grouped_mm", "grouped_mm"), _product),
    "bilinear": _bilinear,
    "__rmatmul__": _turned_product,
    **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    "einsum": _summed,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolved),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    "gru": _gated,
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _stepped),
}
_COPIES = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "reshape"}
_ASKING = {"__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "numpy", "__array__"}
_ASKING |= {"nonzero", "argwhere", "unique", "unique_consecutive", "masked_select"}
"""What gives Python a number that the network computed, or as many of them as it has of a kind."""
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"}
_DROPOUTS |= {"feature_alpha_dropout", "feature_dropout"}


def _named(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> list[Any]:
    """Return arguments by their names, wherever they were given."""
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in enumerate(names)]


def _each(number: Any, count: int) -> list[int]:
    found = [number] if isinstance(number, int) else list(number)
    return found * count if len(found) == 1 else found
