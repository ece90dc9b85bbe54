"""Residual blocks of a network: which of its modules add to a stream, and what goes with each."""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from torch import nn

from pruning.discovery.streams import Called, Streams

LISTS = (nn.ModuleList, nn.Sequential)
"""What modules can leave, so that it has fewer."""


@dataclass(frozen=True)
class Block:
    """A part of a network that adds to a stream, h + f(h), and can go as a whole.

    Attributes:
        name: Its name.
        kind: `block`: a module that hands on what it is given once it is gone; `branch`: one that is added, whose place
            is taken by zeros.
        module: The module whose place that is.
        passes: Which argument is handed on, by place or name; None if zeros are given.
        parts: The modules that go: this one, and others that nothing needs without it.
        parameters: How many parameters they have that no other module has.
        within: The block that it is a part of; empty if of none.
        leaves: Whether it leaves the list that it is in; else something without parameters stands for it.
        counts: Whether numbers that say how long that list is follow.
    """

    name: str
    kind: str
    module: str
    passes: int | str | None
    parts: tuple[str, ...]
    parameters: int
    within: str = ""
    leaves: bool = False
    counts: bool = False


def candidates(network: nn.Module, streams: Streams) -> list[Block]:
    """Return what seems to be a residual block, from input to output, an outer one before those within.

    A branch is a term of a sum that was computed from another term of it. A block is a module that gives the sum,
    normalised or not, of one of its inputs and a branch in it. Either runs once, and has parameters that go with it.

    Args:
        network: The network.
        streams: What a run of it told.
    """
    calls, needed = _once(streams), streams.live({})
    whole = list(_whole(network, streams, calls))
    stages = {above for above in (block.module for block in whole) if _is_stage(network, above, whole)}
    found = [block for block in whole if block.module not in stages] + list(_branches(streams, calls, needed))
    order = sorted(calls, key=lambda path: (calls[path].first, path.count(".")))
    places = {path: number for number, path in enumerate(order)}
    found.sort(key=lambda block: (places[block.module], block.kind))
    distinct: dict[frozenset[int], Block] = {}
    for block in found:
        gone = {path for path in needed - streams.live({block.module: block.passes}) if path}
        own = _parameters(network, block.module, gone | {block.module})
        if own and frozenset(own) not in distinct:
            parts = (block.module, *outermost(_replaceable(network, streams, gone), but=block.module))
            distinct[frozenset(own)] = replace(block, parts=parts, parameters=sum(own.values()))
    blocks = [block for block in distinct.values() if not _takes_others(block, list(distinct.values()))]
    return [_named(network, block) for block in blocks]


def _once(streams: Streams) -> dict[str, Called]:
    """Return the only calls of modules that are called once, whose first output is a tensor."""
    paths = [call.path for call in streams.calls]
    return {call.path: call for call in streams.calls if call.path and call.form and paths.count(call.path) == 1}


def _whole(network: nn.Module, streams: Streams, calls: dict[str, Called]) -> Iterator[Block]:
    """Yield the modules that give the sum of an input and of a branch in them."""
    for path, call in calls.items():
        module = network.get_submodule(path)
        if isinstance(module, nn.Sequential) and len(module) == 1:
            continue
        inside = any(
            branch.term in call.whole and call.first < branch.at <= call.last for branch in streams.branches.values()
        )
        given = (own for own in call.given if own.terms <= call.whole and own.shape == call.shape)
        stream = next(given, None)
        if inside and stream is not None:
            yield Block(path, "block", path, stream.place, (), 0)


def _branches(streams: Streams, calls: dict[str, Called], needed: Set[str]) -> Iterator[Block]:
    """Yield the modules that compute what is added to what it was computed from, the outermost that does."""
    for branch in streams.branches.values():
        exits = [path for path in branch.exits if path in calls and path in needed]
        if exits:
            yield Block(exits[-1], "branch", exits[-1], None, (), 0)


def _is_stage(network: nn.Module, path: str, whole: Sequence[Block]) -> bool:
    """Return whether a module has a list of several blocks of one class: then these are the blocks."""
    kinds: dict[tuple[str, type], int] = {}
    for block in whole:
        above, _, name = block.module.rpartition(".")
        inside = block.module != path and f"{above}.".startswith(f"{path}.")
        if inside and name.isdigit() and isinstance(network.get_submodule(above), LISTS):
            kind = (above, type(network.get_submodule(block.module)))
            kinds[kind] = kinds.get(kind, 0) + 1
    return any(count > 1 for count in kinds.values())


def _parameters(network: nn.Module, own: str, gone: Iterable[str]) -> dict[int, int]:
    """Return the sizes of the parameters that only modules that go have, by identity."""
    paths = {*gone, *(f"{own}.{name}".rstrip(".") for name, _ in network.get_submodule(own).named_modules())}
    kept = {
        id(parameter)
        for path, module in network.named_modules()
        if path not in paths
        for parameter in module.parameters(recurse=False)
    }
    held = [p for path in paths for p in network.get_submodule(path).parameters(recurse=False)]
    return {id(parameter): parameter.numel() for parameter in held if id(parameter) not in kept}


def _replaceable(network: nn.Module, streams: Streams, gone: Iterable[str]) -> list[str]:
    """Return the modules with parameters of which it is known how what they give looks."""
    forms = {call.path: call.form for call in streams.calls}
    return [
        path for path in gone if forms.get(path) and next(network.get_submodule(path).parameters(), None) is not None
    ]


def outermost(paths: Iterable[str], *, but: str = "") -> list[str]:
    """Return those paths that are in no other of them, nor in one more, nor around that."""
    found: list[str] = []
    for path in sorted(paths, key=lambda path: (path.count("."), path)):
        around = (*found, but) if but else found
        if not any(is_in(path, above) for above in around) and not (but and is_in(but, path)):
            found.append(path)
    return found


def is_in(path: str, above: str) -> bool:
    """Return whether a module is another one or within it."""
    return f"{path}.".startswith(f"{above}.")


def _takes_others(block: Block, blocks: Sequence[Block]) -> bool:
    """Return whether what goes with a block holds blocks that are not parts of it: then it is no block by itself."""
    return any(
        is_in(other.module, part) and not is_in(other.module, block.module)
        for other in blocks
        for part in block.parts[1:]
    )


def _named(network: nn.Module, block: Block) -> Block:
    """Return a block by the name of the largest module that goes, if its own has no parameters."""
    sizes = {path: sum(own.numel() for own in network.get_submodule(path).parameters()) for path in block.parts}
    return block if sizes[block.module] else replace(block, name=max(sizes, key=sizes.__getitem__))


def around_of(block: Block, blocks: Sequence[Block]) -> str:
    """Return the name of the innermost block that a block is in."""
    around = [other for other in blocks if other is not block and is_in(block.module, other.module)]
    return max(around, key=lambda other: other.module.count("."), default=replace(block, name="")).name
