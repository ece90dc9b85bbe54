"""One flow through the library for any network: measure, choose, cut, repair, learn from the dense network."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

import pruning
from pruning.models.objectives import Criterion

RECIPE = {"portion": 1.0, "warmup": 0.1, "weight_decay": 0.0, "clip": 1.0, "patience": 10}


def halved(
    network: nn.Module,
    batches: Sequence[tuple[Any, Tensor]],
    *,
    criterion: Criterion,
    keep: float,
    epochs: int,
    learning_rate: float = 1e-3,
    scope: str = "layer",
    within: str = "",
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network as it is after each step: cut, repaired, imitated."""
    model = pruning.adapt(network, batches[0][0], criterion=criterion)
    active, covariances = pruning.activations(model, batches, activation_samples=len(batches), bins=32)
    sensitivities = pruning.sensitivities(model, batches, batches=len(batches), seed=1)
    order = pruning.surgeon(covariances, sensitivities, damping=1e-4)
    ranked = order.assign(active=active["importance"])
    ranked = ranked[ranked["layer"].str.contains(within, regex=False)]
    allocation = pruning.Allocation(retain=keep, floor=4, scope=scope, otherwise="active")
    chosen = pruning.retention(ranked, allocation, variant="half", by="importance")
    kept = pruning.keep_of(chosen)
    yield "cut", pruning.reconstruct(model, kept, covariances, repair="none").module
    repaired = pruning.reconstruct(model, kept, covariances, repair="ridge")
    yield "repaired", repaired.module
    if not epochs:
        return
    recipe = pruning.Recipe(epochs=epochs, learning_rate=learning_rate, **RECIPE)  # type: ignore[arg-type]
    for _ in pruning.train(repaired, batches, batches[:2], recipe=recipe, seed=1):
        pass
    yield "imitated", repaired.module.eval()
