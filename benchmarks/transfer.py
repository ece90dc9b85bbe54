"""Learned weights of signals on another model and corpus: how they rank neurons whose removal was measured there.

`python -m benchmarks.transfer FOLDER FOLDER …`, each a copy of `data/experiment` after an experiment on a model.
Spearman correlation with measured removal, within layers, with its 95% bootstrap interval: of weights from the model
itself on neurons that they have not seen, of the other models' weights, of the mean of the signals, and of the best
single signal or criterion.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from pruning.experiment.measured import MEASURED, Calibration
from pruning.experiment.variants import choice_of
from pruning.fusion.fused import fusion
from pruning.fusion.fusing import Fusing
from pruning.fusion.schemas import ALL
from pruning.signals.schemas import CRITERIA
from tasks.common.tables import read_table


def signals(folder: Path, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Return the tables that an experiment measured with a seed of calibration."""
    return {name: read_table(folder / f"calibrate/text{seed}/signals/{name}.parquet") for name in MEASURED}


def read(folder: Path) -> tuple[Calibration, pd.DataFrame, dict[str, Any]]:
    """Return an experiment's signals, measured removals and learned weights."""
    weights = json.loads((folder / "fuse/text0/weights.json").read_text(encoding="utf-8"))
    return Calibration(signals(folder), {}, 0), read_table(folder / "oracle/oracle.parquet"), weights


def ranked(
    calibration: Calibration, oracle: pd.DataFrame, variant: str, weights: dict[str, Any] | None = None
) -> pd.Series:
    """Return the evidence over all layers of a fusion: `held_out` and its interval, `best_signal` and its own."""
    choice = choice_of(variant)
    learned = choice.strategy == "learned"
    report = fusion(
        calibration.tables,
        Fusing(strategy=choice.strategy, seed=1, signals=choice.signals),
        oracle=oracle,
        criteria=calibration.tables["criteria"][["layer", "neuron", *CRITERIA]] if learned else None,
        weights=weights,
    ).report
    return report[report["layer"] == ALL].iloc[0]


def main() -> None:
    """Print a row for each model, a column for where weights come from."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of an experiment")
    folders = parser.parse_args().folders
    found = {folder.name: read(folder) for folder in folders}
    print("| ranked | " + " | ".join(f"weights of {name}" for name in found) + " | simple | best single |")
    print("|---|" + "---:|" * (len(found) + 2))
    for name, (calibration, oracle, _) in found.items():
        rows = [
            ranked(calibration, oracle, "learned", None if other == name else weights)
            for other, (*_, weights) in found.items()
        ]
        rows.append(ranked(calibration, oracle, "simple"))
        cells = [f"{r['held_out']:.2f} [{r['held_out_low']:.2f}, {r['held_out_high']:.2f}]" for r in rows]
        print(f"| {name} | " + " | ".join(cells) + f" | {rows[0]['best_held_out']:.2f} `{rows[0]['best_signal']}` |")


if __name__ == "__main__":
    main()
