"""`python -m tasks.experiment.costs`: what the experiment measures in processes of their own, and what that costs.

Each signal is measured in a fork of this process, which has read everything and computed nothing, so that the growth of
the fork's peak memory is the signal's own. It reads on one thread: a fork of a process whose threads have computed
together would wait for threads that it does not have.
"""

import ctypes
import json
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pruning.ablation.oracle import oracle
from pruning.evaluation.passes import counted
from pruning.experiment.measured import MEASURED
from pruning.experiment.measuring import measure
from pruning.models.base import LanguageModel
from pruning.signals.activations import Covariances
from tasks.common.console import log_to_console, track
from tasks.common.covariances import read_covariances, write_covariances
from tasks.common.tables import write_table
from tasks.experiment.cells import COST, COVARIANCE, Cell, Experiment
from tasks.experiment.settings import Settings

MEBIBYTE = 1024**2


def main(words: list[str]) -> int:
    """Measure all signals of one calibration, or removals, into a folder; return the exit code.

    Args:
        words: The settings as JSON, `calibration` or `oracle`, the seeds of the model and of the calibration, a folder.
    """
    _end_with_parent()
    log_to_console()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings, kind, training, calibration, folder = words
    cell = Cell(kind, int(training), int(calibration))
    work = _Work(Experiment(Settings.model_validate_json(settings)), cell, Path(folder))
    names = MEASURED if kind == "calibration" else ("oracle",)
    for name in names:
        fork = multiprocessing.get_context("fork").Process(target=_measure_or_say, args=(work, name, threads))
        fork.start()
        fork.join()
        if fork.exitcode:
            return 1
    rows = [json.loads((Path(folder) / f"{name}.cost").read_text(encoding="utf-8")) for name in names]
    for name in names:
        (Path(folder) / f"{name}.cost").unlink()
    (Path(folder) / COST).write_text(json.dumps(rows) + "\n", encoding="utf-8")
    return 0


class _Work:
    """What the forks share: a cell's model and text, and where its files go."""

    def __init__(self, experiment: Experiment, cell: Cell, folder: Path) -> None:
        self.inputs, self.cell, self.folder = experiment.inputs, cell, folder
        self.model = experiment.model(cell.training).decoupled()
        self.calibration = self.inputs.texts(cell.calibration).calibration
        self.removal = self.inputs.removal_text


def _measure_or_say(work: _Work, name: str, threads: int) -> None:
    """Measure, or end with one sentence on what was wrong."""
    _end_with_parent()
    torch.set_num_threads(threads)
    try:
        cost = _removals(work) if name == "oracle" else _signal(work, name)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"{name}: {error}")
    (work.folder / f"{name}.cost").write_text(json.dumps({"score": name, **cost}), encoding="utf-8")


def _removals(work: _Work) -> dict[str, float]:
    """Write measured removals and return their cost."""
    settings = work.inputs.removal_settings
    table, cost = _costed(work.model, lambda: oracle(work.model, work.removal, **settings, track=track))
    write_table(work.folder / "oracle.parquet", table)
    return cost


def _signal(work: _Work, name: str) -> dict[str, float]:
    """Write a signal's table and return its cost; `activations` leaves its covariances to those after it."""
    known, effort, seed = work.folder / COVARIANCE, work.inputs.effort, work.cell.calibration
    states: Covariances = read_covariances(known) if known.is_file() else {}
    (table, states), cost = _costed(
        work.model, lambda: measure(name, work.model, work.calibration, states, effort=effort, seed=seed, track=track)
    )
    write_table(work.folder / f"{name}.parquet", table)
    if name == "activations":
        write_covariances(known, states)
    return cost


def _costed(model: LanguageModel, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what the work gives, its seconds, the growth of the peak memory in MiB, and the passes."""
    before = _forget_peak()
    with counted(model) as passes:
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
    growth = max(0.0, (_peak() - before) / MEBIBYTE)
    cost = {"seconds": seconds, "peak_memory": growth}
    return found, {**cost, "forward_passes": passes.forward, "backward_passes": passes.backward}


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


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed experiment leaves nothing computing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
