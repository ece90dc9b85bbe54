"""One flow through the front door for any network: choose, cut, repair, learn from the dense one, without a label."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

import pruning


def halved(
    network: nn.Module,
    batches: Sequence[Any],
    loss: Any,
    *,
    keep: float,
    within: str = "",
    calibration: int = 32,
    epochs: float = 0,
    learning_rate: float = 2e-3,
    optimizer: str = "adam",
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network as it is after each step: cut, repaired and, after some epochs of it, imitated.

    Args:
        network: It is left as it was.
        batches: (inputs, targets), in an order that tells nothing; of targets nothing is read but which of them count.
        loss: (outputs, targets) → mean loss.
        keep: Share of each layer's neurons that stays.
        within: What the names of layers hold that are to be cut.
        calibration: How many batches are read before the imitation.
        epochs: How often all batches are read to imitate the dense network.
        learning_rate: The highest one then.
        optimizer: What lowers the distance then; see `pruning.Imitation`.
    """
    found = pruning.discover(network, batches[0][0])
    importance = pruning.importance(found, batches, loss, signals=["surgeon"], batches=calibration)
    layers = [layer.name for layer in found.layers() if within in layer.name] if within else None
    for name, repair in (("cut", "none"), ("repaired", "ridge")):
        smaller = pruning.prune(found, importance, keep, repair=repair, scope="layer", layers=layers, floor=4)
        yield name, smaller.module
    if epochs:
        budget = round(epochs * sum(smaller.count(targets) for _, targets in batches))
        imitation = pruning.Imitation(
            tokens=budget, learning_rate=learning_rate, warmup=0.1, clip=1.0, optimizer=optimizer
        )
        yield "imitated", pruning.imitate(smaller, importance.model, batches, imitation=imitation).module
