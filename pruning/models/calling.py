"""How a network is run on one batch after the other, and where its answer and its state are."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from pruning.core.arguments import PLACED, given_as, parameters_of
from pruning.core.devices import moved, seeded
from pruning.core.nested import mapped, tensors_in
from pruning.core.neurons import NeuronLayer, PrunableModule, Slice
from pruning.core.words import described
from pruning.discovery import Discovered, starting
from pruning.discovery.following import Carried
from pruning.discovery.running import copied
from pruning.discovery.states import parts

Call = Callable[[nn.Module, Any, Any], tuple[Any, Any]]
"""(network, inputs, state or None) → (outputs, state to carry on from); the network is its author's own module."""
WITHIN = "network"
"""The name of the network in what adapts it."""


class Caller:
    """Runs a network on one batch after the other, the state that it returns going into the next call.

    Inputs in a tuple or list are the network's arguments, in a dictionary its keyword arguments, unless forward takes
    these as one (see `given_as`); others are one argument. A network with `init_hidden` whose forward takes one
    argument more than the inputs has the state for it:
    `init_hidden(examples)` at first, and where the number of examples changes; then what it returned beside its output:
    what was found to be its state, else the second of what it returned.

    Attributes:
        example_dim: The dimension of the first argument that runs over examples.
        start: What to ask for the first state instead of the network's `init_hidden`.
    """

    def __init__(self, example_dim: int, start: Callable[[int], Any] | None = None) -> None:
        self.example_dim, self.start = example_dim, start

    def __call__(self, network: nn.Module, inputs: Any, state: Any) -> tuple[Any, Any]:
        """Return what the network gives but for its state, and the state to carry on from, {examples: hidden}."""
        arguments = arguments_of(network, inputs)
        if isinstance(arguments, Mapping):
            return network(**arguments), None
        if self.start is None and not takes_state(network, inputs):
            return network(*arguments), None
        examples = arguments[0].shape[self.example_dim]
        hidden = (state or {}).get(examples)
        if hidden is None:
            hidden = self.start(examples) if self.start else first_state(network, arguments, self.example_dim)
        answer = network(*arguments, hidden)
        if not isinstance(answer, list | tuple) or hasattr(answer, "batch_sizes"):
            return answer, None
        if len(answer) < 2:
            return answer[0], None
        place = _state_in(network, answer)
        others = (*answer[:place], *answer[place + 1 :])
        return others[0] if len(others) == 1 else others, {examples: answer[place]}


def _state_in(network: nn.Module, answer: Sequence[Any]) -> int:
    """Return which part of what a network gave is its state."""
    numbers = network.numbers if isinstance(network, Discovered) else ()
    first = min((number.output for number in numbers if isinstance(number, Carried)), default=None)
    ends = itertools.accumulate(len(parts(part)) for part in answer)
    return 1 if first is None else next((place for place, end in enumerate(ends) if first < end), 1)


def answered(model: PrunableModule, inputs: Any) -> Any:
    """Return what a model gives, called with a batch; one whose neurons were discovered begins as it once did."""
    if not isinstance(model, Discovered) or not model.remembered:
        return _of(model, inputs)
    with model.begun():
        begin(model, inputs, example_dim_of(model, inputs))
        return _of(model, inputs)


def _of(model: nn.Module, inputs: Any) -> Any:
    arguments = arguments_of(model, inputs)
    return model(**arguments) if isinstance(arguments, Mapping) else model(*arguments)


def arguments_of(network: nn.Module, inputs: Any) -> tuple[Any, ...] | Mapping[str, Any]:
    """Return the arguments that inputs are of a network's forward, by place or by name."""
    origin = network.origin if isinstance(network, Discovered) else None
    places, named = origin.inputs[0] if origin is not None else ((), {})
    return given_as(own_module(network), inputs, None if named else places)


def takes_state(network: nn.Module, inputs: Any) -> bool:
    """Return whether a network makes its first state and takes one in forward, after the inputs."""
    return starting.takes_state(own_module(network), arguments_of(network, inputs))


def forward_names(network: nn.Module) -> tuple[list[str], bool]:
    """Return the names of the arguments that a network's forward takes, and whether it takes others, too."""
    parameters = parameters_of(own_module(network))
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    names = [each.name for each in parameters if each.kind not in several]
    return names, any(each.kind is Parameter.VAR_KEYWORD for each in parameters)


def names_given(network: nn.Module, inputs: Any) -> list[str]:
    """Return the names of the arguments that a network's forward is given with these inputs."""
    arguments = arguments_of(network, inputs)
    return list(arguments) if isinstance(arguments, Mapping) else forward_names(network)[0][: len(arguments)]


def first_state(network: nn.Module, arguments: tuple[Any, ...], example_dim: int) -> Any:
    """Return what the network's `init_hidden` gives for these arguments."""
    return starting.first_state(own_module(network), arguments, example_dim)


def begin(network: nn.Module, inputs: Any, example_dim: int) -> None:
    """Let a network that keeps its state make the first one for a batch, if it can (`init_hidden`).

    What `init_hidden` gives is what its author puts into the attribute that holds the state, the only one that does; of
    a smaller network, as wide as that now is. One that gives nothing has put it there itself.
    """
    module = own_module(network)
    arguments = arguments_of(network, inputs)
    if (
        isinstance(arguments, Mapping)
        or not callable(getattr(module, "init_hidden", None))
        or takes_state(network, inputs)
    ):
        return
    hidden = first_state(network, arguments, example_dim)
    names = [name for path, name in getattr(network, "remembered", ()) if not path]
    if hidden is not None and len(names) == 1:
        before = getattr(module, names[0], None)
        setattr(module, names[0], as_wide(hidden, before))


def as_wide(state: Any, other: Any) -> Any:
    """Return a state whose tensors have as many numbers in their last dimension as those of another, the first ones."""
    widths = [tensor.shape[-1] if tensor.ndim else 0 for tensor in tensors_in(other)]
    if len(widths) != sum(1 for _ in tensors_in(state)):
        return state
    left = iter(widths)
    return mapped(lambda tensor: tensor[..., : next(left)] if tensor.ndim else tensor, state)


def example_dim_of(network: nn.Module, inputs: Any) -> int:
    """Return which dimension of a network's inputs runs over examples, as far as it can be told."""
    return starting.example_dim_of(own_module(network), inputs)


def called(call: Call, network: nn.Module, inputs: Any, state: Any) -> tuple[Any, Any]:
    """Return the outputs and the state that a call gives; a user's own is given the user's own module.

    Raises:
        TypeError: If it gives anything else.
    """
    if isinstance(network, Discovered) and not isinstance(call, Caller):
        answer = network.giving(lambda own: call(own, inputs, state))
    else:
        answer = call(network, inputs, state)
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        raise TypeError(
            f"Expected `call` to give (outputs, state), got {described(answer)}; give None as the state where there "
            "is none: `return outputs, None`."
        )
    return answer[0], answer[1]


def first_given(call: Call, network: nn.Module, inputs: Any) -> tuple[Any, ...] | Mapping[str, Any] | None:
    """Return what a user's call gives a network's forward first, by place or by name; None if it gives it nothing."""
    twin, heard = copied(network).eval(), list[tuple[Any, Any]]()

    def hear(_: nn.Module, places: Any, named: Any) -> None:
        heard.append((mapped(Tensor.detach, places), mapped(Tensor.detach, named)))

    twin.register_forward_pre_hook(hear, with_kwargs=True)
    with seeded(twin, 0):
        try:
            call(twin, inputs, None)
        except Exception:  # whatever a user's code raises
            return None
    if not heard:
        return None
    places, named = heard[0]
    if not named:
        return tuple(places)
    taken = [each.name for each in parameters_of(network) if each.kind in PLACED]
    return {**dict(zip(taken, places, strict=False)), **named} if len(places) <= len(taken) else None


def expect_call(call: Any) -> None:
    """Refuse what is no function as a way to run a network.

    Raises:
        TypeError: If it cannot be called.
    """
    if call is not None and not callable(call):
        raise TypeError(
            f"Expected `call` as a function (network, inputs, state) → (outputs, state), got {described(call)}; such "
            "as `lambda network, inputs, state: (network.encode(inputs), None)`."
        )


def usual_call(network: nn.Module, inputs: Any, example_dim: int | None = None) -> Call:
    """Return how a network is run unless its author says otherwise; see `pruning.adapt`."""
    return Caller(example_dim_of(network, inputs) if example_dim is None else example_dim)


def own_module(network: nn.Module) -> nn.Module:
    """Return the user's own module from what wraps it, as far as it is wrapped."""
    inner = getattr(network, WITHIN, None)
    return inner if isinstance(network, PrunableModule) and isinstance(inner, nn.Module) else network


def on(device: torch.device, inputs: Any) -> Any:
    """Return inputs, however nested, on the device."""
    return mapped(lambda tensor: moved(tensor, device), inputs)


def usual_arguments(network: Any, inputs: Any, example_dim: int) -> tuple[Any, ...] | Mapping[str, Any]:
    """Return what a network is called with when it is run on inputs in the usual way."""
    arguments = arguments_of(network, inputs)
    if isinstance(arguments, Mapping) or not takes_state(network, inputs):
        return arguments
    return (*arguments, first_state(network, arguments, example_dim))


def held(layer: NeuronLayer) -> NeuronLayer:
    """Return the layer as it is named in what holds the network."""

    def within(piece: Slice) -> Slice:
        bias = piece.bias and f"{WITHIN}.{piece.bias}"
        return replace(piece, parameter=f"{WITHIN}.{piece.parameter}", bias=bias)

    kinds = ("owned", "read", "buffers", "silenced", "tied")
    pieces: dict[str, Any] = {kind: tuple(map(within, getattr(layer, kind))) for kind in kinds}
    seen, operand = layer.seen and within(layer.seen), layer.operand and f"{WITHIN}.{layer.operand}"
    return replace(layer, **pieces, seen=seen, operand=operand, output=f"{WITHIN}.{layer.output}")
