"""What a network that is to leave is called with, what it gives, and what its refusals say."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from pruning.core.arguments import given_as
from pruning.core.devices import seeded
from pruning.core.faults import said
from pruning.discovery.discovered import Discovered
from pruning.discovery.running import fresh, tensors_in, uncached
from pruning.discovery.states import Arguments
from pruning.models.adapted import Adapted, arguments_for
from pruning.models.deploying import Plain, plainly


def plain_of(model: nn.Module) -> Plain:
    """Return a network as it is best deployed, and what it was discovered or adapted with, where it was."""
    network = model
    while isinstance(network, Adapted):
        network = network.network
    plain = plainly(network) if isinstance(network, Discovered) else Plain(network)
    if plain.inputs is None and isinstance(model, Adapted):
        return Plain(plain.network, inputs=(called_with(arguments_for(model)),))
    return plain


def inputs_of(plain: Plain, inputs: Any) -> Arguments:
    """Return what a network is called with: what is given, or what it was discovered or adapted with.

    Raises:
        ValueError: If neither is known.
    """
    if inputs is not None:
        arguments = given_as(plain.network, inputs)
        return ((), arguments) if isinstance(arguments, dict) else (arguments, {})
    if plain.inputs is None:
        raise ValueError(f"Expected example inputs to export {type(plain.network).__name__} with, got none.")
    return plain.inputs[0]


def called_with(inputs: Any) -> Arguments:
    """Return inputs as positional arguments and arguments by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    several = isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence)
    return (inputs if several else (inputs,)), {}


def single(value: Any) -> Any:
    """Return a tensor on the CPU, real numbers in single precision."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu().float() if value.is_floating_point() else value.detach().cpu()


def _answer_of(network: nn.Module, example: Arguments) -> Any:
    args, kwargs = fresh(example)
    with seeded(network, 0), uncached(network), torch.no_grad():
        return network(*args, **kwargs)


def hand_on_parts(network: nn.Module, example: Arguments) -> None:
    """Let a network that gives a dataclass, which PyTorch's graphs do not hold, give a dictionary of what is in it.

    Raises:
        ValueError: If it does not run on these inputs.
    """
    try:
        answer = _answer_of(network, example)
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"Expected inputs that the network runs on, got {said(error)}.") from error
    if any(is_dataclass(part) for part in pytree.tree_leaves(answer)):
        network.register_forward_hook(lambda *call: _parts(call[-1]))


def _parts(value: Any) -> Any:
    """Return a structure with each dataclass as a dictionary of its fields that are not None."""

    def parted(part: Any) -> Any:
        if not is_dataclass(part) or isinstance(part, type):
            return part
        values = ((field.name, getattr(part, field.name)) for field in fields(part))
        return {name: _parts(value) for name, value in values if value is not None}

    return pytree.tree_map(parted, value)


def outputs_of(network: nn.Module, example: Arguments) -> list[Tensor]:
    """Return the tensors that a network gives.

    Raises:
        ValueError: If it gives what no graph holds: a distribution, or an object of a class of its own.
    """
    answer = _answer_of(network, example)
    for part in pytree.tree_leaves(answer):
        if isinstance(part, Mapping | Distribution):
            raise ValueError(
                "Expected a network that gives tensors, alone or in tuples, lists or dictionaries, got one that gives "
                f"{type(part).__name__}, which no graph holds; let forward return what is in it."
            )
    return tensors_in(answer)
