"""A network with other weights, drawn so that none hides by its size what depends on a neuron."""

from typing import Any

import torch
from torch import Tensor, nn

from pruning.discovery.running import copied


def redrawn(network: nn.Module, *, centred: bool = False, seed: int = 0) -> Any:
    """Return a copy of a network with weights in general position, so that none hides what depends on a neuron.

    Args:
        network: It is left as it was.
        centred: Whether vectors are drawn around nought, and matrices twice as large; else vectors around one.
        seed: Of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = (tensor for tensor in network.parameters() if tensor.is_floating_point())
    return copied(network, replacing={id(tensor): _drawn(tensor, generator, centred=centred) for tensor in weights})


def _drawn(like: Tensor, generator: torch.Generator, *, centred: bool) -> nn.Parameter:
    """Return random numbers in the shape of a parameter, of a size that neither explodes nor vanishes.

    What is frozen is so again: PyTorch takes a single number for a Python one, as in `full_like(x, rest)`, if it is.
    """
    learns = like.requires_grad
    if not like.ndim:
        return nn.Parameter(like.detach().clone(), learns)
    drawn = torch.randn(like.shape, generator=generator).mul_((len(like) / max(like.numel(), 1)) ** 0.5)
    if centred:
        return nn.Parameter((drawn.mul_(2) if like.ndim > 1 else drawn.div_(2)).to(like), learns)
    return nn.Parameter((drawn if like.ndim > 1 else drawn.div_(4).add_(1)).to(like), learns)
