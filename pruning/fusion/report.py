"""How a fused importance came about: its weights, and how it ranks measured removals beside each signal alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pruning.core.tables import table
from pruning.fusion.learned import Shares, bootstrapped, interval, within_layers
from pruning.fusion.schemas import ALL, FUSION
from pruning.fusion.weights import variance_reliability, without_noise

UNKNOWN = {
    **dict.fromkeys(("held_out", "held_out_low", "held_out_high"), np.nan),
    "best_signal": "",
    **dict.fromkeys(("best_held_out", "gain_low", "gain_high", "oracle_reliability"), np.nan),
    **dict.fromkeys(("without_noise", "without_noise_low", "without_noise_high"), np.nan),
    "measured": 0,
}
"""What stands in the table where no removal was measured."""


def ranks_of_removals(
    rows: pd.DataFrame,
    frame: pd.DataFrame,
    fused: np.ndarray,
    names: Sequence[str],
    known: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Return how scores and single signals rank measured removals, by layer and in all, with confidence intervals."""
    every = frame[["layer", "neuron"]].assign(score=fused)
    held_out = known.get("held_out", rows.merge(every, on=["layer", "neuron"])["score"].to_numpy())
    by_layer = {str(layer): rows["layer"].to_numpy() == layer for layer in rows["layer"].unique()}
    layers = {}
    for layer, chosen in {**by_layer, ALL: np.ones(len(rows), dtype=bool)}.items():
        layers[layer] = _compared(rows[chosen], held_out[chosen], names, seed)
    return {**known, "layers": layers}


def _compared(rows: pd.DataFrame, held_out: np.ndarray, names: Sequence[str], seed: int) -> dict[str, Any]:
    layers, truth = rows["layer"].to_numpy(), rows["loss_increase"].to_numpy()
    alone = {name: within_layers(layers, rows[name].to_numpy(), truth) for name in names}
    best = max(alone, key=lambda name: alone[name])
    drawn = bootstrapped(layers, truth, {"fused": held_out, "best": rows[best].to_numpy()}, seed=seed)
    low, high = interval(drawn["fused"])
    gain_low, gain_high = interval(drawn["fused"] - drawn["best"])
    sizes = rows.groupby("layer").size()
    reliabilities = [
        variance_reliability(removals["loss_increase"].to_numpy(), removals["standard_error"].to_numpy())
        for _, removals in rows.groupby("layer")
    ]
    reliability, reached = float(np.average(reliabilities, weights=sizes)), within_layers(layers, held_out, truth)
    return {
        "alone": alone,
        "held_out": reached,
        "held_out_low": low,
        "held_out_high": high,
        "best_signal": best,
        "best_held_out": alone[best],
        "gain_low": gain_low,
        "gain_high": gain_high,
        "oracle_reliability": reliability,
        "without_noise": without_noise(reached, reliability),
        "without_noise_low": without_noise(low, reliability),
        "without_noise_high": without_noise(high, reliability),
        "measured": len(rows),
    }


def report_of(
    shares: Shares,
    strategy: str,
    names: Sequence[str],
    described: pd.DataFrame,
    evidence: Mapping[str, Any],
) -> pd.DataFrame:
    """Return the `fusion` table.

    Args:
        shares: Layer → signal → weight, of every layer and of `all`.
        strategy: What found them, where `evidence` does not say otherwise.
        names: The signals that were weighed.
        described: Reliability, agreement and width by layer and signal.
        evidence: What `ranks_of_removals` gave, or what is known without measured removals.
    """
    known = evidence.get("layers", {})
    columns = ["reliability", "agreement"]
    rows = []
    for layer, weights in shares.items():
        part = described if layer == ALL else described[described["layer"] == layer]
        for name in names:
            of_signal = part[part["signal"] == name]
            told = np.average(of_signal[columns], axis=0, weights=of_signal["width"])
            compared = known.get(layer, UNKNOWN)
            alone = compared["alone"][name] if "alone" in compared else np.nan
            rest = {column: compared[column] for column in UNKNOWN}
            head = {
                "strategy": evidence.get("strategy", strategy),
                "layer": layer,
                "signal": name,
                "weight": weights.get(name, 0.0),
            }
            fell_back = bool(evidence.get("fell_back", False))
            rows.append(
                {**head, **dict(zip(columns, told, strict=True)), "alone": alone, **rest, "fell_back": fell_back}
            )
    return table(FUSION, pd.DataFrame(rows))
