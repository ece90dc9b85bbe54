"""What a stage says, and how it loads the machine, while it runs: kept beside DVC's files, not among its results.

A stage knows no MLflow, which takes seconds to import. It leaves lines and samples; who tracks reads them later, also
after a stage that was killed and could say nothing more.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd
import psutil

from tasks.commands.lock import hash_of
from tasks.common.pipeline import DATA, Stage

if TYPE_CHECKING:
    from tasks.commands.tracking.state import State

INTERNALS = Path(".dvc/tmp")
RUNNING, SAMPLES = INTERNALS / "running", INTERNALS / "samples"
EVERY = 2.0
"""Seconds between two samples."""
KEPT = 500
"""Files of samples that are kept, the newest; a stage's is found by the hash of its table `timing`."""
LINES = 200
"""Lines of a stage that ended badly that are told, its last ones."""
MEGABYTE = 1e6


@dataclass(frozen=True)
class Journal:
    """What a stage left that did not end well.

    Attributes:
        path: The file that it is in.
        address: The stage, as DVC calls it.
        pid: Its process.
        started: When, in seconds since 1970; likewise `ended`.
        ended: When the last line was written.
        failed: Whether it said why, or was ended from outside.
        lines: What it said last.
    """

    path: Path
    address: str
    pid: int
    started: float
    ended: float
    failed: bool
    lines: list[str]

    @property
    def alive(self) -> bool:
        """Whether the stage still runs: its process, and no later one of that number."""
        with suppress(psutil.Error):
            return bool(psutil.Process(self.pid).create_time() <= self.started) and not self.failed
        return False

    @property
    def samples(self) -> pd.DataFrame:
        """The machine's load while it ran."""
        return _samples(self.path.with_suffix(".samples"))

    def forget(self) -> None:
        """Remove what is told."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".samples").unlink(missing_ok=True)


@contextmanager
def watched(address: str, tell: Callable[[], object]) -> Iterator[None]:
    """Within the context, keep what a stage says and loads the machine with.

    Args:
        address: The stage, as DVC calls it.
        tell: Called if the stage fails, when all that it said is kept.
    """
    if not INTERNALS.is_dir():  # where DVC was never initialised nobody reads it
        yield
        return
    RUNNING.mkdir(exist_ok=True)
    path = RUNNING.resolve() / f"{address}-{os.getpid()}.journal"
    samples = path.with_suffix(".samples")
    with path.open("w", encoding="utf-8") as file:
        _note(file, address=address, pid=os.getpid(), started=time.time())
        try:
            with redirect_stdout(_Copying(sys.stdout, file)), _sampling(samples):
                yield
        except Exception as error:
            sentence = isinstance(error, ValueError | OSError | FloatingPointError)
            file.write(f"{error}\n" if sentence else traceback.format_exc())
            _note(file, failed=True)
            file.close()
            tell()
            raise
        except BaseException:  # an interruption is no failure
            path.unlink()
            samples.unlink(missing_ok=True)
            raise
    path.unlink()
    _keep(samples, address)


def left_behind() -> list[Journal]:
    """Return what stages left that ended badly, the oldest first."""
    journals = [journal for path in RUNNING.resolve().glob("*.journal") if (journal := _read(path))]
    return sorted((journal for journal in journals if not journal.alive), key=lambda journal: journal.started)


def samples_of(state: "State", *stages: Stage) -> pd.DataFrame:
    """Return the machine's load while stages ran, as far as they ran on this machine, one row for each sample."""
    frames = [_samples(SAMPLES / f"{state.hashes[stage.outputs['timing']]}.samples") for stage in stages]
    whole = pd.concat(frames, ignore_index=True)
    return whole.sort_values("timestamp", ignore_index=True) if len(whole) else whole


class _Copying:
    """A stream that also writes to a file."""

    def __init__(self, stream: Any, file: IO[str]) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        """Write to both, to the file at once: a killed process flushes nothing."""
        if not self._file.closed:
            self._file.write(text)
            self._file.flush()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _sampling(path: Path) -> Iterator[None]:
    """Within the context, write a sample of the machine's load now and then."""
    ended, own = threading.Event(), psutil.Process()

    def sample() -> None:
        psutil.cpu_percent()  # counts from the last call
        own.cpu_percent()
        with path.open("w", encoding="utf-8") as file:
            while not ended.wait(EVERY):
                _note(file, **_load(own))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _load(own: psutil.Process) -> dict[str, float]:
    """Return the machine's load now, by the names that MLflow's own metrics of the system have."""
    memory = psutil.virtual_memory()
    load = {
        "timestamp": time.time() * 1000,
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "process_cpu_percentage": own.cpu_percent(),
        "process_memory_megabytes": own.memory_info().rss / MEGABYTE,
    }
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # not there while another thread still imports PyTorch
    if cuda is not None and cuda.is_initialized():
        for number in range(cuda.device_count()):
            free, total = cuda.mem_get_info(number)
            load[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / MEGABYTE
            load[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
    return load


def _note(file: IO[str], **values: Any) -> None:
    file.write(f"{json.dumps(values)}\n")
    file.flush()


def _keep(samples: Path, address: str) -> None:
    """Let samples be found by the results of the run that they were taken of, and drop the oldest."""
    name, _, variant = address.partition("@")
    folder, _, stage = name.rpartition(".")
    timing = DATA / folder / stage / variant / "timing.parquet"
    if not timing.is_file():
        samples.unlink(missing_ok=True)
        return
    SAMPLES.mkdir(exist_ok=True)
    samples.replace(SAMPLES / f"{hash_of(timing)}.samples")
    for old in sorted(SAMPLES.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)


def _samples(path: Path) -> pd.DataFrame:
    rows = []
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        for line in file:
            with suppress(json.JSONDecodeError):  # the last one, where a kill has cut it
                rows.append(json.loads(line))
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["timestamp"])


def _read(path: Path) -> Journal | None:
    """Return what is in a journal, None if it is not begun."""
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        begun = json.loads(first)
    except json.JSONDecodeError:
        return None
    failed = bool(lines) and lines[-1] == json.dumps({"failed": True})
    said = [line for line in (lines[:-1] if failed else lines) if line.strip()]
    return Journal(path, **begun, ended=path.stat().st_mtime, failed=failed, lines=said[-LINES:])
