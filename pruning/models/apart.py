"""Zeros added to what each reader of a layer reads, at each use: where no one place shows a layer to all readers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.core.neurons import NeuronLayer, PrunableModule, Slice, real_pairs
from pruning.core.reading import Reading, letters, previous

Input = tuple[int, int, tuple[int, ...], int]
"""Which argument may be a parameter, its axis that is summed over, which argument it multiplies, and its axis."""


@dataclass
class Uses:
    """What the readers of one layer read in a batch, in the order in which they do.

    Attributes:
        values: What was read each time, (steps, examples, width); of several places as many steps. Examples are one
            where some reader does not tell them apart.
        zeros: What is added, to be given out in the same order; empty while nothing is.
        unseen: Whether something reads them where nobody sees it.
    """

    values: list[Tensor] = field(default_factory=list)
    zeros: list[Tensor] = field(default_factory=list)
    unseen: bool = False

    def outputs(self) -> Tensor:
        """Return all that was read, (steps, examples, width)."""
        if len({values.shape[1] for values in self.values}) > 1:
            return torch.cat([values.flatten(0, 1) for values in self.values])[:, None]
        return torch.cat(self.values)

    def give(self, zeros: Tensor) -> None:
        """Take zeros in the shape of `outputs`, to be given out."""
        flat, start = zeros.flatten(0, 1), 0
        self.zeros = []
        for values in self.values:
            count = values.shape[0] * values.shape[1]
            self.zeros.append(flat[start : start + count].view(values.shape))
            start += count


class Apart(Reading):
    """A mode that sees what readers read, each use by itself, and adds to it what it was given for that use."""

    def __init__(self, model: PrunableModule, layers: Sequence[NeuronLayer], examples: int, example_dim: int) -> None:
        self.pieces = [(layer, piece) for layer in layers for piece in layer.read]
        super().__init__(model, [piece for _, piece in self.pieces], lambda _number, _read: None)
        self.uses = {layer.name: Uses() for layer in layers}
        self.examples, self.example_dim = examples, example_dim

    def give(self, zeros: Mapping[str, Tensor]) -> None:
        """Add these when the model runs again on the same inputs."""
        for name, own in zeros.items():
            self.uses[name].give(own)

    def __torch_function__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation on what is read with what is added."""
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if name in _RECURRENT:
            return self._recurrent(function, list(args), kwargs)
        if name == "einsum" and isinstance(args[1], list | tuple):  # its operands as one
            args = (args[0], *args[1])
        given = _placed(args, kwargs) if name in _INPUTS else list(args)
        for weight, axis, path, along in _INPUTS.get(name, _nothing)(given):
            tensor = given[weight] if weight < len(given) else None
            if isinstance(tensor, Tensor):
                added = self._added(tensor, axis, _at(given, path), along)
                if added is not None:
                    given = _with(given, path, added)
                    if name == "gru_cell" and path == (1,):
                        return _gru_cell(given, added - args[1])
        return self.run(function, tuple(given), kwargs)

    def _added(self, weight: Tensor, axis: int, values: Any, along: int, *, packed: bool = False) -> Tensor | None:
        """Return what a weight multiplies with what is added to it; None if it reads nothing that is asked for."""
        column = self._column(weight, axis)
        numbers = self._pieces.get(column, []) if column else []
        groups = values.shape[along] // weight.shape[axis] if numbers and not packed else 1
        for number in numbers:
            layer, piece = self.pieces[number]
            if groups > 1:  # of a convolution, each of which has its own channels
                along = along % values.ndim - values.ndim
                parts = values.unflatten(along, (groups, -1))
                values = (parts + self._zeros(layer, piece, parts, along, packed=packed)).flatten(along - 1, along)
            else:
                values = values + self._zeros(layer, piece, values, along, packed=packed)
        return values if numbers else None

    def _zeros(self, layer: NeuronLayer, piece: Slice, values: Tensor, along: int, *, packed: bool) -> Tensor | float:
        """Note what a reader reads of a layer, and return what is to be added to it."""
        along, uses = along % values.ndim, self.uses[layer.name]
        if uses.unseen:
            return 0.0
        example = self.example_dim
        known = not packed and example < values.ndim and example != along and values.shape[example] == self.examples
        wide = real_pairs(values if known else values.unsqueeze(0))  # of a complex number each part is a step
        dims = (example, along) if known else (0, along + 1)
        place = Place(piece, layer.width, wide.shape, dims)
        if not uses.zeros:
            uses.values.append(place.arranged(wide.detach()))
            return 0.0
        found = place.restored(uses.zeros.pop(0))
        found = torch.view_as_complex(found.contiguous()) if values.is_complex() else found
        return found if known else found.squeeze(0)

    def _recurrent(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run a recurrent layer that may read something added to its input, and to its own outputs at each step."""
        packed = isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple))
        weights = args[3] if packed else args[2]
        layers, two_ways = (args[5], args[8]) if packed else (args[4], args[7])
        if layers > 1 or two_ways:
            self._hide(weights)
            return function(*args, **kwargs)
        added = self._added(weights[0], 1, args[0], -1, packed=packed)
        args[0] = args[0] if added is None else added
        column = self._column(weights[1], 1)
        if column not in self._pieces:
            return function(*args, **kwargs)
        if any(self.uses[self.pieces[number][0].name].zeros for number in self._pieces[column]):
            like = previous(args, function(*args, **kwargs))
            tap = self._added(weights[1], 1, torch.zeros_like(like), -1, packed=packed)
            return _unrolled(getattr(function, "__name__", ""), args, tap)
        found = function(*args, **kwargs)
        self._added(weights[1], 1, previous(args, found), -1, packed=packed)
        return found

    def _hide(self, weights: Sequence[Tensor]) -> None:
        """Give up the layers that these read within one operation, where nobody sees what goes from one to the next."""
        columns = (self._column(weight, 1) for weight in weights if weight.ndim > 1)
        for number in (number for column in columns if column for number in self._pieces.get(column, [])):
            self.uses[self.pieces[number][0].name] = Uses(unseen=True)


class Place:
    """Where a tensor holds a layer's outputs: which of its dimensions run over examples and neurons, and what part."""

    def __init__(self, piece: Slice, width: int, shape: torch.Size, dims: tuple[int, int]) -> None:
        self.piece, self.width, self.shape, self.dims = piece, width, shape, dims
        self.length = shape[dims[1]] - piece.start if piece.length is None else piece.length

    def arranged(self, values: Tensor) -> Tensor:
        """Return the outputs as (steps, examples, width); a neuron's several places are steps of it."""
        piece, examples = self.piece, self.shape[self.dims[0]]
        own = values.movedim(self.dims, (0, -1)).narrow(-1, piece.start, self.length)
        parts = own.reshape(examples, -1, self.length // self.width // piece.size, self.width, piece.size)
        return parts.permute(1, 2, 4, 0, 3).reshape(-1, examples, self.width)

    def restored(self, arranged: Tensor) -> Tensor:
        """Return what `arranged` gave in its place in a tensor of the whole shape, zeros around it."""
        piece, examples = self.piece, self.shape[self.dims[0]]
        others = [size for dim, size in enumerate(self.shape) if dim not in self.dims]
        parts = arranged.reshape(-1, self.length // self.width // piece.size, piece.size, examples, self.width)
        own = parts.permute(3, 0, 1, 4, 2).reshape(examples, *others, self.length)
        whole = F.pad(own, (piece.start, self.shape[self.dims[1]] - piece.start - self.length))
        return whole.movedim((0, -1), self.dims)


def _nothing(_: Sequence[Any]) -> Iterator[Input]:
    yield from ()


def _linear(_: Sequence[Any]) -> Iterator[Input]:
    yield 1, 1, (0,), -1


def _product(args: Sequence[Any]) -> Iterator[Input]:
    one, other = (argument.ndim > 1 if isinstance(argument, Tensor) else True for argument in args[:2])
    yield 1, -2 if other else 0, (0,), -1
    yield 0, -1 if one else 0, (1,), -2 if other else 0


def _bilinear(_: Sequence[Any]) -> Iterator[Input]:
    yield 2, 1, (0,), -1
    yield 2, 2, (1,), -1


def _added_product(_: Sequence[Any]) -> Iterator[Input]:
    yield 2, -2, (1,), -1


def _summed(args: Sequence[Any]) -> Iterator[Input]:
    """`einsum("…i,io->…o", x, W)`, its operands one by one; see `pruning.core.reading.letters`."""
    for one, other in letters(args[0], args[1:]):
        yield 2, other, (1,), one
        yield 1, one, (2,), other


def _convolved(args: Sequence[Any]) -> Iterator[Input]:
    yield 1, 1, (0,), 1 - args[1].ndim


def _transposed(args: Sequence[Any]) -> Iterator[Input]:
    if len(args) < 7 or args[6] == 1:
        yield 1, 0, (0,), 1 - args[1].ndim


def _stepped(args: Sequence[Any]) -> Iterator[Input]:
    yield 2, 1, (0,), -1
    yield 3, 1, (1,) if isinstance(args[1], Tensor) else (1, 0), -1


_INPUTS: dict[str, Callable[[Sequence[Any]], Iterator[Input]]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "_grouped_mm", "grouped_mm"), _product),
    "bilinear": _bilinear,
    **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    "einsum": _summed,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolved),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _stepped),
}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _placed(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments with input and weight by their places, taken out of those by name."""
    names = ("input", "weight", "bias")
    given = list(args)
    while len(given) < len(names) and names[len(given)] in kwargs:
        given.append(kwargs.pop(names[len(given)]))
    return given


def _at(args: Sequence[Any], path: Sequence[int]) -> Any:
    return args[path[0]] if len(path) == 1 else args[path[0]][path[1]]


def _with(args: Sequence[Any], path: Sequence[int], value: Any) -> list[Any]:
    changed = list(args)
    inner = list(changed[path[0]]) if len(path) > 1 else None
    if inner is not None:
        inner[path[1]] = value
    changed[path[0]] = value if inner is None else tuple(inner)
    return changed


def _gru_cell(args: Sequence[Any], tap: Tensor) -> Tensor:
    """Return what a GRU's cell gives whose matrix reads h + tap, which `args` hold, and which carries h alone over."""
    values, read, own, back, *biases = args
    before = (*biases, None, None)[:2]
    return _gated(F.linear(values, own, before[0]), F.linear(read, back, before[1]), read - tap)


def _gated(given: Tensor, own: Tensor, hidden: Tensor) -> Tensor:
    """Return a GRU's next state."""
    (reset, update, content), (own_reset, own_update, own_content) = given.chunk(3, -1), own.chunk(3, -1)
    kept = (update + own_update).sigmoid()
    return (1 - kept) * (content + (reset + own_reset).sigmoid() * own_content).tanh() + kept * hidden


def _unrolled(kind: str, args: Sequence[Any], tap: Tensor | None) -> tuple[Tensor, ...]:
    """Return what a recurrent layer in one direction gives whose matrix reads h + tap at each step.

    Args:
        kind: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        args: What PyTorch's own function of that name is called with.
        tap: Shaped as what the matrix reads, see `previous`.
    """
    assert tap is not None  # noqa: S101 - for the type checker
    packed = isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple))
    values, state, weights = (args[0], args[2], args[3]) if packed else args[:3]
    time = 0 if packed or not args[8] else 1
    steps, taps = (
        [part.split(args[1].tolist()) if packed else part.unbind(time) for part in (values, tap)]
    )  # fmt: skip
    own, back, *rest = weights
    biases = (rest[0], rest[1]) if len(rest) > 1 else (None, None)
    projection = rest[-1] if len(rest) % 2 else None
    hidden = (state if isinstance(state, Tensor) else state[0])[0]
    cell = None if isinstance(state, Tensor) else state[1][0]
    outputs = []
    for step, added in zip(steps, taps, strict=True):
        count = len(step)
        given = F.linear(step, own, biases[0])
        read = F.linear(hidden[:count] + added, back, biases[1])
        if kind == "gru":
            after = _gated(given, read, hidden[:count])
        elif kind == "lstm" and cell is not None:
            enter, forget, content, leave = (given + read).chunk(4, -1)
            inner = forget.sigmoid() * cell[:count] + enter.sigmoid() * content.tanh()
            after = leave.sigmoid() * inner.tanh()
            after = after if projection is None else F.linear(after, projection)
            cell = torch.cat([inner, cell[count:]])
        else:
            after = (given + read).tanh() if kind == "rnn_tanh" else (given + read).relu()
        hidden = torch.cat([after, hidden[count:]])
        outputs.append(after)
    whole = torch.cat(outputs) if packed else torch.stack(outputs, time)
    return (whole, hidden[None]) if cell is None else (whole, hidden[None], cell[None])
