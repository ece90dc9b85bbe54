"""What is measured in processes of their own, and what that costs.

Each signal is measured in a fork of this process, which has read everything and computed nothing, so that the growth of
the fork's peak memory is the signal's own. It reads on one thread: a fork of a process whose threads have computed
together would wait for threads that it does not have. An accelerator's driver does not survive a fork: there all are
measured in this process, and the memory is what the whole of it has grown by.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch

from pruning.evaluation.passes import counted
from pruning.experiment.schemas import ONCE
from pruning.models.base import LanguageModel
from tasks.common.devices import device
from tasks.common.job import end_with_parent
from tasks.common.parameters import Unexpected

Found = TypeVar("Found")
Cost = Mapping[str, float]
MEBIBYTE = 1024**2


def measured_apart(names: Sequence[str], prepare: Callable[[], Callable[[str], Cost]]) -> pd.DataFrame:
    """Return the `cost` table of measuring one thing after the other, each in a fork of this process.

    Args:
        names: What to measure; nothing precedes what it needs.
        prepare: Reads what all need, and returns the function that measures one, writes it, and returns its cost.

    Raises:
        Unexpected: If one could not be measured; why, it has said by then.
    """
    threads, fork = torch.get_num_threads(), multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    measure, rows = prepare(), []
    if device().type != "cpu":
        torch.set_num_threads(threads)
        return pd.DataFrame([{"score": name, **measure(name), **ONCE, "runs": 1} for name in names])
    for name in names:
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=_measure_or_say, args=(measure, name, threads, there))
        process.start()
        there.close()
        process.join()
        if process.exitcode:
            raise Unexpected(f"Expected {name} to be measured, got exit code {process.exitcode}; see above.")
        rows.append({"score": name, **here.recv(), **ONCE, "runs": 1})
    torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def _measure_or_say(measure: Callable[[str], Cost], name: str, threads: int, result: Connection) -> None:
    """Measure, or end with one sentence on what was wrong."""
    end_with_parent()
    torch.set_num_threads(threads)
    try:
        result.send(measure(name))
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"{name}: {error}")


def costed(model: LanguageModel, work: Callable[[], Found]) -> tuple[Found, Cost]:
    """Return what the work gives, its seconds, the growth of the peak memory in MiB, and the passes."""
    before = _forget_peak()
    with counted(model) as passes:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
    growth = max(0.0, (_peak() - before) / MEBIBYTE)
    cost = {"seconds": seconds, "peak_memory": growth}
    return result, {**cost, "forward_passes": passes.forward, "backward_passes": passes.backward}


def _forget_peak() -> int:
    """Let Linux start the process's peak memory anew, and return it, bytes; elsewhere the peak so far stays."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    """Return the peak of resident memory, bytes."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
