"""The table `corpus` in stretches, for text may be longer than memory: a split is written and read on its own."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pruning.core.tables import metadata
from pruning.data.schemas import CORPUS
from tasks.common.parameters import Unexpected
from tasks.common.tables import ANEW, DAMAGED, expect_table
from tasks.common.writing import replacing

ROWS = 2**20
"""Tokens that are written and read together."""


def write_tokens(path: Path, tokens: Mapping[str, np.ndarray]) -> None:
    """Write the table `corpus`, a stretch of one split after the other: no more than that is ever held.

    Splits and positions cost next to nothing in the file, being runs of equal values and of equal differences.
    """
    types = {"split": pa.string(), "position": pa.int64(), "token": pa.int32()}
    schema = pa.schema(types, metadata=metadata(CORPUS))
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
            expect_table(file.schema_arrow, path)
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
