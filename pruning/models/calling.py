"""How a network that nobody here wrote is run: on inputs of any form, with the state that it carries, if it does."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pruning.core.neurons import PrunableModule

Call = Callable[[nn.Module, Any, Any], tuple[Any, Any]]
"""(network, inputs, state or None) → (outputs, state to carry on from)."""
WITHIN = "network"
"""The name of the network in what adapts it."""


class Caller:
    """Runs a network on one batch after the other, the state that it returns going into the next call.

    Inputs in a tuple or list are the network's arguments, in a dictionary its keyword arguments; others are one
    argument. A network with `init_hidden` has the state for its last argument: `init_hidden(examples)` at first, and
    where the number of examples changes; then what it returned beside its output.

    Attributes:
        example_dim: The dimension of the first argument that runs over examples.
        start: What to ask for the first state instead of the network's `init_hidden`.
    """

    def __init__(self, example_dim: int, start: Callable[[int], Any] | None = None) -> None:
        self.example_dim, self.start = example_dim, start

    def __call__(self, network: nn.Module, inputs: Any, state: Any) -> tuple[Any, Any]:
        """Return the network's output, see `output_of`, and the state to carry on from, {examples: hidden}."""
        start: Any = self.start or getattr(own_module(network), "init_hidden", None)
        if isinstance(inputs, Mapping):
            return output_of(network(**inputs)), None
        arguments = inputs if isinstance(inputs, list | tuple) else (inputs,)
        if start is None:
            return output_of(network(*arguments)), None
        examples = arguments[0].shape[self.example_dim]
        hidden = (state or {}).get(examples)
        found = network(*arguments, start(examples) if hidden is None else hidden)
        several = isinstance(found, list | tuple) and len(found) > 1
        return output_of(found), {examples: found[1]} if several else None


def inputs_in(batch: Any, like: Any) -> Any:
    """Return the inputs of a batch (inputs, targets), or the batch where it has the form of inputs alone.

    >>> import torch
    >>> inputs_in((torch.zeros(2), torch.ones(2)), like=torch.zeros(3)).tolist()
    [0.0, 0.0]
    >>> inputs_in((torch.zeros(2), torch.ones(2)), like=(torch.zeros(3), torch.zeros(3)))[1].tolist()
    [1.0, 1.0]

    Args:
        batch: A tensor, or tensors in a tuple, list or dictionary.
        like: Other inputs.
    """
    several = isinstance(batch, list | tuple) and len(batch) > 0
    return batch[0] if several and (_form(batch) != _form(like) or _form(batch[0]) == _form(like)) else batch


def _form(inputs: Any) -> Any:
    """Return of what inputs consist, but for its sizes."""
    if isinstance(inputs, Mapping):
        return "by name"
    return [_form(part) for part in inputs] if isinstance(inputs, list | tuple) else type(inputs)


def output_of(found: Any) -> Any:
    """Return what a network's answer holds as `logits`, or its first part, or it as it is."""
    if isinstance(found, Mapping):
        return found.get("logits", found)
    if hasattr(found, "logits"):
        return found.logits
    return found[0] if isinstance(found, list | tuple) else found


def example_dim_of(network: nn.Module, inputs: Any) -> int:
    """Return which dimension of a network's inputs runs over examples, as far as it can be told.

    It is 1 of data with steps (T, B, …) that a network with `init_hidden` reads; 0 of others, of data without steps and
    where a recurrent layer has `batch_first`.
    """
    if not hasattr(network, "init_hidden") or inputs.ndim < 2:
        return 0
    return 0 if any(getattr(module, "batch_first", False) for module in network.modules()) else 1


def usual_call(network: nn.Module, example_dim: int | None = None) -> Call:
    """Return how a network is run unless its author says otherwise; see `pruning.adapt`."""
    carries = hasattr(own_module(network), "init_hidden")
    return Caller(int(carries) if example_dim is None else example_dim)


def own_module(network: nn.Module) -> nn.Module:
    """Return the user's own module from what wraps it, as far as it is wrapped."""
    inner = getattr(network, WITHIN, None)
    return inner if isinstance(network, PrunableModule) and isinstance(inner, nn.Module) else network
