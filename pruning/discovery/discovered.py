"""A user's own model as one that says where its neurons are and can be rebuilt with other widths."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from pruning.core.neurons import NeuronLayer, PrunableModule, Slice, named_buffers
from pruning.discovery.attention import Attention
from pruning.discovery.recurrent import Narrowed, Recurrent
from pruning.discovery.tracing import canonical, copied

PREFIX = "network."
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
"""What modules of attention call the number of their heads."""
ROWS = ("split_size", "all_head_size", "inner_dim")
"""What they call the dimensions of all heads together, where it is not the width of what they read."""


class Discovered(PrunableModule):
    """A model that `discover` found the neurons of.

    Attributes:
        network: The model itself, which a user deploys; it is called, and returns, as the user's.
        unprunable: Module → why what it computes is no layer of neurons that can be pruned.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, layers: Sequence[NeuronLayer], unprunable: Mapping[str, str]) -> None:
        super().__init__()
        self.network = network
        self.unprunable = dict(unprunable)
        self._layers = list(layers)
        self._register_load_state_dict_pre_hook(self._complete)  # type: ignore[no-untyped-call]
        self.training = network.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network does."""
        return self.network(*args, **kwargs)

    def layers(self) -> list[NeuronLayer]:
        """Return the layers of neurons, from input to output."""
        return list(self._layers)

    def resized(self, widths: Sequence[int]) -> Self:
        """Return a model with these widths; tensors whose shape changes are not yet meaningful."""
        network = copied(self.network)
        layers = resized_layers(self._layers, widths)
        _reshape(network, self._layers, layers)
        for module in network.modules():
            _agree(module)
        for before, after in zip(self._layers, layers, strict=True):
            _agree_heads(network, before, after)
        _agree_parts(network, self._layers, layers)
        modes = {name: module.training for name, module in self.network.named_modules()}
        found = type(self)(network, layers, self.unprunable)
        for name, module in network.named_modules():
            module.training = modes[name]
        return found

    def _complete(self, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Let a state lack the second name of what is stored once, and what is no parameter, which then stays."""
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
    if seen is not None:
        (source,) = {p for p in layer.read if replace(p, dim=seen.dim) == seen}
        seen = replace(moved[source], dim=seen.dim)
    owned, read, buffers = (tuple(moved[p] for p in pieces) for pieces in (layer.owned, layer.read, layer.buffers))
    return replace(layer, width=width, owned=owned, read=read, buffers=buffers, seen=seen)


def _shared(layers: Iterable[NeuronLayer]) -> dict[tuple[str, int], list[tuple[Slice, str]]]:
    """Return, for each dimension of a parameter or buffer, the slices in it and whose they are, by where they begin."""
    found: dict[tuple[str, int], list[tuple[Slice, str]]] = {}
    for layer in layers:
        for piece in (*layer.owned, *layer.read, *layer.buffers):
            found.setdefault((piece.parameter, piece.dim), []).append((piece, layer.name))
    return {axis: sorted(pieces, key=lambda pair: pair[0].start) for axis, pieces in found.items()}


def _reshape(network: nn.Module, before: Sequence[NeuronLayer], after: Sequence[NeuronLayer]) -> None:
    """Put new parameters and buffers into the network where the widths change their shapes; what is tied stays tied."""
    tensors = dict(itertools.chain(network.named_parameters(), network.named_buffers()))
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for old, new in zip(before, after, strict=True):
        for piece in (*old.owned, *old.read, *old.buffers):
            shapes[piece.parameter.removeprefix(PREFIX)][piece.dim] -= (
                piece.blocks * piece.size * (old.width - new.width)
            )
    changed = {
        id(tensors[name]): tensors[name].new_zeros(shape)
        for name, shape in shapes.items()
        if shape != list(tensors[name].shape)
    }
    for tensor in tensors.values():
        if id(tensor) in changed and isinstance(tensor, nn.Parameter):
            changed[id(tensor)] = nn.Parameter(changed[id(tensor)], requires_grad=tensor.requires_grad)
    for module in network.modules():
        registered: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in registered:
            own.update({name: changed[id(tensor)] for name, tensor in own.items() if id(tensor) in changed})


def _agree(module: nn.Module) -> None:
    """Let a module's own numbers agree with the shapes of its parameters."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        outputs, inputs = module.weight.shape[:2]
        if 1 < module.groups == module.in_channels:  # each channel for itself
            module.groups = outputs // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if known is None else len(known)
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _agree_recurrent(module)
    elif isinstance(module, Attention):
        module.num_heads = module.in_proj_weight.shape[0] // 3 // module.head_dim
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        for name, size in zip(("nx", "nf"), module.get_parameter("weight").shape, strict=True):
            setattr(module, name, size)


def _agree_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """Let a recurrent layer or cell agree with the shapes of its parameters; a state of several keeps its width."""
    if isinstance(module, Recurrent):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    if isinstance(module, nn.RNNBase) and (isinstance(module, Recurrent) or module.num_layers > 1):
        return
    end = "_l0" if isinstance(module, nn.RNNBase) else ""
    inputs, width = (module.get_parameter(f"weight_{name}{end}").shape[1] for name in ("ih", "hh"))
    module.input_size = inputs
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    if not getattr(module, "proj_size", 0):
        module.hidden_size = width


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
            places = torch.cat([torch.arange(start, start + length) for start, length in module.parts])
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
