"""The tables of the signals and criteria: components, units, and each component's share in the importance."""

from pruning.core.tables import LAYER, NEURON, UNMEASURED, Column, Table, missing, signal_table
from pruning.signals import formulas

CRITERIA = {name: criterion.column for name, criterion in formulas.CRITERIA.items()}
"""The field's criteria; larger is more important, comparable within a layer. Also columns of `importance`."""
EXACT = tuple(name for name, criterion in formulas.CRITERIA.items() if criterion.exact)
"""Criteria that follow from the weights alone and so have no standard error."""

FISHER = Column("text", "", "what the Fisher information draws targets from; `empirical`: true ones")


def _with_error(name: str, column: Column) -> dict[str, Column]:
    """Return a criterion's column and, where it is an estimate, the one of its standard error."""
    if name in EXACT:
        return {name: column}
    return {name: column, f"{name}_error": Column("number", column.unit, f"standard error of {name}")}


WEIGHTS = signal_table(
    "weights",
    {
        "norm": Column("number", "weight", "L2 norm of the neuron's own weights"),
        "variance": Column("number", "weight²", "variance of the neuron's own weights"),
        "nonzero_ratio": Column("number", "1", "share of weights above a tenth of the layer's RMS weight"),
        "entropy": Column("number", "nat", "entropy of the histogram of weights, edges relative to the layer"),
        "effective_rank": Column("number", "1", "exp of the entropy of its gate × input matrix's spectrum"),
    },
    shares={"norm": 0.3, "variance": 0.2, "nonzero_ratio": 0.2, "entropy": 0.2, "effective_rank": 0.1},
)


HESSIAN = signal_table(
    "hessian",
    {
        "trace": Column("number", "nat/token/weight²", "trace of the loss Hessian over the neuron's weights"),
        "trace_standard_error": Column("number", "nat/token/weight²", "standard error of the trace"),
        "mean_square": Column("number", "weight²", "squared norm of the neuron's weights over their number"),
    },
)


ACTIVATIONS = signal_table(
    "activations",
    {
        "frequency": Column("number", "1", "share of tokens with an activation above the layer's RMS"),
        "magnitude": Column("number", "activation", "mean absolute activation"),
        "variance": Column("number", "activation²", "variance of the activation"),
        "entropy": Column("number", "nat", "entropy of the histogram of activations"),
        "range": Column("number", "activation", "largest minus smallest activation"),
    },
    shares={"frequency": 0.2, "magnitude": 0.3, "variance": 0.2, "entropy": 0.2, "range": 0.1},
)


GRADIENTS = signal_table(
    "gradients",
    {
        "magnitude": Column("number", "nat/token", "mean absolute gate gradient"),
        "stability": Column("number", "1", "1 / (1 + coefficient of variation of |g|)"),
        "signal_to_noise": Column("number", "1", "|mean| over standard deviation of the gate gradient"),
        "sign_consistency": Column("number", "1", "|mean sign| of the gate gradient"),
    },
    shares={"magnitude": 0.4, "stability": 0.2, "signal_to_noise": 0.2, "sign_consistency": 0.2},
)


COOPERATIVE = signal_table(
    "cooperative",
    {
        "connection_strength": Column("number", "1", "mean weight of the neuron's edges"),
        "uniqueness": Column("number", "1", "share of its variance that no other neuron explains, 1 − R²"),
        "degree_centrality": Column("number", "1", "share of the other neurons that it has strong edges to"),
        "cooperative_ability": Column("number", "1", "weighted clustering of its strong edges"),
    },
    shares={"connection_strength": 0.3, "uniqueness": 0.3, "degree_centrality": 0.2, "cooperative_ability": 0.2},
)


SURGEON = signal_table(
    "surgeon",
    {
        "cost": Column("number", "nat/token", "loss that its removal adds once every reader is refitted"),
        "place": Column("integer", "", "when it is removed, 1 for the first of all layers"),
        "fisher": FISHER,
    },
)


INTERVENTION = Table(
    "intervention",
    ("layer", "neuron"),
    {
        "layer": LAYER,
        "neuron": NEURON,
        **missing(
            "the neuron was not to be removed: `neurons`, or `most` of a network that is none of the families",
            {
                "divergence": Column("number", "nat/token", "how far the answers move without it; needs no label"),
                "divergence_error": Column("number", "nat/token", "standard error of the divergence"),
                "curvature": Column("number", "nat/token", "half the gate's Fisher information; 0 of other networks"),
                "divergence_share": Column("number", "1", "what counts of the divergence in this layer"),
                "label_term": Column("number", "nat/token", "first-order rise of the loss with true labels"),
                "label_error": Column("number", "nat/token", "standard error of the label term"),
                "trusted": Column("number", "1", "share of the label term that counts in this layer"),
                "importance": Column("number", "nat/token", "what removal costs on text that was not trained on"),
                "standard_error": Column("number", "nat/token", "standard error of the importance"),
            },
        ),
    },
)


CRITERIA_TABLE = Table(
    "criteria",
    ("layer", "neuron"),
    {
        "layer": LAYER,
        "neuron": NEURON,
        **missing(
            UNMEASURED,
            {name: one for key, column in CRITERIA.items() for name, one in _with_error(key, column).items()},
        ),
        "fisher": FISHER,
        "samples": Column("integer", "token", "tokens behind the estimates"),
    },
)


SIGNALS = {schema.name: schema for schema in (WEIGHTS, HESSIAN, ACTIVATIONS, GRADIENTS, COOPERATIVE)}
"""The signals that are fused."""
BESIDE = {SURGEON.name: SURGEON, INTERVENTION.name: INTERVENTION}
"""Signals that stand beside the fused ones, whatever the strategy of the fusion."""
LEARNABLE = (INTERVENTION.name, *CRITERIA)
"""What weights that were learned may weigh besides the fused signals."""
TABLES = {**SIGNALS, **BESIDE, CRITERIA_TABLE.name: CRITERIA_TABLE}
"""All that is measured of neurons before the fusion."""
