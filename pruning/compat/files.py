"""The older interface's files, the one place of the library that knows paths: tables that say what they are of."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from pruning.core.neurons import named_tensors
from pruning.core.tables import Table, metadata, table, taken_from
from pruning.extras import needed


def write_table(file: str | Path, schema: Table, frame: pd.DataFrame, about: Mapping[str, str]) -> None:
    """Write a table with what it is about; nothing half-written ever has the file's name."""
    pa, pq = _arrow()
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
    """Return the table in a file, None if there is no such file; refuse one of something else."""
    if not Path(file).exists():
        return None
    if Path(file).is_dir():
        raise ValueError(f"Expected the table {schema.name!r} in {file}, got a folder.")
    pa, pq = _arrow()
    try:
        content = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        anew = f"got something else ({error}); give another file name to compute it anew."
        raise ValueError(f"Expected the table {schema.name!r} in {file}, {anew}") from error
    return taken_from(content, schema, about, file)


def _arrow() -> tuple[Any, Any]:
    """Return the packages that tables are written and read with."""
    return needed("pyarrow", "pipeline"), needed("pyarrow.parquet", "pipeline")


def name_beside(file: str | Path, name: str) -> str:
    """Return the name of the file that holds the table of that name beside another file."""
    return str(Path(file).with_name(f"{Path(file).stem}.{name}.parquet"))


def fingerprint(model: nn.Module) -> str:
    """Return what tells a model from every other: a digest of its parameters' names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in named_tensors(model).items():
        values = parameter.cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
