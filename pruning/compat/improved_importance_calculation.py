"""`ImprovedImportanceCalculator`: each neuron's importance as the equal mean of every signal that is switched on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pruning.compat.advanced_importance_calculator import AdvancedImportanceCalculator
from pruning.compat.calling import Criterion
from pruning.compat.given import Pair, numbers_in
from pruning.selection.retention import adaptive_retention_rate as usual_rate


class ImprovedImportanceCalculator:
    """Scores neurons by the mean of the scaled signals; see `AdvancedImportanceCalculator` for other fusions.

    Attributes:
        use_activation_analysis: Whether what neurons say counts (`activations`).
        use_gradient_analysis: Whether gradients count (`gradients`); they need a criterion.
        use_structural_analysis: Whether weights and wiring count (`weights`, `cooperative`). With all three off the
            traces alone decide, as trace × ‖w‖² / n: the traditional importance.
        activation_samples: At most this many batches of the loader are read, for all signals.
    """

    def __init__(
        self,
        use_activation_analysis: bool = True,
        use_gradient_analysis: bool = True,
        use_structural_analysis: bool = True,
        activation_samples: int = 100,
    ) -> None:
        self.use_activation_analysis = use_activation_analysis
        self.use_gradient_analysis = use_gradient_analysis
        self.use_structural_analysis = use_structural_analysis
        self.activation_samples = activation_samples

    def compute_enhanced_importance(
        self,
        model: nn.Module,
        modules: Sequence[Pair],
        channel_trace: Sequence[Any],
        dataloader: Iterable[Any] | None = None,
        criterion: Criterion | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, list[float]]:
        """Return layer name → the importance of each of its neurons; see `AdvancedImportanceCalculator`."""
        calculator = AdvancedImportanceCalculator(
            self.use_activation_analysis, self.use_gradient_analysis, self.use_structural_analysis,
            self.activation_samples, fusion_strategy="simple",
        )  # fmt: skip
        return calculator.compute_enhanced_importance(model, modules, channel_trace, dataloader, criterion, device)

    def adaptive_retention_rate(self, importance_scores: Any, network_type: str = "mixed") -> float:
        """Return the share of neurons to keep; see the function of that name."""
        return adaptive_retention_rate(importance_scores, network_type)


def adaptive_retention_rate(importance_scores: Any, network_type: str = "mixed") -> float:
    """Return the share of neurons to keep, in [0.05, 0.8]; see `pruning.adaptive_retention_rate`.

    Args:
        importance_scores: Scores of some neurons, as numbers, tensors or nested lists of them, or layer → scores, of
            which all count together.
        network_type: `rnn`, `snn`, `mixed` or `dense`.

    Raises:
        ValueError: For an unknown network type, no scores, or a score that is no finite number.
    """
    values = list(importance_scores.values()) if isinstance(importance_scores, Mapping) else importance_scores
    return usual_rate(np.fromiter(numbers_in(values), dtype=float), network_type)
