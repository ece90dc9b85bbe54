"""The stage `fuse`."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from pruning.fusion.calibration import removal_curves
from pruning.fusion.fused import from_plain, fusion, learnable, restricted, to_plain
from pruning.fusion.fusing import Fusing
from pruning.fusion.schemas import FUSION, IMPORTANCE
from pruning.signals.schemas import LEARNABLE, SIGNALS, TABLES
from tasks.common.job import Job
from tasks.common.models import read_model
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_neurons, read_table, write_table
from tasks.common.windows import labelled_batches
from tasks.common.writing import read_json, replacing
from tasks.shown.wording import nearest


def run(job: Job) -> None:
    """Write the fused importance of every neuron, how it came about, and the weights for use elsewhere."""
    layers = read_model(job.input("train/model")).decoupled().layers()
    tables = {name: read_neurons(job.input(f"{name}/{name}"), layers) for name in TABLES}
    settings = job.settings("fuse")
    saved = settings.pop("weights")
    measured = partial(_curves, job, shares=settings.pop("removed"), batches=settings.pop("batches"))
    kept = None if saved is None else read_weights(Path(saved), settings["signals"])
    further = [name for name in settings["signals"] if name in LEARNABLE]
    settings["signals"] = [name for name in settings["signals"] if name in SIGNALS]
    fused = fusion(
        tables,
        Fusing(**settings),
        weights=kept,
        oracle=read_table(job.input("oracle/oracle")),
        criteria=learnable(tables, further) if further else None,
        curves=measured,
    )
    write_table(job.output("importance"), fused.importance, IMPORTANCE)
    write_table(job.output("fusion"), fused.report, FUSION)
    with replacing(job.output("weights")) as aside:
        aside.write_text(json.dumps(to_plain(fused.weighing), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _curves(job: Job, scores: pd.DataFrame, *, shares: Sequence[float], batches: int) -> pd.DataFrame:
    """Return what removing each layer's least important neurons together costs."""
    model, windows = read_model(job.input("train/model")), labelled_batches(job)
    some = list(islice(windows, batches))
    return removal_curves(model.decoupled(), some, scores, by="fused", shares=shares, track=job.track)


def read_weights(path: Path, signals: Sequence[str]) -> dict[str, Any]:
    """Return saved weights.

    Args:
        path: What an earlier fusion wrote.
        signals: Those that are to be weighed by it.

    Raises:
        Unexpected: If the file is missing, holds something else, or weighs none of the signals.
    """
    if not path.is_file():
        known = sorted(map(str, path.parent.glob("*.json")))
        raise Unexpected(f"Expected saved weights at fuse.weights, got no file {path}.{nearest(str(path), known)}")
    saved = read_json(path)
    if not isinstance(saved, dict):
        raise Unexpected(f"Expected saved weights in {path}, got {saved!r:.80}.")
    try:
        restricted(from_plain(saved, [*SIGNALS, *LEARNABLE]), signals)
    except ValueError as error:
        raise Unexpected(f"{str(error).rstrip('.')} (in {path}).") from None
    except (TypeError, AttributeError, KeyError) as error:
        raise Unexpected(f"Expected saved weights in {path}, got {saved!r:.80}.") from error
    return saved
