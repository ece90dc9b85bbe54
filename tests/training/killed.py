"""`torchrun -m tests.training.killed train`: the stages' code, whose second process is killed in its second epoch."""

import os
import signal
import sys
from typing import Any

from pruning.training import loop
from tasks.__main__ import main

validated, seen = loop.validated, []


def killed(*given: Any) -> float:
    """Judge as ever, but for the process that is killed."""
    seen.append(given)
    if len(seen) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return validated(*given)


if __name__ == "__main__":
    loop.validated = killed
    sys.exit(main())
