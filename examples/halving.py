"""One flow through the library for any network: choose, cut, repair, learn from the dense network without a label."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

import pruning
from pruning.models.objectives import Criterion


def halved(
    network: nn.Module,
    batches: Sequence[tuple[Any, Tensor]],
    *,
    criterion: Criterion,
    keep: float,
    calibration: int = 32,
    within: str = "",
    epochs: float = 0,
    learning_rate: float = 2e-3,
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network as it is after each step: cut, repaired and, after some epochs of it, imitated.

    Args:
        network: It is left as it was.
        batches: (inputs, targets); the repair and the imitation do not look at targets but for which of them count.
        criterion: (outputs, targets) → mean loss.
        keep: Share of each layer's neurons that stays.
        calibration: How many batches are read before the imitation.
        within: What the names of layers hold that are to be cut.
        epochs: How often the batches are read to imitate the dense network.
        learning_rate: The highest one then.
    """
    model = pruning.adapt(network, batches[0][0], criterion=criterion)
    some = batches[:calibration]
    active, covariances = pruning.activations(model, some, activation_samples=len(some), bins=32)
    sensitivities = pruning.sensitivities(model, some, batches=len(some), seed=1)
    order = pruning.surgeon(covariances, sensitivities, damping=1e-4).assign(active=active["importance"])
    order = order[order["layer"].str.contains(within, regex=False)]
    allocation = pruning.Allocation(retain=keep, floor=4, scope="layer", otherwise="active")
    kept = pruning.keep_of(pruning.retention(order, allocation, variant="half", by="importance"))
    yield "cut", pruning.reconstruct(model, kept, covariances, repair="none").module
    repaired = pruning.reconstruct(model, kept, data=some, repair="ridge")
    yield "repaired", repaired.module
    if epochs:
        budget = round(epochs * sum(model.count(targets) for _, targets in batches))
        imitation = pruning.Imitation(tokens=budget, learning_rate=learning_rate, warmup=0.1, clip=1.0)
        yield "imitated", pruning.imitate(repaired, model, batches, imitation=imitation).module
