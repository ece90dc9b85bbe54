"""`python -m tasks report`: the comparison in the terminal, and where to look further."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from pruning.evaluation.comparison import PHASES, measure_of
from tasks.common.pipeline import PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.common.variants import read_variants
from tasks.settings.parameters import Parameters, checked
from tasks.shown.asking import Answer, Words
from tasks.shown.tables import Row, shown_table
from tasks.stages.evaluate import BATCHES

WHERE = """Where to look
  runs compared in MLflow    make mlflow    (then the address it prints)
  the pipeline in Prefect    make prefect   (then the address it prints)
  plots                      {plots}/*.png, {costs}
  metrics                    .venv/bin/dvc metrics show
  what changed               .venv/bin/dvc metrics diff
  every digit                .venv/bin/python -m tasks report --json"""

Values = Mapping[Any, Any]
"""A row of `comparison`, with `latency`: one entry for each batch."""


def run(words: Sequence[str]) -> Answer:
    """Return a table of what each variant is worth, one of what it costs, and the commands that show more."""
    Words("report").read(words)
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    stage = read_stage("compare", None, values)
    comparison = read_table(stage.outputs["comparison"]).set_index("variant", drop=False).loc[list(parameters.variants)]
    timing = read_variants(stage.inputs["evaluate"], "timing", parameters.variants)
    rows = [{**row, "latency": _latency(timing, row["variant"])} for row in comparison.to_dict("records")]
    spikes = comparison["synaptic_operations"].gt(0).any()  # else energy says no more than multiply-adds
    tables = [
        _quality(rows, parameters, measure_of(comparison, "finetuned_{}")),
        _cost(rows),
        *([_energy(rows)] if spikes else []),
    ]
    where = WHERE.format(plots=stage.outputs["plots"], costs=stage.outputs["costs"])
    return Answer({"control": parameters.compare.control, "variants": rows}, [*tables, where])


def _latency(timing: pd.DataFrame, variant: str) -> dict[int, dict[str, float]]:
    """Return by batch how long a step takes, and how much faster that is than the dense model of the same turns."""
    rows = timing[(timing["measure"] == "latency") & (timing["variant"] == variant)]
    of = {(row["phase"], row["batch"]): row for row in rows.to_dict("records")}
    return {
        batch: {
            "seconds": of["finetuned", batch]["seconds"],
            "spread": of["finetuned", batch]["spread"],
            "speed_up": of["dense", batch]["seconds"] / of["finetuned", batch]["seconds"],
        }
        for batch in BATCHES
    }


def _quality(rows: Sequence[Values], parameters: Parameters, measure: str) -> Table:
    digits = ".1f" if measure == "perplexity" else ".4g"
    return shown_table(
        f"Quality: test {measure} after each phase",
        [
            {
                "variant": row["variant"],
                "chosen by": "–" if row["variant"] == parameters.compare.control else row["importance"],
                "neurons kept": f"{row['neurons']:,} ({row['retention']:.0%})",
                **{phase: f"{row[f'{phase}_{measure}']:{digits}}" for phase in PHASES},
                "change": f"{row['finetuned_change']:+.1%}",
                **{f"{name}\n({better} is better)": f"{value:.4g}" for name, value, better in _further(row)},
            }
            for row in rows
        ],
        words=2,
    )


def _further(row: Values) -> list[tuple[str, float, str]]:
    """Return (name, value, which is better) of the metrics that a user's own loss has."""
    return [(name, value, better) for name, (value, better) in json.loads(row["metrics"]).items()]


def _cost(rows: Sequence[Values]) -> Table:
    return shown_table(
        "Cost: size, and milliseconds a step by sequences side by side",
        [{"variant": row["variant"], **_sizes(row), **_times(row["latency"])} for row in rows],
    )


def _sizes(row: Values) -> Row:
    return {"parameters": f"{row['parameters']:,}", "multiply-\nadds": f"{row['multiply_adds']:,}"}


def _times(latency: Mapping[int, Mapping[str, float]]) -> Row:
    cells: dict[str, str] = {}
    for batch, own in latency.items():
        cells |= {f"batch {batch}\nms": f"{own['seconds'] * 1000:.2f} ± {own['spread'] * 1000:.2f}"}
        cells |= {f"batch {batch}\nspeed-up": f"{own['speed_up']:.2f}×"}
    return cells


def _energy(rows: Sequence[Values]) -> Table:
    return shown_table(
        "Energy of a token, where spikes spare multiply-adds",
        [
            {
                "variant": row["variant"],
                "multiply-adds": f"{row['multiply_adds']:,}",
                "synaptic operations": f"{row['synaptic_operations']:,.0f}",
                "nJ/token": f"{row['energy'] / 1000:,.0f}",
            }
            for row in rows
        ],
    )
