"""A network without some neurons that is to run once, each large weight cut only while the module that has it runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pruning.core.neurons import Keep, NeuronLayer, cut, named_buffers, named_tensors
from pruning.discovery.attention import Attention
from pruning.discovery.discovered import Discovered
from pruning.discovery.running import canonical

LARGE = 2**16
"""From how many elements on a weight is cut only while it is needed."""
_CALLED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, Attention)


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
    own = [_of(layer, lambda name: name not in late) for layer in layers]
    cuts = cut(own, keep, tensors)
    for name, pieces in late.items():
        shape = [len(part) for part in _positions(pieces, keep, tensors[name])]
        cuts[name] = tensors[name].new_zeros(()).expand(shape)
    found = model.with_widths([len(keep.get(layer.name, range(layer.width))) for layer in layers], cuts)
    first = canonical(found)
    for path, module in _plain(found):
        for name in [name for name in module._parameters if first.get(f"{path}.{name}") in late]:
            source = first[f"{path}.{name}"]
            _fill(module, name, _cutting(late[source], keep, source, tensors[source]))
    return found, bool(late)


def _late(model: Discovered, layers: Sequence[NeuronLayer]) -> dict[str, list[NeuronLayer]]:
    """Return the large weights that only modules hold which are called → the layers that have slices in them."""
    holders: dict[str, list[nn.Module]] = {}
    first = canonical(model)
    for path, module in _plain(model):
        for name in module._parameters:
            if f"{path}.{name}" in first:
                holders.setdefault(first[f"{path}.{name}"], []).append(module)
    found = {}
    for name, parameter in model.named_parameters():
        known = (isinstance(held, _CALLED) or type(held).__name__ == "Conv1D" for held in holders.get(name, ()))
        called = name in holders and all(known)
        own = [_of(layer, name.__eq__) for layer in layers]
        own = [layer for layer in own if layer.owned or layer.read]
        if called and own and parameter.numel() >= LARGE:
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
    """Return what cuts a weight."""

    def made() -> nn.Parameter:
        return nn.Parameter(cut(layers, keep, {name: source})[name], requires_grad=False)

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
