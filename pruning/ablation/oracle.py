"""The truth that importance is judged by: how much the loss rises when neurons are really removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from pruning.ablation.batched import Removals, removals
from pruning.ablation.losses import _by_cluster, _dense_loss, _divergence_by_cluster, _first
from pruning.ablation.schemas import ORACLE
from pruning.core.devices import moved, states_of
from pruning.core.modes import evaluating
from pruning.core.neurons import NeuronLayer, masking, others
from pruning.core.options import check_most
from pruning.core.progress import Track, silently
from pruning.core.statistics import ClusteredMean, merged
from pruning.core.tables import table
from pruning.core.workers import Map, computed, dealt, in_turn
from pruning.data.windows import IGNORED, Batches, Window, Windows
from pruning.models.base import LanguageModel, Measurable, State, expect_ready

COLUMNS, MANY_COLUMNS = 320, 4096
"""Columns of one batch of models side by side, on a CPU and on an accelerator, which is idle at few: large enough for
fast products, small enough for memory."""
PILOT = 0.2
"""Share of `tokens` that is read first to decide who reads on."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Which neurons are removed, each alone, and how much text that is measured on; see `oracle`.

    >>> Ablation(neurons="all", tokens=1000, most=100, seed=1)
    Traceback (most recent call last):
    ValueError: Expected most to be at least tokens (1000), got 100.

    Attributes:
        neurons: How many to measure, drawn from each layer in proportion to its width; `all` for every one.
        tokens: Tokens that every neuron is measured on, as far as the text goes.
        seed: Seed of the neurons and words drawn.
        most: Tokens that a neuron is measured on whose place is not clear; None for `tokens`.
        tolerance: Standard error of a neuron's place, as a share of the ranking, up to which the place is clear.
        words: Words of the vocabulary to evaluate for each token, half of them the most probable; or `all`.

    Raises:
        ValueError: If `most` is below `tokens`.
    """

    neurons: int | Literal["all"]
    tokens: int
    seed: int
    most: int | None = None
    tolerance: float = 0.0
    words: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        check_most(self.tokens, self.limit)

    @property
    def limit(self) -> int:
        """The most tokens that any neuron is measured on."""
        return self.tokens if self.most is None else self.most

    def pilot(self, windows: Windows) -> int:
        """Return how many windows are read first to decide who reads on."""
        return len(_first_windows(windows, round(PILOT * self.tokens))) if self.limit > self.tokens else 0

    def check(self, windows: Windows) -> None:
        """Refuse too little text, and too few tokens for windows of this size."""
        pilot = self.pilot(windows)
        if len(windows) < pilot + 2:
            raise ValueError(
                f"Expected at least two windows of text, and {pilot} before them for the pilot, got {len(windows)}."
            )
        each = windows.bptt * windows.batch
        if self.tokens <= each:
            raise ValueError(
                f"Expected more tokens than a window's {each:,} ({windows.batch} × {windows.bptt}), since two are "
                f"compared, got {self.tokens:,}; read more tokens, or fewer columns at a time."
            )


def oracle(
    model: Measurable, windows: Batches, ablation: Ablation, *, track: Track = silently, map: Map = in_turn
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

    **Divergence.** The same pass says how far the answers move, KL(dense ‖ without the neuron), which is all of the
    increase that needs no label. It is known far better from as much text, since the label's noise is not in it; on
    text that was not trained on, the increase is this and a first-order term in the labels (see `intervention`).

    **Words.** The decoder and its softmax are most of the work. With `words: all` they are computed whole. With a
    number the change of log Σ exp is an estimate from that many words for each token (see `SampledLoss`), whose own
    error is part of the standard error and, with 64 words, adds less than 0.01% to it.

    **Other models.** Where the model is no `LanguageModel`, each neuron costs a reading with its readers' columns at
    zero; a batch is a cluster, and `most`, `tolerance` and `words` play no part. The divergence is that of their loss
    (`Objective.divergence`).

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> measured = oracle(unread, text, Ablation(neurons="all", tokens=32, seed=1))
    >>> abs(measured["loss_increase"][0].item()) < 1e-6
    True

    Args:
        model: A model whose layers have readers of their own.
        windows: Text that the model was not trained on, read from its start; at least two windows.
        ablation: Which neurons, and how much text.
        track: Shows progress.
        map: Who computes: each worker reads the text, with its share of the neurons.

    Raises:
        ValueError: If there are fewer than two windows of text after the pilot.
    """
    expect_ready(model)
    layers, tokens = model.layers(), ablation.tokens
    chosen = neurons_to_measure(layers, ablation.neurons, ablation.seed)
    if not isinstance(model, LanguageModel) or not isinstance(windows, Windows):
        samples = sum(model.count(targets) for _, targets in _first(model, windows, tokens))
        return _oracle_table(chosen, *_masked(model, windows, chosen, tokens, track, map)).assign(samples=samples)
    ablation.check(windows)
    device = next(model.parameters()).device
    passes = _passes(layers, chosen, windows.batch, COLUMNS if device.type == "cpu" else MANY_COLUMNS)
    return _oracle_table(chosen, *_measured(model, windows, passes, ablation, track, map))


def batches_read(model: Measurable, windows: Batches, tokens: int) -> int:
    """Return how many of `windows`' batches `oracle` reads for so many tokens, without a pilot."""
    if isinstance(model, LanguageModel) and isinstance(windows, Windows):
        return len(_first_windows(windows, tokens))
    return len(_first(model, windows, tokens))


def neurons_to_measure(layers: Sequence[NeuronLayer], neurons: int | Literal["all"], seed: int) -> dict[str, Tensor]:
    """Return which neurons of each layer to measure, ascending: a sample stratified by layer, at least two of each.

    >>> from pruning.core.neurons import NeuronLayer
    >>> layer = NeuronLayer("lstm.0", "rnn", 4, (), (), "lstm.0")
    >>> neurons_to_measure([layer], "all", seed=1)
    {'lstm.0': tensor([0, 1, 2, 3])}
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(layer.width for layer in layers)
    wanted = total if neurons == "all" else min(neurons, total)
    chosen = {}
    for layer in layers:
        share = min(layer.width, max(2, round(wanted * layer.width / total)))
        chosen[layer.name] = torch.randperm(layer.width, generator=generator)[:share].sort().values
    return chosen


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
    if len(pilot.mean) < 2:
        return torch.ones(len(pilot.mean), dtype=torch.bool)
    spread, noise = pilot.mean.var(), pilot.standard_error.square().mean()
    true = (spread - noise).clamp(min=0) / spread if spread > 0 else spread
    mean = pilot.mean * true.sqrt()
    variance = pilot.standard_error.square() * pilot.tokens / tokens
    near = (mean[:, None] - mean[None, :]).square() < variance[:, None] + variance[None, :]
    return near.fill_diagonal_(False).sum(1) / 2 <= tolerance * len(mean)


@dataclass(frozen=True)
class _Pass:
    """Models that run side by side, where their neurons stand among all that are measured, and what they carry."""

    layer: NeuronLayer
    neurons: Tensor
    places: Tensor
    carried: Any = None


@dataclass(frozen=True)
class _Share:
    """Passes that are read together, from the first of some windows on.

    Attributes:
        passes: None of them waits for another.
        budget: How many tokens each neuron that is measured is to read.
        state: The dense model's.
        drawn: The random state that the dense model's words are drawn from, or None for the seed's.
    """

    passes: Sequence[_Pass]
    budget: Tensor
    state: State | None = None
    drawn: Tensor | None = None


_Statistics = tuple[ClusteredMean, ClusteredMean, ClusteredMean]
"""Loss increases on even and on odd windows, and divergences on all; of what was not read, nothing."""


def _masked(
    model: Measurable, batches: Batches, chosen: Mapping[str, Tensor], tokens: int, track: Track, map: Map
) -> tuple[list[ClusteredMean], ClusteredMean]:
    """Return each neuron's loss increase on even and on odd batches, and its divergence, one reading for each neuron.

    Raises:
        ValueError: If there are fewer than two batches.
    """
    text = _first(model, batches, tokens)
    counted = [index for index, (_, targets) in enumerate(text) if model.weight(targets)]
    if len(counted) < 2:
        raise ValueError(f"Expected at least two batches with targets to measure removal on, got {len(counted)}.")
    layers = [(layer.name, layer.width, neuron) for layer in model.layers() for neuron in chosen[layer.name].tolist()]
    left = [{name: others(width, [neuron])} for name, width, neuron in layers]
    shares = dealt(range(len(left)), map)
    read = partial(_read_masked, model, text, counted, left)
    return _together([*computed(map, read, shares, track=track, what="oracle, shares of neurons")])


def _together(parts: Sequence[_Statistics]) -> tuple[list[ClusteredMean], ClusteredMean]:
    even, odd, divergences = (merged(each) for each in zip(*parts, strict=True))
    return [even, odd], divergences


def _read_masked(
    model: Measurable,
    text: Sequence[Any],
    counted: Sequence[int],
    left: Sequence[Mapping[str, Tensor]],
    places: Sequence[int],
    *,
    track: Track,
) -> _Statistics:
    """Return what batches tell of models in which only those `left` of a layer are read, those at these places."""
    even, odd, divergences = (ClusteredMean.empty(len(left)) for _ in range(3))
    states: dict[int, Any] = {}
    state, dense, loss, drawn = None, None, torch.empty(0), states_of(model)
    with evaluating(model), torch.no_grad():
        for index, place in track([*product(range(len(text)), places)], "oracle, removals by batch"):
            inputs, targets = text[index]
            if place == places[0]:
                drawn = states_of(model)
                dense, state = model.predicted(inputs, state)
                loss = _by_cluster(model, dense, targets)[0] if index in counted else loss
            with (
                drawn.again(),
                masking(model, left[place]),
            ):  # a loss may take gradients, by the weights that gave the outputs
                outputs, states[place] = model.predicted(inputs, states.get(place))
                judged = _by_cluster(model, outputs, targets) if index in counted else None
            if judged:
                divergence = _divergence_by_cluster(model, outputs, dense, targets)
                half, where = (even, odd)[counted.index(index) % 2], torch.tensor([place])
                half.update((judged[0] - loss)[:, None], judged[1], where)
                divergences.update(divergence[:, None], judged[1], where)
    return even, odd, divergences


def _passes(
    layers: Sequence[NeuronLayer], chosen: Mapping[str, Tensor], batch: int, columns: int = COLUMNS
) -> list[_Pass]:
    """Return the neurons as batches of models, none of more than so many columns or, at least, one model."""
    passes, start = [], 0
    for layer in layers:
        for part in torch.split(chosen[layer.name], max(1, columns // batch)):
            passes.append(_Pass(layer, part, torch.arange(start, start + len(part))))
            start += len(part)
    return passes


def _measured(
    model: LanguageModel, windows: Windows, passes: Sequence[_Pass], ablation: Ablation, track: Track, map: Map
) -> tuple[list[ClusteredMean], ClusteredMean]:
    """Return each neuron's loss increase on even and on odd windows after the pilot, and its divergence on them."""
    count, first = sum(len(each.places) for each in passes), ablation.pilot(windows)
    budget, last = torch.full((count,), ablation.limit), len(_first_windows(windows, ablation.limit, after=first))
    shares = [_Share(part, budget) for part in dealt(passes, map)]
    if first:
        pilot = partial(_read, model, windows, range(first), ablation, pilot=True)
        read = [*computed(map, pilot, shares, track=track, what="oracle's pilot, shares of neurons")]
        increases = merged([every for (every, _, _), _ in read])
        budget[clear_places(increases, ablation.tokens, ablation.tolerance)] = ablation.tokens
        shares = [replace(share, budget=budget) for _, share in read]
    reading = partial(_read, model, windows, range(first, last), ablation)
    return _together(
        [part for part, _ in computed(map, reading, shares, track=track, what="oracle, shares of neurons")]
    )


def _read(
    model: LanguageModel,
    windows: Windows,
    places: range,
    ablation: Ablation,
    share: _Share,
    *,
    track: Track,
    pilot: bool = False,
) -> tuple[_Statistics, _Share]:
    """Return what windows tell of a share's neurons, each as far as its budget goes, and the share to go on with.

    Of a pilot, which is in nobody's budget, all increases are in the first statistic.
    """
    even, odd, divergences = (ClusteredMean.empty(len(share.budget)) for _ in range(3))
    generator = torch.Generator().manual_seed(ablation.seed)
    if share.drawn is not None:
        generator.set_state(share.drawn)
    state, read = share.state, 0
    with evaluating(model), torch.inference_mode():
        running = [(each, removals(model, each.layer, each.neurons, each.carried)) for each in share.passes]
        for place in track(places, "oracle, batches"):
            window = windows[place]
            loss, state = _dense_loss(model, window, state, ablation.words, generator)
            counts = (window.targets != IGNORED).sum(0)
            for each, models in running:
                increase, divergence = loss.compared(models.features(moved(window.tokens, loss.device)))
                half = odd if (place - places.start) % 2 and not pilot else even
                half.update(increase.sum(0).T, counts, each.places)
                divergences.update(divergence.sum(0).T, counts, each.places)
            read += 0 if pilot else int(counts.sum())
            running = _going_on(running, share.budget > read)
            if not running:
                break
    going = [replace(each, carried=models.carried) for each, models in running]
    return (even, odd, divergences), replace(share, passes=going, state=state, drawn=generator.get_state())


def _going_on(running: Sequence[tuple[_Pass, Removals]], wanted: Tensor) -> list[tuple[_Pass, Removals]]:
    """Return the passes with only the neurons that are `wanted`, a flag for each that is measured."""
    going = []
    for each, models in running:
        staying = wanted[each.places].nonzero().flatten()
        if len(staying) < len(each.places):
            each = replace(each, neurons=each.neurons[staying], places=each.places[staying])
            models.keep(staying)
        if len(staying):
            going.append((each, models))
    return going


def _oracle_table(
    chosen: Mapping[str, Tensor], halves: Sequence[ClusteredMean], divergences: ClusteredMean
) -> pd.DataFrame:
    whole = merged(halves)
    frame = pd.DataFrame(
        {
            "layer": [layer for layer, neurons in chosen.items() for _ in neurons],
            "neuron": torch.cat(list(chosen.values())).numpy(),
            "loss_increase": whole.mean.numpy(),
            "standard_error": whole.standard_error.numpy(),
            "divergence": divergences.mean.numpy(),
            "divergence_error": divergences.standard_error.numpy(),
            "even": halves[0].mean.numpy(),
            "odd": halves[1].mean.numpy(),
            "samples": whole.tokens.long().numpy(),
        }
    )
    reliabilities = {str(layer): split_half_reliability(rows) for layer, rows in frame.groupby("layer")}
    frame.insert(8, "reliability", frame["layer"].map(reliabilities).astype("float64"))
    return table(ORACLE, frame)


def split_half_reliability(measured: pd.DataFrame) -> float:
    """Return how far a ranking by measured loss increases would repeat itself on other text of the same length.

    2ρ / (1 + |ρ|) with ρ the Spearman correlation between `even` and `odd`, which is Spearman and Brown's formula
    where ρ ≥ 0 and stays within [−1, 1] below; NaN where fewer than two neurons vary.
    """
    rho = float(measured["even"].rank().corr(measured["odd"].rank())) if len(measured) > 1 else float("nan")
    return 2 * rho / (1 + abs(rho))


def _first_windows(windows: Windows, tokens: int, *, after: int = 0) -> list[Window]:
    """Return the first windows that hold this many tokens, or all, and as many more as are to be read `after`."""
    each = windows.bptt * windows.batch
    return [windows[index] for index in range(min(len(windows), after + -(-tokens // each)))]
