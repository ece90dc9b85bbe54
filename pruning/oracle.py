"""The truth that importance is judged by: how much the loss rises when neurons are really removed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.batching import IGNORED, Batches, Window, Windows
from pruning.devices import finest, moved
from pruning.evaluation import evaluating
from pruning.layers import Keep, NeuronLayer, select, silence
from pruning.models.base import LanguageModel, Measurable, State
from pruning.progress import Track, silently
from pruning.removals import Removals, removals
from pruning.statistics import ClusteredMean, merged
from pruning.tables import table

COLUMNS = 320
"""Columns of one batch of models side by side: large enough for fast products, small enough for memory."""
PILOT = 0.2
"""Share of `tokens` that is read first to decide who reads on."""

Repair = Callable[[Any, Keep], Any]
"""(dense model, kept neurons) → the smaller model, repaired."""
Finetune = Callable[[Any], Any]
"""A model, which it may change → the model with more training."""


def oracle(
    model: Measurable,
    windows: Batches,
    *,
    neurons: int | Literal["all"],
    tokens: int,
    most: int,
    tolerance: float,
    words: int | Literal["all"],
    seed: int,
    track: Track = silently,
) -> pd.DataFrame:
    """Return the `oracle` table: the loss increase when one neuron alone is removed.

    For each neuron, the mean over tokens of (loss without it − loss with it), on the same tokens with carried state.
    Its standard error takes the steps of one column in one window as a cluster, since neighbouring tokens depend on
    each other. Even and odd windows are kept apart as well; `reliability` is the Spearman correlation ρ between these
    halves within the layer, stepped up to the whole, 2ρ / (1 + ρ) (Spearman 1910; Brown 1910).

    **Stopping.** If `most` exceeds `tokens`, a pilot of a fifth of `tokens` comes first. It says whose place will be
    clear once it has read `tokens` (see `clear_places`): those read no more than that, the others read on to `most`.
    The pilot is then left out, so what decides is not what is reported, and stopping biases no estimate and no error;
    its states are carried on. With `most` equal to `tokens` there is no pilot.

    **Words.** The decoder and its softmax are most of the work. With `words: all` they are computed whole. With a
    number the change of log Σ exp is an estimate from that many words for each token (see `SampledLoss`), whose own
    error is part of the standard error and, with 64 words, adds less than 0.01% to it.

    **Other models.** Where the model is no `LanguageModel`, each neuron costs a reading with its readers' columns at
    zero; a batch is a cluster, and `most`, `tolerance` and `words` play no part.

    Args:
        model: A model whose layers have readers of their own.
        windows: Text that the model was not trained on, read from its start; at least two windows.
        neurons: How many to measure, drawn from each layer in proportion to its width; `all` for every one.
        tokens: Tokens that every neuron is measured on, as far as the text goes.
        most: Tokens that a neuron is measured on whose place is not clear.
        tolerance: Standard error of a neuron's place, as a share of the ranking, up to which the place is clear.
        words: Words of the vocabulary to evaluate for each token, half of them the most probable; or `all`.
        seed: Seed of the neurons and words drawn.
        track: Shows progress.

    Raises:
        ValueError: If there are fewer than two windows of text after the pilot, or `most` is below `tokens`.
    """
    layers = model.layers()
    chosen = neurons_to_measure(layers, neurons, seed)
    if not isinstance(model, LanguageModel) or not isinstance(windows, Windows):
        return _oracle_table(chosen, _masked(model, windows, chosen, tokens, track))
    _check_text(windows, tokens, most)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model), torch.inference_mode():
        passes = _passes(model, layers, chosen, windows.inputs.shape[1])
        halves = _measured(model, windows, passes, tokens, most, tolerance, words, generator, track)
    return _oracle_table(chosen, halves)


def neurons_to_measure(layers: Sequence[NeuronLayer], neurons: int | Literal["all"], seed: int) -> dict[str, Tensor]:
    """Return which neurons of each layer to measure, ascending: a sample stratified by layer, at least two of each.

    >>> from pruning.layers import NeuronLayer
    >>> layer = NeuronLayer("lstm.0", "rnn", 4, (), (), "lstm.0")
    >>> neurons_to_measure([layer], "all", seed=1)
    {'lstm.0': tensor([0, 1, 2, 3])}
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(layer.width for layer in layers)
    wanted = total if neurons == "all" else min(neurons, total)
    found = {}
    for layer in layers:
        share = min(layer.width, max(2, round(wanted * layer.width / total)))
        found[layer.name] = torch.randperm(layer.width, generator=generator)[:share].sort().values
    return found


def clear_places(pilot: ClusteredMean, tokens: int, tolerance: float) -> Tensor:
    """Return whether each neuron's place in the ranking will be clear once it has been measured on `tokens`, (n,).

    A place's standard error is half the number of others within one standard error of the difference, for that many
    ranks a shift by one standard error passes. The place is clear if this is at most `tolerance` × n. Errors are the
    pilot's times √(its tokens / `tokens`); means are the pilot's, drawn together until their spread is that of the
    truth: their variance less what their errors explain.

    Args:
        pilot: Loss increases on some first text.
        tokens: Tokens to be measured on.
        tolerance: Share of the ranking.
    """
    spread, noise = pilot.mean.var(), pilot.standard_error.square().mean()
    mean = pilot.mean * ((spread - noise).clamp(min=0) / spread).sqrt()
    variance = pilot.standard_error.square() * pilot.tokens / tokens
    near = (mean[:, None] - mean[None, :]).square() < variance[:, None] + variance[None, :]
    return near.fill_diagonal_(False).sum(1) / 2 <= tolerance * len(mean)


@dataclass
class _Pass:
    """Models that run side by side, and where their neurons stand among all that are measured."""

    models: Removals
    places: Tensor

    def keep(self, wanted: Tensor) -> None:
        """Go on with only the neurons that are `wanted`, a flag for each that is measured."""
        staying = wanted[self.places].nonzero().flatten()
        if len(staying) < len(self.places):
            self.places = self.places[staying]
            self.models.keep(staying)


def _masked(
    model: Measurable, batches: Batches, chosen: Mapping[str, Tensor], tokens: int, track: Track
) -> list[ClusteredMean]:
    """Return each neuron's loss increase on even and on odd batches, one reading for each neuron.

    Raises:
        ValueError: If there are fewer than two batches.
    """
    text = _first(model, batches, tokens)
    if len(text) < 2:
        raise ValueError(f"Expected at least two batches to measure removal on, got {len(text)}.")
    dense, widths = cluster_losses(model, text), {layer.name: layer.width for layer in model.layers()}
    neurons = [(name, neuron) for name, own in chosen.items() for neuron in own.tolist()]
    halves = [ClusteredMean.empty(len(neurons)) for _ in range(2)]
    for place, (name, neuron) in enumerate(track(neurons, "oracle")):
        masked = silence(model, {name: _others(widths[name], [neuron])})
        for index, ((ours, counts), (theirs, _)) in enumerate(zip(cluster_losses(masked, text), dense, strict=True)):
            halves[index % 2].update((ours - theirs)[:, None], counts, torch.tensor([place]))
    return halves


def _passes(
    model: LanguageModel, layers: Sequence[NeuronLayer], chosen: Mapping[str, Tensor], batch: int
) -> list[_Pass]:
    """Return the neurons as batches of models, none of more than `COLUMNS` columns or, at least, one model."""
    found, start = [], 0
    for layer in layers:
        for part in torch.split(chosen[layer.name], max(1, COLUMNS // batch)):
            found.append(_Pass(removals(model, layer, part), torch.arange(start, start + len(part))))
            start += len(part)
    return found


def _measured(
    model: LanguageModel,
    windows: Windows,
    passes: list[_Pass],
    tokens: int,
    most: int,
    tolerance: float,
    words: int | Literal["all"],
    generator: torch.Generator,
    track: Track,
) -> list[ClusteredMean]:
    """Return each neuron's loss increase on even and on odd windows after the pilot."""
    count = sum(len(each.places) for each in passes)
    pilot, halves = ClusteredMean.empty(count), [ClusteredMean.empty(count) for _ in range(2)]
    first = len(_first_windows(windows, round(PILOT * tokens))) if most > tokens else 0
    budget, read, state = torch.full((count,), most), 0, None
    for index, window in enumerate(track(_first_windows(windows, most, after=first), "oracle")):
        loss, state = _dense_loss(model, window, state, words, generator)
        counts = (window.targets != IGNORED).sum(0)
        for each in passes:
            increase = loss.increase(each.models.features(moved(window.tokens, loss.device)))
            found = pilot if index < first else halves[(index - first) % 2]
            found.update(increase.sum(0).T, counts, each.places)
        read += int(counts.sum()) if index >= first else 0
        if index + 1 == first:
            budget[clear_places(pilot, tokens, tolerance)] = tokens
        passes = _going_on(passes, budget > read)
        if not passes:
            break
    return halves


def _going_on(passes: list[_Pass], wanted: Tensor) -> list[_Pass]:
    """Return the passes with only the neurons that are `wanted`, a flag for each that is measured."""
    for each in passes:
        each.keep(wanted)
    return [each for each in passes if len(each.places)]


class _ReferenceLoss(Protocol):
    """The dense model's losses on one window, for others to be compared with."""

    device: torch.device

    def increase(self, features: Tensor) -> Tensor:
        """Return how much larger the loss of each token is, (T, models, B) nat, given (T, models, B, features)."""


def _dense_loss(
    model: LanguageModel, window: Window, state: State | None, words: int | Literal["all"], generator: torch.Generator
) -> tuple[_ReferenceLoss, State]:
    device = next(model.parameters()).device
    features, state = model.features(moved(window.tokens, device), state)
    targets = moved(window.targets, device)
    if words == "all" or words >= len(model.decoder_weight):
        return WholeLoss(model, features, targets), state
    return SampledLoss(model, features, targets, words, generator), state


class WholeLoss:
    """Losses from all words of the vocabulary."""

    def __init__(self, model: LanguageModel, features: Tensor, targets: Tensor) -> None:
        self.model, self.targets, self.device = model, targets, features.device
        self.dense = self._losses(features[:, None])

    def increase(self, features: Tensor) -> Tensor:
        """See `_ReferenceLoss`; 0 where nothing is to be predicted."""
        return self._losses(features) - self.dense

    def _losses(self, features: Tensor) -> Tensor:
        """Return each token's loss, (T, models, B), step by step, for the logits of all would not fit into memory."""
        return torch.stack([self._step(read, wanted) for read, wanted in zip(features, self.targets, strict=True)])

    def _step(self, read: Tensor, wanted: Tensor) -> Tensor:
        logits = self.model.decode(read.flatten(0, 1))
        losses = F.cross_entropy(logits, wanted.repeat(len(read)), ignore_index=IGNORED, reduction="none")
        return losses.view(len(read), -1)


class SampledLoss:
    """Loss increases from a few words for each token, unbiased but for what the logarithm makes of their noise.

    With p the dense model's probabilities, D the decoder's matrix, δ the change of the features and x = Dδ that of
    the logits, the loss of target y rises by log E_p[exp x] − x_y, and

        E_p[exp x] = 1 + (Dᵀp)·δ + Σ_v p_v φ(x_v),   φ(x) = exp x − 1 − x.

    The linear term is exact and costs one product. The sum, of second order, takes half of `words` exactly, the most
    probable, and the other half by systematic sampling from the rest, with probabilities proportional to p (Madow
    1949). Since Σ over the certain words of p exp x is a lower bound of the whole, an estimate below it becomes it.
    """

    def __init__(
        self, model: LanguageModel, features: Tensor, targets: Tensor, words: int, generator: torch.Generator
    ) -> None:
        self.dense, self.predicted, self.device = features, targets != IGNORED, features.device
        shares = model.decode(features).softmax(-1)
        self.certain = max(1, words // 2)
        chosen, self.weights = _words(shares, self.certain, words - self.certain, generator)
        read = torch.cat([chosen, targets.clamp(min=0)[..., None]], dim=-1)
        mean = shares @ model.decoder_weight
        self.rows = torch.cat([model.decoder_weight[read], mean[:, :, None]], dim=2)  # (T, B, words + 2, features)

    def increase(self, features: Tensor) -> Tensor:
        """See `_ReferenceLoss`; 0 where nothing is to be predicted."""
        steps = zip(features, self.dense, self.rows, self.weights, strict=True)
        return torch.stack([self._step(*step) for step in steps]) * self.predicted[:, None]

    def _step(self, read: Tensor, dense: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the increases of one step's tokens, (models, B)."""
        change = torch.bmm(rows, (read - dense).permute(1, 2, 0))
        x, of_target, linear = torch.split(change, [weights.shape[1], 1, 1], dim=1)
        growth = x.expm1()  # (B, words, models)
        estimate = 1 + linear[:, 0] + torch.bmm(weights[:, None], growth - x)[:, 0]
        likely = weights[:, None, : self.certain]
        bound = likely.sum(2) + torch.bmm(likely, growth[:, : self.certain])[:, 0]
        increase: Tensor = torch.maximum(estimate, bound).log() - of_target[:, 0]
        return increase.T


def _words(shares: Tensor, certain: int, sampled: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return words, (T, B, words), and weights with which their sum estimates that over all words by probability."""
    top = shares.topk(certain, dim=-1)
    ends = shares.to(finest(shares.device)).scatter(-1, top.indices, 0).cumsum(-1)
    rest = ends[..., -1:]
    offset = torch.rand(*ends.shape[:-1], 1, dtype=ends.dtype, generator=generator).to(ends.device)
    points = (torch.arange(sampled, device=ends.device) + offset) / max(sampled, 1) * rest
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=ends.shape[-1] - 1)
    weights = (rest / max(sampled, 1)).expand(*rest.shape[:-1], sampled).to(shares.dtype)
    return torch.cat([top.indices, drawn], dim=-1), torch.cat([top.values, weights], dim=-1)


def _oracle_table(chosen: Mapping[str, Tensor], halves: Sequence[ClusteredMean]) -> pd.DataFrame:
    whole = merged(halves)
    frame = pd.DataFrame(
        {
            "layer": [layer for layer, neurons in chosen.items() for _ in neurons],
            "neuron": torch.cat(list(chosen.values())).numpy(),
            "loss_increase": whole.mean.numpy(),
            "standard_error": whole.standard_error.numpy(),
            "even": halves[0].mean.numpy(),
            "odd": halves[1].mean.numpy(),
            "samples": whole.tokens.long().numpy(),
        }
    )
    found = {str(layer): reliability(rows) for layer, rows in frame.groupby("layer")}
    frame.insert(6, "reliability", frame["layer"].map(found).astype("float64"))
    return table("oracle", frame)


def reliability(measured: pd.DataFrame) -> float:
    """Return how far a ranking by measured loss increases would repeat itself on other text of the same length.

    2ρ / (1 + |ρ|) with ρ the Spearman correlation between `even` and `odd`, which is Spearman and Brown's formula
    where ρ ≥ 0 and stays within [−1, 1] below; NaN where fewer than two neurons vary.
    """
    rho = float(measured["even"].rank().corr(measured["odd"].rank())) if len(measured) > 1 else float("nan")
    return 2 * rho / (1 + abs(rho))


def removal_sets(measured: pd.DataFrame, *, shares: Sequence[float], seed: int) -> dict[str, dict[str, list[int]]]:
    """Return sets of neurons to remove together: name → layer → neurons.

    For each share two sets of ⌊share × measured neurons of the layer⌋ in each layer: `least`, those whose removal
    alone costs least, and `random`.

    Args:
        measured: The `oracle` table.
        shares: Shares of the measured neurons, below 1.
        seed: Seed of the random sets.
    """
    random = measured.assign(loss_increase=np.random.default_rng(seed).random(len(measured)))
    return {
        f"{name} {share:g}": {
            str(layer): sorted(rows.nsmallest(int(share * len(rows)), "loss_increase")["neuron"].tolist())
            for layer, rows in frame.groupby("layer")
        }
        for share in shares
        for name, frame in (("least", measured), ("random", random))
    }


def joint_removal(
    model: Measurable,
    windows: Batches,
    measured: pd.DataFrame,
    *,
    sets: Mapping[str, Mapping[str, Sequence[int]]],
    tokens: int,
    repair: Repair | None = None,
    finetune: Finetune | None = None,
    track: Track = silently,
) -> pd.DataFrame:
    """Return the `joint_removal` table: the loss increase when sets of neurons are removed together.

    Importance one neuron at a time does not add up ("Is oracle pruning the true oracle?", 2412.00143), so the sum of
    the single increases stands beside the joint one, and both are measured again after repair and after fine-tuning.
    Every increase is paired on the same tokens, its standard error as in `oracle`; after fine-tuning it is relative
    to the dense model with the same fine-tuning.

    Args:
        model: The dense model, with readers of its own for each layer.
        windows: Text that it was not trained on.
        measured: The `oracle` table.
        sets: Name → layer → neurons to remove.
        tokens: How many tokens to measure on, as far as the text goes.
        repair: What makes the smaller model from the dense one better than removal alone; None leaves this out.
        finetune: What trains a model further, the repaired one if there is a repair; None leaves this out.
        track: Shows progress.
    """
    layers, text = model.layers(), _first(model, windows, tokens)
    dense = cluster_losses(model, text)
    trained = None if finetune is None else cluster_losses(finetune(copy.deepcopy(model)), text)
    single = measured.set_index(["layer", "neuron"])["loss_increase"]
    rows = []
    for name, removed in track([*sets.items()], "joint removal"):
        keep = {layer.name: _others(layer.width, removed.get(layer.name, ())) for layer in layers}
        smaller = select(model, keep)
        phases = {"removed": (smaller, dense)}
        if repair is not None:
            smaller = repair(model, keep)
            phases["repaired"] = (smaller, dense)
        if finetune is not None and trained is not None:
            phases["finetuned"] = (finetune(copy.deepcopy(smaller)), trained)
        gone = [(layer.name, neuron) for layer in layers for neuron in removed.get(layer.name, ())]
        for phase, (pruned, reference) in phases.items():
            rows.append({"set": name, "phase": phase, "neurons": len(gone), "single_sum": float(single[gone].sum())})
            rows[-1] |= _paired(cluster_losses(pruned, text), reference)
    return table("joint_removal", pd.DataFrame(rows))


ClusterLosses = list[tuple[Tensor, Tensor]]
"""For each batch: the summed losses of its clusters, (clusters,), and how many targets each of them has."""


def cluster_losses(model: Measurable, batches: Sequence[Any]) -> ClusterLosses:
    """Return the losses of clusters of targets that may depend on each other: a column of a window, or a batch."""
    state, found = None, []
    with evaluating(model), torch.no_grad():
        for inputs, targets in batches:
            logits, state = model.logits(inputs, state)
            found.append(_by_cluster(model, logits, targets))
    return found


def _by_cluster(model: Measurable, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(model, LanguageModel):
        return model.judged(logits, targets, reduction="sum")[None], torch.tensor([model.count(targets)])
    wanted = model.labels(targets)
    losses = F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="none").view(targets.shape)
    return losses.sum(0), (targets != IGNORED).sum(0)


def _paired(pruned: ClusterLosses, dense: ClusterLosses) -> dict[str, float | int]:
    """Return the mean loss increase, its standard error and the tokens behind it."""
    found = ClusteredMean.empty(1)
    for (ours, counts), (theirs, _) in zip(pruned, dense, strict=True):
        found.update((ours - theirs)[:, None], counts)
    error = float(found.standard_error)
    return {"loss_increase": float(found.mean), "standard_error": error, "samples": int(found.tokens)}


def _others(width: int, removed: Sequence[int]) -> Tensor:
    kept = torch.ones(width, dtype=torch.bool)
    kept[torch.tensor(list(removed), dtype=torch.long)] = False
    return kept.nonzero().flatten()


def _first(model: Measurable, batches: Batches, tokens: int) -> list[Any]:
    """Return the first batches that hold this many targets, or all."""
    found, read = [], 0
    for inputs, targets in batches:
        if read >= tokens:
            break
        found.append((inputs, targets))
        read += model.count(targets)
    return found


def _first_windows(windows: Windows, tokens: int, *, after: int = 0) -> list[Window]:
    """Return the first windows that hold this many tokens, or all, and as many more as are to be read `after`."""
    each = windows.bptt * windows.inputs.shape[1]
    return [windows[index] for index in range(min(len(windows), after + -(-tokens // each)))]


def _check_text(windows: Windows, tokens: int, most: int) -> None:
    if most < tokens:
        raise ValueError(f"Expected `most` to be at least `tokens` ({tokens}), got {most}.")
    pilot = len(_first_windows(windows, round(PILOT * tokens))) if most > tokens else 0
    if len(_first_windows(windows, tokens, after=pilot)) < pilot + 2:
        raise ValueError(
            f"Expected at least two windows of text, and {pilot} before them for the pilot, got {len(windows)}."
        )
