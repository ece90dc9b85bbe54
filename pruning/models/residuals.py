"""Losses that take gradients themselves, by inputs or by outputs, as residuals of differential equations do."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from pruning.core.nested import mapped


class WithGradients(partial[Any]):
    """A criterion that is asked with gradients also where its loss is not differentiated.

    >>> slope = WithGradients(lambda outputs, _: torch.autograd.grad(outputs.square().sum(), outputs)[0])
    >>> with torch.no_grad():
    ...     print(slope(torch.tensor([1.0, 2.0], requires_grad=True), None))
    tensor([2., 4.])
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Return the loss, cut off from what computed it unless gradients are asked for here."""
        with torch.enable_grad():
            loss = super().__call__(*arguments, **named)
        return loss if torch.is_grad_enabled() else mapped(Tensor.detach, loss)


def takes_gradients(judged: Callable[[bool], Any]) -> bool:
    """Return whether what is judged can be with gradients alone.

    Args:
        judged: Whether with gradients → the loss.
    """
    return not _works(judged, False) and _works(judged, True)


def _works(judged: Callable[[bool], Any], gradients: bool) -> bool:
    with torch.no_grad():
        try:
            judged(gradients)
        except Exception:  # whatever a user's code raises
            return False
    return True


def nodes_of(*tensors: Tensor) -> set[Node]:
    """Return the places in the graph of what is computed at which gradients by these tensors arrive."""
    return {get_gradient_edge(tensor).node for tensor in tensors if tensor.requires_grad}


def comes_from(loss: Tensor, known: set[Node]) -> bool:
    """Return whether a gradient of the loss arrives at one of these places.

    >>> weight, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> comes_from((2 * weight).sum(), nodes_of(weight)), comes_from(other.sum(), nodes_of(weight))
    (True, False)
    """
    waiting, seen = list(nodes_of(loss)), set[Node]()
    while waiting:
        node = waiting.pop()
        if node in known:
            return True
        if node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return False
