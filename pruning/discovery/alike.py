"""Code that compares widths as it runs takes other paths by some of them: which widths layers must not have."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
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
WAYS = 64
"""So many paths of one layer are tried: with more of them, as many as lie evenly among these."""
MOST = 40
"""Of how many layers each is tried with each, where those that share a parameter do not tell."""


class Seen(NamedTuple):
    """What is known of the widths of layers before they are tried.

    Attributes:
        paths: Layer → the path that code is seen to take for each width, from 1 on; see `paths_of`.
        proved: Layer → widths that it was proved with.
        turns: Two layers → with which widths of both code is seen to go another way; see `turns_of`.
        hidden: Layer → the path that it may take for each width where nobody sees it.
    """

    paths: Mapping[str, np.ndarray]
    proved: Mapping[str, Collection[int]]
    turns: Mapping[tuple[str, str], np.ndarray]
    hidden: Mapping[str, np.ndarray]


def same_path(layer: NeuronLayer, paths: Mapping[str, np.ndarray]) -> list[int]:
    """Return the widths below a layer's own for which code is seen to go the same way; none if it compares none.

    With these a layer is proved, and all others are tried once it is known how it is cut, see `apart`.
    """
    path = paths.get(layer.name)
    return [] if path is None else (np.flatnonzero(path[:-1] == path[-1]) + 1).tolist()


def unequal(layers: Sequence[NeuronLayer], keep: Keep, paths: Mapping[str, np.ndarray]) -> Keep:
    """Return what stays where no two layers are as wide as each other, as near to `keep` as it can be."""
    found: dict[str, Tensor] = {}
    for layer in sorted(layers, key=lambda layer: layer.width):  # the narrowest has the least choice
        size, taken = len(keep[layer.name]), {len(kept) for kept in found.values()}
        free = (other for other in same_path(layer, paths) or range(2, layer.width) if other not in taken)
        size = min(free, key=lambda other: abs(other - size), default=size) if size in taken else size
        found[layer.name] = last(layer, size)
    return found


def apart(
    layers: Sequence[NeuronLayer], tensors: Mapping[str, Tensor], failing: Failing, seen: Seen
) -> tuple[dict[str, set[int]], dict[str, str]]:
    """Return the widths that layers must not have since other code then runs, and why others must stay as they are.

    Of two layers whose widths are compared the wider one stays wider than the other one is as a whole, however much of
    that goes. Every width for which code is seen to decide otherwise is tried, see `paths_of`, and those that nobody
    sees and that are likely: as wide as what lies on the other side of a parameter, and 2.

    Args:
        layers: Those that can be cut to widths of which no two are equal.
        tensors: The network's parameters and buffers.
        failing: Tells what removing comes to.
        seen: What is known of their widths.
    """
    fixed = {layer.name: _beside(layer, layers, tensors) for layer in layers}
    trial = _Trial(layers, failing)
    for paths in (seen.paths, seen.hidden):
        trial.other_paths(paths, seen.proved)
    trial.equals({size for sizes in fixed.values() for size in sizes})
    trial.together(seen)
    trial.beside(fixed)
    trial.narrow()
    return trial.avoided, trial.reasons


class _Trial:
    """Layers tried with widths.

    Attributes:
        avoided: Layer → widths that it must not have.
        reasons: Layer → why it must stay as it is.
    """

    def __init__(self, layers: Sequence[NeuronLayer], failing: Failing) -> None:
        self.layers, self.failing = layers, failing
        self.avoided: dict[str, set[int]] = {layer.name: set() for layer in layers}
        self.reasons: dict[str, str] = {}

    def _left(self) -> list[NeuronLayer]:
        return [layer for layer in self.layers if layer.name not in self.reasons]

    def _avoid(self, layer: NeuronLayer, widths: Iterable[int], reason: str) -> None:
        """Let a layer never have these widths; where no other is left below its own, it stays for that reason."""
        own = self.avoided[layer.name]
        own |= {*widths} - {layer.width}
        if len(own) >= layer.width - 1:
            self.reasons[layer.name] = reason

    def _alone(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """Return which layers something else comes of with so many neurons, and what, if it does of all together."""
        known = {layer.name: layer for layer in self.layers}
        keep = {name: last(known[name], size) for name, size in sizes.items() if size not in self.avoided[name]}
        if not keep or not self.failing(keep):
            return {}
        return {name: what for name, kept in keep.items() if (what := self.failing({name: kept}))}

    def other_paths(self, paths: Mapping[str, np.ndarray], tried: Mapping[str, Collection[int]]) -> None:
        """Try a layer with the narrowest and the widest of the widths for which code goes another way, or may."""
        known = {layer.name: layer for layer in self._left() if layer.name in paths}
        ways: dict[str, list[list[int]]] = {}
        for name, layer in known.items():
            path = paths[name]
            proved = {int(path[width - 1]) for width in (layer.width, *tried[name])}
            own = [way for way in np.unique(path) if int(way) not in proved]
            some = own[:: -(-len(own) // WAYS) or 1]
            ways[name] = sorted((np.flatnonzero(path == way) + 1).tolist() for way in some)
        for number in range(max(map(len, ways.values()), default=0)):
            chosen = {name: own[number] for name, own in ways.items() if number < len(own)}
            for end in (0, -1) if any(len(widths) > 1 for widths in chosen.values()) else (0,):
                for name, what in self._alone({name: widths[end] for name, widths in chosen.items()}).items():
                    self._avoid(known[name], chosen[name], _reason_at(chosen[name][end], what))

    def equals(self, beside: set[int]) -> None:
        """Try layers as wide as each other, all together, then two by two."""
        before, left = {name: {*own} for name, own in self.avoided.items()}, self._left()
        for pairs in (_neighbours(self.layers), itertools.combinations(self.layers[:MOST], 2)):
            if len(left) < 2 or not self.failing(_even(left, beside, before)):
                return
            for pair in pairs:
                wider, other = sorted(pair, key=lambda layer: -layer.width)
                others = {layer.width for layer in self.layers if layer not in pair}
                if {wider.name, other.name} & {*self.reasons} or other.width in self.avoided[wider.name]:
                    continue
                even = _even(pair, beside | others, before)
                if what := self.failing(even):
                    if blamed := self._failing_unequal(even, wider, other, beside | others):
                        self.reasons[blamed.name] = _reason_at(len(even[blamed.name]), what)
                    else:
                        self._avoid(wider, range(1, other.width + 1), _reason(other.name, what))
            left = [layer for layer in self._left() if self.avoided[layer.name] == before[layer.name]]

    def _failing_unequal(
        self, even: Keep, wider: NeuronLayer, other: NeuronLayer, beside: set[int]
    ) -> NeuronLayer | None:
        """Return of which of two layers something else comes also where the wider one stays the wider; None if of none.

        That is so of no code that compares the two.
        """
        if {*even} != {wider.name, other.name}:
            return None
        size = len(even[wider.name])
        fewer = next((each for each in range(size - 1, 0, -1) if each not in {*beside, *self.avoided[other.name]}), 0)
        if not fewer or not self.failing({**even, other.name: last(other, fewer)}):
            return None
        alone = (self.failing({other.name: last(other, each)}) for each in (size, fewer))
        return other if any(alone) else wider

    def together(self, seen: Seen) -> None:
        """Try two layers with widths of both for which code is seen to go another way, and that are not avoided yet."""
        for pair, turns in seen.turns.items():
            left = {layer.name: layer for layer in self._left() if layer.name in pair}
            if len(left) < 2:
                continue
            turned = turns.copy()
            for dim, name in enumerate(pair):
                np.moveaxis(turned, dim, 0)[[size - 1 for size in self.avoided[name]]] = False
            both = np.argwhere(turned) + 1
            ends = [dict(zip(pair, sizes.tolist(), strict=True)) for sizes in both[[0, -1]]] if len(both) else []
            for sizes in ends:
                if what := self.failing({name: last(left[name], size) for name, size in sizes.items()}):
                    other, wider = sorted(left.values(), key=lambda layer: layer.width)
                    told = what if CODE in what else f"{CODE} computes something else"
                    reason = f"with {sizes[wider.name]} neurons beside {sizes[other.name]} of {other.name}, {told}"
                    self.reasons[wider.name] = reason
                    whole = both[both[:, pair.index(wider.name)] == wider.width][:, pair.index(other.name)]
                    self._avoid(other, whole.tolist(), reason)
                    break

    def beside(self, fixed: Mapping[str, Sequence[int]]) -> None:
        """Try layers as wide as what stays beside them."""
        for number in range(max(map(len, fixed.values()), default=0)):
            known = {layer.name: layer for layer in self._left() if number < len(fixed[layer.name])}
            sizes = {name: fixed[name][number] for name in known}
            sizes = {name: size for name, size in sizes.items() if size not in self.avoided[name]}
            for name, what in self._alone(sizes).items():
                size, layer = sizes[name], known[name]
                taken = {*fixed[name], *self.avoided[name], *(each.width for each in self.layers)}
                near = next((each for each in (size + 1, size - 1) if each not in taken), 0)
                also = self.failing({name: last(layer, near)}) if near else ""  # so that size is nothing's own
                if COUNTS in what and COUNTS in also:
                    self._avoid(layer, range(1, self._fewest(layer, max(size, near), {})), _reason_at(size, what))
                elif also:
                    self.reasons[name] = _reason_at(size, what)
                else:
                    self._avoid(layer, [size], _reason(f"what stays beside it, {size}", what))

    def narrow(self) -> None:
        """Try layers as narrow as they may be, beside each other: with two neurons, of which one may do for several.

        Code that gives something else for two does so for no reason that is seen, and the layer stays. Code that stops,
        as where it takes the second of several heads by a slice, or gives something else for a single one, as where
        that dimension is squeezed out, does so for all that are fewer than some number.
        """
        for few in (FEW, 1):
            sizes = {layer: narrowest(layer, few, self.avoided[layer.name]) for layer in self._left()}
            keep = {layer.name: last(layer, size) for layer, size in sizes.items() if size < layer.width}
            if not keep or not self.failing(keep):
                continue
            beside: dict[str, Tensor] = {}
            for layer in (layer for layer in sizes if layer.name in keep):
                size = sizes[layer]
                if what := self.failing({**beside, layer.name: keep[layer.name]}):
                    reason = _reason_at(size, what)
                    if few == FEW and COUNTS not in what:
                        self.reasons[layer.name] = reason
                        continue
                    size = self._fewest(layer, size, beside)
                    self._avoid(layer, range(1, size), reason)
                beside[layer.name] = last(layer, size)

    def _fewest(self, layer: NeuronLayer, fails: int, beside: Keep) -> int:
        """Return how many neurons a layer must have at least where code fails with fewer; with so few it does."""
        holds = layer.width
        while holds - fails > 1:
            size = (holds + fails) // 2
            if self.failing({**beside, layer.name: last(layer, size)}):
                fails = size
            else:
                holds = size
        return holds


def _reason_at(size: int, failure: str) -> str:
    """Return why a layer must stay that does not get along with so few neurons."""
    what = failure if CODE in failure else f"{CODE} computes something else"
    return f"where {size} of its neurons {'is' if size == 1 else 'are'} left, {what}"


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


def _even(layers: Sequence[NeuronLayer], beside: set[int], avoided: Mapping[str, set[int]]) -> Keep:
    """Return what stays so that all layers but the narrowest are as wide as each other, and as nothing else is."""
    wide = [layer for layer in layers if layer.width > 2] or list(layers)
    widths = {layer.width for layer in wide}
    most = min(widths) - (len(widths) == 1)
    never = set[int]().union(*(avoided[layer.name] for layer in wide))
    sizes = [size for size in range(most, 0, -1) if size not in never]
    size = next((size for size in sizes if size > 1 and size not in beside), next(iter(sizes), 0))
    return {layer.name: last(layer, size) for layer in wide} if size else {}


def narrowest(layer: NeuronLayer, few: int, avoided: Collection[int]) -> int:
    """Return how few neurons a layer may have, but no fewer than some."""
    return next((size for size in range(few, layer.width) if size not in avoided), layer.width)


def last(layer: NeuronLayer, size: int) -> Tensor:
    """Return the layer's last neurons, the last one first; all in order where none goes, see `thinned`."""
    left = torch.arange(layer.width - size, layer.width)
    return left if size == layer.width else left.flip(0)
