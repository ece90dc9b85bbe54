"""What each variant kept and what that cost, against the dense model with the same extra training."""

from collections.abc import Mapping

import pandas as pd

from pruning.core.tables import table
from pruning.evaluation.schemas import COMPARISON

REPORTED = "test"
"""The split whose perplexity is compared; the validation split has chosen the best epochs."""
PHASES = ("pruned", "reconstructed", "finetuned")
MEASURES = ("perplexity", "loss")
"""What tells how good a model is, the better known first."""
COSTS = ("parameters", "multiply_adds", "synaptic_operations", "energy")
"""What a model takes to hold and to run, whatever it runs on."""


def compare(evaluation: pd.DataFrame, choices: Mapping[str, str], *, control: str) -> pd.DataFrame:
    """Return the `comparison` table.

    The change of a phase is its perplexity over the control's − 1: before fine-tuning over the dense model's, after
    it over the dense model's after the same fine-tuning, so that extra training is not mistaken for good pruning. Where
    there is no perplexity (see `measure_of`), it is what the loss rose by, over the size of the control's.

    >>> import math, pandas as pd
    >>> phases = {"dense": (10.0, 10.0, 9.0), "half": (20.0, 12.0, 9.9)}
    >>> rows = [
    ...     {"variant": name, "phase": phase, "split": "test", "perplexity": value, "loss": math.log(value),
    ...      "metrics": "{}", "neurons": 8, "parameters": 80, "multiply_adds": 60, "synaptic_operations": 0.0,
    ...      "energy": 276.0}
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
    known = {measure: _by_phase(reported, measure) for measure in MEASURES}
    losses = known["loss"]
    for variant in (control, *choices):
        if variant not in losses.index or losses.loc[[variant]].isna().any(axis=None):
            raise ValueError(f"Expected variant {variant!r} evaluated in the phases {list(PHASES)}, got others.")
    names = list(choices)
    sizes = reported[reported["phase"] == PHASES[-1]].set_index("variant")[["neurons", "metrics", *COSTS]]
    dense, chosen = sizes.loc[[control]].iloc[0], sizes.loc[names]
    measure = measure_of(reported)
    worth, beside = known[measure].loc[names], known[measure].loc[[control]].iloc[0]
    change = worth / beside - 1 if measure == "perplexity" else (worth - beside) / beside.abs()
    frame = pd.DataFrame(
        {
            "variant": names,
            "importance": list(choices.values()),
            "neurons": chosen["neurons"].to_numpy(),
            "retention": (chosen["neurons"] / dense["neurons"]).to_numpy(),
            **{cost: chosen[cost].to_numpy() for cost in COSTS},
            **{
                f"{phase}_{one}": rows.loc[names, phase].to_numpy(dtype=float)
                for one, rows in known.items()
                for phase in PHASES
            },
            "metrics": chosen["metrics"].to_numpy(),
            **{f"{phase}_change": change[phase].to_numpy() for phase in PHASES},
        }
    )
    return table(COMPARISON, frame)


def measure_of(rows: pd.DataFrame, column: str = "{}") -> str:
    """Return what models are compared by: `perplexity`, or `loss` where some have none.

    >>> measure_of(pd.DataFrame({"test_perplexity": [float("nan")], "test_loss": [1.0]}), "test_{}")
    'loss'

    Args:
        rows: Of models.
        column: How the columns are called.
    """
    return MEASURES[int(rows[column.format(MEASURES[0])].isna().any())]


def _by_phase(reported: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return a measure of each variant in each phase; what removes nothing is `dense` before fine-tuning."""
    phases = reported.pivot_table(index="variant", columns="phase", values=measure, dropna=False)
    phases = phases.reindex(columns=["dense", *PHASES])
    for phase in PHASES[:-1]:
        phases[phase] = phases[phase].fillna(phases["dense"])
    return phases[list(PHASES)]
