"""The training loop of the examples that train a network of their own, the same for each row of their tables."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, inputs, targets) → mean loss."""


def fitted(network: nn.Module, batches: Batches, loss: Loss, *, epochs: float, rate: float) -> nn.Module:
    """Return a copy of the network after some epochs of AdamW, its rate rising to `rate` and falling to zero."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    steps = max(2, round(epochs * len(batches)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    draw = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(len(batches), generator=draw) for _ in range(-(-steps // len(batches)))])
    for place in order[:steps].tolist():
        optimizer.zero_grad()
        loss(network, *batches[place]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()
