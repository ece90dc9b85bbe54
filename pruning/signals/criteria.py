"""The criteria of the field side by side: each a formula of ten lines over the same evidence from the same text."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from pruning.core.modes import evaluating, thawed
from pruning.core.neurons import NeuronLayer, PrunableModule, expect_finite, gather, named_tensors
from pruning.core.progress import Track, silently
from pruning.core.statistics import entropy, inverse_diagonal, jackknife_error, merged
from pruning.core.tables import table, unmeasured
from pruning.data.windows import Batches
from pruning.models.base import Measurable
from pruning.signals.cooperative import edges_of, recurrent_coupling
from pruning.signals.evidence import Evidence, gather_evidence, partition
from pruning.signals.jackknife import empty_groups, expect_several, filled, group_of, groups_that_fit
from pruning.signals.schemas import CRITERIA, CRITERIA_TABLE, EXACT
from pruning.signals.sensitivity import tappable

DAMPING = 0.85
"""Chance that PageRank's walker follows an edge rather than jumping anywhere (Brin & Page 1998)."""
SETTLED = 1e-15
"""What PageRank's chances change by in all, at most, when the walk has settled; near the rounding of their sum."""
EMPIRICAL = "empirical"
"""What the Fisher information is by the true targets, for want of a distribution to draw others from."""
WALKED = 250
"""Steps of the walk at most: what remains of its start is 0.85²⁵⁰ < 1e-17."""


def criteria(
    model: Measurable,
    windows: Batches,
    *,
    batches: int,
    bins: int,
    classes: int,
    ridge: float,
    seed: int,
    track: Track = silently,
) -> pd.DataFrame:
    """Return the `criteria` table: one column for each criterion, and the standard error of those that are estimates.

    Each criterion's meaning, unit and source stand with its function below, by the column's name. The text is read
    once: one forward and three backward passes a window serve them all (see `gather_evidence`). Every estimate's
    standard error is the jackknife over eight consecutive groups of windows (fewer of wide layers, see
    `groups_that_fit`). Of a layer whose outputs cannot be tapped there are no numbers, and a warning says why.

    >>> import torch, pruning
    >>> model = pruning.build(
    ...     "rnn", vocabulary=9, embedding=4, widths=[6], nonlinearity="tanh", decoder="untied", dropout=0.0
    ... )
    >>> text = pruning.Windows(torch.arange(160) % 9, first=0, batch=2, bptt=8)
    >>> unread = pruning.mask(model, {"rnn.0": torch.arange(1, 6)})  # nobody reads neuron 0
    >>> found = criteria(unread, text, batches=4, bins=4, classes=3, ridge=1e-4, seed=1)
    >>> found.loc[0, ["magnitude_out", "gate_fisher", "kfac_obs"]].tolist()
    [0.0, 0.0, 0.0]

    Args:
        model: Any model whose layers can be tapped (`Measurable.tapped`).
        windows: Calibration text (or other batches), read in order with carried state.
        batches: At most this many windows are read.
        bins: Bins of each neuron's outputs, for `mutual_information`.
        classes: Groups of predicted token types, for `mutual_information`.
        ridge: Added to the diagonal of the outputs' covariance, relative to its mean, for `kfac_obs`.
        seed: Seed of the labels sampled from the model.
        track: Shows progress.

    Raises:
        ValueError: If there is only one window, whose spread nothing tells.
    """
    windows = model.pairs(windows)
    count = min(batches, len(windows))
    expect_several(count, "criteria")
    expect_finite(model)
    layers = tappable(model, windows, "criteria")
    left_out = [(layer.name, layer.width) for layer in model.layers() if layer not in layers]
    if not layers:
        return unmeasured(CRITERIA_TABLE, left_out)
    generator = torch.Generator().manual_seed(seed)
    groups: list[list[dict[str, Evidence]]] = empty_groups(list, count, groups_that_fit(layers))
    parts, state, fisher = None, None, EMPIRICAL
    with evaluating(model), thawed(model):
        for index, batch in zip(track(range(count), "criteria"), windows, strict=False):
            if not model.count(batch[1]):
                state = model.passed(batch[0], state)
                continue
            fisher = model.objective(batch[1]).drawn or EMPIRICAL
            parts = parts or partition(model, batch, bins=bins, classes=classes)
            found, state = gather_evidence(model, layers, batch, state, partition=parts, generator=generator)
            group = group_of(groups, index, count)
            before = group.pop() if group else {}
            group.append({name: before[name].merge(new) if before else new for name, new in found.items()})
    rows = [
        _rows(model, layer, filled([one[layer.name] for group in groups for one in group], "criteria"), ridge)
        for layer in layers
    ]
    rows = [frame.assign(fisher=fisher) for frame in rows]
    rows += [unmeasured(CRITERIA_TABLE, left_out)] if left_out else []
    return table(CRITERIA_TABLE, pd.concat(rows, ignore_index=True))


@dataclass(frozen=True)
class Known:
    """What is known of one layer.

    Attributes:
        evidence: What the text has told.
        own: Each neuron's own weights, (width, n).
        columns: Each neuron's outgoing weights, in every reader, (width, m).
        coupling: How strongly each pair is wired, (width, width), or None.
        ridge: Relative addition to the diagonal of the covariance before it is inverted.
    """

    evidence: Evidence
    own: Tensor
    columns: Tensor
    coupling: Tensor | None
    ridge: float

    def per_token(self, total: str) -> Tensor:
        """Return one of the evidence's totals divided by the tokens read, (width,)."""
        return self.evidence.totals[total] / self.evidence.tokens

    @property
    def mean_square(self) -> Tensor:
        """E[h²], (width,)."""
        states = self.evidence.states
        return states.products.diagonal() / states.count + states.mean.square()


def magnitude_in(known: Known) -> Tensor:
    """Return ‖w‖₂ of the neuron's own weights (weight); exact.

    Source: Li, Kadav, Durdanovic, Samet & Graf 2017, with the L2 norm.
    """
    size: Tensor = known.own.norm(dim=1)
    return size


def magnitude_out(known: Known) -> Tensor:
    """Return ‖w‖₂ of the neuron's outgoing weights, over every reader (weight); exact.

    Source: He, Fan, Qian, Tan & Yu 2014, their output-weights norm.
    """
    size: Tensor = known.columns.norm(dim=1)
    return size


def taylor_first(known: Known) -> Tensor:
    """Return Σ |s| / n (nat/token): the mean size of the gate gradient of one sequence, a column of a window.

    s = Σ_t γ_t h_t = ∂Σℓ/∂m. Source: Molchanov, Tyree, Karras, Aila & Kautz 2017, whose |mean over positions of
    ∂C/∂h · h|, averaged over examples, this is.
    """
    return known.per_token("gate_size")


def taylor_square(known: Known) -> Tensor:
    """Return E[(∂L/∂m)²] over windows, L being a window's mean loss (nat²/token²), long windows counting for more.

    Source: Molchanov, Mallya, Tyree, Frosio & Kautz 2019, eq. 8 with a gate, averaged over mini-batches.
    """
    return known.per_token("gate_window")


def taylor_second(known: Known) -> Tensor:
    """Return −∂L/∂m + ½ F (nat/token): the loss increase that two terms of the expansion predict for m = 1 → 0.

    F, the gate's diagonal of the generalised Gauss–Newton matrix, stands for the second derivative; it is the Fisher
    information with sampled labels (see `gate_fisher_sampled`). Signed: where it is negative, removal should help.
    Source: Molchanov et al. 2019 (second order); Schraudolph 2002 (Gauss–Newton).
    """
    return gate_fisher_sampled(known) - known.per_token("gate")


def gate_fisher(known: Known) -> Tensor:
    """Return ½ Σ s² / n with the true labels (nat/token), a sequence being an example.

    The predicted loss increase where the model predicts as the text does. Source: Theis, Korshunova, Tejani &
    Huszár 2018.
    """
    return 0.5 * known.per_token("gate_true")


def gate_fisher_sampled(known: Known) -> Tensor:
    """Return ½ Σ s² / n with labels sampled from the model (nat/token).

    Labels are drawn independently, so gradients of different tokens are uncorrelated and Σ s² is an unbiased estimate
    of Σ_t (∂ℓ_t/∂m)²: the Fisher information, which equals the Gauss–Newton matrix. Source: Theis et al. 2018;
    Kunstner, Balles & Hennig 2019 on why the labels matter.
    """
    return 0.5 * known.per_token("gate_sampled")


def weight_fisher(known: Known) -> Tensor:
    """Return ½ Σ_w w² F_w over own weights (nat/token), F_w = E[(∂ℓ/∂w)²] with sampled labels.

    F_w comes from a window's whole gradient, squared: cross terms vanish in expectation, as above. Source: LeCun,
    Denker & Solla 1990, with the Fisher information for the Hessian.
    """
    return 0.5 * known.per_token("weight_sampled")


def snip(known: Known) -> Tensor:
    """Return Σ_w |w ∂L/∂w| over own weights (nat/token), averaged over windows, each one of the paper's mini-batches.

    Source: Lee, Ajanthan & Torr 2019, not divided by the sum over all weights.
    """
    return known.per_token("snip")


def grasp(known: Known) -> Tensor:
    """Return Σ_w w (H g)_w over own weights (nat²/token²), averaged over windows.

    g and H are gradient and Hessian of a window's mean loss by the neurons' own weights. Removing a weight changes
    the gradient's squared norm by −2 w (H g)_w: whoever scores low can go without slowing learning, and may speed it.
    Source: Wang, Zhang & Grosse 2020; theirs is the negative, of which the largest are removed.
    """
    return known.per_token("grasp")


def fluctuation(known: Known) -> Tensor:
    """Return var(h) · ‖w‖² over outgoing weights (activation² · weight²): what a bias cannot make up for.

    Source: An, Zhao, Yu, Tang & Wang 2024 (FLAP), eq. 5.
    """
    return known.evidence.states.matrix.diagonal() * known.columns.square().sum(1)


def wanda(known: Known) -> Tensor:
    """Return Σ |w| · √E[h²] over outgoing weights (activation · weight).

    Source: Sun, Liu, Bair & Kolter 2024, their score of a weight summed over its column, with the mean in place of
    the sum over tokens.
    """
    return known.columns.abs().sum(1) * known.mean_square.sqrt()


def kfac_trace(known: Known) -> Tensor:
    """Return ½ E[h²] · E[γ²] with sampled labels (nat/token): the K-FAC estimate of the neuron's gate Fisher.

    With W all readers stacked and G the second moment of the gradients by what they compute, E[γγᵀ] = Wᵀ G W; so this
    is ½ tr(F_j w_j w_jᵀ) with K-FAC's block F_j = E[h_j²] ⊗ G of the column w_j. Source: Martens & Grosse 2015.
    """
    return 0.5 * known.mean_square * _reading(known)


def kfac_obs(known: Known) -> Tensor:
    """Return ½ E[γ²]_jj / [C⁻¹]_jj (nat/token): the K-FAC loss increase once the others' columns have made up for it.

    C is the outputs' covariance plus a ridge; 1 / [C⁻¹]_jj is the variance of h_j that the other neurons and a bias
    leave unexplained. Source: Hassibi, Stork & Wolff 1993; Martens & Grosse 2015.
    """
    matrix = known.evidence.states.matrix
    mean = matrix.diagonal().mean()
    ridge = known.ridge * (mean if mean > 0 else 1.0)
    precision = inverse_diagonal(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype))
    return 0.5 * _reading(known) / precision


def mutual_information(known: Known) -> Tensor:
    """Return I(h; Ŷ) (nat) between the neuron's output and the predicted token's group.

    The plug-in estimate from counts: outputs in bins of equal frequency, predictions in groups of token types of
    equal probability, each token counted in every group by its predicted probability (so Ŷ is a sampled prediction
    without the noise of sampling). The plug-in's bias, at most (bins − 1)(classes − 1) / 2n, is left in: it is the
    same for all neurons. Source: Cover & Thomas 2006; for pruning, Fan et al. 2021.
    """
    joint = known.evidence.joint
    together = entropy(joint.flatten(1))
    shared: Tensor = entropy(joint.sum(2)) + entropy(joint.sum(1)) - together
    return shared.clamp(min=0.0) + 0.0


def pagerank(known: Known) -> Tensor:
    """Return PageRank on the layer's graph (1; sums to one): wired to and correlated with whoever else is.

    The walker of chance p follows the edges, as likely as they are heavy, and from a neuron without any jumps
    anywhere: p_i = (1 − d) / n + d (Σ_j e_ij p_j / Σ_k e_jk + Σ_{j without edges} p_j / n), d = `DAMPING`, by power
    iteration. The edges are those of the cooperative signal, half wiring, half correlation. Source: Brin & Page 1998.
    """
    edges = edges_of(known.evidence.states.correlation.abs(), known.coupling)
    weights, count = edges.sum(1), len(edges)
    ranks = torch.full((count,), 1 / count, dtype=torch.float64)
    for _ in range(WALKED):
        leaving = torch.where(weights > 0, ranks / weights, 0)
        jumping = 1 - DAMPING + DAMPING * ranks[weights == 0].sum()
        before, ranks = ranks, DAMPING * (edges @ leaving) + jumping / count
        if (ranks - before).abs().sum() <= SETTLED:
            break
    return ranks / ranks.sum()


FORMULAS: dict[str, Callable[[Known], Tensor]] = {
    formula.__name__: formula
    for formula in (
        magnitude_in,
        magnitude_out,
        taylor_first,
        taylor_square,
        taylor_second,
        gate_fisher,
        gate_fisher_sampled,
        weight_fisher,
        snip,
        grasp,
        fluctuation,
        wanda,
        kfac_trace,
        kfac_obs,
        mutual_information,
        pagerank,
    )
}
"""Each criterion's function by its column's name, (width,) float64, larger being more important."""


def _reading(known: Known) -> Tensor:
    """Return E[γ²] with sampled labels, (width,): how much the loss depends on what is read of the layer."""
    return known.evidence.readers / known.evidence.tokens


def known_of(model: PrunableModule, layer: NeuronLayer, evidence: Evidence, ridge: float) -> Known:
    """Return what the weights and the evidence say of one layer."""
    tensors = named_tensors(model)
    own, columns = (gather(pieces, tensors).cpu().double() for pieces in (layer.owned, layer.read))
    return Known(evidence, own, columns, recurrent_coupling(layer, tensors), ridge)


def _rows(model: PrunableModule, layer: NeuronLayer, groups: list[Evidence], ridge: float) -> pd.DataFrame:
    """Return one layer's rows of the table."""
    whole = known_of(model, layer, merged(groups), ridge)
    estimated = [name for name in CRITERIA if name not in EXACT]

    def estimates(evidence: Evidence) -> Tensor:
        known = replace(whole, evidence=evidence)
        return torch.stack([FORMULAS[name](known) for name in estimated])

    errors = dict(zip(estimated, jackknife_error(groups, estimates), strict=True))
    columns = {}
    for name in CRITERIA:
        columns[name] = FORMULAS[name](whole).numpy()
        if name in errors:
            columns[f"{name}_error"] = errors[name].numpy()
    place = {"layer": layer.name, "neuron": range(layer.width)}
    return pd.DataFrame({**place, **columns, "samples": whole.evidence.tokens})
