"""A discovered network without some of its residual blocks, discovered anew."""

from collections.abc import Iterable

from pruning.discovery import discover
from pruning.discovery.configured import EXPERTS, follow_lengths
from pruning.discovery.discovered import Discovered
from pruning.discovery.origins import Earlier
from pruning.discovery.plain import placed
from pruning.discovery.plans import plan_of
from pruning.discovery.running import uncached
from pruning.discovery.shortening import Cut, shortened


def without_blocks(found: Discovered, names: Iterable[str]) -> tuple[Discovered, Cut]:
    """Return the network without these blocks, and what was done to it; see `pruning.shorten`.

    Args:
        found: It is left as it was.
        names: The blocks that go.

    Raises:
        ValueError: For a block that there is not, or blocks that cannot go together.
    """
    cut = found.cut_without(names)
    if found.origin is None or not (cut.standing or cut.leaving or cut.experts):
        return found, cut
    with found.begun():
        network = shortened(found.network, cut)
    lengths = {above: (len(found.network.get_submodule(above)), len(gone)) for above, gone in cut.lists.items()}  # type: ignore[arg-type]
    inputs = placed(network, found.origin.inputs)
    with uncached(network):
        entries = follow_lengths(network, lengths, inputs)
        fewer = {cut.moved(part.mixture.around): (part.mixture.count, len(part.gone)) for part in cut.experts}
        entries = (*entries, *follow_lengths(network, fewer, inputs, EXPERTS))
    first, *also = [named or places for places, named in inputs]
    smaller = discover(network, first, also=also, carried=found.origin.carried)
    smaller.folded = {name: what for name, what in found.folded.items() if cut.holds(name)}
    smaller.earlier = Earlier(plan_of(found, (), ()), cut, entries)
    return smaller, cut
