"""Batches that call parts of a network which the first one does not: further examples to find its neurons with."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from pruning.core.modes import evaluating, untouched
from pruning.discovery import discover
from pruning.discovery.discovered import Discovered
from pruning.discovery.reasons import UNREACHED
from pruning.models.adapted import Adapted
from pruning.models.calling import usual_arguments

MOST = 50
"""Batches that are looked at, as many as signals read by default."""


def found_by_all_paths(network: nn.Module, model: Adapted, data: Any) -> Discovered | None:
    """Return the network with its neurons found anew, where other batches call what the first one does not.

    A head for each task, say, or code for long texts. None where the first batch calls all that any other does.

    Args:
        network: As its user wrote it.
        model: The same, known by its first batch.
        data: Batches; they are read until nothing waits to be called any more, 50 at most.
    """
    found = model.network
    if not isinstance(found, Discovered) or UNREACHED not in found.unprunable.values():
        return None
    modules = dict(found.network.named_modules())
    waiting = {path for path, why in found.unprunable.items() if why == UNREACHED and path in modules}
    further = list(_further(model, {path: modules[path] for path in waiting}, islice(model.pairs(data), MOST)))
    if not further:
        return None
    first, *also = (usual_arguments(network, inputs, model.use.example_dim) for inputs in (model.use.inputs, *further))
    return discover(network, first, also=also, carried=None if found.origin is None else found.origin.carried)


def _further(model: Adapted, waiting: dict[str, nn.Module], batches: Iterable[Any]) -> Iterable[Any]:
    """Yield the inputs of those batches that call a module which none before them has called."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: called.add(path)) for path, module in waiting.items()
    ]
    try:
        with evaluating(model), untouched(model), torch.no_grad():
            for batch in batches:
                before = len(called)
                model.predicted(batch.inputs)
                if len(called) > before:
                    yield batch.inputs
                if len(called) == len(waiting):
                    return
    finally:
        for hook in hooks:
            hook.remove()
