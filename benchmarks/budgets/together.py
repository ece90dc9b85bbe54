"""Several comparisons side by side, so that no process of a GPU waits: `benchmarks.budgets` for each line of a file.

`python -m benchmarks.budgets.together --lines FILE --workers 16`, from the repository's root. Each line of the file is
the command line of one `python -m benchmarks.budgets`, without what stands before its options; empty lines and those
that begin with # are left out. The jobs of the first line come first, then those of the second; what a line has in
common with an earlier one of the same `--state` is done once, so a comparison may stand in several lines, its more
important part in an earlier one. After `--limit` seconds no epoch begins, the exit code is 75, and the same command
goes on from there. The tables of every `--to` are written whenever it ends.
"""

import argparse
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import asked
from benchmarks.budgets.__main__ import options, run


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file that say something.

    Raises:
        ValueError: If there are none, or they are for different devices.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    devices = sorted({options(shlex.split(line)).device for line in lines})
    if len(devices) != 1:
        raise ValueError(
            f"Expected lines of options of benchmarks.budgets for one device in {path}, got {' and '.join(devices)}."
            if devices
            else f"Expected lines of options of benchmarks.budgets in {path}, got none."
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is left to do of all lines, and exit with 75 if that was not all."""
    start = time.time()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budgets.together", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--lines", type=asked.there, required=True, help="file of command lines of benchmarks.budgets")
    parser.add_argument("--workers", type=asked.count, default=1, help="processes side by side")
    parser.add_argument(
        "--limit", type=asked.amount, default=math.inf, help="seconds of this process after which it stops"
    )
    parser.add_argument("--commit", default=None, help="of this code; by default git's")
    given = parser.parse_args(arguments)
    try:
        lines = lines_of(given.lines)
    except ValueError as error:
        parser.error(str(error))
    asked_for = [(options(shlex.split(line)), line) for line in lines]
    run(asked_for, given.workers, start + given.limit, given.commit)


if __name__ == "__main__":
    main()
