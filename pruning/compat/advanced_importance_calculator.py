"""`AdvancedImportanceCalculator`: every signal and fusion of given parameters, and the table behind the scores."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from pruning import Ablation, oracle
from pruning.compat.given import Criterion, Pair, given
from pruning.compat.improved_importance_calculation import ImprovedImportanceCalculator
from pruning.core.modes import untouched
from pruning.fusion.fused import Fusion, fusion
from pruning.fusion.fusing import Fusing, expect_strategy
from pruning.signals.schemas import SIGNALS

READ, ALL = 20, sys.maxsize
"""Batches that measured removal reads for each neuron, and how many tokens of them."""


@dataclass(eq=False)
class AdvancedImportanceCalculator(ImprovedImportanceCalculator):
    """Scores neurons from traces, weights, activations, gradients and cooperation, fused as one likes.

    Attributes:
        fusion_strategy: `simple`, `adaptive` or `learned`; see `pruning.fusion.fused`.
        measured_neurons: For `learned`: how many neurons' removal is measured, unless it is given.
        seed: Seed of that sample, of folds and of the bootstrap.
    """

    fusion_strategy: str = "adaptive"
    measured_neurons: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that are none."""
        expect_strategy(self.fusion_strategy)
        if self.activation_samples < 1:
            raise ValueError(f"Expected activation_samples of at least 1, got {self.activation_samples}.")

    def compute_enhanced_importance(self, *told: Any, **named: Any) -> dict[str, list[float]]:
        """Return layer name → the fused importance of each of its neurons, in [0, 1], comparable within a layer.

        The same arguments give the same scores, and the model is left as it was; they are those of `compute_fusion`.
        """
        return self.compute_fusion(*told, **named).by_layer

    def compute_importance_table(self, *told: Any, **named: Any) -> pd.DataFrame:
        """Return the table behind the scores: `layer`, `neuron`, each signal, each signal's share, and `fused`."""
        fused = self.compute_fusion(*told, **named)
        names = [name for name in SIGNALS if name in set(fused.report["signal"])]
        return fused.importance[["layer", "neuron", *names, *(f"{name}_share" for name in names), "fused"]]

    def compute_fusion(
        self,
        model: nn.Module,
        modules: Sequence[Pair],
        channel_trace: Sequence[Any],
        dataloader: Iterable[Any] | None = None,
        criterion: Criterion | None = None,
        device: torch.device | str | None = None,
        removals: pd.DataFrame | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> Fusion:
        """Return the fused importance, the report on how it came about, and weights to apply elsewhere.

        Args:
            model: Any model that holds the parameters; it has one argument, and a state for another if it has
                `init_hidden`.
            modules: (name, parameter) pairs, one for each layer. A parameter's rows are its neurons, or its stacked
                copies are: an LSTM's `weight_hh_l0` (4H, …) with H traces is a layer of H neurons. A (name, module)
                pair takes all of the module's own parameters.
            channel_trace: For each pair, the Hessian trace of each neuron: numbers, tensors or nested lists of
                estimates, of which the mean is taken.
            dataloader: Yields (data, targets), at least twice. Without it, weights and traces are all that is known.
            criterion: (output, targets) → loss; outputs (…, classes) with class numbers are flattened for it first.
                Without it, no gradient is known.
            device: Where the model computes; by default, wherever it is.
            removals: For `learned`: `layer`, `neuron`, `loss_increase`, `standard_error`, if measured already.
            weights: What `pruning.fusion.fused.to_plain` gave of an earlier fusion; nothing is then fitted.
        """
        handed, batches = given(model, modules, channel_trace, dataloader, criterion, device, self.activation_samples)
        if self.fusion_strategy == "learned" and weights is None and removals is None:
            if not batches or criterion is None:
                raise ValueError("Expected a loader and a criterion, or removals, for fusion 'learned', got none.")
            with untouched(handed):
                ablation = Ablation(neurons=self.measured_neurons, tokens=ALL, seed=self.seed)
                removals = oracle(handed.gated(), batches[:READ], ablation)
        tables, strategy = self._tables(handed, batches), self.fusion_strategy
        return fusion(tables, Fusing(strategy=strategy, seed=self.seed), oracle=removals, weights=weights)
