"""Adam and AdamW without PyTorch's compiler, whose import takes longer than a short training does."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adam import adam

from pruning.core.neurons import real_pairs
from pruning.core.uncompiled import uncompiled


def clip(parameters: Iterable[torch.Tensor], most: float) -> None:
    """Scale all gradients so that their norm is at most this; sparse ones, of which there is no norm, become dense.

    >>> table = torch.nn.Embedding(2, 2, sparse=True)
    >>> table(torch.tensor([1])).sum().backward()
    >>> clip(table.parameters(), 0.5**0.5)
    >>> table.weight.grad.flatten().round(decimals=4).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    learning = list(parameters)
    for parameter in learning:
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            parameter.grad = parameter.grad.to_dense()
    torch.nn.utils.clip_grad_norm_(learning, most)


class _Fused(torch.optim.Adam):
    """What both share: PyTorch's fused step, called as it is rather than through what would be compiled.

    PyTorch's own `step` imports its compiler, which takes a processor as long as PyTorch itself, to say that it is not
    compiled. What is remembered, and every digit, is the same.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        with uncompiled(torch.optim.Optimizer.add_param_group):
            super().__init__(params, fused=True, **settings)

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - nobody here has one
        """Take one step."""
        with torch.no_grad():
            for group in self.param_groups:
                learning = [parameter for parameter in group["params"] if parameter.grad is not None]
                states = [self.state[parameter] or self._begun(parameter) for parameter in learning]
                beta1, beta2 = group["betas"]
                adam(
                    [real_pairs(parameter) for parameter in learning],
                    [real_pairs(parameter.grad) for parameter in learning],
                    [real_pairs(state["exp_avg"]) for state in states],
                    [real_pairs(state["exp_avg_sq"]) for state in states],
                    [],
                    [state["step"] for state in states],
                    fused=True,
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                    decoupled_weight_decay=group["decoupled_weight_decay"],
                )

    def _begun(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Remember that nothing was learnt yet."""
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
        state: dict[str, torch.Tensor] = self.state[parameter]
        return state


class Adam(_Fused):
    """Adam (Kingma & Ba 2015)."""


class AdamW(_Fused, torch.optim.AdamW):
    """Adam with decoupled decay (Loshchilov & Hutter 2019)."""
