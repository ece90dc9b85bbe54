"""What a neuron is made of: slices of parameters, and the surgery that follows from them.

A family declares, once, where its parameters hold each layer's neurons. Scoring (`gather`), masking (`mask`),
surgery (`select`) and counting (`parameters_per_neuron`) all read that declaration, so what is scored is by
construction what is cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from pruning.core.avoiding import expect_width
from pruning.core.options import expect_known

Tensors = Mapping[str, Tensor]
Keep = Mapping[str, Tensor]
"""Kept neurons of each layer: layer name → indices, on any device, in the order that the smaller layer will have."""

TIED = "computes its neurons as well as reading them"
"""How an obstacle ends where one parameter does both."""
UNSEEN = "reads its neurons where no module's input or output is what it reads"
"""How an obstacle ends where only what the neurons are computed from, or go into, is recorded."""
NO_READER = "no weights read its neurons"
"""The obstacle where they meet others in a product or a distance alone."""


@dataclass(frozen=True)
class Slice:
    """Where one parameter holds a layer's neurons: along `dim`, in `blocks` stacked copies.

    An LSTM's `weight_hh` (4 width, width) holds them twice: as four stacked gates along dimension 0, where it
    computes the neurons, and once along dimension 1, where it reads them. A reader of two layers' concatenated
    outputs holds each of them in a part of dimension 1.

    >>> gates = Slice("weight_hh", dim=0, blocks=4)
    >>> gates.split(torch.arange(8.0).view(8, 1))[0].tolist()  # of two neurons the first: a row of each gate
    [[0.0], [2.0], [4.0], [6.0]]

    Attributes:
        parameter: The parameter's name in its model.
        dim: The dimension that runs over neurons.
        blocks: How many stacked copies `dim` holds.
        bias: Of a slice that reads: the parameter added to what its columns give, one number a row; empty if none.
        start: Where along `dim` the neurons begin.
        length: How much of `dim` they take, all copies together; None for all from `start` on.
        size: How many consecutive places a neuron has in each copy: an attention head has as many rows as it has
            dimensions, a channel that was flattened has height × width columns.
    """

    parameter: str
    dim: int
    blocks: int = 1
    bias: str = ""
    start: int = 0
    length: int | None = None
    size: int = 1

    def split(self, tensor: Tensor) -> Tensor:
        """Return a view of `tensor`, as far as it belongs to the layer, as (width, blocks, everything else).

        Of what else there is, a neuron's consecutive places come first.
        """
        length = tensor.shape[self.dim] - self.start if self.length is None else self.length
        rows = tensor.narrow(self.dim, self.start, length).movedim(self.dim, 0)
        return rows.reshape(self.blocks, length // self.blocks // self.size, -1).transpose(0, 1)

    def join(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return `like` with `rows` in the layer's place: what `split` takes apart, put together again."""
        joined = like.clone()
        length = like.shape[self.dim] - self.start if self.length is None else self.length
        place = joined.narrow(self.dim, self.start, length).movedim(self.dim, 0)
        place.copy_(rows.transpose(0, 1).reshape(place.shape))
        return joined

    def indices(self, keep: Tensor, width: int) -> Tensor:
        """Return the positions along `dim` that belong to the kept neurons, block after block."""
        if self.blocks == self.size == 1:
            return keep + self.start
        blocks, places = (torch.arange(size, device=keep.device) for size in (self.blocks, self.size))
        first = self.start + (blocks[:, None] * width + keep[None, :]).flatten() * self.size
        return (first[:, None] + places).flatten()


@dataclass(frozen=True)
class NeuronLayer:
    """One layer of neurons, said once.

    >>> own, readers = (Slice("0.weight", dim=0), Slice("0.bias", dim=0)), (Slice("2.weight", dim=1, bias="2.bias"),)
    >>> layer = NeuronLayer("0", "dense", width=3, owned=own, read=readers, output="1")
    >>> [piece.parameter for piece in (*layer.owned, *layer.read)]
    ['0.weight', '0.bias', '2.weight']

    Attributes:
        name: The layer's name, unique in its model.
        kind: The network type of its neurons: `rnn`, `snn`, `dense`, `conv` (channels) or `head` (attention heads).
        width: How many neurons it has.
        owned: Slices that compute the neurons (rows of weights, biases).
        read: Slices that consume the neurons' outputs (columns of every reader); the owned ones where none does.
        output: The module whose first output is the neurons' activations, shaped (…, width); with `seen`, the module
            whose first input holds them.
        buffers: Slices of buffers that go with the neurons (running statistics), which are no parameters.
        seen: Where the first input of the module `output`, a reader, holds the activations; None where its output does.
        obstacle: Why the readers cannot be refitted on one record of the layer; empty if they can. On what each of them
            reads, all of them can but those that are `tied`.
        silenced: Owned slices that are zeroed, too, to mask a neuron that something reads without a parameter.
        exact: Whether removing neurons gives what masking them gives. It does not where a normalisation runs over them:
            what is left of them then has other statistics.
        along: The dimension of the output of `output` that runs over the neurons, where its output shows them.
        tied: Those of `read` whose parameter computes neurons of the layer too, so that a refit would change these.
        operand: A parameter of the module `output` by whose product with something its own code reads the neurons, so
            that no input or output of a module holds them: `seen` says where that something does. Or, where `seen` is
            None, one whose rows that code looks up: what it finds is the output. Empty if a module shows them.
        avoided: Widths below its own with which the network's code does something else, for it compares them, or stops:
            choosing neurons steps over them, and `select` refuses them.
        given: Where the output of `output` holds the activations, if it holds others beside them.
    """

    name: str
    kind: str
    width: int
    owned: tuple[Slice, ...]
    read: tuple[Slice, ...]
    output: str
    buffers: tuple[Slice, ...] = ()
    seen: Slice | None = None
    obstacle: str = ""
    silenced: tuple[Slice, ...] = ()
    exact: bool = True
    along: int = -1
    tied: tuple[Slice, ...] = ()
    operand: str = ""
    avoided: tuple[int, ...] = ()
    given: Slice | None = None

    @property
    def unread(self) -> bool:
        """Whether no weights read its neurons: `read` is then what computes them, for they say zero where it is."""
        return bool(self.read) and all(piece in self.owned for piece in self.read)

    def __deepcopy__(self, memo: object) -> Self:
        """Return the layer itself, which nothing changes: networks are copied by the dozen to prove what was found."""
        return self


class PrunableModule(nn.Module, ABC):
    """A model that says where its neurons are and can be rebuilt with other widths.

    >>> class Doubled(PrunableModule):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.own = nn.Parameter(torch.arange(1.0, width + 1))
    ...         self.readers = nn.Parameter(torch.full((width,), 2.0))
    ...     def layers(self):
    ...         return [NeuronLayer("l", "dense", len(self.own), (Slice("own", 0),), (Slice("readers", 0),), "")]
    ...     def resized(self, widths):
    ...         return Doubled(*widths)
    >>> select(Doubled(3), {"l": torch.tensor([0, 2])}).own.tolist()
    [1.0, 3.0]
    """

    @abstractmethod
    def layers(self) -> list[NeuronLayer]:
        """Return the layers of neurons, from input to output."""

    @abstractmethod
    def resized(self, widths: Sequence[int]) -> Self:
        """Return a new model of the same family with these widths, its parameters not yet meaningful."""

    def settle(self, before: "PrunableModule", keep: Keep) -> None:
        """Be told, once the parameters are there, which neurons of which model these are."""


WHOLE = (torch.int64, torch.int32)
"""Types of tensors that neurons are named by."""
Model = TypeVar("Model", bound=PrunableModule)
Module = TypeVar("Module", bound=nn.Module)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return what the model saves besides its parameters, each by one name: running statistics and the like."""
    known, buffers = {id(parameter) for parameter in model.parameters()}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            known.add(id(tensor))
            buffers[name] = tensor.detach() if isinstance(tensor, Tensor) else tensor
    return buffers


def frozen_as(model: nn.Module, other: Module) -> Module:
    """Return `other`, its parameters frozen (`requires_grad` false) where those of the same names in `model` are."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(flags.get(name, parameter.requires_grad))
    return other


def expect_neurons(model: object) -> None:
    """Refuse a network whose neurons nobody has looked for.

    Raises:
        TypeError: If the model does not say where its neurons are.
    """
    if not isinstance(model, PrunableModule):
        raise TypeError(
            f"Expected a network whose neurons are known, got {type(model).__name__}; "
            "`pruning.adapt(network, inputs, loss=…)` finds them."
        )


def gather(slices: Iterable[Slice], tensors: Tensors) -> Tensor:
    """Return what the slices hold for each neuron, as (width, n).

    The same call serves weights, gradients, Fisher sums and Hessian products, for all are shaped like parameters.
    A complex weight is two numbers.

    >>> gather([Slice("w", dim=0, blocks=2)], {"w": torch.tensor([[1.0], [2.0], [3.0], [4.0]])})
    tensor([[1., 3.],
            [2., 4.]])
    """
    return torch.cat([piece.split(real_pairs(tensors[piece.parameter])).flatten(1) for piece in slices], dim=1)


def real_pairs(tensor: Tensor) -> Tensor:
    """Return a view of complex numbers as two real ones each, (…, n, 2) of (…, n); others as they are.

    >>> real_pairs(torch.tensor([1 + 2j, 3j])).tolist()
    [[1.0, 2.0], [0.0, 3.0]]
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def select(model: Model, keep: Keep) -> Model:
    """Return a smaller model that holds only the kept neurons: rows, columns, biases and every reader shrink.

    With a permutation of all neurons for `keep`, the result is the same function with its neurons relabelled. What is
    frozen stays frozen.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> smaller = select(model, {"rnn.0": torch.tensor([0, 5])})
    >>> smaller.widths(), torch.equal(smaller.decoder.weight, model.decoder.weight[:, [0, 5]])
    ((2,), True)

    Args:
        model: It is left as it was.
        keep: Layer name → kept indices. Layers that are not named keep everything.

    Raises:
        ValueError: For an unknown layer, no kept neuron, a repeated index, one outside the layer, or as many as its
            network's code does something else with (`NeuronLayer.avoided`).
    """
    smaller = narrowed(model, keep)
    smaller.settle(model, keep)
    return smaller


def narrowed(model: Model, keep: Keep) -> Model:
    """Return what `select` does, to be run and no more: it does not know which neurons it has.

    To know them takes longer where a configuration is to say how many, which is tried by building the network.

    Args:
        model: It is left as it was.
        keep: As `select` takes it.

    Raises:
        ValueError: As `select` does.
    """
    layers = _checked(model, keep)
    expect_width(layers, {name: len(kept) for name, kept in keep.items()})
    smaller = model.resized([len(keep.get(layer.name, range(layer.width))) for layer in layers])
    smaller.load_state_dict(cut(layers, keep, {**named_tensors(model), **named_buffers(model)}))
    return frozen_as(model, smaller).train(model.training)


def cut(layers: Iterable[NeuronLayer], keep: Keep, tensors: Tensors) -> dict[str, Tensor]:
    """Return parameter-shaped tensors with only the kept neurons; what belongs to no neuron stays as it is.

    Whatever is shaped like the parameters is cut as they are: weights, gradients, an optimizer's moments.

    >>> layer = NeuronLayer("l", "dense", 3, owned=(Slice("w", dim=0),), read=(Slice("v", dim=1),), output="l")
    >>> cut([layer], {"l": torch.tensor([2, 0])}, {"w": torch.tensor([5, 6, 7]), "v": torch.tensor([[1, 2, 3]])})
    {'w': tensor([7, 5]), 'v': tensor([[3, 1]])}
    """
    left, known = dict(tensors), dict[Hashable, Tensor]()  # what stays along the weight and the bias of a layer
    shared: dict[tuple[str, int], list[tuple[Slice, NeuronLayer]]] = {}
    for layer in (layer for layer in layers if layer.name in keep):
        for piece in dict.fromkeys((*layer.owned, *layer.read, *(p for p in layer.buffers if p.parameter in left))):
            shared.setdefault((piece.parameter, piece.dim), []).append((piece, layer))
    for (parameter, dim), pieces in sorted(shared.items(), key=lambda part: part[0]):  # rows first: they lie together
        whole = left[parameter]
        laid = whole.shape[dim], *((piece.start, piece.blocks, piece.size, layer.name) for piece, layer in pieces)
        if laid not in known:
            known[laid] = _remaining(whole.shape[dim], pieces, keep)
        if len(known[laid]):
            left[parameter] = whole.index_select(dim, known[laid].to(whole.device))
    return left


def _remaining(size: int, pieces: Sequence[tuple[Slice, NeuronLayer]], keep: Keep) -> Tensor:
    """Return what stays of a dimension of this size that layers share, each in a part of its own; none if all stays."""
    parts, end = [], 0
    for piece, layer in sorted(pieces, key=lambda pair: pair[0].start):
        parts += [torch.arange(end, piece.start), piece.indices(keep[layer.name].cpu(), layer.width)]
        end = piece.start + piece.blocks * layer.width * piece.size
    places = torch.cat([*parts, torch.arange(end, size)])
    return places[:0] if torch.equal(places, torch.arange(size)) else places


def mask(model: Model, keep: Keep) -> Model:
    """Return a model of the same size in which nobody reads the neurons outside `keep`.

    Masking, as a reference for `select`: the columns of every reader are zero, so a removed neuron still computes,
    but its output reaches nothing. Where something reads it without a parameter, it says zero instead.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> mask(model, {"rnn.0": torch.tensor([0, 5])}).decoder.weight.any(dim=0).tolist()
    [True, False, False, False, False, True]
    """
    layers = _checked(model, keep)
    tensors = {name: tensor.clone() for name, tensor in named_tensors(model).items()} | named_buffers(model)
    for layer in layers:
        removed = removed_neurons(layer, keep)
        for piece in (*layer.read, *layer.silenced):
            tensor = tensors[piece.parameter]
            tensor.index_fill_(piece.dim, piece.indices(removed.to(tensor.device), layer.width), 0.0)
    masked = model.resized([layer.width for layer in layers])
    masked.load_state_dict(tensors)
    return frozen_as(model, masked).train(model.training)


@contextmanager
def masking(model: PrunableModule, keep: Keep) -> Iterator[None]:
    """Within the context the model itself is what `mask` makes of it; then it is as it was, also after an error."""
    layers = _checked(model, keep)
    pieces = [(layer, piece) for layer in layers if layer.name in keep for piece in (*layer.read, *layer.silenced)]
    parameters = {piece.parameter: model.get_parameter(piece.parameter).detach() for _, piece in pieces}
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    try:
        for layer, piece in pieces:
            tensor, removed = parameters[piece.parameter], removed_neurons(layer, keep)
            tensor.index_fill_(piece.dim, piece.indices(removed.to(tensor.device), layer.width), 0.0)
        yield
    finally:
        for name, values in before.items():
            parameters[name].copy_(values)


def removed_neurons(layer: NeuronLayer, keep: Keep) -> Tensor:
    """Return the indices of the layer's neurons that are not in `keep`, ascending, on the CPU."""
    return others(layer.width, keep[layer.name]) if layer.name in keep else torch.arange(0)


def others(width: int, some: Tensor | Sequence[int]) -> Tensor:
    """Return the neurons of a layer of this width beside some of them, ascending, on the CPU.

    >>> others(5, [4, 0])
    tensor([1, 2, 3])
    """
    left = torch.ones(width, dtype=torch.bool)
    left[torch.as_tensor(some, dtype=torch.long).cpu()] = False
    return left.nonzero().flatten()


def _checked(model: PrunableModule, keep: Keep) -> list[NeuronLayer]:
    """Return the model's layers; refuse a `keep` that is not a set of neurons of them."""
    expect_neurons(model)
    layers = model.layers()
    widths = {layer.name: layer.width for layer in layers}
    expect_known("layer", widths, *keep)
    for name, kept in keep.items():
        if not isinstance(kept, Tensor) or kept.dtype not in WHOLE:
            what = str(kept.dtype) if isinstance(kept, Tensor) else type(kept).__name__
            raise TypeError(
                f"Expected a tensor of the numbers of the neurons that stay in layer {name!r}, got {what}; "
                "give `torch.tensor([…])`, or of a mask `mask.nonzero().flatten()`."
            )
        if len(kept) == 0:
            raise ValueError(f"Expected at least one kept neuron in layer {name!r}, got none.")
        if kept.min() < 0 or kept.max() >= widths[name] or len(set(kept.tolist())) != len(kept):
            raise ValueError(
                f"Expected distinct neurons 0 to {widths[name] - 1} in layer {name!r}, got {kept.tolist()}."
            )
    return layers
