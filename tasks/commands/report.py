"""`python -m tasks report`: the comparison in the terminal, and where to look further."""

from collections.abc import Mapping

import pandas as pd
from rich.console import Console
from rich.table import Table

from pruning.evaluation.comparison import PHASES
from tasks.common.parameters import Parameters, checked
from tasks.common.pipeline import PARAMETERS, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.common.variants import read_variants
from tasks.stages.evaluate import BATCHES

WHERE = """[bold]Where to look[/bold]
  runs compared in MLflow      make mlflow    (then the address it prints)
  the pipeline in Prefect      make prefect   (then the address it prints)
  plots                        {plots}/*.png
  metrics, and what changed    .venv/bin/dvc metrics show    .venv/bin/dvc metrics diff"""


def run() -> None:
    """Print a table of all variants and the commands that show more."""
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    stage = read_stage("compare", None, values)
    comparison = read_table(stage.outputs["comparison"]).set_index("variant").loc[list(parameters.variants)]
    timing = read_variants(stage.inputs["evaluate"], "timing", parameters)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(_table(comparison, _latency(timing), parameters))
    console.print(WHERE.format(plots=stage.outputs["plots"]))


def _latency(timing: pd.DataFrame) -> dict[tuple[str, str, int], tuple[float, float]]:
    """Return (latency, spread) in ms by variant, phase and batch; the dense model's was measured in the same run."""
    rows = timing[timing["measure"] == "latency"]
    keys = zip(rows["variant"], rows["phase"], rows["batch"], strict=True)
    values = zip(rows["seconds"] * 1000, rows["spread"] * 1000, strict=True)
    return dict(zip(keys, values, strict=True))


def _table(
    comparison: pd.DataFrame, latency: Mapping[tuple[str, str, int], tuple[float, float]], parameters: Parameters
) -> Table:
    table = Table(title="Test perplexity and cost of each variant")
    spikes = comparison["synaptic_operations"].gt(0).any()  # else energy says no more than multiply-adds
    columns = ["variant", "chosen by", "neurons kept", "parameters", "multiply-adds"]
    columns += [*(["nJ/token"] if spikes else []), "perplexity\npruned"]
    columns += [
        "reconstructed",
        "finetuned",
        "change\nfrom dense",
        *(f"ms/step, batch {batch}\n± spread (speed-up)" for batch in BATCHES),
    ]
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    for variant, row in comparison.iterrows():
        chosen = "–" if variant == parameters.compare.control else row["importance"]
        table.add_row(
            str(variant),
            chosen,
            f"{row['neurons']:,} ({row['retention']:.0%})",
            f"{row['parameters']:,}",
            f"{row['multiply_adds']:,}",
            *([f"{row['energy'] / 1000:,.0f}"] if spikes else []),
            *(f"{row[f'{phase}_perplexity']:.1f}" for phase in PHASES),
            f"{row['finetuned_change']:+.1%}",
            *(_milliseconds(latency, str(variant), batch) for batch in BATCHES),
        )
    return table


def _milliseconds(latency: Mapping[tuple[str, str, int], tuple[float, float]], variant: str, batch: int) -> str:
    (own, spread), (dense, _) = latency[variant, "finetuned", batch], latency[variant, "dense", batch]
    return f"{own:.2f} ± {spread:.2f} ({dense / own:.2f}×)"
