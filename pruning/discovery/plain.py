"""PyTorch's own modules in place of what stood in for them, wherever these can hold the widths that are left."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruning.core.rebinding import put
from pruning.discovery.attention import Attention
from pruning.discovery.recurrent import Narrowed, Recurrent
from pruning.discovery.running import Inputs, Seeing, close, copied, running


def made_plain(network: nn.Module, places: Iterable[str]) -> nn.Module:
    """Return a network with PyTorch's own modules at these places; it shares all parameters with the given one."""
    network = copied(network, sharing=True)
    done: dict[nn.Module, nn.Module] = {}
    for path in places:
        module = network.get_submodule(path)
        own = done.get(module) or plain_of(module)
        if own is None:
            raise ValueError(f"Expected a module at {path!r} that one of PyTorch's can stand for, got {module}.")
        if not path:
            return own
        done[module] = done[own] = own
        put(network, path, own)
    return network


def plain_of(module: nn.Module) -> nn.Module | None:
    """Return the module of PyTorch's own that computes what a stand-in does, with its parameters; None if none can."""
    if isinstance(module, Recurrent):
        return _recurrent(module)
    if isinstance(module, Attention):
        return _attention(module)
    return _linear(module) if isinstance(module, Narrowed) else None


def given(network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Return what a network gives when it is called twice, for it may remember.

    It may live elsewhere, and in other numbers, than when it was discovered.
    """
    there, like = placed(network, inputs), next(network.parameters(), torch.zeros(0))
    try:
        return _run(network, there)
    except Exception:  # what a network says of other numbers than its own
        return _run(network, pytree.tree_map(lambda part: part.to(like.dtype) if _is_real(part) else part, there))


def placed(network: nn.Module, inputs: Inputs) -> Inputs:
    """Return the inputs where the network is."""
    device = next(network.parameters(), torch.zeros(0)).device
    found: Inputs = pytree.tree_map(lambda part: part.to(device) if isinstance(part, torch.Tensor) else part, inputs)
    return found


def _is_real(part: object) -> bool:
    return isinstance(part, torch.Tensor) and part.is_floating_point()


def _run(network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    with running(network, inputs, Seeing(), turns=2) as (_, found):
        return [tensor.clone() for tensor in found]


def gives(network: nn.Module, inputs: Inputs, expected: Sequence[torch.Tensor]) -> bool:
    """Return whether the network gives the expected tensors, up to rounding."""
    try:
        found = given(network, inputs)
    except Exception:  # whatever a user's code raises at other shapes of a state
        return False
    return len(found) == len(expected) and all(map(close, found, expected))


def _recurrent(module: Recurrent) -> nn.RNNBase | None:
    """Return one module of all layers and directions, if they are as wide."""
    parts: list[Any] = [module.get_submodule(name) for name, _ in module._parts()]
    width, projected = parts[0].hidden_size, parts[0].proj_size
    inputs = [module.input_size] * module._directions
    inputs += [(projected or width) * module._directions] * (len(parts) - module._directions)
    if [(part.input_size, part.hidden_size, part.proj_size) for part in parts] != [
        (size, width, projected) for size in inputs
    ]:
        return None
    kind: Any = next(kind for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, kind))
    extra: dict[str, Any] = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
    extra |= {"proj_size": projected} if projected else {}
    with torch.device("meta"):
        found: nn.RNNBase = kind(
            module.input_size,
            width,
            module.num_layers,
            bias=module.bias,
            batch_first=module.batch_first,
            bidirectional=module.bidirectional,
            **extra,
        )
    found.dropout = module.dropout
    for name in list(found._parameters):
        found.register_parameter(name, getattr(module, name))
    found._init_flat_weights()
    return found.train(module.training)


def _attention(module: Attention) -> nn.MultiheadAttention | None:
    """Return PyTorch's own, if all heads together are as wide as what it reads and gives."""
    width, bias = module.num_heads * module.head_dim, module.in_proj_bias is not None
    packed = module.in_proj_weight is not None
    rows = (
        module.in_proj_weight.chunk(3) if packed else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    if {width} != {*map(len, rows), rows[0].shape[1], *module.out_proj.weight.shape}:
        return None
    with torch.device("meta"):
        found = nn.MultiheadAttention(
            width,
            module.num_heads,
            dropout=module.dropout,
            bias=bias,
            batch_first=module.batch_first,
            kdim=rows[1].shape[1],
            vdim=rows[2].shape[1],
        )
    if found._qkv_same_embed_dim != packed:
        return None
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
        setattr(found, name, getattr(module, name))
    found.out_proj = module.out_proj
    return found.train(module.training)


def _linear(module: Narrowed) -> nn.Linear:
    with torch.device("meta"):
        found = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    found.weight, found.bias = module.weight, module.bias
    return found.train(module.training)
