"""`EnhancedHessianPruner`: traces kept in a file, neurons chosen by them or by every signal, removed, and compared."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pruning.ablation.oracle import oracle
from pruning.compat.calling import Criterion, device_of, first_batches
from pruning.compat.files import beside, read_table, write_table
from pruning.compat.fusing import REMOVALS_READ, fused
from pruning.compat.measuring import BINS, STRONG, THRESHOLD
from pruning.compat.supporting import Supported, supported
from pruning.core.neurons import Keep, NeuronLayer, select
from pruning.core.tables import table
from pruning.evaluation.measures import loss_of
from pruning.fusion.fused import STRATEGIES
from pruning.fusion.schemas import IMPORTANCE
from pruning.selection.retention import keep_of, retention
from pruning.selection.schemas import RETENTION
from pruning.signals.activations import activations
from pruning.signals.cooperative import cooperative
from pruning.signals.gradients import gradients
from pruning.signals.hessian import hessian
from pruning.signals.schemas import HESSIAN
from pruning.signals.weights import weights

PROBES, STABILITY = 60, 0.9
"""At most this many Hessian-vector products, fewer where the ranking is this stable before."""
BATCHES = 100
"""At most this many batches are read."""
MEASURED = 64
"""Neurons whose removal is measured for `learned`, at most."""
ALL_TOKENS: Mapping[str, Any] = {"tokens": sys.maxsize, "most": sys.maxsize, "tolerance": 0.0, "words": "all"}
"""Settings of measured removal that let it read all it is given."""


@dataclass(frozen=True)
class Comparison:
    """The traditional choice, by Hessian trace × ‖w‖² / n, beside the one that was made.

    Attributes:
        kept_neurons: Layer → neurons that the traditional importance keeps, ascending.
        model: The model with only those.
        overlap: Layer → share of the kept neurons that both choices keep.
        losses: `dense`, `chosen`, `traditional` → mean loss on the batches read, nat/token, right after removal.
    """

    kept_neurons: dict[str, list[int]]
    model: nn.Module
    overlap: dict[str, float]
    losses: dict[str, float]


@dataclass(frozen=True)
class PruningResult:
    """What was kept; unpacks as (kept_neurons, model), with a comparison as (kept_neurons, model, comparison).

    Attributes:
        kept_neurons: Layer → kept neurons, ascending.
        model: The smaller model.
        comparison: The traditional choice beside it, if it was asked for.
        retention: The table `retention`: every neuron's importance, rank and fate, by variant.
        importance: The table `importance`: every signal; None if the traces alone decided.
        files: Table → file that it was saved in; empty if nothing was.
    """

    kept_neurons: dict[str, list[int]]
    model: nn.Module
    comparison: Comparison | None
    retention: pd.DataFrame
    importance: pd.DataFrame | None
    files: dict[str, str]

    def __iter__(self) -> Iterator[Any]:
        """Yield what the result unpacks to."""
        yield from (self.kept_neurons, self.model)
        if self.comparison is not None:
            yield self.comparison


class EnhancedHessianPruner:
    """Removes the least important neurons of a model.

    Attributes:
        model: The dense model: one of the library's families, or any other that `pruning.discover` can read. It is
            left as it was.
        trace_file_name: The file that holds the Hessian traces of this model: the table `hessian` as Parquet, whatever
            the name's ending. It is read if it exists, and else written.
        use_advanced_importance: Whether all signals decide, or the traces alone.
        importance_fusion_strategy: `simple`, `adaptive` or `learned`.
    """

    def __init__(
        self,
        model: nn.Module,
        trace_file_name: str,
        use_advanced_importance: bool = True,
        importance_fusion_strategy: str = "adaptive",
    ) -> None:
        if importance_fusion_strategy not in STRATEGIES:
            raise ValueError(f"Unknown fusion {importance_fusion_strategy!r}; known: {list(STRATEGIES)}.")
        self.model = model
        self.trace_file_name = trace_file_name
        self.use_advanced_importance = use_advanced_importance
        self.importance_fusion_strategy = importance_fusion_strategy

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
            comparison_analysis: Whether the traditional choice is made too.
            save_results: Whether the tables are saved beside the trace file, as `<its stem>.retention.parquet` and
                `<its stem>.importance.parquet`.

        Raises:
            ValueError: For a model that is not supported, batches, criterion or settings that are not such, or a trace
                file of another model.
        """
        if not 0 <= snn_ratio <= 1:
            raise ValueError(f"Expected snn_ratio in [0, 1], got {snn_ratio}.")
        place = device_of(self.model, device)
        batches = first_batches(_windows(dataloader, batch_size, bptt), BATCHES)
        ready = supported(self.model, batches, criterion, place, classes=ntokens)
        traces = self._traces(ready, seed)
        importance = self._importance(ready, traces, seed) if self.use_advanced_importance else None
        layers = ready.model.layers()
        choose = partial(_retained, layers=layers, snn_ratio=snn_ratio)
        traditional = choose(traces.assign(score=traces["importance"]), "traditional")
        enhanced = None if importance is None else choose(importance.assign(score=importance["fused"]), "enhanced")
        chosen = traditional if enhanced is None else enhanced
        keep = keep_of(chosen)
        model = select(ready.model, keep)
        comparison = _compared(ready, keep, model, keep_of(traditional)) if comparison_analysis else None
        tables = [chosen] if enhanced is None or not comparison_analysis else [enhanced, traditional]
        retained = table(RETENTION, pd.concat(tables, ignore_index=True))
        saved = {"retention": retained} | ({} if importance is None else {"importance": importance})
        files = self._save(saved) if save_results else {}
        return PruningResult(_lists(keep), ready.given_back(model), comparison, retained, importance, files)

    def _traces(self, ready: Supported, seed: int) -> pd.DataFrame:
        """Return the table `hessian` of the model: the file's, or a new one that the file then holds."""
        about = {"model": fingerprint(self.model)}
        found = read_table(self.trace_file_name, HESSIAN, about)
        if found is None:
            found = hessian(ready.model, ready.batches, probes=PROBES, stability=STABILITY, seed=seed)
            write_table(self.trace_file_name, HESSIAN, found, {**about, "seed": str(seed)})
        return found

    def _importance(self, ready: Supported, traces: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Return the table `importance`, every signal measured and fused."""
        model, batches = ready.model, ready.batches
        seen, covariances = activations(model, batches, activation_samples=BATCHES, bins=BINS)
        tables = {
            "weights": weights(model, threshold=THRESHOLD, bins=BINS),
            "hessian": traces,
            "activations": seen,
            "gradients": gradients(model, batches, batches=BATCHES),
            "cooperative": cooperative(model, covariances, strong=STRONG),
        }
        removals = None
        if self.importance_fusion_strategy == "learned":
            removals = oracle(model, batches[:REMOVALS_READ], neurons=MEASURED, seed=seed, **ALL_TOKENS)
        return fused(tables, strategy=self.importance_fusion_strategy, seed=seed, removals=removals).importance

    def _save(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
        files = {name: beside(self.trace_file_name, name) for name in tables}
        for schema in (RETENTION, IMPORTANCE):
            if schema.name in tables:
                write_table(files[schema.name], schema, tables[schema.name], {"model": fingerprint(self.model)})
        return files


def fingerprint(model: nn.Module) -> str:
    """Return what tells a model from every other: a digest of its parameters' names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _windows(dataloader: Iterable[Any] | Tensor, batch_size: int, bptt: int) -> Iterable[Any]:
    """Return batches as they are, or a tensor of tokens cut into windows (T, B) and what follows each token."""
    if not isinstance(dataloader, Tensor):
        return dataloader
    if batch_size < 1 or bptt < 1:
        raise ValueError(f"Expected batch_size and bptt of at least 1, got {batch_size} and {bptt}.")
    tokens = dataloader
    if tokens.ndim == 1:
        tokens = tokens[: len(tokens) // batch_size * batch_size].view(batch_size, -1).T
    if tokens.ndim != 2 or len(tokens) < 2:
        raise ValueError(f"Expected tokens (n,) or in columns (n, batch), got a tensor {tuple(dataloader.shape)}.")
    return [
        (tokens[i : i + bptt][: len(tokens) - 1 - i], tokens[i + 1 : i + 1 + bptt])
        for i in range(0, len(tokens) - 1, bptt)
    ]


def _retained(importance: pd.DataFrame, variant: str, *, layers: list[NeuronLayer], snn_ratio: float) -> pd.DataFrame:
    """Return the `retention` table of a variant: spiking neurons keep their share, others the rest."""
    kinds = {layer.name: "snn" if layer.kind == "snn" else "rnn" for layer in layers}
    choose = partial(retention, importance, variant=variant, by="score", floor=1, scope="global")
    if len(set(kinds.values())) == 2:
        return choose(retain=1.0, kinds=kinds, snn_ratio=snn_ratio)
    share = snn_ratio if "snn" in kinds.values() else 1 - snn_ratio
    return choose(retain=max(share, 1e-9))  # none at all leaves one in each layer


def _compared(ready: Supported, keep: Keep, model: Any, traditional: Keep) -> Comparison:
    other = select(ready.model, traditional)
    both = {name: len(set(own.tolist()) & set(traditional[name].tolist())) for name, own in keep.items()}
    overlap = {name: count / max(len(keep[name]), len(traditional[name])) for name, count in both.items()}
    models = {"dense": ready.model, "chosen": model, "traditional": other}
    losses = {name: loss_of(one, ready.batches).mean for name, one in models.items()}
    return Comparison(_lists(traditional), ready.given_back(other), overlap, losses)


def _lists(keep: Keep) -> dict[str, list[int]]:
    return {name: kept.tolist() for name, kept in keep.items()}
