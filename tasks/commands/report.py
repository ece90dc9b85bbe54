"""`python -m tasks report`: the comparison in the terminal, and where to look further."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pruning.evaluation.comparison import PHASES, measure_of
from tasks.common.latency import busy, in_milliseconds
from tasks.common.pipeline import PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import Parameters, checked
from tasks.shown.asking import Answer, Words
from tasks.shown.tables import Row, digits, shown_table

WHERE = """Where to look
  runs compared in MLflow    make mlflow    (then the address it prints)
  the pipeline in Prefect    make prefect   (then the address it prints)
  plots                      {plots}/*.png, {costs}
  metrics                    .venv/bin/dvc metrics show
  what changed               .venv/bin/dvc metrics diff
  every digit                .venv/bin/python -m tasks report --json"""

Values = Mapping[Any, Any]
"""A row of `comparison`, its `metrics` as values, with `latency`: the rows of that table."""


def run(words: Sequence[str]) -> Answer:
    """Return a table of what each variant is worth, one of what it costs, and the commands that show more."""
    Words("report").read(words)
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    stage, control = read_stage("compare", None, values), parameters.compare.control
    comparison = read_table(stage.outputs["comparison"]).set_index("variant", drop=False).loc[list(parameters.variants)]
    measured = read_table(stage.inputs["timing/latency"])
    latency = in_milliseconds(measured, measured, control).set_index("model", drop=False)
    rows: list[Values] = [
        {
            **row,
            "metrics": json.loads(row["metrics"]),
            "latency": latency.loc[[row["variant"]]].to_dict("records"),
        }
        for row in comparison.to_dict("records")
    ]
    spikes = comparison["synaptic_operations"].gt(0).any()  # else energy says no more than multiply-adds
    quality = _quality(rows, parameters, measure_of(comparison, "finetuned_{}"))
    tables = [quality, *_further(rows), _cost(rows, control), *([_energy(rows)] if spikes else [])]
    where = WHERE.format(plots=stage.outputs["plots"], costs=stage.outputs["costs"])
    return Answer({"control": control, "variants": rows}, [*tables, *busy(measured)], [where])


def _quality(rows: Sequence[Values], parameters: Parameters, measure: str) -> Table:
    shown = ".1f" if measure == "perplexity" else ".4g"
    return shown_table(
        f"Quality: test {measure} after each phase",
        [
            {
                "variant": row["variant"],
                "chosen by": "–" if row["variant"] == parameters.compare.control else row["importance"],
                "neurons kept": f"{row['neurons']:,} ({row['retention']:.0%})",
                **{phase: f"{row[f'{phase}_{measure}']:{shown}}" for phase in PHASES},
                "change": f"{row['finetuned_change']:+.1%}",
            }
            for row in rows
        ],
        words=2,
    )


def _further(rows: Sequence[Values]) -> list[Table]:
    """Return the table of the metrics that a user's own loss has, if it has some."""
    cells = [
        {f"{name}\n({better} is better)": f"{value:.4g}" for name, (value, better) in row["metrics"].items()}
        for row in rows
    ]
    if not cells[0]:
        return []
    named = [{"variant": row["variant"], **own} for row, own in zip(rows, cells, strict=True)]
    return [shown_table("Quality: further test metrics after fine-tuning", named)]


def _cost(rows: Sequence[Values], control: str) -> Table:
    return shown_table(
        f"Cost: size, and time of a step, in turns with {control} (± standard error)",
        [{"variant": row["variant"], **_sizes(row), **_times(row, control)} for row in rows],
    )


def _sizes(row: Values) -> Row:
    return {"parameters": f"{row['parameters']:,}", "multiply-\nadds": f"{row['multiply_adds']:,}"}


def _times(row: Values, control: str) -> Row:
    cells: dict[str, str] = {}
    for own in row["latency"]:
        faster = "–" if row["variant"] == control else f"{own['speed_up']:.2f} ± {own['error']:.2f}"
        cells |= {f"batch {own['batch']}\nms": digits(own["milliseconds"]), f"batch {own['batch']}\nspeed-up": faster}
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
