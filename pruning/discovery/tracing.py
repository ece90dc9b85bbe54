"""A model's graph of operations, with the names that its parameters have in the model."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from pruning.discovery.operations import RULES
from pruning.discovery.propagation import Address, Propagation, Value, flat, nobody

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""What a model is called with: positional arguments and arguments by name."""


def propagated(network: nn.Module, inputs: Inputs, prefix: str) -> Propagation:
    """Return what running the network on these inputs tells about its neurons.

    Args:
        network: It is left as it was.
        inputs: What it is called with.
        prefix: What its parameters' names are preceded by.

    Raises:
        ValueError: If PyTorch cannot trace the network.
    """
    traced = copied(network).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that state is kept in attributes, which the copy is for
            program = torch.export.export(traced, *inputs, strict=False)
    except Exception as error:  # whatever a user's code raises under tracing
        sentence = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"Expected a model that torch.export can trace, got {type(error).__name__}: {sentence}"
        ) from error
    program.graph.eliminate_dead_code()  # what is computed and not used binds nobody
    found = Propagation()
    found.run(program.graph, _values(program, network, prefix), RULES)
    return found


def copied(module: nn.Module, *, sharing: bool = False) -> Any:
    """Return a copy of a module, also where it keeps a state that belongs to a graph of gradients.

    Args:
        module: It is left as it was.
        sharing: Whether the copy has the same parameters; what it does to its buffers and attributes is its own.
    """
    held = (value for part in module.modules() for value in (*part._buffers.values(), *vars(part).values()))
    leaves = (leaf for value in held for leaf in flat(value))
    kept = (value for value in leaves if isinstance(value, Tensor) and not value.is_leaf)
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept}
    if sharing:
        memo.update({id(parameter): parameter for parameter in module.parameters()})
    return copy.deepcopy(module, memo)


def canonical(network: nn.Module) -> dict[str, str]:
    """Return each parameter's and buffer's every name → the one name that stands for what is stored once."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _values(program: torch.export.ExportedProgram, network: nn.Module, prefix: str) -> Mapping[str, Value | Address]:
    """Return what each placeholder of the graph stands for."""
    names = canonical(network)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return {node.name: _value(node, kinds[node.name], names, prefix) for node in placeholders}


def _value(node: fx.Node, spec: Any, names: Mapping[str, str], prefix: str) -> Value | Address:
    shape = tuple(node.meta["val"].shape) if isinstance(node.meta["val"], Tensor) else ()
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in names:
        return Address.whole(prefix + names[spec.target], shape)
    return Value(nobody(shape), nobody(shape))
