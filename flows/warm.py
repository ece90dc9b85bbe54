"""`python -m tasks …` and `dvc …` in processes that begin with PyTorch, DVC and other people's packages imported.

Each stage is a process of DVC's and one of Python's, of which each would spend seconds on such imports: more than many
stages compute. Here they are forked from one process that has made them, and otherwise are processes like any other:
their own folder, environment, files and end. The project's code is never imported before it is asked for, so that
what a stage runs is what DVC takes the hash of.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "PRUNING_WARM"
"""The variable that names the folder of the programs `python` and `dvc` that ask a warm process."""
ASKING = Path(__file__).with_name("asking.py")
IMPORTED = (
    "torch", "torch._dynamo", "pandas", "pyarrow.parquet", "scipy.sparse.csgraph", "scipy.stats",
    "sklearn.linear_model", "safetensors.torch", "ruamel.yaml", "pydantic.root_model", "rich.console", "rich.table",
    "rich.progress", "matplotlib.figure", "matplotlib.backends.backend_agg", "dvc.cli", "dvc.cli.parser",
    "dvc.repo.open_repo", "dvc.repo.plots", "dvc.repo.reproduce", "dvc.repo.status", "dvc.repo.checkout", "dvc.rwlock",
    "dvc.stage.cache", "dvc_data.index.fetch",
)  # fmt: skip
GRACE_SECONDS = 5.0
"""Between asking what a program left behind to end and killing it."""


class Warm:
    """A process that has made the imports, for as long as it is not closed and this process lives.

    Args:
        environment: What it sees: what is read at an import is as it is there.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pruning-warm-")  # nobody else's: who asks runs programs
        address = Path(self._folder.name, "socket")
        for name in ("python", "dvc"):
            words = [sys.executable, "-S", "-E", str(ASKING), str(address), name]
            place = Path(self._folder.name, name)
            place.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
            place.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(address))
            listening.listen(64)  # who asks now is answered when the imports are made
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listening.fileno())],
                env=environment,
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def variables(self) -> dict[str, str]:
        """What a process sees in its environment whose `python` and `dvc` are to be warm."""
        return {FOLDER: self._folder.name}

    def close(self) -> None:
        """End the process, and what was forked from it with it."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.terminate()  # which it heeds while it imports
        self._process.wait()
        self._folder.cleanup()


def serve(listening: socket.socket) -> None:
    """Fork a process for whatever is asked, until the process that started this one closes it or is gone."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # of an extra that is not installed; who needs it will say so
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        read_sooner(importlib.import_module("dvc.utils.serialize._yaml"))
    end_sooner()
    # A fork takes the thread that forks along; those of OpenBLAS and Arrow, which know of forks, start anew.
    warnings.filterwarnings("ignore", message="This process .* is multi-threaded", category=DeprecationWarning)
    gc.collect()
    gc.freeze()  # no collection touches, and so copies, what all share
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while 0 not in select.select([listening.fileno(), 0], [], [])[0]:
        asking, _ = listening.accept()
        if not os.fork():
            listening.close()
            _attend(asking)
        asking.close()
    listening.close()
    with contextlib.suppress(ChildProcessError):
        os.wait()  # until none is left: whoever was asking is gone too


def read_sooner(module: Any) -> None:
    """Let DVC read a lock file that holds no comment, which it reads anew for each stage, by its parser in C.

    What it reads a file by to write it again keeps comments, and takes five times as long; its bytes are the same.

    Args:
        module: `dvc.utils.serialize._yaml`.
    """
    whole = module.parse_yaml_for_update

    def parsed(text: str, path: str) -> Any:
        plain = Path(path).name == "dvc.lock" and "#" not in text
        return module.parse_yaml(text, path) if plain else whole(text, path)

    module.parse_yaml_for_update = parsed


def end_sooner() -> None:
    """Leave out of each program's end what imports have PyTorch do there, half of what starting and ending one takes.

    It takes its libraries of operations apart, which go with the process, and composes how long it compiled for a log.
    What a program itself asks to be done at its end is done.
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    composing = getattr(sys.modules.get("torch._dynamo.utils"), "dump_compile_times", None)
    if composing is not None:
        atexit.unregister(composing)


def _attend(asking: socket.socket) -> None:
    """Run what is asked in a process group of its own, pass signals on, and end it if nobody waits any more."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    size, rights, _, _ = asking.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", rights[0][2])
    with asking.makefile("rb") as words:
        asked = json.loads(words.read(int.from_bytes(size, "big")))
    child = os.fork()
    if not child:
        asking.close()
        os.setpgid(0, 0)
        _run(files, *asked)
    os.setpgid(child, child)  # by whichever is first: a signal finds the group
    for file in (0, *files):
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, asking.fileno()], [], [])[0]:
        os.killpg(child, int.from_bytes(asking.recv(4), "big") or signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _end_group(child)
    with contextlib.suppress(BrokenPipeError):
        asking.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def _end_group(group: int) -> None:
    """End what a program left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


def _run(
    files: "array.array[int]", name: str, words: list[str], folder: str, environment: dict[str, str], heeded: bool
) -> None:
    """Become the process that was asked for, which heeds an interrupt if who asks does."""
    signal.signal(signal.SIGINT, signal.default_int_handler if heeded else signal.SIG_IGN)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code: object = 0
    try:
        if name == "dvc":
            sys.argv = ["dvc", *words]
            code = importlib.import_module("dvc.cli").main(words)
        else:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # DVC wraps them when it is imported
            sys.argv = ["-m", *words[2:]]
            sys.path[:0] = [folder]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # What the end of a process does but for taking all modules down, which takes as long as half of the imports.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
