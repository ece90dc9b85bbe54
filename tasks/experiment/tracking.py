"""What MLflow is told of the experiment: one parent run with its tables and report, one child for each choice."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pruning.evaluation.comparison import PHASES
from tasks.commands.tracking.records import Record
from tasks.commands.tracking.state import State
from tasks.common.pipeline import flat

TABLES = ("progressive", "precision", "stability", "cost")


def records(state: State) -> list[Record]:
    """Return the whole and each choice."""
    report = state.stage("report")
    tables = {name: state.table(report, name) for name in TABLES}
    whole = Record(
        name="experiment",
        params={name: _short(value) for name, value in flat(state.values).items() if value is not None},
        metrics=_by_score(tables["precision"], {"spearman": "spearman", "overlap": "top_half"})
        | _by_score(tables["cost"], {"seconds": "seconds", "peak_memory": "peak_memory_mib"}),
        tags={"kind": "experiment"},
        tables={name: _finite(table) for name, table in tables.items()},
        files={
            "": [report.outputs[name] for name in ("report", "summary", *TABLES)],
            "plots": sorted(report.outputs["plots"].glob("*.svg")),
        },
    )
    return [whole, *_choices(tables)]


def _choices(tables: Mapping[str, pd.DataFrame]) -> list[Record]:
    """Return one record for each choice: its perplexity by phase and share, its precision and its stability."""
    of_choices = []
    for choice, rows in tables["progressive"].groupby("variant"):
        metrics = {
            f"perplexity_{row['phase']}/keep_{100 * row['retain']:g}": row["perplexity"]
            for row in rows.to_dict("records")
        }
        spreads = [f"{phase}_spread" for phase in PHASES]
        for name, columns in (("precision", ["spearman"]), ("stability", ["overlap", *spreads])):
            of_choice = tables[name][tables[name]["score"] == choice]
            of_choice = of_choice[of_choice["over"] == "calibration"] if name == "stability" else of_choice
            metrics |= {column: float(value) for column in columns for value in of_choice[column] if np.isfinite(value)}
        of_choices.append(Record(str(choice), {"variant": choice}, metrics, tags={"kind": "experiment variant"}))
    return of_choices


def _by_score(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, float]:
    """Return metrics by score, without the plus signs that MLflow refuses in a name."""
    rows = table.to_dict("records")
    return {
        f"{name}/{row['score'].replace('+', ' and ')}": float(row[column])
        for column, name in columns.items()
        for row in rows
    }


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with nothing in place of what was not measured, as JSON has no NaN."""
    return table.astype(object).where(table.notna(), None)


def _short(value: Any) -> str:
    """Return a setting as text of a length that MLflow takes."""
    return (" ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))[:500]
