"""`ImprovedImportanceCalculator`: each neuron's importance as the equal mean of every signal that is switched on."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pruning import gradients, weights
from pruning.compat.given import Criterion, Given, Pair, given
from pruning.core.hooks import shown
from pruning.core.modes import evaluating, thawed, untouched
from pruning.core.nested import numbers_in
from pruning.core.tables import rows_of
from pruning.experiment.measuring import USUAL, calibrate
from pruning.fusion.fused import fusion
from pruning.fusion.fusing import Fusing
from pruning.selection.adaptive import adaptive_retention_rate as usual_rate
from pruning.signals.hessian import mean_squares

logger = logging.getLogger(__name__)

WIDEST = 2048
"""Neurons of a layer up to which activations are kept: their covariance takes width² numbers."""


def adaptive_retention_rate(importance_scores: Any, network_type: str = "mixed") -> float:
    """Return the share of neurons to keep, in [0.05, 0.8]; see `pruning.adaptive_retention_rate`.

    The scores are numbers, tensors or nested lists of them, or layer → scores, of which all count together.
    """
    values = list(importance_scores.values()) if isinstance(importance_scores, Mapping) else importance_scores
    return usual_rate(np.array(numbers_in(values)), network_type)


@dataclass(eq=False)
class ImprovedImportanceCalculator:
    """Scores neurons by the mean of the scaled signals; see `AdvancedImportanceCalculator` for other fusions.

    Attributes:
        use_activation_analysis: Whether what neurons say counts (`activations`).
        use_gradient_analysis: Whether gradients count (`gradients`); they need a criterion.
        use_structural_analysis: Whether weights and wiring count (`weights`, `cooperative`). With all three off the
            traces alone decide, as trace × ‖w‖² / n: the traditional importance.
        activation_samples: At most this many batches of the loader are read, for all signals.
    """

    use_activation_analysis: bool = True
    use_gradient_analysis: bool = True
    use_structural_analysis: bool = True
    activation_samples: int = 100

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
        handed, batches = given(model, modules, channel_trace, dataloader, criterion, device, self.activation_samples)
        return fusion(self._tables(handed, batches), Fusing(strategy="simple", seed=0)).by_layer

    adaptive_retention_rate = staticmethod(adaptive_retention_rate)

    def _tables(self, handed: Given, batches: list[Any]) -> dict[str, pd.DataFrame]:
        """Return what is known of every neuron, by signal; 0 for all of a layer that a signal cannot see."""
        squares = dict(sorted(mean_squares(handed).items()))
        keys = rows_of(list(squares), map(len, squares.values()))
        traditional = torch.cat([handed.traces[name] * square for name, square in squares.items()]).numpy()
        tables = {"hessian": keys.assign(importance=traditional, standard_error=0.0)}
        if self.use_structural_analysis:
            tables["weights"] = weights(handed, **USUAL["weights"])
        with untouched(handed), thawed(handed):
            if batches and (self.use_activation_analysis or self.use_structural_analysis):
                tables |= self._seen(handed, batches, keys)
            if batches and self.use_gradient_analysis and handed.use.criterion is not None:
                tables["gradients"] = gradients(handed.gated(), batches, batches=len(batches))
            elif batches and self.use_gradient_analysis:
                logger.warning("Without a criterion no gradient is known; the other signals decide.")
        return tables

    def _seen(self, handed: Given, batches: list[Any], keys: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Return the signals that follow from what the neurons say."""
        narrow = [layer for layer in handed.layers() if layer.width <= WIDEST]
        with evaluating(handed), torch.no_grad():
            model = handed.only(shown(handed, narrow, partial(handed.read, batches[0][0])))
        for name in sorted({layer.name for layer in handed.layers()} - {layer.name for layer in model.layers()}):
            logger.warning("What the neurons of %s say is not seen; other signals rank them.", name)
        names = ["activations"] * self.use_activation_analysis + ["cooperative"] * self.use_structural_analysis
        tables = dict.fromkeys(names, keys[:0].assign(importance=0.0, standard_error=0.0))
        if model.layers():
            effort = {**USUAL, "activations": {**USUAL["activations"], "activation_samples": len(batches)}}
            tables |= calibrate(model, batches, names, effort=effort, seed=0).tables
        columns = [*keys.columns, "importance", "standard_error"]
        return {name: keys.merge(tables[name][columns], how="left").fillna(0.0) for name in names}
