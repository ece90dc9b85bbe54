"""What MLflow is told of the experiment: one parent run with its tables and report, one child for each variant."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pruning.evaluation.comparison import PHASES
from tasks.commands.track import Record, identity, send
from tasks.experiment.settings import Settings

KEY = "experiment"
"""The tag that holds the digest of the tables."""


def log(folder: Path, tables: Mapping[str, pd.DataFrame], settings: Settings, files: Sequence[Path]) -> None:
    """Log the experiment once; without a server, say how to make it up.

    Args:
        folder: Where the report stands.
        tables: What it says.
        settings: The experiment's options.
        files: The report and its tables.
    """
    content = b"".join(path.read_bytes() for path in files if path.suffix == ".parquet")
    send(
        [_whole(tables, settings, files, folder), *_variants(tables)],
        key=(KEY, hashlib.sha256(content).hexdigest()),
        tags={"mlflow.source.name": "python -m flows.experiment", **identity()},
        later=f"The report and all cells are safe in {folder}; the same command logs them later and computes nothing.",
    )


def _whole(tables: Mapping[str, pd.DataFrame], settings: Settings, files: Sequence[Path], folder: Path) -> Record:
    metrics: dict[str, float] = {}
    if "precision" in tables:
        metrics |= _by_score(tables["precision"], {"spearman": "spearman", "overlap": "top_half"})
    if "cost" in tables:
        metrics |= _by_score(tables["cost"], {"seconds": "seconds", "peak_memory": "peak_memory_mib"})
    return Record(
        name="experiment",
        params={name: _short(value) for name, value in settings.model_dump().items() if value is not None},
        metrics=metrics,
        tags={"kind": "experiment"},
        tables={name: _finite(table) for name, table in tables.items()},
        files={"": list(files), "plots": sorted((folder / "plots").glob("*.svg"))},
    )


def _variants(tables: Mapping[str, pd.DataFrame]) -> list[Record]:
    """Return one record for each variant: its perplexity by phase and share, its precision and its stability."""
    progressive, found = tables["progressive"], []
    for variant, rows in progressive.groupby("variant"):
        metrics = {
            f"perplexity_{row['phase']}/keep_{100 * row['retain']:g}": row["perplexity"]
            for row in rows.to_dict("records")
        }
        for name, columns in (("precision", ["spearman"]), ("stability", ["overlap", *_spreads()])):
            if name in tables:
                own = tables[name][tables[name]["score"] == variant]
                own = own[own["over"] == "calibration"] if name == "stability" else own
                metrics |= {column: float(value) for column in columns for value in own[column] if np.isfinite(value)}
        found.append(Record(str(variant), {"variant": variant}, metrics, tags={"kind": "experiment variant"}))
    return found


def _spreads() -> list[str]:
    return [f"{phase}_spread" for phase in PHASES]


def _by_score(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, float]:
    rows = table.to_dict("records")
    return {f"{name}/{_allowed(row['score'])}": float(row[column]) for column, name in columns.items() for row in rows}


def _allowed(name: str) -> str:
    """Return a score's name without the plus signs, which MLflow refuses in a metric's name."""
    return name.replace("+", " and ")


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with nothing in place of what was not measured, as JSON has no NaN."""
    return table.astype(object).where(table.notna(), None)


def _short(value: Any) -> str:
    """Return a setting as text of a length that MLflow takes."""
    return (" ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))[:500]
