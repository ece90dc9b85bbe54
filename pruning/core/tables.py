"""What a table's schema is, and the check that a table is the one it is said to be; schemas stand in their rooms."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype, is_string_dtype


@dataclass(frozen=True)
class Column:
    """One column: its type (`text`, `integer`, `number` or `flag`), its unit, and what it means.

    Numbers are finite. Where one may be missing (NaN), `missing` says when; with `UNMEASURED` only where that is so.
    """

    type: str
    unit: str
    meaning: str
    missing: str = ""


UNMEASURED = "nothing was measured: `samples` is 0"


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Its name, which is its file's too.
        key: The columns that identify a row.
        columns: All columns in order.
        shares: Of a signal: the share of each component in its importance.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, Column]
    shares: Mapping[str, float] = field(default_factory=dict)


class NotFinite(ValueError):
    """What a table is refused for that holds infinite numbers, or missing ones where none may be."""


LAYER = Column("text", "", "layer of neurons")
NEURON = Column("integer", "", "index in its layer, from 0")
VARIANT = Column("text", "", "variant in params.yaml")
PHASE = Column("text", "", "`dense`, `pruned`, `reconstructed` or `finetuned`")
ESTIMATE = {
    "importance": Column("number", "1", "larger is more important; comparable within a layer"),
    "standard_error": Column("number", "1", "standard error of the importance; 0 where it is exact"),
    "samples": Column("integer", "", "observations behind it: tokens, batches or probes"),
}


def missing(when: str, columns: dict[str, Column]) -> dict[str, Column]:
    """Return the columns, whose numbers may be missing then."""
    return {name: replace(c, missing=when) if c.type == "number" else c for name, c in columns.items()}


def signal_table(name: str, components: dict[str, Column], *, shares: Mapping[str, float] | None = None) -> Table:
    """Return the table of a signal: its components between the key and what every signal says of its importance."""
    columns = {"layer": LAYER, "neuron": NEURON, **components, **ESTIMATE}
    return Table(name, ("layer", "neuron"), missing(UNMEASURED, columns), shares or {})


def table(schema: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` as a table of that schema: columns in order and of their types, rows sorted by key.

    Raises:
        ValueError: For a missing, unexpected or wrongly typed column, or a repeated key.
        NotFinite: For a number that is not finite where the schema does not let it be missing.
    """
    if list(frame.columns) != list(schema.columns):
        _refuse_columns(schema, list(frame.columns))
    ordered = frame[list(schema.columns)].sort_values(list(schema.key), kind="stable", ignore_index=True)
    for column, wanted in schema.columns.items():
        if not _is(ordered[column], wanted.type):
            raise ValueError(
                f"Expected {wanted.type}s in column {column!r} of {schema.name}, got {ordered[column].dtype}."
            )
    if ordered.duplicated(list(schema.key)).any():
        raise ValueError(f"Expected one row for each {' × '.join(schema.key)} in {schema.name}, got repeated ones.")
    _refuse_numbers(schema, ordered)
    return ordered


def rows_of(names: Sequence[str], widths: Iterable[int]) -> pd.DataFrame:
    """Return the key columns of a table of neurons: `layer` and `neuron`, layer after layer."""
    pairs = [(name, neuron) for name, width in zip(names, widths, strict=True) for neuron in range(width)]
    return pd.DataFrame(pairs, columns=["layer", "neuron"])


_NOTHING: Mapping[str, Any] = {"number": float("nan"), "integer": 0, "text": "", "flag": False}
"""What stands where nothing was measured, by a column's type."""


def unmeasured(schema: Table, layers: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """Return a table of neurons in which nothing was measured: no numbers, from no samples.

    >>> unmeasured(signal_table("cost", {}), [("l", 1)]).iloc[0].to_dict()
    {'layer': 'l', 'neuron': 0, 'importance': nan, 'standard_error': nan, 'samples': 0}
    """
    names, widths = zip(*layers, strict=True)
    rest = {name: _NOTHING[c.type] for name, c in list(schema.columns.items())[2:]}
    return table(schema, rows_of(names, widths).assign(**rest))


def empty(schema: Table) -> pd.DataFrame:
    """Return a table without rows.

    >>> empty(signal_table("cost", {})).shape
    (0, 5)
    """
    kinds = {"text": "str", "integer": "int64", "number": "float64", "flag": "bool"}
    columns = {column: pd.Series(dtype=kinds[c.type]) for column, c in schema.columns.items()}
    return table(schema, pd.DataFrame(columns))


def metadata(schema: Table) -> dict[str, str]:
    """Return what travels in a table's file: its name, its key, the unit of each column, and all its columns as JSON.

    >>> metadata(signal_table("cost", {}))["key"]
    'layer, neuron'
    """
    units = ", ".join(f"{column}: {c.unit}" for column, c in schema.columns.items() if c.unit)
    columns = json.dumps({name: asdict(column) for name, column in schema.columns.items()}, ensure_ascii=False)
    return {"table": schema.name, "key": ", ".join(schema.key), "units": units, "columns": columns}


def taken_from(content: Any, schema: Table, about: Mapping[str, str], file: object) -> pd.DataFrame:
    """Return the table that an Arrow table from a file is.

    Args:
        content: A `pyarrow.Table` with what `metadata` gave, and more, for its schema's metadata.
        schema: Which table is expected.
        about: What else must stand in the metadata: what the table is of.
        file: What to call the file in a refusal.

    Raises:
        ValueError: If it is another table, one of something else, or a damaged one.
    """
    told = (content.schema.metadata or {}).items()
    held = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in told}
    wanted, anew = f"Expected the table {schema.name!r} in {file}", "give another file name to compute it anew"
    if held.get("table") != schema.name:
        raise ValueError(f"{wanted}, got {held.get('table', 'no name')!r}.")
    for key, value in about.items():
        if held.get(key) != value:
            raise ValueError(f"Expected the {schema.name} of this {key} in {file}, got that of another; {anew}.")
    try:
        return table(schema, content.to_pandas())
    except ValueError as error:
        raise ValueError(f"{wanted}, got a damaged one ({error}); {anew}.") from error


def declared(told: Mapping[str, str]) -> Table:
    """Return the schema that a file tells of itself; who reads a table need not know the room that made it.

    >>> cost = signal_table("cost", {})
    >>> declared(metadata(cost)) == cost
    True

    Raises:
        ValueError: If these are not what `metadata` gave.
    """
    try:
        columns = {name: Column(**about) for name, about in json.loads(told["columns"]).items()}
        return Table(told["table"], tuple(told["key"].split(", ")), columns)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError("Expected a table that tells its columns, got one without or with others.") from error


def _refuse_columns(schema: Table, got: list[str]) -> None:
    missing = [column for column in schema.columns if column not in got]
    extra = [column for column in got if column not in schema.columns]
    if missing or extra:
        raise ValueError(f"Expected the columns of table {schema.name}, got missing {missing}, unexpected {extra}.")


def _refuse_numbers(schema: Table, frame: pd.DataFrame) -> None:
    """Refuse infinite numbers, and missing ones where the schema does not allow it."""
    for name, column in schema.columns.items():
        if column.type != "number":
            continue
        values = frame[name].to_numpy(dtype=float, na_value=np.nan)
        allowed = np.isnan(values) & bool(column.missing)
        if column.missing == UNMEASURED:
            allowed &= frame["samples"].to_numpy() == 0
        wrong = np.flatnonzero(~np.isfinite(values) & ~allowed)
        if len(wrong):
            key = ", ".join(f"{part} {frame[part].iloc[wrong[0]]}" for part in schema.key)
            raise NotFinite(
                f"Expected finite numbers in column {name!r} of {schema.name}, got {values[wrong[0]]} at {key}"
                + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
                + "; look for derivatives (of a root at 0, say), weights or inputs that are not finite."
            )


def _is(column: pd.Series, wanted: str) -> bool:
    if wanted == "text":
        return column.empty or bool(is_string_dtype(column))
    checks: dict[str, Callable[[Any], bool]] = {
        "integer": is_integer_dtype,
        "number": is_float_dtype,
        "flag": is_bool_dtype,
    }
    return checks[wanted](column.dtype)
