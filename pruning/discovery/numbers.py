"""Numbers in a user's modules, such as `num_heads` or `hidden_size`, that may follow a layer's width."""

import itertools
from collections.abc import Iterator

from torch import Tensor, nn

from pruning.core.neurons import NeuronLayer
from pruning.discovery.discovered import PREFIX, Number

_FOLLOWING = ("torch.nn.modules", "torch.nn.utils", "pruning.discovery")
ATTEMPTS = 16
"""How many choices of numbers are tried for a layer."""


def candidates(network: nn.Module, layer: NeuronLayer) -> Iterator[list[Number]]:
    """Yield choices of numbers that might be to follow the layer's width, the likeliest first.

    A number may if it is the width times the places that a neuron has in some parameter. Of those in the modules
    around the layer all are tried at first, then those of one name, of all names but one, and of two or three names (a
    number of heads may also be that of a head's dimensions), then each alone; the proof decides.
    """
    pieces = (*layer.owned, *layer.read)
    factors = {1} | {piece.size for piece in pieces} | {piece.size * piece.blocks for piece in pieces}
    paths = {piece.parameter.removeprefix(PREFIX).rpartition(".")[0] for piece in pieces}
    known = [number for path, module in network.named_modules() for number in _numbers(path, module, layer, factors)]
    around = sorted({above for path in paths for above in _above(path)}, key=len, reverse=True)
    scopes = [[number for number in known if f"{number.module}.".startswith(f"{path}.") or not path] for path in around]
    near = [number for number in known if number.module in around]
    tried: set[frozenset[Number]] = set()
    alone = ([number] for number in (*near, *known))
    for chosen in itertools.chain([near], _named(near), scopes, alone):
        key = frozenset(chosen)
        if chosen and key not in tried and len(tried) < ATTEMPTS:
            tried.add(key)
            yield list(chosen)


def _named(near: list[Number]) -> Iterator[list[Number]]:
    """Yield the numbers of some names: of one, of all but one, of two, of three."""
    names = list(dict.fromkeys((number.attribute, number.factor) for number in near))
    for count in dict.fromkeys((1, len(names) - 1, 2, 3)):
        for chosen in itertools.combinations(names, count) if 0 < count < len(names) else ():
            yield [number for number in near if (number.attribute, number.factor) in chosen]


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


def _numbers(path: str, module: nn.Module, layer: NeuronLayer, factors: set[int]) -> Iterator[Number]:
    """Yield a module's own numbers that are the layer's width times one of these factors.

    Those of PyTorch's modules with parameters follow these already.
    """
    if next(module.parameters(recurse=False), None) is not None and type(module).__module__.startswith(_FOLLOWING):
        return
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        values = enumerate(value) if isinstance(value, (tuple, list)) else [(None, value)]
        for place, held in values:
            number = int(held) if isinstance(held, Tensor) and not held.ndim and not held.is_floating_point() else held
            if isinstance(number, int) and not isinstance(number, bool) and number > 1:
                for factor in factors:
                    if number == factor * layer.width:
                        yield Number(path, name, place, layer.name, factor)
