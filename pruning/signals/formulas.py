"""The criteria of the field, each said once: name, unit, meaning, source, and a formula over what is known of a layer.

Whoever needs their names alone (schemas, whoever reads settings) imports this module, so it imports no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.core.tables import Column

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.85
"""Chance that PageRank's walker follows an edge rather than jumping anywhere (Brin & Page 1998)."""
SETTLED = 1e-15
"""What PageRank's chances change by in all, at most, when the walk has settled; near the rounding of their sum."""
WALKED = 250
"""Steps of the walk at most: what remains of its start is 0.85²⁵⁰ < 1e-17."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of one layer, which is all that a formula reads.

    Attributes:
        own: Each neuron's own weights, (width, n).
        columns: Each neuron's outgoing weights, in every reader, (width, m).
        totals: What the text has told of each neuron, summed over it, by name (see `evidence`), (width,).
        tokens: How many tokens were read.
        mean_square: E[h²] of the outputs, (width,).
        variance: var(h), (width,).
        reading: E[γ²] with sampled labels, (width,): how much the loss depends on what is read of the layer.
        precision: The diagonal of the inverse of the outputs' covariance plus the ridge, (width,).
        entropies: Of the binned output, of the predicted token's group, and of both together, (width,), nat.
        edges: The weights of the graph of the cooperative signal, (width, width).
    """

    own: "Tensor"
    columns: "Tensor"
    totals: "Mapping[str, Tensor]"
    tokens: int
    mean_square: "Tensor"
    variance: "Tensor"
    reading: "Tensor"
    precision: "Tensor"
    entropies: "tuple[Tensor, Tensor, Tensor]"
    edges: "Tensor"

    def per_token(self, total: str) -> "Tensor":
        """Return one of the totals divided by the tokens read, (width,); not numbers of one that is not known."""
        if total not in self.totals:
            return self.mean_square.new_full(self.mean_square.shape, float("nan"))
        return self.totals[total] / self.tokens


Formula = Callable[[Known], "Tensor"]
"""What is known of a layer → each neuron's criterion, (width,) float64; larger is more important."""


@dataclass(frozen=True)
class Criterion:
    """A criterion, comparable within a layer.

    Attributes:
        formula: How it is computed.
        column: Its column in the tables `criteria` and `importance`.
        exact: Whether it follows from the weights alone and so has no standard error.
    """

    formula: Formula
    column: Column
    exact: bool


CRITERIA: dict[str, Criterion] = {}
"""Each criterion by its name, in the order of its columns."""


def criterion(unit: str, meaning: str, *, exact: bool = False) -> Callable[[Formula], Formula]:
    """Make a formula one of the criteria, by its own name."""

    def registered(formula: Formula) -> Formula:
        CRITERIA[formula.__name__] = Criterion(formula, Column("number", unit, meaning), exact)
        return formula

    return registered


@criterion("weight", "L2 norm of the neuron's own weights", exact=True)
def magnitude_in(known: Known) -> "Tensor":
    """Return ‖w‖₂ of the neuron's own weights (weight); exact.

    Source: Li, Kadav, Durdanovic, Samet & Graf 2017, with the L2 norm.
    """
    size: Tensor = known.own.norm(dim=1)
    return size


@criterion("weight", "L2 norm of the neuron's outgoing weights", exact=True)
def magnitude_out(known: Known) -> "Tensor":
    """Return ‖w‖₂ of the neuron's outgoing weights, over every reader (weight); exact.

    Source: He, Fan, Qian, Tan & Yu 2014, their output-weights norm.
    """
    size: Tensor = known.columns.norm(dim=1)
    return size


@criterion("nat/token", "mean size of a sequence's gate gradient")
def taylor_first(known: Known) -> "Tensor":
    """Return Σ |s| / n (nat/token): the mean size of the gate gradient of one sequence, a column of a window.

    s = Σ_t γ_t h_t = ∂Σℓ/∂m. Source: Molchanov, Tyree, Karras, Aila & Kautz 2017, whose |mean over positions of
    ∂C/∂h · h|, averaged over examples, this is.
    """
    return known.per_token("gate_size")


@criterion("nat²/token²", "mean square of a window's gate gradient")
def taylor_square(known: Known) -> "Tensor":
    """Return E[(∂L/∂m)²] over windows, L being a window's mean loss (nat²/token²), long windows counting for more.

    Source: Molchanov, Mallya, Tyree, Frosio & Kautz 2019, eq. 8 with a gate, averaged over mini-batches.
    """
    return known.per_token("gate_window")


@criterion("nat/token", "predicted loss increase: minus gate gradient plus half its curvature")
def taylor_second(known: Known) -> "Tensor":
    """Return −∂L/∂m + ½ F (nat/token): the loss increase that two terms of the expansion predict for m = 1 → 0.

    F, the gate's diagonal of the generalised Gauss–Newton matrix, stands for the second derivative; it is the Fisher
    information with sampled labels (see `gate_fisher_sampled`). Signed: where it is negative, removal should help.
    Source: Molchanov et al. 2019 (second order); Schraudolph 2002 (Gauss–Newton).
    """
    return gate_fisher_sampled(known) - known.per_token("gate")


@criterion("nat/token", "half the gate's Fisher information, true labels")
def gate_fisher(known: Known) -> "Tensor":
    """Return ½ Σ s² / n with the true labels (nat/token), a sequence being an example.

    The predicted loss increase where the model predicts as the text does. Source: Theis, Korshunova, Tejani &
    Huszár 2018.
    """
    return 0.5 * known.per_token("gate_true")


@criterion("nat/token", "half the gate's Fisher information, labels sampled from the model")
def gate_fisher_sampled(known: Known) -> "Tensor":
    """Return ½ Σ s² / n with labels sampled from the model (nat/token).

    Labels are drawn independently, so gradients of different tokens are uncorrelated and Σ s² is an unbiased estimate
    of Σ_t (∂ℓ_t/∂m)²: the Fisher information, which equals the Gauss–Newton matrix. Source: Theis et al. 2018;
    Kunstner, Balles & Hennig 2019 on why the labels matter.
    """
    return 0.5 * known.per_token("gate_sampled")


@criterion("nat/token", "half of Σ w² × Fisher information over own weights")
def weight_fisher(known: Known) -> "Tensor":
    """Return ½ Σ_w w² F_w over own weights (nat/token), F_w = E[(∂ℓ/∂w)²] with sampled labels.

    F_w comes from a window's whole gradient, squared: cross terms vanish in expectation, as above. Source: LeCun,
    Denker & Solla 1990, with the Fisher information for the Hessian.
    """
    return 0.5 * known.per_token("weight_sampled")


@criterion("nat/token", "Σ of weight × gradient over own weights, without signs")
def snip(known: Known) -> "Tensor":
    """Return Σ_w |w ∂L/∂w| over own weights (nat/token), averaged over windows, each one of the paper's mini-batches.

    Source: Lee, Ajanthan & Torr 2019, not divided by the sum over all weights.
    """
    return known.per_token("snip")


@criterion("nat²/token²", "Σ of weight × Hessian-gradient product over own weights")
def grasp(known: Known) -> "Tensor":
    """Return Σ_w w (H g)_w over own weights (nat²/token²), averaged over windows.

    g and H are gradient and Hessian of a window's mean loss by the neurons' own weights. Removing a weight changes
    the gradient's squared norm by −2 w (H g)_w: whoever scores low can go without slowing learning, and may speed it.
    Source: Wang, Zhang & Grosse 2020; theirs is the negative, of which the largest are removed.
    """
    return known.per_token("grasp")


@criterion("activation² weight²", "variance of the output × squared norm of outgoing weights")
def fluctuation(known: Known) -> "Tensor":
    """Return var(h) · ‖w‖² over outgoing weights (activation² · weight²): what a bias cannot make up for.

    Source: An, Zhao, Yu, Tang & Wang 2024 (FLAP), eq. 5.
    """
    return known.variance * known.columns.square().sum(1)


@criterion("activation weight", "RMS output × L1 norm of outgoing weights")
def wanda(known: Known) -> "Tensor":
    """Return Σ |w| · √E[h²] over outgoing weights (activation · weight).

    Source: Sun, Liu, Bair & Kolter 2024, their score of a weight summed over its column, with the mean in place of
    the sum over tokens.
    """
    return known.columns.abs().sum(1) * known.mean_square.sqrt()


@criterion("nat/token", "K-FAC's estimate of half the gate's Fisher information")
def kfac_trace(known: Known) -> "Tensor":
    """Return ½ E[h²] · E[γ²] with sampled labels (nat/token): the K-FAC estimate of the neuron's gate Fisher.

    With W all readers stacked and G the second moment of the gradients by what they compute, E[γγᵀ] = Wᵀ G W; so this
    is ½ tr(F_j w_j w_jᵀ) with K-FAC's block F_j = E[h_j²] ⊗ G of the column w_j. Source: Martens & Grosse 2015.
    """
    return 0.5 * known.mean_square * known.reading


@criterion("nat/token", "K-FAC's loss increase once other neurons have made up for it")
def kfac_obs(known: Known) -> "Tensor":
    """Return ½ E[γ_j²] / [C⁻¹]_jj (nat/token): the K-FAC loss increase once the others' columns have made up for it.

    C is the outputs' covariance plus a ridge; 1 / [C⁻¹]_jj is the variance of h_j that the other neurons and a bias
    leave unexplained. Source: Hassibi, Stork & Wolff 1993; Martens & Grosse 2015.
    """
    return 0.5 * known.reading / known.precision


@criterion("nat", "between the binned output and the predicted token's group")
def mutual_information(known: Known) -> "Tensor":
    """Return I(h; Ŷ) (nat) between the neuron's output and the predicted token's group.

    The plug-in estimate from counts: outputs in bins of equal frequency, predictions in groups of token types of
    equal probability, each token counted in every group by its predicted probability (so Ŷ is a sampled prediction
    without the noise of sampling). The plug-in's bias, at most (bins − 1)(classes − 1) / 2n, is left in: it is the
    same for all neurons. Source: Cover & Thomas 2006; for pruning, Fan et al. 2021.
    """
    outputs, predictions, together = known.entropies
    return (outputs + predictions - together).clamp(min=0.0) + 0.0


@criterion("1", "PageRank on the layer's graph of weights and correlations")
def pagerank(known: Known) -> "Tensor":
    """Return PageRank on the layer's graph (1; sums to one): wired to and correlated with whoever else is.

    The walker of chance p follows the edges, as likely as they are heavy, and from a neuron without any jumps
    anywhere: p_i = (1 − d) / n + d (Σ_j e_ij p_j / Σ_k e_jk + Σ_{j without edges} p_j / n), d = `DAMPING`, by power
    iteration. The edges are those of the cooperative signal, half wiring, half correlation. Source: Brin & Page 1998.
    """
    edges = known.edges
    weights, count = edges.sum(1), len(edges)
    ranks = edges.new_full((count,), 1 / count)
    for _ in range(WALKED):
        leaving = (ranks / weights).where(weights > 0, 0)
        jumping = 1 - DAMPING + DAMPING * ranks[weights == 0].sum()
        before, ranks = ranks, DAMPING * (edges @ leaving) + jumping / count
        if (ranks - before).abs().sum() <= SETTLED:
            break
    return ranks / ranks.sum()
