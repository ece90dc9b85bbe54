"""A network as a program of fixed shapes, one step of one example: what small devices run, tensors in, tensors out."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pruning.core.faults import said
from pruning.core.modes import evaluating
from pruning.discovery.running import close, copied, tensors_in, uncached
from pruning.discovery.states import Arguments
from pruning.evaluation.memory import Trace, stored, traced_call
from pruning.export.calls import called_with, inputs_of, outputs_of, plain_of, single
from pruning.export.language_models import initial_state
from pruning.export.packed import Padding
from pruning.export.unrolled import unrolled
from pruning.models.adapted import Adapted, arguments_for
from pruning.models.base import LanguageModel
from pruning.models.deploying import Plain


@dataclass(frozen=True)
class Fixed:
    """A network of tensors in and tensors out, and what it is called with.

    Attributes:
        network: Takes the tensors of its inputs, in order, and gives those of its outputs.
        example: The tensors of its inputs, in the shapes that it takes.
        returned: The structure of what the network itself gives; None where that is no nest of tensors.
        states: How many of the inputs, the last ones, and of the outputs, are the state.
        trace: The operations of the network as its author wrote it.
    """

    network: nn.Module
    example: tuple[Tensor, ...]
    returned: Any
    states: int
    trace: Trace

    def program(self) -> ExportedProgram:
        """Return it as a graph of PyTorch's.

        Raises:
            ValueError: If PyTorch cannot follow the network, or the graph computes something else.
        """
        try:
            with uncached(self.network), evaluating(self.network), torch.no_grad(), Padding():
                program = torch.export.export(self.network, self.example, strict=False)
        except Exception as error:  # whatever PyTorch, or a user's code, says of numbers that are not known yet
            raise ValueError(f"Expected a network that torch.export can follow, got {said(error)}.") from error
        expected = outputs_of(self.network, (self.example, {}))
        if not all(map(close, outputs_of(program.module(), (self.example, {})), expected)):
            raise ValueError(
                "Expected a program that gives what its network does, got other numbers; export a part of it."
            )
        return program


def fixed(model: nn.Module, inputs: Any = None) -> Fixed:
    """Return a network in evaluation mode and single precision with the shapes of one step of one example.

    Recurrences are done step by step. Of a language model of a built-in family it is one token of one sequence, state
    in and out; of what `adapt` gave one example (one step of it, where a state is carried); of another network the
    example inputs as they are.

    Raises:
        ValueError: If there are no inputs to call it with.
    """
    plain = plain_of(model)
    called, states = _call(model, plain, inputs)
    called = pytree.tree_map(single, called)
    network = copied(plain.network)
    network = network.cpu().float().eval().requires_grad_(False)
    with torch.no_grad(), uncached(network):
        answer = copied(network)(*copy.deepcopy(called[0]), **copy.deepcopy(called[1]))
    example = tuple(leaf for leaf in pytree.tree_leaves(called) if isinstance(leaf, Tensor))
    trace = _traced(_Flat(copied(network), called), example, states)
    flat = _Flat(unrolled(network), called)
    if not all(map(close, outputs_of(flat, (example, {})), tensors_in(answer))):
        raise ValueError(
            "Expected a network whose recurrences can be done step by step, got one that then gives other numbers; "
            "export a part of it."
        )
    leaves, returned = pytree.tree_flatten(answer)
    nested = all(isinstance(leaf, Tensor) for leaf in leaves)
    return Fixed(flat, example, returned if nested else None, states, trace)


def _call(model: nn.Module, plain: Plain, inputs: Any) -> tuple[Arguments, int]:
    """Return what a network is called with, and how many tensors of it are a state."""
    if inputs is None and isinstance(model, LanguageModel):
        state = initial_state(model, 1)
        return ((model.example(1), state), {}), len(pytree.tree_leaves(state))
    if inputs is None and isinstance(model, Adapted):
        args, kwargs = called_with(arguments_for(model, 1, plain.network))
        return (args, kwargs), len(pytree.tree_leaves(args[-1])) if model.use.carries else 0
    return inputs_of(plain, inputs), 0


def _traced(network: nn.Module, example: tuple[Tensor, ...], states: int) -> Trace:
    """Return the operations of a call, the state of which is given."""
    shapes, given = network.to("meta"), [tensor.to("meta") for tensor in example]
    split = len(given) - states
    with torch.device("meta"), torch.no_grad(), uncached(shapes):
        return traced_call(
            lambda: shapes(*given), weights=stored(shapes).values(), state=given[split:], inputs=given[:split]
        )


class _Flat(nn.Module):
    """A network called with tensors alone, what else it takes being fixed."""

    def __init__(self, network: nn.Module, called: Arguments) -> None:
        super().__init__()
        self.network = network
        leaves, self.spec = pytree.tree_flatten(called)
        self.rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that the network gives."""
        leaves = list(self.rest)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return tuple(tensors_in(self.network(*args, **kwargs)))
