"""Whole runs on something small; each module is a command, `python -m examples.<name>`."""

import os
import sys
from types import TracebackType

# Threads that wait by spinning starve whatever else runs. Read when torch is first imported; it changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one sentence for a package that is not installed, and everything for whatever else went wrong."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        sys.stderr.write(
            f"Expected the package of {error.name}, got none; `pip install -c constraints.txt -e '.[dev,examples]'` "
            "brings it.\n"
        )
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[0] == "-m":  # so Python calls itself until it has found the module that it is to run
    sys.excepthook = _say_what_is_missing
