"""Importance by causal analysis: what removal does to the answers, and what the labels say of that, as far as known."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pruning.ablation.oracle import Ablation, batches_read, neurons_to_measure, oracle
from pruning.core.hooks import record
from pruning.core.modes import derivatives
from pruning.core.neurons import NeuronLayer, real_pairs
from pruning.core.progress import Track, silently
from pruning.core.statistics import ClusteredMean
from pruning.core.tables import rows_of, table, unmeasured
from pruning.core.workers import Map, in_turn
from pruning.data.windows import Batches
from pruning.models.base import LanguageModel, Measurable, expect_ready
from pruning.signals.gradients import gate_gradients, gate_sums, gates_of_each
from pruning.signals.jackknife import GROUPS
from pruning.signals.schemas import INTERVENTION

DEPENDENT = 2.0
"""Variance of a divergence, over what it would be if columns of neighbouring windows did not depend on each other."""
LEAST = 0.1
"""Share of a layer's mean divergence below which a neuron's scale does not fall."""
SMOOTH = 0.1
"""Standard error of a layer's curvature over its divergence as the share of the divergence that is a loss."""
HALF, AROUND = 0.5, 0.25
"""What each of two texts' label terms counts before they are compared, and the standard deviation around that."""
SURE = 0.5
"""Standard deviation of what labels add to the divergence's share, before they are looked at."""
CERTAIN = 1e-9
"""Least variance of what a predictor of a text's label term counts."""

COUNTS = ""
"""What no layer is called: under this name stands how many targets of each column count."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """How much text an intervention reads.

    >>> Intervention(tokens=1000, batches=10).words
    64

    Attributes:
        tokens: Tokens that every neuron's divergence is measured on.
        batches: At most so many labelled batches are read.
        label_share: What the label term counts for; 0 leaves it out, None takes what its error leaves of it. With a
            number the divergence counts whole.
        words: As in `Ablation`.
        seed: Seed of the words drawn.
        most: Of a network that is none of the families, where every neuron costs a reading: from how many neurons on
            nothing is measured, and a warning says so. None for no limit.
        neurons: How many are removed, drawn as in `Ablation`; of the others the labels alone are looked at, and they
            have no importance. `all` for every one.
    """

    tokens: int = 3000
    batches: int = 10**9
    label_share: float | None = None
    words: int | Literal["all"] = 64
    seed: int = 1
    most: int | None = None
    neurons: int | Literal["all"] = "all"


@dataclass
class _Pull:
    """What labels of some text say of one layer's gates.

    Attributes:
        terms: −∂L/∂m, nat/token; a batch is a cluster.
        squares: Σ s², s being the gate's gradient in one column of a window, (width,); 0 where columns are not known.
        stretches: −Σ s of each of `GROUPS` stretches of the text as it runs, (GROUPS, width).
        tokens: Of each stretch, (GROUPS,).
    """

    terms: ClusteredMean
    squares: Tensor
    stretches: Tensor
    tokens: Tensor

    @classmethod
    def empty(cls, width: int) -> Self:
        """Return the state that has seen nothing."""
        squares, stretches, tokens = (torch.zeros(s, dtype=torch.float64) for s in (width, (GROUPS, width), GROUPS))
        return cls(ClusteredMean.empty(width), squares, stretches, tokens)

    def update(self, gates: Tensor, weight: float, counts: Tensor, places: Tensor) -> None:
        """Take in what `_gates` says of a batch, (1 + columns, width), whose columns are of the stretches at `places`.

        Args:
            gates: ∂L/∂m, and s of each column.
            weight: What the batch counts.
            counts: What each column counts, (columns,).
            places: (columns,).
        """
        whole = gates.double()
        self.terms.update(-weight * whole[:1], torch.tensor([weight], dtype=torch.float64))
        slopes = whole[1:]
        self.squares += slopes.square().sum(0)
        self.stretches.index_add_(0, places, -slopes if len(slopes) else -weight * whole)
        self.tokens.index_add_(0, places, counts.double())

    @property
    def apart(self) -> np.ndarray:
        """The term by each stretch that was read, (stretches, width)."""
        read = self.tokens > 0
        return (self.stretches[read] / self.tokens[read, None]).numpy()

    @property
    def between(self) -> np.ndarray:
        """Standard error of the terms from how far stretches of the text differ, (width,)."""
        means = self.apart
        if len(means) < 2:
            return self.terms.standard_error.numpy()
        return np.asarray(means.std(axis=0, ddof=1) / np.sqrt(len(means)))


def intervention(
    model: Measurable,
    windows: Batches,
    labelled: Batches,
    settings: Intervention | None = None,
    *,
    trained: Batches | None = None,
    track: Track = silently,
    map: Map = in_turn,
) -> pd.DataFrame:
    """Return the `intervention` table: what the removal of each neuron costs on text that was not trained on.

    With p the dense model's answers, δz the change of the logits by removal and y the labels, the loss rises by

        KL(dense ‖ without the neuron) + E[(p − y) · δz].

    The divergence needs no label, is no smaller than 0 and known well from little text: every neuron is really removed
    for it (the intervention do(h = 0) of Pearl 2009; Chattopadhyay et al. 2019 for neural networks). The second term is
    −∂L/∂m of the neuron's gate m at first order. On text that the model was trained on it says what was overfitted, not
    what helps, so its labels must come from elsewhere.

    Both are estimates, and each layer's neurons together say how far each neuron's own can be trusted (empirical Bayes,
    Efron & Morris 1973), in units of D or √D, as their variances go with it:

    - the divergence D has a companion of many more tokens, the curvature C = ½ Σ s² / n, with s the gate's gradient in
      one column of a window: half the gate's Fisher information, which the divergence is to second order. It is
      D̂ = w D + (1 − w) c C with c = ΣD / ΣC and 1 − w = 2 E[error² of D] / E[(D − c C)²], the error being doubled since
      neighbouring windows are of one document;
    - of D̂ counts s (s D̂ + (1 − s) c C). With Δ the loss increase of the same removals on the same tokens, L their
      label term there and sums over the layer's neurons, r = Σ(Δ − L) / ΣD of the divergence is a loss, and
      1 − s = (1 − Σ error² of Δ / (ΣD − Σ(Δ − L))²) (1 − r′), within [0, 1]. In smooth layers Δ − L ≈ D and s = 1.
      Where removal moves spikes, answers also change at random: the divergence counts that, yet noise costs no more
      than the noise that was there. The curvature sees none of it. So r′ is the mean of r and of ΣC / ΣD (at most 1),
      each by its variance: twice Σ error² of Δ / (ΣD)², and 0.1²; without curvature r′ = r, and s D̂ counts;
    - of the label term L counts f L with 1 − f = E[error² of L] / E[(L − μ)²], μ being the layer's mean and the error
      that between eight consecutive stretches of the text, which sees how far documents differ; or `label_share` of it.

    Text that the model was trained on (`trained`) tells of many more documents, though of ones that it has seen. With T
    its label term, a T + b L counts in place of f L: each stretch's own term is predicted from T and from the other
    stretches by least squares over the layer's neurons, all less their mean and over √D (stacking, Wolpert 1992;
    Breiman 1996). A third predictor, with d, is what counts of the divergence, D̃ = s D̂ + (1 − s) c C: a model that is
    too sure of its answers (Guo et al. 2017) gains by what any removal takes of that, in proportion to D̃, and where
    L is drawn to 0 that is lost; so (s + d) D̃ counts. Few documents leave these weights uncertain: with S their
    covariance when each stretch in turn is left unpredicted (jackknife), a, b and s + d ≥ 0 are most probable given
    N(½, ¼²) of a and b and N(s, ½²) of s + d before, and are these means where a layer has too few neurons to tell.
    Where a model has learnt its text by heart, T does not tell what other text says, and a is near 0. `label_term`
    is then (a T + b L) / (a + b), a + b of it is trusted, and `divergence_share` is s + d.

    Of a wide network that is none of the families a sample can be removed (`neurons`), each for a reading. Each layer's
    own then say how far its numbers are trusted, and a neuron that was not removed has no divergence and no importance.

    It predicts the removal of *one* neuron. To choose a set that is repaired afterwards, `surgeon` is better.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> measured = intervention(unread, text, text, Intervention(tokens=32))
    >>> abs(measured["importance"][0].item()) < 1e-6, bool((measured["divergence"] > -1e-6).all())
    (True, True)

    Args:
        model: A model whose layers have readers of their own.
        windows: The text (or other batches) that neurons are removed on; best the first of `labelled`, since its labels
            say how much of the divergence is a loss.
        labelled: Text that the model was not trained on, nor is to be judged by.
        settings: How much of both is read.
        trained: Text with labels that the model was trained on, no part of `labelled`; as many of its batches are read.
            Left out where `label_share` is given.
        track: Shows progress.
        map: Who computes: each worker removes its share of the neurons, and differentiates some labelled batches.

    Raises:
        ValueError: If there are fewer than two windows of either.
    """
    expect_ready(model)
    settings = settings or Intervention()
    layers = [(layer.name, layer.width) for layer in model.layers()]
    chosen = neurons_to_measure(model.layers(), settings.neurons, settings.seed)
    count = sum(map(len, chosen.values()))
    if settings.most is not None and count > settings.most and not isinstance(model, LanguageModel):
        logger.warning(
            "Not measured: intervention, because each of %d neurons costs a reading and at most %d are to be removed.",
            count,
            settings.most,
        )
        return unmeasured(INTERVENTION, layers)
    ablation = Ablation(neurons=settings.neurons, tokens=settings.tokens, words=settings.words, seed=settings.seed)
    removed = oracle(model, windows, ablation, track=track, map=map)[
        ["layer", "neuron", "divergence", "divergence_error", "loss_increase", "standard_error"]
    ]
    frame = rows_of(*zip(*layers, strict=True)).merge(removed, on=["layer", "neuron"], how="left")
    pulls, seen, there = label_pulls(model, labelled, settings.batches, track, map), {}, {}
    if settings.label_share is None:
        there = label_terms(model, windows, batches_read(model, windows, settings.tokens), track, map)
    if trained is not None and settings.label_share is None:
        seen = label_pulls(model, trained, min(settings.batches, len(model.pairs(labelled))), track, map)
    layers_of = frame["layer"].to_numpy(dtype=str)
    for layer in model.layers():  # the table's rows are sorted by name, as `model.layers()` need not be
        rows = np.flatnonzero(layers_of == layer.name)
        known = (pulls[layer.name], seen.get(layer.name), there.get(layer.name), settings.label_share)
        for name, values in _expected(frame.iloc[rows], *known).items():
            frame.loc[rows, name] = values
    return table(INTERVENTION, frame[list(INTERVENTION.columns)])


def _expected(
    rows: pd.DataFrame, pull: _Pull, seen: _Pull | None, there: ClusteredMean | None, share: float | None
) -> dict[str, np.ndarray]:
    """Return a layer's further columns, by what its neurons that were removed say; not numbers for the others."""
    measured, error = rows["divergence"].to_numpy(), rows["divergence_error"].to_numpy()
    curvature, removed = (pull.squares / pull.terms.tokens).numpy() / 2, np.isfinite(measured)
    lost = 1.0 if there is None else _lost(rows[removed], there.mean.numpy()[removed], curvature[removed].sum())
    weight, counted, companion = 1.0, 1.0, curvature
    if curvature[removed].sum() > 0 and measured[removed].sum() > 0:
        companion = curvature * (measured[removed].sum() / curvature[removed].sum())
        middle = (measured + companion) / 2
        weight = _trusted(measured - companion, DEPENDENT**0.5 * error, middle)
        counted = lost * weight
    divergence, calm = (w * measured + (1 - w) * companion if w < 1 else measured for w in (weight, counted))
    term, term_error = pull.terms.mean.numpy(), pull.terms.standard_error.numpy()
    factor = share
    if factor is None:
        scale = np.maximum(divergence, max(divergence[removed].mean(), 0) * LEAST)
        if seen is None or len(pull.apart) < 2:
            factor = _trusted(_less_mean(term, scale), pull.between, np.sqrt(scale))
        else:
            beside, own, lost = _weights(seen.terms.mean.numpy(), pull.apart, calm, scale, lost)
            factor = beside + own
            if factor:
                term = (beside * seen.terms.mean.numpy() + own * term) / factor
                term_error = np.hypot(beside * seen.terms.standard_error.numpy(), own * term_error) / factor
    return {
        "curvature": curvature,
        "divergence_share": np.full(len(term), lost),
        "label_term": term,
        "label_error": term_error,
        "trusted": np.full(len(term), factor),
        "importance": lost * calm + factor * term,
        "standard_error": np.hypot(lost * counted * error, factor * term_error),
    }


def _lost(rows: pd.DataFrame, term: np.ndarray, curvature: float) -> float:
    """Return the share of a layer's divergence that is a loss, by the increases, and label terms, of its removals.

    Args:
        rows: Of the neurons that were removed.
        term: Their label terms on the same text.
        curvature: Its sum over them; 0 where it is not known.
    """
    divergence, noise = rows["divergence"].sum(), np.square(rows["standard_error"].to_numpy()).sum()
    idle = divergence - (rows["loss_increase"].to_numpy() - term).sum()
    if divergence <= 0 or idle <= 0:
        return 1.0
    share = 1 - idle / divergence
    if curvature > 0:
        variance = DEPENDENT * noise / divergence**2
        share = (SMOOTH**2 * share + variance * min(1, curvature / divergence)) / (SMOOTH**2 + variance)
    return float(np.clip(1 - max(0.0, 1 - noise / idle**2) * (1 - share), 0, 1))


def _trusted(deviations: np.ndarray, errors: np.ndarray, scale: np.ndarray) -> float:
    """Return the share of deviations' mean square, in units of their scale, that their errors do not explain."""
    varies = scale > 0
    spread = float(np.square(deviations[varies] / scale[varies]).sum())
    noise = float(np.square(errors[varies] / scale[varies]).sum())
    return max(0.0, 1 - noise / spread) if spread > 0 else 0.0


def _less_mean(term: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return what a layer's terms, whose variances go with `scale`, have beyond their mean; (..., width)."""
    varies = scale > 0
    return term - np.average(term[..., varies], weights=1 / scale[varies], axis=-1)[..., None] if varies.any() else term


def _weights(
    seen: np.ndarray, apart: np.ndarray, calm: np.ndarray, scale: np.ndarray, lost: float
) -> tuple[float, float, float]:
    """Return what the term of text that was seen, (width,), that of stretches, (stretches, width), and `calm` count.

    All are ≥ 0. `lost` is what `calm` counts before labels are looked at.
    """
    varies, count, before = scale > 0, len(apart), np.array([HALF, HALF, lost])
    others = (apart.sum(0) - apart) / (count - 1)
    given = (np.broadcast_to(seen, apart.shape), others, np.broadcast_to(calm, apart.shape), apart)
    *known, wanted = ((_less_mean(g, scale) / np.sqrt(np.where(varies, scale, 1)))[:, varies] for g in given)
    rows = np.stack(known, -1)
    squares, products = rows.swapaxes(1, 2) @ rows, np.einsum("gna, gn -> ga", rows, wanted)
    from scipy.optimize import nnls  # slow to import, and an importance rarely asks for it

    if np.linalg.matrix_rank(squares.sum(0)) < len(before):
        return HALF, HALF, lost
    predicted = [np.arange(count) != left for left in (*range(count), count)]  # without each stretch, and all
    *each, fitted = (np.linalg.lstsq(squares[of].sum(0), products[of].sum(0), rcond=None)[0] for of in predicted)
    variances, axes = np.linalg.eigh((count - 1) ** 2 / count * np.cov(each, rowvar=False))
    precise = axes.T / np.sqrt(np.maximum(variances, CERTAIN))[:, None]
    prior = np.diag(1 / np.array([AROUND, AROUND, SURE]))
    shifted = fitted + np.array([0, 0, lost])
    weights, _ = nnls(np.concatenate([precise, prior]), np.concatenate([precise @ shifted, prior @ before]))
    return float(weights[0]), float(weights[1]), float(weights[2])


def label_terms(
    model: Measurable, labelled: Batches, batches: int, track: Track, map: Map = in_turn
) -> dict[str, ClusteredMean]:
    """Return −∂L/∂m of every neuron, nat/token, by layer; a batch is a cluster.

    Raises:
        ValueError: If fewer than two batches have targets.
    """
    return {name: pull.terms for name, pull in label_pulls(model, labelled, batches, track, map).items()}


def label_pulls(
    model: Measurable, labelled: Batches, batches: int, track: Track, map: Map = in_turn
) -> dict[str, _Pull]:
    """Return what labels say of every layer's gates.

    The columns of windows run on from one to the next, so that the text is all of the first column, then all of the
    second: in C columns of W windows, column c of window i is of stretch ⌊(c W + i) · 8 / (C W)⌋. Were a stretch some
    windows with all of their columns, it would have a part of every document, and none would differ as documents do.

    Raises:
        ValueError: If fewer than two batches have targets.
    """
    pairs, layers, read = model.pairs(labelled), model.layers(), 0
    count = min(batches, len(pairs))
    pulls = {layer.name: _Pull.empty(layer.width) for layer in layers}
    each = gates_of_each(model, layers, pairs, count, track=track, what="intervention", map=map, gates=_gates)
    for index, gates in enumerate(each):
        if gates is None:
            continue
        weight, values = gates
        counts = values[COUNTS]
        places = (torch.arange(len(counts)) * count + index) * GROUPS // (len(counts) * count)
        for name, pull in pulls.items():
            pull.update(values[name], weight, counts, places)
        read += 1
    if read < 2:
        raise ValueError(f"Expected at least two batches with targets for `intervention`, got {read}.")
    return pulls


def _gates(
    model: Measurable, layers: Sequence[NeuronLayer], inputs: Any, targets: Any, state: Any
) -> tuple[dict[str, Tensor], Any]:
    """Return ∂L/∂m, and s of each column, nat, of a window, (1 + columns, width) by layer, their counts, and the state.

    s leaves out what the window read before. A batch whose columns are not known counts as one, without s.
    """
    weight = model.weight(targets)
    if not isinstance(model, LanguageModel):
        gates, after = gate_gradients(model, layers, inputs, targets, state)
        return {COUNTS: torch.tensor([weight]), **{name: values[None] for name, values in gates.items()}}, after
    outputs: dict[str, Tensor] = {}
    with record(model, layers, outputs.__setitem__):  # with derivatives' kernels, as whoever passes over it does
        after = model.read(inputs, state)
    read = {piece.parameter for layer in layers for piece in layer.read}
    weights = {name: parameter for name, parameter in model.named_parameters() if name in read}
    logits, taps, _ = model.tapped(inputs, state)
    loss = model.objective(targets).likelihood_loss(logits, targets) / weight
    slopes = derivatives(loss, [*weights.values(), *taps.values()])
    products = {name: real_pairs(w.detach()) * g for (name, w), g in zip(weights.items(), slopes, strict=False)}
    columns = {
        name: (outputs[name].detach().view_as(g) * g).sum(0) * weight
        for name, g in zip(taps, slopes[len(weights) :], strict=True)
    }
    counts = model.objective(targets).counted(targets).view_as(targets).sum(0)
    sums = gate_sums(layers, products)
    return {COUNTS: counts, **{name: torch.cat([s[None], columns[name]]) for name, s in sums.items()}}, after
