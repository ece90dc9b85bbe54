"""What each variant kept and what that cost, against the dense model with the same extra training."""

from collections.abc import Mapping

import pandas as pd

from pruning.tables import table

REPORTED = "test"
"""The split whose perplexity is compared; the validation split has chosen the best epochs."""


def compare(evaluation: pd.DataFrame, choices: Mapping[str, str], *, control: str) -> pd.DataFrame:
    """Return the `comparison` table.

    pruned_change = perplexity right after removal / the dense model's − 1; finetuned_change likewise, both sides
    after the same fine-tuning, so that extra training is not mistaken for good pruning.

    Args:
        evaluation: The `evaluation` rows of all variants.
        choices: Variant → what it chose by; also the variants to compare.
        control: The variant that removes nothing.

    Raises:
        ValueError: If a variant was not evaluated before and after fine-tuning.
    """
    reported = evaluation[evaluation["split"] == REPORTED]
    after = reported[reported["phase"] == "finetuned"].set_index("variant")
    before = reported[reported["phase"] != "finetuned"].set_index("variant")
    for variant in (control, *choices):
        if variant not in after.index or variant not in before.index:
            raise ValueError(f"Expected variant {variant!r} evaluated before and after fine-tuning, got neither.")
    names = list(choices)
    before, after, dense = before.loc[names], after.loc[names], (before.loc[control], after.loc[control])
    frame = pd.DataFrame(
        {
            "variant": names,
            "importance": list(choices.values()),
            "neurons": after["neurons"].to_numpy(),
            "retention": (after["neurons"] / dense[1]["neurons"]).to_numpy(),
            "parameters": after["parameters"].to_numpy(),
            "multiply_adds": after["multiply_adds"].to_numpy(),
            "pruned_perplexity": before["perplexity"].to_numpy(),
            "finetuned_perplexity": after["perplexity"].to_numpy(),
            "pruned_change": (before["perplexity"] / dense[0]["perplexity"] - 1).to_numpy(),
            "finetuned_change": (after["perplexity"] / dense[1]["perplexity"] - 1).to_numpy(),
        }
    )
    return table("comparison", frame)
