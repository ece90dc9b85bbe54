"""What was found put to the proof: a network without some neurons beside one in which nobody reads them.

Where an operation takes neurons together (a normalisation, a mean) removing some changes its result. There the
reference is the same network with that operation done on the neurons that are left, and the layer is not `exact`.
"""

import contextlib
import itertools
from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pruning.core.memory import Place
from pruning.core.neurons import Keep, NeuronLayer
from pruning.discovery.alike import COUNTS, last, narrowest, same_path, unequal
from pruning.discovery.answers import as_many_nans, equal, left_of, near
from pruning.discovery.discovered import Discovered
from pruning.discovery.following import Number, Size, concerning
from pruning.discovery.reasons import line_of
from pruning.discovery.recalling import Recalled, Reference, named
from pruning.discovery.rounds import gone
from pruning.discovery.running import DRAWN, Inputs, Instead, Still, close, copied, keeps_own, running
from pruning.discovery.sizes import noted, noting
from pruning.discovery.states import Feeding
from pruning.discovery.statistics import Read, Telling, Widths, computed_with, with_some
from pruning.discovery.structure import Structure
from pruning.discovery.thinning import silenced, thinned
from pruning.discovery.values import Blend

ALONE = 0.6
"""The power of rounding up to which answers are equal where no finer ones tell: 7e-5 of the largest, not 6e-6."""
UNSHOWN = "its model gives nothing but NaN on other weights, which shows nothing of what it computes"
LONE = f"{COUNTS}, for PyTorch's group_norm takes no single number of one example"
NOTHING = f"{COUNTS}, for what it computes of so few is NaN"


class Prover:
    """A model with weights in general position, cut and masked."""

    def __init__(
        self,
        model: Discovered,
        remembers: tuple[Place, ...],
        found: Structure,
        inputs: Inputs,
        states: set[int],
        cached: Sequence[str] = (),
        feeding: Feeding | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.remembers, self.feeding, self.seed = model, remembers, feeding, seed
        self.drawn = DRAWN[seed]
        self.found, self.inputs, self.states, self.cached = found, inputs, states, cached
        self.others: list[Prover] = []
        self.told, self.references = dict[Hashable, str](), Recalled[Reference]()
        self.lean, self.draws, self.double, self.leaking = True, False, False, False

    def knowing(self, found: Structure) -> "Prover":
        """Return what proves other layers of the same model by the same weights."""
        model = Discovered(self.model.network, found.layers, {}, folded=self.model.folded)
        how = (self.inputs, self.states, self.cached, self.feeding, self.seed)
        other = Prover(model, self.remembers, found, *how)
        other.others = [each.knowing(found) for each in self.others]
        other.lean, other.draws, other.leaking = self.lean, self.draws, self.leaking
        return other

    @cached_property
    def finer(self) -> "Prover | None":
        """The same in float64, where float32 rounds too much to tell; None where the model does not run in it."""
        if not any(parameter.dtype == torch.float32 for parameter in self.model.parameters()):
            return None
        inputs = tree_map_only(
            lambda one: isinstance(one, Tensor) and one.is_floating_point(), Tensor.double, self.inputs
        )
        finer = Prover(
            self.model.resized([layer.width for layer in self.model.layers()]),
            self.remembers,
            self.found,
            inputs,
            self.states,
            feeding=self.feeding,
            seed=self.seed,
        )
        finer.model.double()
        finer.leaking = self.leaking
        for finer.double in (True, False):  # code that names single precision may also need it
            with contextlib.suppress(Exception):
                found, _ = finer.outputs(finer.model, Still())
                if all(part.dtype != torch.float32 for part in found):
                    return finer
        return None

    def failure(self, layers: Sequence[NeuronLayer], numbers: Sequence[Number], *, number: int = 0) -> str:
        """Return why removing neurons of these layers in a round differs from what it should be; else ''.

        Where it does only since two layers, by chance, are as wide as each other, it is left to `apart` to say so.
        """
        keep = self.some(layers, number)
        what = self._failure(keep, numbers)
        unlike = unequal(layers, keep, self.found.paths) if what else {}
        tried = (unlike, *({name: keep[name]} for name in unlike if len(unlike[name]) != len(keep[name])))
        return what if not what or len(tried) == 1 or any(self._failure(one, numbers) for one in tried) else ""

    def holds(self, layers: Sequence[NeuronLayer], numbers: Sequence[Number], rounds: Sequence[int]) -> bool:
        """Return whether removing neurons of these layers gives what it should in every round."""
        return not any(self.failure(layers, numbers, number=each) for each in rounds)

    def _failure(self, keep: Keep, numbers: Sequence[Number]) -> str:
        asked = named(keep), tuple(numbers)
        if asked not in self.told or noting():
            self.told[asked] = self._alone(keep, numbers)
        return self.told[asked] or next(filter(None, (other._failure(keep, numbers) for other in self.others)), "")

    def _alone(self, keep: Keep, numbers: Sequence[Number]) -> str:
        """Return what `_failure` does with these weights alone."""
        failure, lean = self._tried(keep, numbers, lean=self.lean)
        if not failure or not lean:
            return failure
        again, _ = self._tried(keep, numbers, lean=False)
        self.lean = bool(again)  # code that reads a weight outside of its module reads it next time, too
        return again

    def _tried(self, keep: Keep, numbers: Sequence[Number], *, lean: bool) -> tuple[str, bool]:
        """Return what `_failure` does, and whether large weights were cut only while they were needed."""
        followed = concerning((*self.found.carried, *numbers), keep)
        model = Discovered(self.model.network, self.model.layers(), {}, followed)
        try:
            smaller, lean = thinned(model, keep, lean=lean)
            if self.cached:
                self.outputs(_caching(copied(smaller, sharing=True), self.cached), Still())
            found, _ = self.outputs(smaller, mode := self.still(), once=True)
        except Exception as error:  # whatever a user's code raises at other widths
            return f"{COUNTS}{line_of(error)}: {_words(error)}", lean
        del smaller
        if mode.lone and mode.lone > self.whole[1]:
            return LONE, lean
        return self._difference(keep, numbers, found, lean=lean), lean

    @cached_property
    def whole(self) -> tuple[list[Tensor], int]:
        """What the model gives with all its neurons, and how often it normalises a number by itself."""
        found, _ = self.outputs(self.model, mode := self.still())
        return found, mode.lone

    def _difference(self, keep: Keep, numbers: Sequence[Number], found: Sequence[Tensor], *, lean: bool) -> str:
        """Return how what a smaller model gives differs from what it should be; empty if it does not."""
        may = False
        for expected, rounding, failure in self.references.of((named(keep), lean), self._expected(keep, lean=lean)):
            if expected is None:
                return failure
            if what := self._unshown(expected):
                return what
            if len(found) != len(expected):
                continue
            if equal(found, expected, rounding):
                return failure
            if all(map(near, found, expected)):
                may = True
                if not self.finer and equal(found, expected, rounding, power=ALONE):
                    return failure
        if self.finer and (may or self.found.steps):  # of a spike that rounding adds not all is near
            return self.finer._failure(keep, numbers)
        return "without some of its neurons the model computes something else than where nobody reads them"

    def _expected(self, keep: Keep, *, lean: bool) -> Iterator[Reference]:
        """Yield what the model may give where nobody reads some neurons; see `_readings`."""
        blends = [blend for blend in self.found.blends if self._concerns(blend, keep)]
        some = {blend.when: with_some(self.found, blend, keep) for blend in blends}
        for read, instead, failure in self._readings(keep, some):
            try:
                yield *self.masked(keep, self.still(instead), read, lean=lean), failure
            except Exception as error:  # what is left of the neurons may be no input of the operation
                if not read:  # nor a width a size
                    yield None, 0.0, f"{blends[0].what if blends else 'its model'} takes all of it together: {error}"
                    return

    def _unshown(self, expected: Sequence[Tensor]) -> str:
        """Return what is wrong with an answer that is no number where the model with all neurons gives one."""
        if not any(bool(part.isnan().any()) for part in expected):
            return ""
        if any(part.numel() and bool(part.isnan().all()) for part in self.whole[0]):
            return UNSHOWN
        return "" if all(map(as_many_nans, expected, self.whole[0])) else NOTHING

    def _readings(self, keep: Keep, some: Instead) -> Iterator[tuple[Read, Instead, str]]:
        """Yield what may be done where nobody reads some neurons, and what is wrong with it.

        First operations that take neurons together are done on those that are left; or on all, as in a mean that is
        multiplied by the width; or widths are read that are theirs.
        """
        yield {}, some, ""
        if some:
            yield {}, {}, ""
        for read, failure in self.widths.readings(keep, self.model.layers()):
            yield read, some, failure

    @cached_property
    def widths(self) -> Widths:
        """The widths that the network's code reads and computes with."""

        def concerned(width: Size) -> list[Blend]:
            own = [blend for blend in self.found.blends if blend.module == width.module]
            return [blend for blend in own if self._concerns(blend, [name for name, *_ in width.counts or ()])]

        return computed_with(self.found.widths, concerned, self._telling)

    def _telling(self, instead: Instead, read: Read) -> tuple[list[Tensor], float]:
        """Return what the model gives where its code reads other widths, and does chosen operations otherwise.

        With it comes what its spikes are computed of, since few of these change with a factor.
        """
        mode = self.still(instead)
        mode.watching = True
        outputs, rounding = self.outputs(self.model, mode, read)
        return [*outputs, *mode.jumping], rounding

    def kept(self, layers: Sequence[NeuronLayer]) -> list[Size]:
        """Return the widths that code computes with as they were, for each of these layers."""
        found = itertools.chain(*(each.widths.kept(layers) for each in (self, *self.others)))
        return list(dict.fromkeys(found))

    def leak(self) -> None:
        """Let what is cut off go on in part, if the model gives finite numbers so: a silent ReLU would show nothing."""
        self.leaking = True
        with contextlib.suppress(Exception):
            outputs, _ = self.outputs(self.model, self.still())
            if all(bool(part.isfinite().all()) for part in outputs):
                return
        self.leaking = False

    def still(self, instead: Instead | None = None) -> Still:
        """Return a mode to run the model, or a smaller one, in."""
        mode = Still(instead, self.drawn)
        mode.leaking = self.leaking
        return mode

    def drawing(self) -> bool:
        """Return whether the model draws numbers."""
        if not self.leaking:  # else it ran so already
            self.outputs(self.model, Still())
        return self.draws

    def needed(self, layers: Sequence[NeuronLayer], numbers: Sequence[Number]) -> list[Number]:
        """Return those of the numbers, all that are a module's own, that calls are told otherwise by its code."""
        with noted() as calls:
            self.failure(layers, numbers)
        return [n for n in numbers if not isinstance(n, Size) or (n.attribute, n.place) in calls]

    def some(self, layers: Sequence[NeuronLayer], number: int) -> Keep:
        """Return all neurons but the first ones, the last one first; all in order where none goes, see `gone`."""
        places = {layer.name: place for place, layer in enumerate(self.model.layers())}
        lost = {layer.name: gone(layer.width, places[layer.name], number, len(places)) for layer in layers}
        lost = {name: max(1, count) for name, count in lost.items()} if len(layers) == 1 else lost
        for layer in layers:
            if lost[layer.name] and (ways := same_path(layer, self.found.paths)):
                lost[layer.name] = layer.width - min(ways, key=lambda size: abs(layer.width - lost[layer.name] - size))
        left = {layer.name: torch.arange(lost[layer.name], layer.width) for layer in layers}
        return {name: kept.flip(0) if lost[name] else kept for name, kept in left.items()}

    def proved(self, layers: Sequence[NeuronLayer], rounds: Sequence[int]) -> dict[str, set[int]]:
        """Return with which widths layers were in the rounds of the proof."""
        kept = [self.some(layers, number) for number in rounds]
        return {layer.name: {len(keep[layer.name]) for keep in kept} for layer in layers}

    def untrained(self, layers: Sequence[NeuronLayer], numbers: Sequence[Number]) -> dict[str, str]:
        """Return the layers without some of which the model does not run as it is trained though it did, and why.

        Asked of models that keep tensors of their own: what training writes there may be as wide as it was.
        """
        if not keeps_own(self.model.network) or not self._stops(self.some(layers, 0), numbers):
            return {}
        if self._stops({layer.name: torch.arange(layer.width) for layer in layers}, numbers):
            return {}
        reasons, kept = dict[str, str](), list[NeuronLayer]()
        for layer in layers:
            if what := self._stops(self.some([*kept, layer], 0), numbers):
                reasons[layer.name] = what
            else:
                kept.append(layer)
        return reasons

    def _stops(self, keep: Keep, numbers: Sequence[Number]) -> str:
        """Return why a smaller model does not run as it is trained; empty if it does."""
        followed = concerning((*self.found.carried, *numbers), keep)
        smaller, _ = thinned(Discovered(self.model.network, self.model.layers(), {}, followed), keep)
        try:
            with running(smaller, self.inputs, self.still(), training=True, feeding=self.feeding, seed=self.seed):
                return ""
        except Exception as error:  # whatever a user's code raises at other widths
            return f"while it is trained {COUNTS}{line_of(error)}: {_words(error)}"

    def inexact(self, layers: Sequence[NeuronLayer], numbers: Sequence[Number]) -> set[str]:
        """Return those of the layers of which removing neurons does not equal masking them."""
        blends = self.found.blends
        blended = [x for x in layers if self.draws or any(self._concerns(blend, [x.name]) for blend in blends)]
        if not blended or (self._is_exact(blended, numbers) and not (self.found.steps and len(blended) > 1)):
            return set()
        if len(blended) == 1:
            return {blended[0].name}
        return {layer.name for layer in blended if not self._is_exact([layer], numbers)}

    def _is_exact(self, layers: Sequence[NeuronLayer], numbers: Sequence[Number]) -> bool:
        keeps, names = [self.some(layers, 0)], [layer.name for layer in layers]
        if any(blend.extreme and self._concerns(blend, names) for blend in self.found.blends):  # which may stay there
            keeps.append({layer.name: last(layer, narrowest(layer, 1, layer.avoided)) for layer in layers})
        return all(self._is_masked(keep, numbers) for keep in keeps)

    def _is_masked(self, keep: Keep, numbers: Sequence[Number]) -> bool:
        model = Discovered(self.model.network, self.model.layers(), {}, concerning(numbers, keep))
        smaller, _ = thinned(model, keep, lean=self.lean)
        one, other = self.still(), self.still()
        for each in (one, other):
            each.watching = each.apart = True  # what is drawn for fewer neurons is drawn otherwise
        found, _ = self.outputs(smaller, one, once=True)
        expected, rounding = self.masked(keep, other, lean=self.lean)
        found, expected = [*found, *one.jumping], [*expected, *other.jumping]  # few spikes change with it
        if len(found) != len(expected):
            return False
        if len(keep) == 1:
            expected = [left_of(b, a, *keep.values()) for a, b in zip(found, expected, strict=True)]
            return equal(found, expected, rounding)
        return all(close(a, b, rounding) for a, b in zip(found, expected, strict=True) if a.shape == b.shape)

    def masked(
        self, keep: Keep, mode: Still, read: Read | None = None, *, lean: bool = False
    ) -> tuple[list[Tensor], float]:
        """Return what the model gives where nobody reads the neurons outside `keep`; see `mask`."""
        with silenced(self.model, keep, lean=lean):
            return self.outputs(self.model, mode, read)

    def outputs(
        self, model: nn.Module, mode: Still, read: Read | None = None, *, once: bool = False
    ) -> tuple[list[Tensor], float]:
        """Return what a model gives but for its states, which lie elsewhere in a smaller one, and its rounding.

        Args:
            model: It is left as it was, unless it is run once.
            mode: What is done otherwise.
            read: Which other widths its code reads; see `Telling`.
            once: Whether nobody needs the model afterwards.
        """
        turns = self.feeding.calls if self.feeding else 2 if self.remembers else 1
        own, mode.double = once and not self.remembers, self.double
        told: dict[str, Any] = {"feeding": self.feeding, "own": own, "seed": self.seed}
        run = running(model, self.inputs, mode, turns=1 if self.feeding else turns, **told)
        with Telling(mode, read) if read else contextlib.nullcontext(), run as (_, found):
            each = len(found) // turns
            outputs = [tensor.clone() for place, tensor in enumerate(found) if place % each not in self.states]
            self.draws |= mode.drew or not mode.before.untouched()  # Python and NumPy draw, too
        if mode.drew and not mode.spread and any(bool(part.isnan().any()) for part in outputs):
            mode.spread = True
            return self.outputs(model, mode, read, once=once)
        return outputs, mode.rounding

    def _concerns(self, blend: Blend, names: Collection[str]) -> bool:
        layers, known = torch.unique(self.found.owners[0][blend.places]).tolist(), self.found.layers
        return any(number >= 0 and known[number].name in names for number in layers)


def _words(error: Exception) -> str:
    """Return what an error says, in its first line, or what it is called."""
    return str(error).strip().partition(chr(10))[0] or type(error).__name__


def _caching(model: Discovered, modules: Sequence[str]) -> Discovered:
    """Return the model, a copy that is to run once, with its caches switched on: their widths may be the code's."""
    for name in modules:
        config: Any = model.network.get_submodule(name).config
        config.use_cache = True
    return model
