"""Tables as Parquet files that carry their schema's name, so that a swapped file is refused by name."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pruning.tables import metadata, table
from tasks.common.parameters import Unexpected
from tasks.common.writing import replacing


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table under the schema that the file's stem names; equal tables become equal bytes."""
    name = path.stem
    content = pa.Table.from_pandas(table(name, frame), preserve_index=False)
    content = content.replace_schema_metadata(metadata(name))
    with replacing(path) as aside:
        pq.write_table(content, aside, compression="zstd")


def read_table(path: Path) -> pd.DataFrame:
    """Return a table, checked against the schema that the file's stem names.

    Raises:
        Unexpected: If the file is missing, is no Parquet file, or holds another table.
    """
    if not path.is_file():
        raise Unexpected(f"Expected the table {path}, got no such file; run `dvc repro` to make it.")
    try:
        content = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise Unexpected(f"Expected a Parquet file at {path}, got something else ({error}).") from error
    held = (content.schema.metadata or {}).get(b"table", b"no name").decode()
    if held != path.stem:
        raise Unexpected(f"Expected the table {path.stem!r} in {path}, got {held!r}.")
    return table(path.stem, content.to_pandas())
