"""Modules whose weights are no plain numbers any more, for they are quantized, or about to be."""

from collections.abc import Iterator

import torch
from torch import nn

QUANTIZED = "its weights are quantized"
"""How the reason begins of what is quantized."""
PREPARED = "it is prepared for quantization"
"""That of what is about to be."""
_PREPARING = ("torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize")


def quantized_in(network: nn.Module) -> dict[str, str]:
    """Return the modules whose weights no removal fits since they are quantized, or are in each call, and why.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> network[0].weight = nn.Parameter(network[0].weight.detach().to(torch.int8), requires_grad=False)
    >>> quantized_in(network)
    {'0': 'its weights are quantized, weight to int8'}
    """
    found: dict[str, str] = {}
    for path, module in network.named_modules():
        what = next(_quantized(module), None)
        if what is not None:
            parts = path.split(".")  # `0._packed_params`: a part that PyTorch's modules keep their weights in
            own = next((number for number, part in enumerate(parts) if part.startswith("_")), len(parts))
            found.setdefault(".".join(parts[:own]), f"{QUANTIZED}, {what}")
        elif _watched(module) and next(module.parameters(recurse=False), None) is not None:
            found.setdefault(path, PREPARED)
    return found


def _watched(module: nn.Module) -> bool:
    """Return whether a module has parts that note its numbers' range, or round them, in each call."""
    return any(kind.__module__.startswith(_PREPARING) for child in module.children() for kind in type(child).__mro__)


def _quantized(module: nn.Module) -> Iterator[str]:
    """Yield what is quantized in a module."""
    for name, tensor in module.named_parameters(recurse=False):
        if hasattr(type(tensor), "__tensor_flatten__"):
            yield f"{name} is a {type(tensor).__name__}"
        elif not (tensor.is_floating_point() or tensor.is_complex()):
            yield f"{name} to {str(tensor.dtype).removeprefix('torch.')}"
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name, value in (*vars(module).items(), *module._buffers.items()):
        if isinstance(value, torch.ScriptObject):
            yield f"packed by {type(module).__name__}"
        elif isinstance(value, torch.Tensor) and value.is_quantized:
            yield f"{name} to {str(value.dtype).removeprefix('torch.')}"
