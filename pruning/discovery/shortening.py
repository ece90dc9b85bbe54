"""A network without some of its residual blocks: what is to be done to it, done, and proved to be right."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pruning.discovery.absent import Absent, Form, skipping
from pruning.discovery.blocks import LISTS, Block, around_of, candidates, is_in, outermost
from pruning.discovery.configured import COUNTED, shorten_lists
from pruning.discovery.experts import Expert, Fewer, Routed, fewer_of, with_fewer
from pruning.discovery.redrawing import redrawn
from pruning.discovery.running import Inputs, Still, close, copied, running
from pruning.discovery.streams import Streams

NUMBERED = re.compile(r"layer_?(idx|id|index|number|num)$")
"""What modules call their number among those of a list."""


@dataclass(frozen=True)
class Standing:
    """A module in whose place something without parameters stands.

    Attributes:
        path: Its path.
        form: How what it gives looks.
        passes: Which argument is handed on, by place or name; None if zeros are given.
    """

    path: str
    form: Form
    passes: int | str | None


@dataclass(frozen=True)
class Cut:
    """What is to be done to a network so that blocks are gone.

    Attributes:
        standing: The modules in whose place something without parameters stands.
        leaving: The modules that leave the list that they are in.
        counts: The lists whose lengths numbers of the modules around them follow, and lists in their configurations.
        experts: The mixtures that have fewer experts.
    """

    standing: tuple[Standing, ...] = ()
    leaving: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    experts: tuple[Fewer, ...] = ()

    @property
    def lists(self) -> dict[str, list[int]]:
        """Lists that modules leave, inner ones first → the places in them that go, the last one first."""
        found: dict[str, list[int]] = {}
        for path in self.leaving:
            above, _, name = path.rpartition(".")
            found.setdefault(above, []).append(int(name))
        return {above: sorted(found[above], reverse=True) for above in sorted(found, key=len, reverse=True)}

    def moved(self, path: str) -> str:
        """Return where a module that stays, or something in it, lies afterwards."""
        listed = {part.mixture.name: list(part.gone) for part in self.experts if part.mixture.listed}
        for above, gone in sorted({**self.lists, **listed}.items(), key=lambda pair: len(pair[0]), reverse=True):
            start = f"{above}." if above else ""
            number = re.match(r"\d+(?![^.:])", path[len(start) :])
            if path.startswith(start) and number:
                left = int(number[0]) - sum(place < int(number[0]) for place in gone)
                path = f"{start}{left}{path[len(start) + number.end() :]}"
        return path

    def holds(self, path: str) -> bool:
        """Return whether a module, or something in it, stays."""
        experts = (f"{part.mixture.name}.{number}" for part in self.experts for number in part.gone)
        return not any(is_in(path, gone) for gone in (*self.leaving, *(one.path for one in self.standing), *experts))


def cut_of(network: nn.Module, streams: Streams, blocks: Sequence[Block]) -> Cut:
    """Return what is to be done so that blocks go, with all that nothing needs without them.

    Args:
        network: The network.
        streams: What a run of it told.
        blocks: Blocks of it; those that are in others of them go with these.
    """
    own = {block.module: block for block in blocks}
    gone = [own[path] for path in outermost(own)]
    forms = {call.path: call.form for call in streams.calls}
    passes = {block.module: block.passes for block in gone}
    dead = streams.live({}) - streams.live(passes)
    within = (path for path in dead if not any(is_in(path, block.module) for block in gone))
    parts = outermost(
        path
        for path in within
        if forms.get(path)
        and not any(is_in(block.module, path) for block in gone)
        and next(network.get_submodule(path).parameters(), None) is not None
    )
    standing = [block.module for block in gone if not block.leaves] + parts
    leaving = [block for block in gone if block.leaves]
    return Cut(
        tuple(Standing(path, form, passes.get(path)) for path in standing if (form := forms[path]) is not None),
        tuple(block.module for block in leaving),
        tuple(dict.fromkeys(block.module.rpartition(".")[0] for block in leaving if block.counts)),
    )


def shortened(network: nn.Module, cut: Cut) -> nn.Module:
    """Return a network without some of its blocks; it shares what is left of the parameters with the given one."""
    network = with_fewer(network, cut.experts) if cut.experts else copied(network, sharing=True)
    _close_ranks(network, [standing.path for standing in cut.standing])
    for standing in cut.standing:
        above, _, name = standing.path.rpartition(".")
        module = network.get_submodule(standing.path)
        absent = Absent(module, standing.form, standing.passes).train(module.training)
        setattr(network.get_submodule(above), name, absent)
    for above, gone in cut.lists.items():
        held: Any = network.get_submodule(above)
        length = len(held)
        if above in cut.counts:
            around = [network.get_submodule(path) for path in _around(above)]
            for module in around:
                _count(module, length, length - len(gone))
            for config in {id(module.config): module.config for module in around if _is_configured(module)}.values():
                shorten_lists(config, length, gone)
        for place in range(length):
            _renumber(held[place], place, sum(other < place for other in gone))
        for place in gone:
            del held[place]
    return network


def proved_blocks(network: nn.Module, streams: Streams, inputs: Inputs, states: frozenset[int]) -> list[Block]:
    """Return the residual blocks that can go: gone must equal skipped, with weights in general position.

    Of blocks alike the first and the last go by themselves, every second one of the others at once; where that fails,
    half of these, and so on. A block leaves its list, numbers that say how long it is following or not, or something
    stands for it: what is right.

    Args:
        network: It is left as it was.
        streams: What a run of it told.
        inputs: What it is called with.
        states: Which of its outputs, as they lie flat, are recurrent states: these are not compared.
    """
    blocks = candidates(network, streams)
    if not blocks:
        return []
    prover = BlockProver(network, streams, inputs, states)
    alike: dict[tuple[int, str, type], list[Block]] = {}
    for block in blocks:
        level = sum(is_in(block.module, other.module) for other in blocks)
        pattern, kind = re.sub(r"\d+", "*", block.module), type(network.get_submodule(block.module))
        alike.setdefault((level, pattern, kind), []).append(block)
    found: dict[str, Block] = {}
    for own in alike.values():
        for some in ([own[0]], own[-1:] if len(own) > 1 else [], own[1:-1:2], own[2:-1:2]):
            found |= {block.module: block for block in prover.most(some)}
    known = [found[block.module] for block in blocks if block.module in found]
    return [replace(block, within=around_of(block, known)) for block in known]


class BlockProver:
    """A network with weights in general position, some blocks of which are skipped, or gone."""

    def __init__(self, network: nn.Module, streams: Streams, inputs: Inputs, states: frozenset[int]) -> None:
        self.streams, self.inputs, self.states = streams, inputs, states
        drawn = redrawn(network)
        with running(drawn, inputs, Still()) as (_, outputs):
            finite = all(bool(tensor.isfinite().all()) for tensor in outputs)
        self.network = drawn if finite else network

    def most(self, blocks: Sequence[Block]) -> list[Block]:
        """Return those of the blocks that can go, each with its way."""
        found = self.going(blocks)
        if found or len(blocks) < 2:
            return found
        half = len(blocks) // 2
        return [*self.most(blocks[:half]), *self.most(blocks[half:])]

    def going(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the blocks with the way in which they can go together; none if they cannot."""
        if not blocks:
            return []
        expected, rounding = self.skipped(blocks)
        for leaves, counts in ((True, True), (True, False), (False, False)):
            tried = [
                replace(block, leaves=leaves and _in_list(self.network, block.module), counts=counts)
                for block in blocks
            ]
            if leaves and not any(block.leaves for block in tried):
                continue
            if self.equals(cut_of(self.network, self.streams, tried), expected, rounding):
                return tried
        return []

    def cut(self, blocks: Sequence[Block], experts: Sequence[Expert] = ()) -> Cut:
        """Return what is to be done so that blocks, and experts outside of them, go.

        Raises:
            ValueError: If they cannot go together.
        """
        left = [one for one in experts if not any(is_in(one.name, part) for block in blocks for part in block.parts)]
        cut = replace(cut_of(self.network, self.streams, blocks), experts=fewer_of(left))
        if (blocks or left) and not self.equals(cut, *self.skipped(blocks, cut.experts)):
            names = ", ".join([*(block.name for block in blocks), *(expert.name for expert in experts)])
            raise ValueError(
                f"Expected blocks that can go together, got {names}: without them the network gives something else "
                "than where they are skipped; leave one of them."
            )
        return cut

    def skipped(self, blocks: Iterable[Block], fewer: Iterable[Fewer] = ()) -> tuple[list[Tensor], float]:
        """Return what the network gives if blocks are run and what they add is left out, and experts never chosen."""
        closed = [(self.network.get_parameter(p.mixture.router), p.mixture.count, p.gone) for p in fewer]
        with skipping(self.network, [(block.module, block.passes) for block in blocks]):
            return self._outputs(self.network, Routed(closed))

    def equals(self, cut: Cut, expected: Sequence[Tensor], rounding: float) -> bool:
        """Return whether the network gives that if the blocks are gone."""
        try:
            found, _ = self._outputs(shortened(self.network, cut), Still())
        except Exception:  # whatever a user's code says of fewer blocks
            return False
        same = len(found) == len(expected)
        return same and all(close(one, other, rounding) for one, other in zip(found, expected, strict=True))

    def _outputs(self, network: nn.Module, mode: Still) -> tuple[list[Tensor], float]:
        with running(network, self.inputs, mode) as (_, found):
            own = [tensor.clone() for place, tensor in enumerate(found) if place not in self.states]
            return own, mode.rounding


def _in_list(network: nn.Module, path: str) -> bool:
    above, _, name = path.rpartition(".")
    return name.isdigit() and isinstance(network.get_submodule(above), LISTS)


def _around(path: str) -> list[str]:
    """Return the paths of the modules around one."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def _is_configured(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "to_dict")


def _count(module: nn.Module, before: int, after: int) -> None:
    """Let a module's own numbers that say how long a list is be another one."""
    for name, value in list(vars(module).items()):
        if type(value) is int and value == before and COUNTED.search(name) and not name.startswith("_"):
            setattr(module, name, after)


def _close_ranks(network: nn.Module, gone: Sequence[str]) -> None:
    """Let those that stay of modules that are numbered for a cache be numbered without gaps: it asks the first one.

    Where a configuration says that layers are of several types, so are the places in the cache, and all keep theirs.
    """
    configs = (getattr(module, "config", None) for module in network.modules())
    if not gone or any(len(set(getattr(config, "layer_types", None) or ())) > 1 for config in configs):
        return
    ranks: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if type(value) is int and NUMBERED.search(name):
                ranks.setdefault((re.sub(r"\d+", "*", path), name), []).append((path, value))
    for (_, name), numbered in ranks.items():
        empty = [number for path, number in numbered if any(is_in(path, own) for own in gone)]
        for path, number in numbered:
            setattr(network.get_submodule(path), name, number - sum(other < number for other in empty))


def _renumber(module: nn.Module, place: int, less: int) -> None:
    """Let what is in an element of a list know its new place, from which a cache finds what belongs to it."""
    for inner in module.modules() if less else ():
        for name, value in list(vars(inner).items()):
            if type(value) is int and NUMBERED.search(name) and value in (place, place + 1):
                setattr(inner, name, value - less)
