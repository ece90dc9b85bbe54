"""Code that compares widths as it runs takes another path where two are equal or one is small: which layers stay."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pruning.core.neurons import Keep, NeuronLayer

Failing = Callable[[Keep], str]
"""(kept neurons) → why a network with these alone gives something else than it should; empty if it does not."""
CODE = "its model's own code"
"""How the reason begins of code that raises an error at other widths."""
COUNTS = f"{CODE} counts on its width"
"""So it does where it raises one itself."""
FEW = 2
"""So many neurons are left of a layer where code is asked whether it does otherwise for a narrow one."""
MOST = 40
"""Of how many layers each is tried with each, where those that share a parameter do not tell."""


def apart(layers: Sequence[NeuronLayer], tensors: Mapping[str, Tensor], failing: Failing) -> dict[str, str]:
    """Return which layers must stay since other code runs where two widths are equal, or one is small, and why.

    Of two layers the wider one stays: the other one, however much of it goes, never gets as wide.

    Args:
        layers: Those that can be cut to widths of which no two are equal.
        tensors: The network's parameters and buffers.
        failing: Tells what removing comes to.
    """
    fixed = {layer.name: _beside(layer, layers, tensors) for layer in layers}
    avoided = {size for sizes in fixed.values() for size in sizes}
    reasons: dict[str, str] = {}
    left = list(layers)
    for pairs in (_neighbours(layers), itertools.combinations(layers[:MOST], 2)):
        if len(left) < 2 or not failing(_even(left, avoided)):
            break
        for pair in pairs:
            wider, other = sorted(pair, key=lambda layer: -layer.width)
            others = {layer.width for layer in layers if layer not in pair}
            if not {wider.name, other.name} & {*reasons} and (what := failing(_even(pair, avoided | others))):
                reasons[wider.name] = _reason(other.name, what)
        left = [layer for layer in left if layer.name not in reasons]
    reasons |= _narrow(left, failing)
    left = [layer for layer in left if layer.name not in reasons]
    for number in range(max((len(sizes) for sizes in fixed.values()), default=0)):
        chosen = {layer: fixed[layer.name][number] for layer in left if number < len(fixed[layer.name])}
        if failing({layer.name: _last(layer, size) for layer, size in chosen.items()}):
            for layer, size in chosen.items():
                if what := failing({layer.name: _last(layer, size)}):
                    reasons[layer.name] = _reason(f"what stays beside it, {size}", what)
            left = [layer for layer in left if layer.name not in reasons]
    return reasons


def _narrow(layers: Sequence[NeuronLayer], failing: Failing) -> dict[str, str]:
    """Return which layers must stay since something else is computed with few neurons; an error tells by itself."""
    few = {layer.name: _last(layer, FEW) for layer in layers if layer.width > FEW}
    if not few or not failing(few):
        return {}
    alone = {name: failing({name: left}) for name, left in few.items()}
    what = f"where {FEW} of its neurons are left, {CODE} computes something else"
    return {name: what for name, failure in alone.items() if failure and COUNTS not in failure}


def _reason(other: str, failure: str) -> str:
    """Return why a layer must stay; where nothing fails by itself, what is different there is not told."""
    what = failure if CODE in failure else f"{CODE} computes something else"
    return f"where it is as wide as {other}, {what}"


def _beside(layer: NeuronLayer, layers: Sequence[NeuronLayer], tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the widths below the layer's own that stay on the other side of what computes and reads its neurons."""
    cut = {(piece.parameter, piece.dim) for each in layers for piece in (*each.owned, *each.read)}
    found = []
    for piece in (*layer.owned, *layer.read):
        tensor, dim = tensors[piece.parameter], 1 - piece.dim
        if tensor.ndim > 1 and dim in (0, 1) and (piece.parameter, dim) not in cut:
            found.append(tensor.shape[dim])
    return [size for size in dict.fromkeys(found) if 1 < size < layer.width]


def _neighbours(layers: Sequence[NeuronLayer]) -> Iterator[tuple[NeuronLayer, NeuronLayer]]:
    """Yield the pairs of layers that share a parameter."""
    held = [{piece.parameter for piece in (*layer.owned, *layer.read)} for layer in layers]
    for one, other in itertools.combinations(range(len(layers)), 2):
        if held[one] & held[other]:
            yield layers[one], layers[other]


def _even(layers: Sequence[NeuronLayer], avoided: set[int]) -> Keep:
    """Return what stays so that all layers but the narrowest are as wide as each other, and as nothing else is."""
    wide = [layer for layer in layers if layer.width > 2] or list(layers)
    widths = {layer.width for layer in wide}
    most = min(widths) - (len(widths) == 1)
    size = next((size for size in range(most, 1, -1) if size not in avoided), max(1, most))
    return {layer.name: _last(layer, size) for layer in wide}


def _last(layer: NeuronLayer, size: int) -> Tensor:
    """Return the layer's last neurons, the last one first; all in order where none goes, see `thinned`."""
    left = torch.arange(layer.width - size, layer.width)
    return left if size == layer.width else left.flip(0)
