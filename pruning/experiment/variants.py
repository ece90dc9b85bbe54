"""The steps of the comparison: what neurons are chosen by, by name."""

from dataclasses import dataclass

from pruning.core.options import expect_known

FOLDS = 5
"""Parts that measured neurons are cut into where weights are learned."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a variant chooses neurons by.

    Attributes:
        by: `fused`, a signal whose importance is taken as it is, or `random`.
        strategy: How signals are fused.
        signals: Which ones; None for all.
        scope: The choice's own scope of comparison (see `retention`); empty for the experiment's.
    """

    by: str = "fused"
    strategy: str = "simple"
    signals: tuple[str, ...] | None = None
    scope: str = ""


VARIANTS = {
    "random": Choice(by="random"),
    "traditional": Choice(by="hessian"),
    "weights": Choice(signals=("weights",)),
    "weights+activations": Choice(signals=("weights", "activations")),
    "weights+activations+gradients": Choice(signals=("weights", "activations", "gradients")),
    "simple": Choice(),
    "adaptive": Choice(strategy="adaptive"),
    "learned": Choice(strategy="learned"),
    "surgeon": Choice(by="surgeon", scope="absolute"),
    "intervention": Choice(by="intervention"),
}
"""The steps of the comparison. `simple` to `learned` fuse all signals; `learned` weighs all that is measured."""
CONTROL, TRADITIONAL, RANDOM = "dense", "traditional", "random"


def choice_of(variant: str) -> Choice:
    """Return what a variant chooses by.

    Raises:
        ValueError: If there is no such variant.
    """
    expect_known("variant", VARIANTS, variant)
    return VARIANTS[variant]
