"""Where a network's modules keep something from call to call, seen by running it."""

from typing import Any

from torch import Tensor, nn

from pruning.core.memory import Place, attributes
from pruning.discovery.running import Inputs, Seeing
from pruning.discovery.values import flat

MEMORIES = "_memories"
"""Where the modules of `spikingjelly` keep their potentials."""
Held = list[tuple[Any, int]]
"""What lies in an attribute, each part with how often it was written into."""


class Remembering(Seeing):  # type: ignore[no-untyped-call]
    """Where a network's modules keep something of a call: a state in an attribute or a buffer."""

    def begin(self, network: nn.Module, inputs: Inputs, prefix: str) -> None:  # noqa: ARG002 - as every mode is told
        """See what the modules keep."""
        self._held = _kept(network)

    def places(self, network: nn.Module) -> tuple[Place, ...]:
        """Return where the modules keep something else now."""
        return tuple(place for place, now in _kept(network).items() if _changed(self._held.get(place), now))


def _kept(network: nn.Module) -> dict[Place, Held]:
    """Return what modules keep besides their parameters; in attributes of theirs alone, but for `spikingjelly`'s."""
    return {
        (path, name): [
            (leaf, leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0)
            for leaf in flat([value])
        ]
        for path, module in network.named_modules()
        for name, value in (*attributes(module).items(), *module._buffers.items())
        if not name.startswith("_") or name == MEMORIES
    }


def _changed(before: Held | None, now: Held) -> bool:
    if before is None or len(before) != len(now):
        return True
    return not all(a is b and one == other for (a, one), (b, other) in zip(before, now, strict=True))
