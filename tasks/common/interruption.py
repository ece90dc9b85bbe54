"""An interruption of a command is one line, also while its modules are imported, which takes seconds."""

import sys
from types import TracebackType

INTERRUPTED = "Interrupted; nothing half-written is left, and the same command goes on from what is finished."


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write(f"{INTERRUPTED}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def say_interruptions() -> None:
    """Let an interruption be one line where a command runs.

    Python calls a program `-m` while it looks for the module to run: so this is a command, and nobody's library.
    """
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _say_interrupted
