"""`AdvancedImportanceCalculator`: every signal and fusion of given parameters, and the table behind the scores."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from pruning.compat.calling import Batch, Criterion, batch_losses, device_of, first_batches
from pruning.compat.fusing import REMOVALS_READ, fused
from pruning.compat.given import Given, Pair, given
from pruning.compat.measuring import Switches, measure
from pruning.compat.removing import removal_rises
from pruning.fusion.fused import STRATEGIES, Fusion
from pruning.signals.schemas import SIGNALS


class AdvancedImportanceCalculator:
    """Scores neurons from traces, weights, activations, gradients and cooperation, fused as one likes.

    Attributes:
        use_activation_analysis: Whether what neurons say counts (`activations`).
        use_gradient_analysis: Whether gradients count (`gradients`); they need a criterion.
        use_structural_analysis: Whether weights and wiring count (`weights`, `cooperative`). With all three off the
            traces alone decide, as trace × ‖w‖² / n: the traditional importance.
        activation_samples: At most this many batches of the loader are read, for all signals.
        fusion_strategy: `simple`, `adaptive` or `learned`; see `pruning.fusion.fused`.
        measured_neurons: For `learned`: how many neurons' removal is measured, unless it is given.
        seed: Seed of that sample, of folds and of the bootstrap.
    """

    def __init__(
        self,
        use_activation_analysis: bool = True,
        use_gradient_analysis: bool = True,
        use_structural_analysis: bool = True,
        activation_samples: int = 100,
        fusion_strategy: str = "adaptive",
        measured_neurons: int = 64,
        seed: int = 0,
    ) -> None:
        if fusion_strategy not in STRATEGIES:
            raise ValueError(f"Unknown fusion {fusion_strategy!r}; known: {list(STRATEGIES)}.")
        if activation_samples < 1:
            raise ValueError(f"Expected activation_samples of at least 1, got {activation_samples}.")
        self.use_activation_analysis = use_activation_analysis
        self.use_gradient_analysis = use_gradient_analysis
        self.use_structural_analysis = use_structural_analysis
        self.activation_samples = activation_samples
        self.fusion_strategy = fusion_strategy
        self.measured_neurons = measured_neurons
        self.seed = seed

    def compute_enhanced_importance(
        self,
        model: nn.Module,
        modules: Sequence[Pair],
        channel_trace: Sequence[Any],
        dataloader: Iterable[Any] | None = None,
        criterion: Criterion | None = None,
        device: torch.device | str | None = None,
        removals: pd.DataFrame | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> dict[str, list[float]]:
        """Return layer name → the fused importance of each of its neurons, in [0, 1], comparable within a layer.

        The same arguments give the same scores, and the model is left as it was. For the arguments and what is raised
        see `compute_fusion`.
        """
        found = self.compute_fusion(model, modules, channel_trace, dataloader, criterion, device, removals, weights)
        by_layer = found.importance.groupby("layer")["fused"]
        return {name: by_layer.get_group(name).tolist() for name, _ in modules}

    def compute_importance_table(
        self,
        model: nn.Module,
        modules: Sequence[Pair],
        channel_trace: Sequence[Any],
        dataloader: Iterable[Any] | None = None,
        criterion: Criterion | None = None,
        device: torch.device | str | None = None,
        removals: pd.DataFrame | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return the table behind the scores: `layer`, `neuron`, each signal, each signal's share, and `fused`."""
        found = self.compute_fusion(model, modules, channel_trace, dataloader, criterion, device, removals, weights)
        names = [name for name in SIGNALS if name in set(found.report["signal"])]
        return found.importance[["layer", "neuron", *names, *(f"{name}_share" for name in names), "fused"]]

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
            model: Any model that holds the parameters; see `calling.Caller` for how it is run.
            modules: (name, parameter) pairs, one for each layer. A parameter's rows are its neurons, or its stacked
                copies are: an LSTM's `weight_hh_l0` (4H, …) with H traces is a layer of H neurons. A (name, module)
                pair takes all of the module's own parameters.
            channel_trace: For each pair, the Hessian trace of each neuron: numbers, tensors or nested lists of
                estimates, of which the mean is taken.
            dataloader: Yields (data, targets). Without it, weights and traces are all that is known; without a
                criterion, gradients are not.
            criterion: (output, targets) → loss; outputs (…, classes) with class numbers are flattened for it first.
            device: Where the model computes; by default, wherever it is.
            removals: For `learned`: `layer`, `neuron`, `loss_increase`, `standard_error`, if measured already.
            weights: What `pruning.fusion.fused.to_plain` gave of an earlier fusion; nothing is then fitted.

        Raises:
            ValueError: For pairs, traces, batches or a criterion that are not such, numbers that are not finite, or
                `learned` without anything to learn from.
        """
        own = given(model, modules, channel_trace)
        place = device_of(model, device)
        batches = [] if dataloader is None else first_batches(dataloader, self.activation_samples)
        switches = Switches(
            self.use_activation_analysis, self.use_gradient_analysis, self.use_structural_analysis
        )  # fmt: skip
        learning = self.fusion_strategy == "learned" and weights is None and removals is None
        if learning:
            removals = self._removals(model, own, batches, criterion, place)
        tables = measure(model, own, batches, criterion, place, switches)
        return fused(tables, strategy=self.fusion_strategy, seed=self.seed, removals=removals, weights=weights)

    def _removals(
        self,
        model: nn.Module,
        own: Given,
        batches: Sequence[Batch],
        criterion: Criterion | None,
        device: torch.device,
    ) -> pd.DataFrame:
        if not batches or criterion is None:
            raise ValueError("Expected a loader and a criterion (or measured removals) for fusion 'learned', got none.")
        some = batches[:REMOVALS_READ]
        losses = partial(batch_losses, model, some, criterion, device)
        return removal_rises(model, own.gated, losses, neurons=self.measured_neurons, seed=self.seed)
