"""A user's own model as one that says where its neurons are and can be rebuilt with other widths."""

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from pruning.core.arguments import forward_places
from pruning.core.memory import Place
from pruning.core.neurons import Keep, NeuronLayer, PrunableModule, Slice, named_buffers
from pruning.core.options import expect_known
from pruning.discovery.attention import Attention
from pruning.discovery.beginning import Beginning
from pruning.discovery.blocks import Block
from pruning.discovery.configured import Entry, follow_widths
from pruning.discovery.experts import Expert, experts_of, run_apart
from pruning.discovery.following import Carried, Number, Size
from pruning.discovery.origins import Earlier, Origin
from pruning.discovery.plain import placed
from pruning.discovery.recurrent import Narrowed, Recurrent
from pruning.discovery.running import canonical, copied, kept_tensors, uncached
from pruning.discovery.shortening import BlockProver, Cut, proved_blocks
from pruning.discovery.streams import Streams
from pruning.discovery.summary import summary

PREFIX = "network."
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
"""What modules of attention call the number of their heads."""
ROWS = ("split_size", "all_head_size", "inner_dim")
"""What they call the dimensions of all heads together, where it is not the width of what they read."""


class Discovered(Beginning):
    """A model that `discover` found the neurons of.

    Attributes:
        network: The model itself, which a user deploys; it is called, and returns, as the user's.
        unprunable: Module → why what it computes is no layer of neurons that can be pruned.
        numbers: Numbers in the user's own modules that follow the widths of layers.
        folded: Parameter → what computed it, the values of which it now has.
        origin: What the network was; None while it is being looked into.
        chosen: Layer → which of the neurons that it had then it has now.
        entries: Numbers in configurations that were changed since.
        remembered: Where its modules keep something of a call.
        earlier: How it came to have fewer blocks than the user's own; None if it has as many.
    """

    network: nn.Module
    earlier: Earlier | None = None

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[NeuronLayer],
        unprunable: Mapping[str, str],
        numbers: Sequence[Number] = (),
        folded: Mapping[str, str] | None = None,
        origin: Origin | None = None,
        remembered: Sequence[Place] = (),
    ) -> None:
        super().__init__(remembered)
        self.network, self.numbers, self.folded = network, tuple(numbers), dict(folded or {})
        self.unprunable = dict(unprunable)
        self._layers = list(layers)
        self.origin = origin
        self.entries: tuple[Entry, ...] = ()
        self._found: tuple[Streams, list[Block]] | None = None
        self._experts: list[Expert] | None = None
        self.chosen: dict[str, Tensor] = {layer.name: torch.arange(layer.width) for layer in layers}
        self.training = network.training

    def layers(self) -> list[NeuronLayer]:
        """Return the layers of neurons, from input to output."""
        return list(self._layers)

    def blocks(self) -> list[Block]:
        """Return the residual blocks that can go as a whole, from input to output, outer ones before those within.

        They are looked for when they are asked for: the network runs on the inputs that it was discovered with.

        >>> from pruning.discovery import discover
        >>> class Residual(nn.Linear):
        ...     def forward(self, inputs):
        ...         return inputs + super().forward(inputs).relu()
        >>> network = nn.Sequential(nn.Linear(3, 4), Residual(4, 4), Residual(4, 4), nn.Linear(4, 2))
        >>> found = discover(network, torch.ones(1, 3))
        >>> [(block.name, block.parameters) for block in found.blocks()]
        [('1', 20), ('2', 20)]
        """
        return list(self._residual()[1])

    def experts(self) -> list[Expert]:
        """Return the experts that can go as a whole, with their rows of the router, looked for when asked for."""
        if self._experts is None:
            with uncached(self.network):
                self._experts = experts_of(self.network, placed(self.network, self._origin.inputs[:1]))
        return list(self._experts)

    def cut_without(self, names: Iterable[str]) -> Cut:
        """Return what is to be done so that blocks and experts go; see `pruning.shorten`."""
        streams, blocks = self._residual()
        known, names = {block.name: block for block in blocks}, list(names)
        experts = {one.name: one for one in self.experts()}
        expect_known("block", [*known, *experts], *names)
        inputs = placed(self.network, self._origin.inputs[:1])
        with uncached(self.network):
            prover = BlockProver(self.network, streams, inputs, self._origin.states)
            gone = [known[name] for name in names if name in known]
            return prover.cut(gone, [experts[name] for name in names if name not in known])

    @property
    def _origin(self) -> Origin:
        if self.origin is None:
            raise ValueError(
                "Expected a network that `discover` gave, or one cut from it, got one made in another way."
            )
        return self.origin

    def _residual(self) -> tuple[Streams, list[Block]]:
        """Return what a run of the network told of its streams, and the blocks."""
        if self._found is None:
            inputs = placed(self.network, self._origin.inputs[:1])
            with uncached(self.network):
                streams = Streams.of(self.network, inputs)
                blocks = proved_blocks(self.network, streams, inputs, self._origin.states)
            experts = {expert.name for expert in self.experts()}  # with which the router's row goes, not the sum alone
            self._found = streams, [block for block in blocks if block.module not in experts]
        return self._found

    def resized(self, widths: Sequence[int]) -> Self:
        """Return a model with these widths; tensors whose shape changes are not yet meaningful."""
        return self._resized(widths, {}, sharing=False)

    def with_widths(self, widths: Sequence[int], tensors: Mapping[str, Tensor]) -> Self:
        """Return a model with these widths and tensors, and with the same ones where no shape changes."""
        return self._resized(widths, tensors, sharing=True)

    def _resized(self, widths: Sequence[int], tensors: Mapping[str, Tensor], *, sharing: bool) -> Self:
        layers = resized_layers(self._layers, widths)
        with self.begun():
            changed = _changed(self.network, self._layers, layers, tensors)
            network = copied(self.network, sharing=sharing, replacing=changed)
        staying = {number.module for number in self.numbers if number.attribute == "groups"}
        for path, module in network.named_modules():
            _agree(module, staying=path in staying)
            run_apart(module)
        for before, after in zip(self._layers, layers, strict=True):
            _agree_heads(network, before, after)
        _agree_parts(network, self._layers, layers)
        widths_of = {layer.name: layer.width for layer in layers}
        for number in self.numbers:
            number.set(network, widths_of)
        modes = {name: module.training for name, module in self.network.named_modules()}
        how = (self.unprunable, self.numbers, self.folded, self.origin, self.remembered)
        found = type(self)(network, layers, *how)
        found.chosen, found.entries, found.earlier = self.chosen, self.entries, self.earlier
        found.written = self.written
        for name, module in network.named_modules():
            module.training = modes[name]
        return found

    def settle(self, before: PrunableModule, keep: Keep) -> None:
        """Remember which neurons these are, and let a configuration say how many."""
        if isinstance(before, Discovered):
            if self.origin is not None:
                widths = (before.layers(), self.origin.layers)
                more = follow_widths(self.network, widths, self._layers, self.origin.inputs)
                self.entries = (*before.entries, *more)
            kept = {name: chosen[keep[name].cpu()] for name, chosen in before.chosen.items() if name in keep}
            self.chosen = {**before.chosen, **kept}

    def summary(self) -> str:
        """Return as text what was found: each layer, what of the network is within reach, and why the rest stays."""
        told = ((n.module, str(n)) for n in self.numbers if isinstance(n, Size))
        carried = ((n.attribute, n.layer) for n in self.numbers if isinstance(n, Carried))
        alone = forward_places(self.network) == 1
        return summary(self, self._layers, self.unprunable, self.folded, told, carried, one_argument=alone)

    def __str__(self) -> str:
        """Return what was found; `repr` shows the modules."""
        return self.summary()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state; a plain mapping is of the versions that the modules now have, which some of them ask for."""
        state = OrderedDict(state_dict)
        versions = getattr(state_dict, "_metadata", None)
        vars(state)["_metadata"] = self.state_dict()._metadata if versions is None else versions
        return super().load_state_dict(state, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Let a state lack the second name of what is stored once, and what is no parameter, which then stays."""
        self._complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _complete(self, state: dict[str, Tensor], prefix: str) -> None:
        for name, first in canonical(self).items():
            if prefix + first in state:
                state.setdefault(prefix + name, state[prefix + first])
        for name, own in named_buffers(self).items():
            state.setdefault(prefix + name, own)


def resized_layers(layers: Sequence[NeuronLayer], widths: Sequence[int]) -> list[NeuronLayer]:
    """Return the layers with these widths, every slice where it then is."""
    ratios = {layer.name: (layer.width, width) for layer, width in zip(layers, widths, strict=True)}
    moved: dict[Slice, Slice] = {}
    for pieces in _shared(layers).values():
        gone = 0
        for piece, name in pieces:
            before, after = ratios[name]
            moved[piece] = replace(piece, start=piece.start - gone, length=piece.blocks * piece.size * after)
            gone += piece.blocks * piece.size * (before - after)
    return [_moved(layer, width, moved) for layer, width in zip(layers, widths, strict=True)]


def _moved(layer: NeuronLayer, width: int, moved: Mapping[Slice, Slice]) -> NeuronLayer:
    """Return the layer with its slices replaced by what became of them."""
    seen = layer.seen
    if seen is not None and not layer.operand:  # of an operand a neuron has the whole, however many there are
        (source,) = {p for p in layer.read if replace(p, dim=seen.dim) == seen}
        seen = replace(moved[source], dim=seen.dim)
    kinds = ("owned", "read", "buffers", "silenced", "tied")
    pieces: dict[str, Any] = {kind: tuple(moved[p] for p in getattr(layer, kind)) for kind in kinds}
    return replace(layer, width=width, seen=seen, given=_given(layer, width, moved), **pieces)


def _given(layer: NeuronLayer, width: int, moved: Mapping[Slice, Slice]) -> Slice | None:
    """Return where an output holds a layer's neurons among others: as a slice that computes them does, or at first."""
    if layer.given is None:
        return None
    named: dict[str, Any] = {"parameter": "", "bias": "", "dim": layer.given.dim}
    like = next((moved[piece] for piece in layer.owned if replace(piece, **named) == layer.given), None)
    if like is not None:
        return replace(like, **named)
    length = None if layer.given.length is None else layer.given.blocks * layer.given.size * width
    return replace(layer.given, length=length)


def _shared(layers: Iterable[NeuronLayer]) -> dict[tuple[str, int], list[tuple[Slice, str]]]:
    """Return, for each dimension of a parameter or buffer, the slices in it and whose they are, by where they begin."""
    found: dict[tuple[str, int], list[tuple[Slice, str]]] = {}
    for layer in layers:
        for piece in dict.fromkeys((*layer.owned, *layer.read, *layer.buffers)):
            found.setdefault((piece.parameter, piece.dim), []).append((piece, layer.name))
    return {axis: sorted(pieces, key=lambda pair: pair[0].start) for axis, pieces in found.items()}


def _changed(
    network: nn.Module, before: Sequence[NeuronLayer], after: Sequence[NeuronLayer], given: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    """Return what takes the place of the tensors whose shapes the widths change, by their identity.

    Args:
        network: It is left as it was.
        before: Its layers.
        after: The layers with their new widths.
        given: The new tensors by name, as far as they are known; zeros else.
    """
    tensors = kept_tensors(network)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for old, new in zip(before, after, strict=True):
        for piece in dict.fromkeys((*old.owned, *old.read, *old.buffers)):
            shapes[piece.parameter.removeprefix(PREFIX)][piece.dim] -= (
                piece.blocks * piece.size * (old.width - new.width)
            )
    changed: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if shapes[name] != list(tensor.shape):
            other = given.get(PREFIX + name)
            other = tensor.detach().new_zeros(shapes[name]) if other is None else other
            is_parameter = isinstance(tensor, nn.Parameter)
            changed[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if is_parameter else other
    return changed


def _agree(module: nn.Module, *, staying: bool) -> None:
    """Let a module's own numbers agree with the shapes of its parameters; the groups of a convolution may all stay."""
    if isinstance(module, nn.Linear):
        _agree_linear(module)
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        _agree_convolution(module, staying=staying)
    elif isinstance(module, _NORMS):
        _agree_norm(module)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _agree_recurrent(module)
    elif isinstance(module, Attention) and module.num_heads > 1:
        rows = module.q_proj_weight if module.in_proj_weight is None else module.in_proj_weight.chunk(3)[0]
        module.num_heads = len(rows) // module.head_dim
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        for name, size in zip(("nx", "nf"), module.get_parameter("weight").shape, strict=True):
            setattr(module, name, size)


def _agree_linear(module: nn.Linear) -> None:
    """Let a linear map agree with the shape of its weight; that of a packed one says nothing of its sizes."""
    if module.weight.is_floating_point() or module.weight.is_complex():
        module.out_features, module.in_features = module.weight.shape


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def _agree_norm(module: Any) -> None:
    """Let a normalisation agree with the shapes of its parameters; a group keeps as many channels as it has."""
    known = getattr(module, "weight", None)
    known = getattr(module, "running_mean", None) if known is None else known
    if known is None:
        return
    if isinstance(module, nn.GroupNorm):
        if module.num_groups > 1:
            module.num_groups = module.num_groups * len(known) // module.num_channels
        module.num_channels = len(known)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(known)
    else:
        module.normalized_shape = tuple(known.shape)


def _agree_convolution(module: nn.modules.conv._ConvNd, *, staying: bool) -> None:
    """Let a convolution agree with the shape of its weight; where groups go, one keeps as many channels as it has."""
    before, after = module.in_channels if module.transposed else module.out_channels, module.weight.shape[0]
    if module.groups > 1 and not staying:
        module.groups = after // (before // module.groups)
    one, other = after, module.weight.shape[1] * module.groups
    module.in_channels, module.out_channels = (one, other) if module.transposed else (other, one)


_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""Mode of a recurrent layer → how many stacked copies of its rows a neuron has in a weight."""
_CELLS = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN_TANH"}
"""Recurrent cell → the mode of a layer of such cells."""


def _agree_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """Let a recurrent layer or cell agree with the shapes of its parameters; a state of several keeps its width."""
    if isinstance(module, Recurrent):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        if module.even:
            part: Any = module.get_submodule("0")
            module.hidden_size, module.proj_size = part.hidden_size, part.proj_size
        return
    end = "_l0" if isinstance(module, nn.RNNBase) else ""
    rows, module.input_size = module.get_parameter(f"weight_ih{end}").shape
    if getattr(module, "proj_size", 0):
        module.proj_size = module.get_parameter(f"weight_hh{end}").shape[1]
    else:
        cell = next((mode for kind, mode in _CELLS.items() if isinstance(module, kind)), "")
        gates = _GATES.get(getattr(module, "mode", cell))  # a class of yours may be `nn.RNNBase("LSTM", …)`
        if gates is None:  # a cell of yours, with as many gates as it will
            module.hidden_size = module.get_parameter(f"weight_hh{end}").shape[1]
        else:  # what the rows say: another module may compute the recurrent weight in each call
            module.hidden_size = rows // gates
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # cuDNN lays them out by the module's sizes


def _agree_heads(network: nn.Module, before: NeuronLayer, after: NeuronLayer) -> None:
    """Let the module of attention around a layer of heads know how many are left."""
    if before.kind != "head" or before.width == after.width:
        return
    paths = [piece.parameter.removeprefix(PREFIX).split(".")[:-1] for piece in before.owned]
    common = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    around = [".".join(common[: len(common) - up]) for up in range(2) if len(common) > up]
    for module in (network.get_submodule(path) for path in around):
        for names, factor in ((HEADS, 1), (ROWS, before.owned[0].size)):
            for name in names:
                if not isinstance(module, Attention) and getattr(module, name, None) == before.width * factor:
                    setattr(module, name, after.width * factor)


def _agree_parts(network: nn.Module, before: Sequence[NeuronLayer], after: Sequence[NeuronLayer]) -> None:
    """Let each reader of a padded state read of every part as much as is left."""
    for name, module in network.named_modules():
        if isinstance(module, Narrowed):
            places = torch.cat([torch.arange(start, start + length, device="cpu") for start, length in module.parts])
            parts = zip(_segments(before, name, len(places)), _segments(after, name, module.in_features), strict=True)
            module.parts = _runs(torch.cat([places[start : start + left] for (start, _), (_, left) in parts]))


def _segments(layers: Sequence[NeuronLayer], reader: str, size: int) -> list[tuple[int, int]]:
    """Return where each layer's columns of a reader, and what lies between them, begin and how many they are."""
    found, end = [], 0
    for piece, _ in _shared(layers).get((f"{PREFIX}{reader}.weight", 1), []):
        length = piece.length or 0
        found += [(end, piece.start - end)] * (piece.start > end) + [(piece.start, length)]
        end = piece.start + length
    return found + [(end, size - end)] * (end < size)


def _runs(places: Tensor) -> tuple[tuple[int, int], ...]:
    """Return ascending places as (first, how many) of each run of consecutive ones."""
    ends = (places.diff() != 1).nonzero().flatten() + 1
    return tuple((int(run[0]), len(run)) for run in places.tensor_split(ends))
