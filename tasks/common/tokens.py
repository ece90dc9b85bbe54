"""The table `corpus` in stretches, for text may be longer than memory: a split is written and read on its own."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pruning.core.tables import metadata
from pruning.data.corpus import Numbers
from pruning.data.schemas import CORPUS
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew
from tasks.common.tables import DAMAGED, expect_table
from tasks.common.writing import refusing, replacing

ROWS = 2**20
"""Tokens that are written and read together."""


class Stored:
    """Token numbers in a file without a name, which is mapped while some of them are read, and only then.

    What a process holds of a mapped file counts as its memory until the mapping ends, so that one which stays would
    come to hold the whole text. Copied to another process they are an array.

    >>> stored = Stored([np.array([5, 6]), np.array([7])], beside=Path("."))
    >>> len(stored), stored[np.array([[2], [0]])].tolist()
    (3, [[7], [5]])

    Args:
        stretches: The numbers, one stretch after the other.
        beside: The folder whose disk they are kept on, four bytes each; without leave to write there, the system's
            folder for what is temporary.
    """

    def __init__(self, stretches: Iterable[np.ndarray], *, beside: Path) -> None:
        folder = beside if os.access(beside, os.W_OK) else None
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - it ends with this object
        weakref.finalize(self, self._file.close)
        for stretch in stretches:
            with refusing(beside):
                self._file.write(stretch.astype(np.int32, copy=False).data)
        self._length = self._file.tell() // np.dtype(np.int32).itemsize

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: Any) -> np.ndarray:
        """Return a copy of the numbers at these places, int32."""
        return np.array(self._mapped()[places])

    def __setitem__(self, places: Any, numbers: np.ndarray) -> None:
        self._mapped()[places] = numbers

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all of them."""
        return np.asarray(self[:], dtype=dtype, copy=copy)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (self[:],)

    def _mapped(self) -> np.ndarray:
        if not self._length:  # of nothing there is no map
            return np.empty(0, dtype=np.int32)
        return np.memmap(self._file, dtype=np.int32, mode="r+", shape=(self._length,))


def write_tokens(path: Path, tokens: Mapping[str, Numbers]) -> None:
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


def read_tokens(path: Path, split: str) -> Stored:
    """Return one split of the table `corpus`, (length,) int32; of the others nothing is read.

    It is unpacked once, into a file beside the table; what is held does not grow with the text.

    Raises:
        Unexpected: As `read_table`, and if the split lacks a position or has one twice.
    """
    if not path.is_file():
        raise Unexpected(f"Expected the table {path}, got no such file; run `dvc repro` to make it.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            expect_table(file.schema_arrow, path)
            return Stored(_parts(file, split, path), beside=path.parent)
    except Unexpected:
        raise
    except DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unexpected(
            f"Expected a Parquet file at {path}, got a damaged one or something else ({reason}); {anew(path)}."
        ) from error


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
            raise Unexpected(f"Expected each position of the {split} split once in {path}, got others; {anew(path)}.")
        length += len(rows)
        yield rows["token"].to_numpy().astype(np.int32, copy=False)
