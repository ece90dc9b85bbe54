"""Which widths a choice gives each layer, and what it costs: one share for all layers against rankings over all layers.

`python -m benchmarks.allocation`, after `dvc repro fuse`, or with `--seeds 3` after `dvc repro experiment/dvc.yaml`:
perplexity on the validation split right after removal, without repair. Losses for calibration are measured on the
training split, never on the split that the choices are judged by.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks import asked
from benchmarks.transfer import signals
from pruning.core.neurons import select
from pruning.data.windows import Windows
from pruning.evaluation.measures import loss_of
from pruning.fusion.calibration import by_curves, by_quantiles, removal_curves
from pruning.fusion.fused import fuse
from pruning.fusion.fusing import Fusing
from pruning.models.base import LanguageModel
from pruning.selection.allocation import Allocation
from pruning.selection.retention import keep_of, retention
from tasks.common.models import read_model
from tasks.common.tables import read_table
from tasks.common.windows import first_token

SHARES, CURVE, FLOOR = (0.9, 0.75, 0.5, 0.35, 0.25), (0.1, 0.25, 0.4, 0.55, 0.7, 0.85), 8
BATCH, BPTT = 10, 35


def allocations(importance: pd.DataFrame, by: str, curves: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """Return name → (importance, scope) of each way to give layers their widths."""
    hessian = importance[["layer"]].assign(loss_increase=0.5 * importance["hessian"], standard_error=0.0)
    return {
        "layer: one share": (importance, "layer"),
        "global: relative to the layer's mean": (importance, "global"),
        "absolute: quantiles of the Hessian's losses": (
            importance.assign(**{by: by_quantiles(importance, by, hessian)}),
            "absolute",
        ),
        "absolute: measured removal curves": (importance.assign(**{by: by_curves(importance, by, curves)}), "absolute"),
    }


def compared(
    model: LanguageModel, importance: pd.DataFrame, by: str, windows: Mapping[str, Windows], shares: Sequence[float]
) -> Iterator[tuple[float, str, list[int], float]]:
    """Yield (share kept, way, widths, perplexity) for each share and way."""
    curves = removal_curves(model, windows["train"], importance, by=by, shares=CURVE)
    for share in shares:
        for name, (scores, scope) in allocations(importance, by, curves).items():
            retained = retention(scores, Allocation(retain=share, floor=FLOOR, scope=scope), variant="v", by=by)
            smaller = select(model, keep_of(retained))
            yield share, name, list(smaller.widths()), loss_of(smaller, windows["valid"]).perplexity


def calibrated(seed: int) -> pd.DataFrame:
    """Return the default fusion of the signals that the experiment measured with a seed."""
    return fuse(signals(Path("data/experiment"), seed), Fusing(strategy="simple", seed=seed))


def part(corpus: pd.DataFrame, split: str, start: int, length: int) -> Tensor:
    """Return some tokens of a split."""
    tokens = corpus.loc[corpus["split"] == split, "token"].to_numpy()
    return torch.tensor(tokens[start : start + length], dtype=torch.long)


def main() -> None:
    """Print one line for each share and way: mean over seeds ± largest deviation."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.allocation", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--by", default="fused", help="column of the table of importances")
    parser.add_argument("--tokens", type=asked.count, default=20_000, help="tokens of each split that are read")
    parser.add_argument("--seeds", type=asked.count, default=1, help="calibrations; more than one are the experiment's")
    given = parser.parse_args()
    corpus, first = (
        read_table(Path("data/prepare/corpus.parquet")),
        first_token(Path("data/prepare/vocabulary.parquet")),
    )
    model = read_model(Path("data/train/model")).decoupled("project")
    single = given.seeds == 1
    found: dict[tuple[float, str], list[float]] = {}
    for seed in range(given.seeds):
        importance = read_table(Path("data/fuse/importance.parquet")) if single else calibrated(seed)
        windows = {
            split: Windows(part(corpus, split, start, given.tokens), first=first, batch=BATCH, bptt=BPTT)
            for split, start in (("train", seed * given.tokens), ("valid", 0))
        }
        for share, name, widths, perplexity in compared(model, importance, given.by, windows, SHARES):
            print(f"seed {seed}  keep {share:.0%}  {name:45} {widths!s:14} {perplexity:9.1f}", flush=True)
            found.setdefault((share, name), []).append(perplexity)
    for (share, name), values in found.items():
        middle = statistics.mean(values)
        print(f"keep {share:.0%}  {name:45} {middle:9.1f} ± {max(abs(value - middle) for value in values):.1f}")


if __name__ == "__main__":
    main()
