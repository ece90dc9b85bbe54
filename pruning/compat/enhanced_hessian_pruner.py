"""`EnhancedHessianPruner`: traces kept in a file, neurons chosen by them or by every signal, removed, and compared."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pruning import Ablation, adapt, fuse, hessian, keep_of, loss_of, oracle, retention, select
from pruning.compat.advanced_importance_calculator import ALL, READ
from pruning.compat.files import fingerprint, name_beside, read_table, write_table
from pruning.compat.given import Criterion, Given, first_calls
from pruning.core.devices import expect_on
from pruning.core.modes import evaluating, untouched
from pruning.core.neurons import NeuronLayer
from pruning.core.tables import table
from pruning.data.windows import IGNORED, Window, cut
from pruning.experiment.measuring import USUAL, calibrate
from pruning.fusion.fusing import Fusing, expect_strategy
from pruning.fusion.schemas import IMPORTANCE
from pruning.models.adapted import Adapted
from pruning.models.base import LanguageModel
from pruning.models.calling import on
from pruning.selection.allocation import Allocation
from pruning.selection.schemas import RETENTION
from pruning.signals.schemas import HESSIAN

PROBES, STABILITY = 60, 0.9
"""At most this many Hessian-vector products, fewer where the ranking is this stable before."""
BATCHES, MEASURED = 100, 64
"""At most this many batches are read, and this many neurons' removal measured for `learned`."""


@dataclass(frozen=True)
class Comparison:
    """The traditional choice, by Hessian trace × ‖w‖² / n, beside the one that was made."""

    kept_neurons: dict[str, list[int]]  # layer → neurons that it keeps, ascending
    model: nn.Module  # with only those
    overlap: dict[str, float]  # layer → share of the kept neurons that both choices keep
    losses: dict[str, float]  # of `dense`, `chosen`, `traditional` on the batches read, nat/token, right after removal


@dataclass(frozen=True)
class PruningResult:
    """What was kept; unpacks as (kept_neurons, model), with a comparison as (kept_neurons, model, comparison)."""

    kept_neurons: dict[str, list[int]]  # layer → neurons, ascending
    model: nn.Module  # the smaller one
    comparison: Comparison | None  # if it was asked for
    retention: pd.DataFrame  # the table `retention`: every neuron's importance, rank and fate, by variant
    importance: pd.DataFrame | None  # the table `importance`: every signal; None if the traces alone decided
    files: dict[str, str]  # table → file that it was saved in

    def __iter__(self) -> Iterator[Any]:
        """Yield what the result unpacks to."""
        yield from (self.kept_neurons, self.model)
        if self.comparison is not None:
            yield self.comparison


@dataclass(eq=False)
class EnhancedHessianPruner:
    """Removes the least important neurons of a model, which is left as it was.

    The traces are the table `hessian` as Parquet, whatever their file's ending; it is read if it exists, else written.
    """

    model: nn.Module  # one of the library's families, or any other that `pruning.discover` can read
    trace_file_name: str  # holds the Hessian traces of this model
    use_advanced_importance: bool = True  # whether all signals decide, or the traces alone
    importance_fusion_strategy: str = "adaptive"  # or `simple`, or `learned`

    def __post_init__(self) -> None:
        """Refuse a fusion that there is none of."""
        expect_strategy(self.importance_fusion_strategy)

    def make_pruned_model(
        self,
        dataloader: Iterable[Any] | Tensor,
        criterion: Criterion,
        device: torch.device | str | None,
        snn_ratio: float,
        seed: int,
        batch_size: int,
        bptt: int,
        ntokens: int | None,
        comparison_analysis: bool = True,
        save_results: bool = True,
    ) -> PruningResult:
        """Return the kept neurons of each layer, the model with only those, and the traditional choice beside them.

        Of r = `snn_ratio`, 1 − r of all recurrent (and other) neurons and r of all spiking ones are kept, ranked over
        the layers of their kind by importance relative to the layer's mean, at least one in each layer.

        Args:
            dataloader: Yields (data, targets), of which the first 100 batches are read; or tokens as a tensor, (n,) or
                in columns (n, batch), which is cut into windows.
            criterion: (output, targets) → loss.
            device: Where the model computes; None for wherever it is.
            snn_ratio: r, in [0, 1].
            seed: Seed of probes, folds and samples.
            batch_size: Columns that a tensor (n,) of tokens is cut into.
            bptt: Steps of a window that a tensor of tokens is cut into.
            ntokens: Classes that the model tells apart, as a check; None for any.
            comparison_analysis: Whether the traditional choice is told too.
            save_results: Whether tables are saved beside the trace file, as `<its stem>.<the table's name>.parquet`.

        Raises:
            ValueError: For a model, batches or settings that cannot be used, or a trace file of another model.
        """
        if not 0 <= snn_ratio <= 1:
            raise ValueError(f"Expected snn_ratio in [0, 1], got {snn_ratio}.")
        expect_on(self.model, device)
        loader = cut(dataloader, batch=batch_size, bptt=bptt) if isinstance(dataloader, Tensor) else dataloader
        model, ready = _supported(self.model, first_calls(loader, BATCHES), criterion, ntokens)
        scores = {"traditional": self._traces(model, ready, seed)}
        importance = None
        if self.use_advanced_importance:
            importance = self._importance(model, ready, scores["traditional"], seed)
            scores = {"enhanced": importance.assign(importance=importance["fused"]), **scores}
        choices = {name: _retained(part, name, model.layers(), snn_ratio) for name, part in scores.items()}
        told = choices if comparison_analysis else dict(list(choices.items())[:1])
        keeps = {name: keep_of(part) for name, part in told.items()}
        models = {name: select(model, keep) for name, keep in keeps.items()}
        kept = {name: {layer: part.tolist() for layer, part in keep.items()} for name, keep in keeps.items()}
        smaller = {name: one.module if isinstance(one, Adapted) else one for name, one in models.items()}
        chosen, comparison = next(iter(told)), None
        if comparison_analysis:
            others = kept["traditional"]
            both = {name: len({*part} & {*others[name]}) for name, part in kept[chosen].items()}
            overlap = {name: n / max(len(kept[chosen][name]), len(others[name])) for name, n in both.items()}
            beside = {"dense": model, "chosen": models[chosen], "traditional": models["traditional"]}
            losses = {name: loss_of(one, ready).mean for name, one in beside.items()}
            comparison = Comparison(others, smaller["traditional"], overlap, losses)
        retained = table(RETENTION, pd.concat(told.values(), ignore_index=True))
        files = {}
        for schema, frame in ((RETENTION, retained), (IMPORTANCE, importance)):
            if save_results and frame is not None:
                files[schema.name] = name_beside(self.trace_file_name, schema.name)
                write_table(files[schema.name], schema, frame, {"model": fingerprint(self.model)})
        return PruningResult(kept[chosen], smaller[chosen], comparison, retained, importance, files)

    def _traces(self, model: Any, batches: Any, seed: int) -> pd.DataFrame:
        """Return the table `hessian` of the model: the file's, or a new one that the file then holds."""
        about = {"model": fingerprint(self.model)}
        traces = read_table(self.trace_file_name, HESSIAN, about)
        if traces is None:
            traces = hessian(model, batches, probes=PROBES, stability=STABILITY, seed=seed)
            write_table(self.trace_file_name, HESSIAN, traces, {**about, "seed": str(seed)})
        return traces

    def _importance(self, model: Any, batches: Any, traces: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Return the table `importance`, every signal measured and fused."""
        names = ("weights", "activations", "gradients", "cooperative")
        tables = {**calibrate(model, batches, names, effort=USUAL, seed=seed).tables, "hessian": traces}
        removals = None
        if self.importance_fusion_strategy == "learned":
            removals = oracle(model, batches[:READ], Ablation(neurons=MEASURED, tokens=ALL, seed=seed))
        return fuse(tables, Fusing(strategy=self.importance_fusion_strategy, seed=seed), oracle=removals)


def _supported(
    model: nn.Module, batches: list[Any], criterion: Criterion, classes: int | None
) -> tuple[Any, list[Any]]:
    """Return the model as the library can measure it, each layer with readers of its own, and its batches."""
    (inputs, targets), ready = batches[0], Given(model, batches[0][0], criterion)
    with untouched(model), evaluating(model), torch.no_grad():
        output = ready.predicted(inputs)[0]
    if classes is not None and output.shape[-1] != classes:
        raise ValueError(f"Expected a model of {classes} tokens (ntokens), got one of {output.shape[-1]}.")
    if isinstance(model, LanguageModel):
        ignored = getattr(criterion, "ignore_index", IGNORED)
        windows = [Window.of(tokens, wanted, ignored) for (tokens,), wanted in batches]
        with torch.no_grad():
            got, mean = ready.judged(output, targets), model.judged(output.flatten(0, -2), windows[0].targets)
        if not any(torch.isclose(got, known, rtol=1e-4) for known in (mean, mean * ready.count(targets))):
            known = f"{mean:.4g} on the first batch, got {got:.4g}."
            raise ValueError(f"Expected the cross-entropy as criterion of a language model, {known}")
        return model.decoupled(), windows
    return adapt(model, on(ready.device, inputs), loss=criterion, example_dim=ready.example_dim), batches


def _retained(importance: pd.DataFrame, variant: str, layers: list[NeuronLayer], snn_ratio: float) -> pd.DataFrame:
    """Return the `retention` table of a variant: spiking neurons keep their share, others the rest."""
    kinds = {layer.name: "snn" if layer.kind == "snn" else "rnn" for layer in layers}
    share = max(snn_ratio if "snn" in kinds.values() else 1 - snn_ratio, 1e-9)  # none at all leaves one in each layer
    allocation = Allocation(retain=share, floor=1, scope="global")
    if len(set(kinds.values())) == 2:
        allocation = replace(allocation, retain=1.0, snn_ratio=snn_ratio)
    avoided = {layer.name: layer.avoided for layer in layers}
    return retention(importance, allocation, variant=variant, by="importance", kinds=kinds, avoided=avoided)
