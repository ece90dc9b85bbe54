"""Tables as Parquet files that carry their schema's name, so that a swapped file is refused by name."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pruning.core.tables import metadata, table
from tasks.common.parameters import Unexpected
from tasks.common.writing import replacing

DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError)
"""What Arrow raises where bytes are not those that were written."""
ROWS = 2**20
"""Tokens that are written and read together."""
ANEW = "run `dvc repro` to make it anew"


class Layer(Protocol):
    """What a table of neurons is checked by."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def width(self) -> int:
        """How many neurons it has."""


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table under the schema that the file's stem names; equal tables become equal bytes."""
    name = path.stem
    content = pa.Table.from_pandas(table(name, frame), preserve_index=False)
    content = content.replace_schema_metadata(metadata(name))
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
            f"Expected a Parquet file at {path}, got a damaged one or something else ({reason}); {ANEW}."
        ) from error


def read_table(path: Path) -> pd.DataFrame:
    """Return a table, checked against the schema that the file's stem names.

    Raises:
        Unexpected: If the file is missing, damaged, no Parquet file, or holds another table.
    """
    content = read_parquet(path)
    _expect_table(content.schema, path)
    try:
        return table(path.stem, content.to_pandas())
    except DAMAGED as error:
        raise Unexpected(f"{str(error).rstrip('.')} ({path}); {ANEW}.") from error


def write_tokens(path: Path, tokens: Mapping[str, np.ndarray]) -> None:
    """Write the table `corpus`, a stretch of one split after the other: no more than that is ever held.

    Splits and positions cost next to nothing in the file, being runs of equal values and of equal differences.
    """
    types = {"split": pa.string(), "position": pa.int64(), "token": pa.int32()}
    schema = pa.schema(types, metadata=metadata("corpus"))
    encoding = {"position": "DELTA_BINARY_PACKED"}
    how = {"compression": "zstd", "write_page_checksum": True}
    with (
        replacing(path) as aside,
        pq.ParquetWriter(aside, schema, use_dictionary=["split", "token"], column_encoding=encoding, **how) as file,
    ):
        for split in sorted(tokens):
            for start in range(0, len(tokens[split]), ROWS):
                part = tokens[split][start : start + ROWS]
                columns = [np.full(len(part), split, dtype=object), np.arange(start, start + len(part)), part]
                arrays = [pa.array(c, type=field.type) for c, field in zip(columns, schema, strict=True)]
                file.write_table(pa.table(arrays, schema=schema))


def read_tokens(path: Path, split: str) -> np.ndarray:
    """Return one split of the table `corpus`, (length,) int32; of the others nothing is read.

    Raises:
        Unexpected: As `read_table`, and if the split lacks a position or has one twice.
    """
    if not path.is_file():
        raise Unexpected(f"Expected the table {path}, got no such file; run `dvc repro` to make it.")
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            _expect_table(file.schema_arrow, path)
            parts = list(_parts(file, split, path))
    except Unexpected:
        raise
    except DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unexpected(
            f"Expected a Parquet file at {path}, got a damaged one or something else ({reason}); {ANEW}."
        ) from error
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def _parts(file: pq.ParquetFile, split: str, path: Path) -> Iterator[np.ndarray]:
    """Yield the tokens of one split, row group after row group."""
    length = 0
    for index in range(file.num_row_groups):
        bounds = file.metadata.row_group(index).column(0).statistics
        if bounds is not None and bounds.has_min_max and not bounds.min <= split <= bounds.max:
            continue
        rows = file.read_row_group(index, columns=["split", "position", "token"])
        rows = rows.filter(pc.equal(rows["split"], split))
        if not np.array_equal(rows["position"].to_numpy(), np.arange(length, length + len(rows))):
            raise Unexpected(f"Expected each position of the {split} split once in {path}, got others; {ANEW}.")
        length += len(rows)
        yield rows["token"].to_numpy().astype(np.int32, copy=False)


def _expect_table(schema: pa.Schema, path: Path) -> None:
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
    found, widths = read_table(path), {layer.name: layer.width for layer in layers}
    held = {str(layer): set(rows) for layer, rows in found.groupby("layer")["neuron"]}
    for name in (*widths, *held):
        wanted, own = set(range(widths.get(name, 0))), held.get(name, set())
        if wanted != own:
            missing, other = sorted(wanted - own), sorted(own - wanted)
            got = f"none for neuron {missing[0]}" if missing else f"one for neuron {other[0]}, which there is not,"
            raise Unexpected(
                f"Expected a row for each neuron of the model in {path}, got {got} of layer {name!r}; {ANEW}."
            )
    return found
