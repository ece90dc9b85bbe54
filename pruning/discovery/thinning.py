"""A network without some neurons that is to run once, each large weight cut only while the module that has it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from pruning.core.neurons import Keep, NeuronLayer, cut, named_buffers, named_tensors, removed_neurons
from pruning.discovery.attention import Attention
from pruning.discovery.discovered import Discovered
from pruning.discovery.running import canonical

LARGE = 2**16
"""From how many elements on a weight is cut only while it is needed."""
_CALLED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, Attention)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What does nothing with its input but multiply it by its weight, whose columns are as zero as the input is there."""


def thinned(model: Discovered, keep: Keep, *, lean: bool = False) -> tuple[Discovered, bool]:
    """Return what `select` does, with the same tensors where nothing is cut, and whether it is lean.

    Args:
        model: It is left as it was.
        keep: As `select` takes it.
        lean: Whether large weights of modules that are called are cut anew whenever these run, so that but one of them
            is held. Code that reads such a weight without calling its module sees zeros.
    """
    layers = model.layers()
    tensors = {**named_tensors(model), **named_buffers(model)}
    late = _late(model, layers) if lean else {}
    own = [_of(layer, lambda name: name not in late) for layer in layers] if late else layers
    cuts = cut(own, keep, tensors)
    for name, pieces in late.items():
        shape = [len(part) for part in _positions(pieces, keep, tensors[name])]
        cuts[name] = tensors[name].new_zeros(()).expand(shape)
    found = model.with_widths([len(keep.get(layer.name, range(layer.width))) for layer in layers], cuts)
    first = canonical(found) if late else {}
    for path, module in _plain(found) if late else []:
        for name in [name for name in module._parameters if first.get(f"{path}.{name}") in late]:
            source = first[f"{path}.{name}"]
            _fill(module, name, _cutting(late[source], keep, source, tensors[source]))
    return found, bool(late)


@contextmanager
def silenced(model: Discovered, keep: Keep, *, lean: bool = False) -> Iterator[None]:
    """Within the context nobody reads the neurons outside `keep`: there are zeros in the model's own tensors.

    Args:
        model: It is as it was afterwards.
        keep: As `mask` takes it.
        lean: Whether large weights of modules that are called are written into only while these run, so that what stood
            there is held of but one of them, and not at all where it does for a product to be told zeros.
    """
    layers, tensors = model.layers(), named_tensors(model)
    places = [
        (piece.parameter, piece.dim, piece.indices(removed, layer.width))
        for layer in layers
        if len(removed := removed_neurons(layer, keep))
        for piece in (*layer.read, *layer.silenced)
    ]
    late = _late(model, layers) if lean else {}
    first = canonical(model) if late else {}
    before: list[_Written] = []
    hooks = []
    for path, module in _plain(model) if late else []:
        names = {first.get(f"{path}.{name}") for name in module._parameters}
        own = [(tensors[name], dim, where) for name, dim, where in places if name in late and name in names]
        if own:
            hooks += _while_running(module, own)
    try:
        before += _zeroed([(tensors[name], dim, where) for name, dim, where in places if name not in late])
        yield
    finally:
        _put_back(before)
        for hook in hooks:
            hook.remove()


_Written = tuple[Tensor, int, Tensor, Tensor]
"""A tensor, a dimension, places along it, and what stood there."""


def _zeroed(places: Sequence[tuple[Tensor, int, Tensor]]) -> list[_Written]:
    before = []
    for tensor, dim, where in places:
        where = where.to(tensor.device)
        before.append((tensor, dim, where, tensor.index_select(dim, where)))
        tensor.index_fill_(dim, where, 0.0)
    return before


def _put_back(before: Sequence[_Written]) -> None:
    for tensor, dim, where, values in reversed(before):
        tensor.index_copy_(dim, where, values)


def _while_running(module: nn.Module, places: Sequence[tuple[Tensor, int, Tensor]]) -> list[RemovableHandle]:
    """Let there be zeros while a module runs: in its weights, or for columns of a product where it is told them."""
    columns = [place for place in places if place[1] == 1] if _only_multiplies(module) else []
    rest = [place for place in places if place[1] != 1] if columns else places
    before: list[list[_Written]] = []

    def enter(_: object, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with _disable_current_modes():
            before.append(_zeroed(rest if args else places))
            return (_multiplied(args[0], columns), *args[1:]) if args and columns else None

    def leave(*_: object) -> None:
        with _disable_current_modes():
            _put_back(before.pop())

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def _only_multiplies(module: nn.Module) -> bool:
    """Return whether a module's input goes nowhere but into a product with its weight, whose columns read all of it."""
    told = "forward" in vars(module) or module._forward_hooks
    return type(module) in _PRODUCTS and getattr(module, "groups", 1) == 1 and not told


def _multiplied(inputs: Tensor, columns: Sequence[tuple[Tensor, int, Tensor]]) -> Tensor:
    """Return inputs times zero where they meet these columns of a weight: a whole weight is large, and an input not."""
    channel = 1 - columns[0][0].ndim
    kept = inputs.new_ones(inputs.shape[channel])
    for _, _, where in columns:
        kept[where.to(inputs.device)] = 0
    return inputs * kept.reshape(-1, *[1] * (-channel - 1))


def _late(model: Discovered, layers: Sequence[NeuronLayer]) -> dict[str, list[NeuronLayer]]:
    """Return the large weights that only modules hold which are called → the layers that have slices in them."""
    large = [name for name, parameter in model.named_parameters() if parameter.numel() >= LARGE]
    if not large:
        return {}
    holders: dict[str, list[nn.Module]] = {}
    first = canonical(model)
    for path, module in _plain(model):
        for name in module._parameters:
            if f"{path}.{name}" in first:
                holders.setdefault(first[f"{path}.{name}"], []).append(module)
    found = {}
    for name in large:
        known = (isinstance(held, _CALLED) or type(held).__name__ == "Conv1D" for held in holders.get(name, ()))
        called = name in holders and all(known)
        own = [_of(layer, name.__eq__) for layer in layers]
        own = [layer for layer in own if layer.owned or layer.read]
        if called and own:
            found[name] = own
    return found


def _plain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules by their paths, but for those that TorchScript compiled, which take no other weights."""
    return [pair for pair in model.named_modules() if not isinstance(pair[1], torch.jit.ScriptModule)]


def _of(layer: NeuronLayer, wanted: Callable[[str], bool]) -> NeuronLayer:
    """Return the layer with its slices in some parameters alone."""
    parts: dict[str, Any] = {
        kind: tuple(piece for piece in getattr(layer, kind) if wanted(piece.parameter))
        for kind in ("owned", "read", "buffers")
    }
    return replace(layer, **parts)


def _positions(layers: Sequence[NeuronLayer], keep: Keep, tensor: Tensor) -> list[Tensor]:
    """Return, for each dimension of a weight, the places that stay."""
    (name,) = {piece.parameter for layer in layers for piece in (*layer.owned, *layer.read)}
    found = []
    for dim, size in enumerate(tensor.shape):
        own = [
            replace(
                layer,
                owned=tuple(replace(piece, dim=0) for piece in layer.owned if piece.dim == dim),
                read=tuple(replace(piece, dim=0) for piece in layer.read if piece.dim == dim),
            )
            for layer in layers
        ]
        found.append(cut(own, keep, {name: torch.arange(size)})[name])
    return found


def _cutting(layers: Sequence[NeuronLayer], keep: Keep, name: str, source: Tensor) -> Callable[[], nn.Parameter]:
    """Return what cuts a weight, into a tensor of its own: the module's code may write into it."""

    def made() -> nn.Parameter:
        weight = cut(layers, keep, {name: source})[name]
        return nn.Parameter(weight.clone() if weight is source else weight, requires_grad=False)

    return made


def _fill(module: nn.Module, name: str, made: Callable[[], nn.Parameter]) -> None:
    """Let a module have a weight while it runs, and what stands for it else."""
    standing = module._parameters[name]

    def enter(running: nn.Module, _: object) -> None:
        with _disable_current_modes():
            running._parameters[name] = made()

    def leave(running: nn.Module, *_: object) -> None:
        running._parameters[name] = standing

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
