"""What Torch-Pruning makes of a network at the same widths, by its magnitude, Taylor and Hessian importance."""

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any, Tensor], Tensor]
"""(network, inputs, targets) → mean loss."""


def torch_pruned(
    network: nn.Module, batches: Sequence[tuple[Any, Tensor]], loss: Loss, *, keep: float, roots: Collection[str]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield a copy of the network for each importance, the outputs of the `roots`, and what is coupled to them, cut."""
    for name in ("Magnitude", "Taylor", "Hessian"):
        other = copy.deepcopy(network).requires_grad_(True)
        importance = getattr(torch_pruning.importance, f"Group{name}Importance")()
        if name == "Taylor":
            for inputs, targets in batches:
                loss(other, inputs, targets).backward()
        elif name == "Hessian":
            importance._accu_grad = _squared_gradients(other, batches, loss)  # accumulate_grad keeps the last one alone
            importance._counter = dict.fromkeys(importance._accu_grad, 1)
        others = [module for path, module in other.named_modules() if isinstance(module, LAYERS) and path not in roots]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says of parameters outside of layers how it takes them
            pruner = torch_pruning.pruner.BasePruner(
                other, batches[0][0], importance, pruning_ratio=1 - keep, ignored_layers=others
            )
            pruner.step()
        other.zero_grad()
        yield f"Torch-Pruning, {name}", other


LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)


def _squared_gradients(network: nn.Module, batches: Sequence[tuple[Any, Tensor]], loss: Loss) -> dict[Tensor, Tensor]:
    """Return the mean squared gradient of single examples, by parameter."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    sums, count = [torch.zeros_like(parameter) for parameter in parameters], 0
    for inputs, targets in batches:
        for place in range(len(targets)):
            one = loss(network, inputs[place : place + 1], targets[place : place + 1])
            for total, gradient in zip(sums, torch.autograd.grad(one, parameters), strict=True):
                total += gradient.square()
            count += 1
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total / count
    return {parameter: total / count for parameter, total in zip(parameters, sums, strict=True)}
