"""The older interface's files, the one place of the library that knows paths: tables that say what they are of."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pruning.core.tables import Table, metadata, table

ANEW = "give another file name to compute it anew"


def write_table(file: str | Path, schema: Table, frame: pd.DataFrame, about: Mapping[str, str]) -> None:
    """Write a table with what it is about; nothing half-written ever has the file's name."""
    path = Path(file)
    content = pa.Table.from_pandas(table(schema, frame), preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        content = content.replace_schema_metadata({**metadata(schema), **about})
        pq.write_table(content, aside, compression="zstd", write_page_checksum=True)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_table(file: str | Path, schema: Table, about: Mapping[str, str]) -> pd.DataFrame | None:
    """Return the table in a file, None if there is no such file.

    Raises:
        ValueError: If the file holds something else, or a table that is about something else.
    """
    path, wanted = Path(file), f"Expected the table {schema.name!r} in {file}"
    if not path.exists():
        return None
    if path.is_dir():
        raise ValueError(f"{wanted}, got a folder.")
    try:
        content = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ValueError(f"{wanted}, got something else ({error}); {ANEW}.") from error
    told = {key.decode(errors="replace"): value for key, value in (content.schema.metadata or {}).items()}
    held = {key: value.decode(errors="replace") for key, value in told.items()}
    if held.get("table") != schema.name:
        raise ValueError(f"{wanted}, got {held.get('table', 'no name')!r}.")
    for key, value in about.items():
        if held.get(key) != value:
            raise ValueError(f"Expected the {schema.name} of this {key} in {file}, got that of another; {ANEW}.")
    try:
        return table(schema, content.to_pandas())
    except ValueError as error:
        raise ValueError(f"{wanted}, got a damaged one ({error}); {ANEW}.") from error


def name_beside(file: str | Path, name: str) -> str:
    """Return the name of the file that holds the table of that name beside another file."""
    return str(Path(file).with_name(f"{Path(file).stem}.{name}.parquet"))
