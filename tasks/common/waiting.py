"""How long this process waited for a core while it was ready to run, which says whether the machine was busy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.05
"""The share from which the machine is called busy; on idle cores it is below a hundredth."""
THREADS = Path("/proc/self/task")


@dataclass
class Waiting:
    """Which share of the time that it ran or was ready to a process waited; NaN where Linux does not say."""

    share: float = float("nan")


@contextmanager
def waiting() -> Iterator[Waiting]:
    """Within the context measure how long this process's threads wait for a core; the share is there at its end."""
    found, before = Waiting(), _ran_and_waited()
    yield found
    ran, waited = (after - earlier for after, earlier in zip(_ran_and_waited(), before, strict=True))
    if ran > 0:
        found.share = max(0, waited) / (ran + max(0, waited))


def _ran_and_waited() -> tuple[int, int]:
    """Return nanoseconds on a core, and in the queue for one, summed over this process's threads."""
    ran = waited = 0
    for thread in THREADS.glob("*/schedstat"):
        try:
            own = thread.read_text(encoding="ascii").split()
        except OSError:  # it has ended
            continue
        ran, waited = ran + int(own[0]), waited + int(own[1])
    return ran, waited
