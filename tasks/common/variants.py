"""Tables that each variant has of its own, read as one."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from tasks.common.tables import read_table


def read_variants(folder: Path, table: str, variants: Iterable[str]) -> pd.DataFrame:
    """Return one table of variants, from `<folder>/<variant>/<table>.parquet`, in their order."""
    parts = [read_table(folder / variant / f"{table}.parquet").assign(variant=variant) for variant in variants]
    return pd.concat(parts, ignore_index=True)
