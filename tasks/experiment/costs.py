"""`python -m tasks.experiment.costs`: what the experiment measures in processes of their own, and what that costs.

Each signal is measured in a fork of this process, which has imported everything and computed nothing, so that the
growth of the fork's peak memory is the signal's own.
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

from pruning.experiment import MEASURED, measure
from pruning.models.base import LanguageModel
from pruning.oracle import oracle
from pruning.passes import counted
from pruning.signals.activations import Covariances
from tasks.common.console import log_to_console, track
from tasks.common.tables import write_table
from tasks.covariances import read_covariances, write_covariances
from tasks.experiment.cells import COST, COVARIANCE, Cell, Experiment
from tasks.experiment.settings import Settings

MEBIBYTE = 1024**2


def main(words: list[str]) -> int:
    """Measure all signals of one calibration, or removals, into a folder; return the exit code.

    Args:
        words: The settings as JSON, `calibration` or `oracle`, the seeds of the model and of the calibration, a folder.
    """
    _end_with_parent()
    settings, kind, training, calibration, folder = words
    cell = Cell(kind, int(training), int(calibration))
    given = Settings.model_validate_json(settings)
    names = MEASURED if kind == "calibration" else ("oracle",)
    for name in names:
        fork = multiprocessing.get_context("fork").Process(
            target=_measure_or_say, args=(given, cell, name, Path(folder))
        )
        fork.start()
        fork.join()
        if fork.exitcode:
            return 1
    rows = [json.loads((Path(folder) / f"{name}.cost").read_text(encoding="utf-8")) for name in names]
    for name in names:
        (Path(folder) / f"{name}.cost").unlink()
    (Path(folder) / COST).write_text(json.dumps(rows) + "\n", encoding="utf-8")
    return 0


def _measure_or_say(settings: Settings, cell: Cell, name: str, folder: Path) -> None:
    """Measure, or end with one sentence on what was wrong."""
    try:
        _measure(settings, cell, name, folder)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"{name}: {error}")


def _measure(settings: Settings, cell: Cell, name: str, folder: Path) -> None:
    """Write one signal's table and its cost."""
    _end_with_parent()
    log_to_console()
    experiment = Experiment(settings)
    model = experiment.model(cell.training).decoupled()
    if name == "oracle":
        text = experiment.inputs.removal_text
        table, cost = _costed(model, lambda: oracle(model, text, **experiment.inputs.removal_settings, track=track))
        write_table(folder / "oracle.parquet", table)
    else:
        windows, known = experiment.inputs.texts(cell.calibration).calibration, folder / COVARIANCE
        states: Covariances = read_covariances(known) if known.is_file() else {}
        effort, seed = experiment.inputs.effort, cell.calibration
        (table, states), cost = _costed(
            model, lambda: measure(name, model, windows, states, effort=effort, seed=seed, track=track)
        )
        write_table(folder / f"{name}.parquet", table)
        if name == "activations":
            write_covariances(known, states)
    (folder / f"{name}.cost").write_text(json.dumps({"score": name, **cost}), encoding="utf-8")


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
