"""What each variant kept and what that cost, against the dense model with the same extra training."""

from collections.abc import Mapping

import pandas as pd

from pruning.core.tables import table
from pruning.evaluation.schemas import COMPARISON

REPORTED = "test"
"""The split whose perplexity is compared; the validation split has chosen the best epochs."""
PHASES = ("pruned", "reconstructed", "finetuned")
COSTS = ("parameters", "multiply_adds", "synaptic_operations", "energy")
"""What a model takes to hold and to run, whatever it runs on."""


def compare(evaluation: pd.DataFrame, choices: Mapping[str, str], *, control: str) -> pd.DataFrame:
    """Return the `comparison` table.

    The change of a phase is its perplexity over the control's − 1: before fine-tuning over the dense model's, after
    it over the dense model's after the same fine-tuning, so that extra training is not mistaken for good pruning.

    >>> import pandas as pd
    >>> phases = {"dense": (10.0, 10.0, 9.0), "half": (20.0, 12.0, 9.9)}
    >>> rows = [
    ...     {"variant": name, "phase": phase, "split": "test", "perplexity": value, "neurons": 8, "parameters": 80,
    ...      "multiply_adds": 60, "synaptic_operations": 0.0, "energy": 276.0}
    ...     for name, values in phases.items() for phase, value in zip(PHASES, values, strict=True)
    ... ]
    >>> found = compare(pd.DataFrame(rows), {"half": "fused"}, control="dense")
    >>> found[["pruned_change", "finetuned_change"]].round(3).iloc[0].tolist()
    [1.0, 0.1]

    Args:
        evaluation: The `evaluation` rows of all variants.
        choices: Variant → what it chose by; also the variants to compare.
        control: The variant that removes nothing.

    Raises:
        ValueError: If a variant was not evaluated in every phase.
    """
    reported = evaluation[evaluation["split"] == REPORTED]
    perplexity = _by_phase(reported)
    for variant in (control, *choices):
        if variant not in perplexity.index or perplexity.loc[[variant]].isna().any(axis=None):
            raise ValueError(f"Expected variant {variant!r} evaluated in the phases {list(PHASES)}, got others.")
    names = list(choices)
    sizes = reported[reported["phase"] == PHASES[-1]].set_index("variant")[["neurons", *COSTS]]
    dense, chosen, worth = sizes.loc[[control]].iloc[0], sizes.loc[names], perplexity.loc[names]
    change = worth / perplexity.loc[[control]].iloc[0] - 1
    frame = pd.DataFrame(
        {
            "variant": names,
            "importance": list(choices.values()),
            "neurons": chosen["neurons"].to_numpy(),
            "retention": (chosen["neurons"] / dense["neurons"]).to_numpy(),
            **{cost: chosen[cost].to_numpy() for cost in COSTS},
            **{f"{phase}_perplexity": worth[phase].to_numpy() for phase in PHASES},
            **{f"{phase}_change": change[phase].to_numpy() for phase in PHASES},
        }
    )
    return table(COMPARISON, frame)


def _by_phase(reported: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity of each variant in each phase; what removes nothing is `dense` before fine-tuning."""
    found = reported.pivot_table(index="variant", columns="phase", values="perplexity")
    found = found.reindex(columns=["dense", *PHASES])
    for phase in PHASES[:-1]:
        found[phase] = found[phase].fillna(found["dense"])
    return found[list(PHASES)]
