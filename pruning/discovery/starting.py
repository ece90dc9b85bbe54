"""How a network begins whose author says by `init_hidden` what its first state is, and whether forward takes one."""

from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from pruning.core.arguments import PLACED, parameters_of
from pruning.core.devices import moved
from pruning.core.faults import said
from pruning.core.nested import mapped, tensors_in
from pruning.discovery.feeding import NAMES

READING = ("x", "input", "inputs", "data", "src", "tokens")
"""What `init_hidden` calls its argument where it wants the inputs and not how many examples they hold."""


def makes_state(module: nn.Module) -> bool:
    """Return whether a network makes its first state."""
    return callable(getattr(module, "init_hidden", None))


def takes_state(module: nn.Module, arguments: Any) -> bool:
    """Return whether a network makes its first state and takes one in forward, after these arguments by place.

    What forward can be called without is a state if it is called as one: lengths, or a mask, are none.

    >>> class Tagger(nn.Module):
    ...     def init_hidden(self, examples): ...
    ...     def forward(self, tokens, lengths=None): ...
    >>> takes_state(Tagger(), ("tokens",)), takes_state(nn.LSTM(2, 3), ("steps",))
    (False, False)
    """
    if not makes_state(module) or not isinstance(arguments, tuple):
        return False
    taken = parameters_of(module)
    if any(each.kind is Parameter.VAR_POSITIONAL for each in taken):
        return True
    following = [each for each in taken if each.kind in PLACED][len(arguments) :]
    if not following:
        return False
    return following[0].default is Parameter.empty or bool(NAMES.fullmatch(following[0].name.lower()))


def first_state(module: nn.Module, arguments: tuple[Any, ...], example_dim: int) -> Any:
    """Return what `init_hidden` gives, asked for what it wants: how many examples, the inputs, the device, nothing.

    Raises:
        ValueError: If it does not run so.
    """
    try:
        return _made(module, arguments[0], example_dim)
    except Exception as error:  # whatever a user's code raises
        raise ValueError(
            f"Expected an `init_hidden` that makes the first state for the inputs, got {said(error)}; give the state "
            "after the inputs, (inputs, state)."
        ) from error


def _made(module: nn.Module, inputs: Any, example_dim: int) -> Any:
    start: Any = module.init_hidden
    places, known = [], {"device": inputs.device, "dtype": next(module.parameters(), inputs).dtype}
    by_name = {}
    for each in signature(start).parameters.values():
        if each.name in known:
            by_name[each.name] = known[each.name]
        elif each.kind in PLACED and each.default is Parameter.empty:
            whole = each.annotation is Tensor or each.name in READING
            places.append(inputs if whole else inputs.shape[example_dim])
        elif each.kind in PLACED and not places:
            places.append(inputs.shape[example_dim])  # `init_hidden(batch=1)`
    hidden = start(*places, **by_name)
    return mapped(lambda tensor: moved(tensor, inputs.device), hidden)


def example_dim_of(module: nn.Module, inputs: Any) -> int:
    """Return which dimension of a network's inputs runs over examples, as far as it can be told.

    It is 1 of data with steps (T, B, …) that a network with `init_hidden` reads; 0 of others, of data without steps and
    where a recurrent layer has `batch_first`.
    """
    first = next(tensors_in(inputs), None)
    if not makes_state(module) or first is None or first.ndim < 2:
        return 0
    return 0 if any(getattr(each, "batch_first", False) for each in module.modules()) else 1
