"""What two runs of the pipeline have in common: `python -m benchmarks.same BEFORE AFTER`, two folders like `data`.

Files of equal bytes and tables of equal values are counted; of the others every column that differs is named, with how
many of its values do, the largest difference, and the largest value. Measured times, which never repeat, are passed
over. The exit code is 0 where nothing differs.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from benchmarks import asked

TIMES = {"timing", "latency", "costs", "cost"}
"""Stems of files that hold measured times."""


def main() -> int:
    """Print what differs and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("before", type=asked.results, help="the folder of results that stands")
    parser.add_argument("after", type=asked.results, help="the folder of results to compare with it")
    given = parser.parse_args()
    before, after = (set(files_of(folder)) for folder in (given.before, given.after))
    lines = [f"only before: {path}" for path in sorted(before - after)]
    lines += [f"only after: {path}" for path in sorted(after - before)]
    equal = {"bytes": 0, "values": 0}
    for path in sorted(before & after):
        one, other = given.before / path, given.after / path
        if one.read_bytes() == other.read_bytes():
            equal["bytes"] += 1
        elif differences := list(differing(one, other)):
            lines += [f"{path}: {difference}" for difference in differences]
        else:
            equal["values"] += 1
    sys.stdout.write("\n".join([*lines, f"equal bytes: {equal['bytes']}, equal values: {equal['values']}"]) + "\n")
    return int(bool(lines))


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the results in a folder, relative to it."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not inside.parts[0].startswith(".") and path.stem not in TIMES:
            yield inside


def differing(one: Path, other: Path) -> Iterator[str]:
    """Yield what differs between two files of a name, a column or a tensor each."""
    if one.suffix not in (".parquet", ".safetensors"):
        yield "other bytes"
        return
    read = columns_of if one.suffix == ".parquet" else load_file
    before, after = read(one), read(other)
    for name in (*before, *(name for name in after if name not in before)):
        if name not in before or name not in after or before[name].shape != after[name].shape:
            yield f"{name} is not in both, or of another size"
        elif before[name].dtype.kind not in "fiub":
            if not np.array_equal(before[name], after[name]):
                yield f"{name}: other words"
        else:
            x, y = before[name].astype(float), after[name].astype(float)
            apart = ~((x == y) | (np.isnan(x) & np.isnan(y)))
            if apart.any():
                largest = np.nanmax(np.abs(x - y)), np.nanmax(np.abs(x))
                yield f"{name}: {apart.sum()} of {x.size} differ, by {largest[0]:.1e} at most of {largest[1]:.1e}"


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """Return a table's columns by name."""
    frame = pd.read_parquet(path)
    return {str(name): frame[name].to_numpy() for name in frame}


if __name__ == "__main__":
    sys.exit(main())
