"""Weights that twenty dense models taught together: what `adaptive` weighs by where the right criteria are at hand."""

from collections.abc import Sequence

TRANSFORM = "scaled"
"""The scale within a layer that the weights are for."""
NEEDED = ("taylor_second", "intervention")
"""One of these has to be at hand: what is left of the weights without them was seen to rank badly."""
WEIGHTS = {
    "hessian": 0.0394,
    "intervention": 0.2067,
    "magnitude_in": 0.0596,
    "magnitude_out": 0.0203,
    "taylor_square": 0.0758,
    "taylor_second": 0.3578,
    "gate_fisher": 0.0821,
    "gate_fisher_sampled": 0.0893,
    "kfac_trace": 0.0512,
    "kfac_obs": 0.0177,
}
"""Signal or criterion → weight; what is not named had none.

`learn_together` of LSTM, GRU, Elman, spiking and mixed language models, 2 × 64 and 2 × 128, of the addresses and of the
Penn Treebank (`python -m benchmarks.transfer`, docs/results/transfer.md). Such weights, learned without the models of
one family and corpus, rank the neurons of these by 0.75 where `simple` reaches 0.60 (Spearman with measured removal).
"""


def taught(names: Sequence[str]) -> dict[str, float] | None:
    """Return the weights of what is at hand, summing to 1; None without any of `NEEDED`.

    >>> taught(["gradients", "hessian"]) is None
    True
    >>> {name: round(weight, 2) for name, weight in taught(["gradients", "hessian", "taylor_second"]).items()}
    {'gradients': 0.0, 'hessian': 0.1, 'taylor_second': 0.9}
    """
    if not set(NEEDED) & set(names):
        return None
    weights = {name: WEIGHTS.get(name, 0.0) for name in names}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
