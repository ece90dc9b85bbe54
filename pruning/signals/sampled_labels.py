"""Labels drawn from a model's own predictions, as Fisher information wants them."""

import torch
from torch import Tensor

from pruning.data.windows import IGNORED


def sampled_labels(probabilities: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return one class drawn for each row, (n,), the same for the same generator on any device.

    Args:
        probabilities: Of each class, (n, classes).
        labels: The true ones, (n,); `IGNORED` stays `IGNORED`.
        generator: On the CPU.
    """
    reached = probabilities.cumsum(1)
    chance = torch.rand(len(reached), 1, generator=generator, dtype=reached.dtype).to(reached.device)
    drawn = torch.searchsorted(reached, chance * reached[:, -1:], right=True).flatten()
    return torch.where(labels == IGNORED, labels, drawn.clamp(max=reached.shape[1] - 1))
