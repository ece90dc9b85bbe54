"""Tables that each variant has of its own, read as one."""

from pathlib import Path

import pandas as pd

from tasks.common.parameters import Parameters
from tasks.common.tables import read_table


def read_variants(folder: Path, table: str, parameters: Parameters) -> pd.DataFrame:
    """Return one table of all variants of params.yaml, from `<folder>/<variant>/<table>.parquet`, in their order."""
    parts = [
        read_table(folder / variant / f"{table}.parquet").assign(variant=variant) for variant in parameters.variants
    ]
    return pd.concat(parts, ignore_index=True)
