"""Tables as Parquet files that carry their schema's name, so that a swapped file is refused by name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pruning.core.tables import Table, declared, metadata, table
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew
from tasks.common.writing import replacing

DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError)
"""What Arrow raises where bytes are not those that were written."""


class Layer(Protocol):
    """What a table of neurons is checked by."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def width(self) -> int:
        """How many neurons it has."""


def write_table(path: Path, frame: pd.DataFrame, schema: Table) -> None:
    """Write a table of a schema; equal tables become equal bytes."""
    content = pa.Table.from_pandas(table(schema, frame), preserve_index=False)
    content = content.replace_schema_metadata(metadata(schema))
    with replacing(path) as aside:
        write_parquet(aside, content)


def write_parquet(path: Path, content: pa.Table) -> None:
    """Write Arrow's table with a checksum for each page, so that `read_parquet` sees what a disk has changed."""
    pq.write_table(content, path, compression="zstd", write_page_checksum=True)


def read_parquet(path: Path) -> pa.Table:
    """Return Arrow's table in a Parquet file, each page checked against its checksum if it has one.

    Raises:
        Unexpected: If the file is missing, damaged, or no Parquet file.
    """
    if not path.is_file():
        raise Unexpected(f"Expected the table {path}, got no such file; run `dvc repro` to make it.")
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unexpected(
            f"Expected a Parquet file at {path}, got a damaged one or something else ({reason}); {anew(path)}."
        ) from error


def read_table(path: Path) -> pd.DataFrame:
    """Return a table, checked against the schema that it was written with.

    Raises:
        Unexpected: If the file is missing, damaged, no Parquet file, or holds another table.
    """
    content = read_parquet(path)
    expect_table(content.schema, path)
    try:
        told = {key.decode(): value.decode() for key, value in content.schema.metadata.items() if key != b"pandas"}
        return table(declared(told), content.to_pandas())
    except DAMAGED as error:
        raise Unexpected(f"{str(error).rstrip('.')} ({path}); {anew(path)}.") from error


def expect_table(schema: pa.Schema, path: Path) -> None:
    """Refuse a file that does not hold the table that its stem names."""
    held = (schema.metadata or {}).get(b"table", b"no name").decode(errors="replace")
    if held != path.stem:
        raise Unexpected(f"Expected the table {path.stem!r} in {path}, got {held!r}.")


def read_neurons(path: Path, layers: Iterable[Layer]) -> pd.DataFrame:
    """Return a table of a model's neurons, one row for each of them.

    A layer without rows would otherwise be taken for one that keeps all its neurons.

    Raises:
        Unexpected: As `read_table`, and if the table lacks a neuron of the layers or holds another.
    """
    frame, widths = read_table(path), {layer.name: layer.width for layer in layers}
    held = {str(layer): set(rows) for layer, rows in frame.groupby("layer")["neuron"]}
    for name in (*widths, *held):
        wanted, there = set(range(widths.get(name, 0))), held.get(name, set())
        if wanted != there:
            missing, other = sorted(wanted - there), sorted(there - wanted)
            got = f"none for neuron {missing[0]}" if missing else f"one for neuron {other[0]}, which there is not,"
            raise Unexpected(
                f"Expected a row for each neuron of the model in {path}, got {got} of layer {name!r}; {anew(path)}."
            )
    return frame
