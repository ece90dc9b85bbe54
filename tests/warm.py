"""`python -m tasks …`, `python file.py` and `dvc …` in processes that begin with PyTorch and DVC imported.

A test that runs the pipeline starts dozens of processes, of which each would spend two seconds on the imports of other
people's packages. Here they are forked from one process that has made them, and otherwise are processes like any other:
their own folder, environment, files and end. The project's code is never imported before it is asked for.
"""

import array
import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

IMPORTED = (
    "torch", "torch._dynamo", "pandas", "pyarrow.parquet", "scipy.sparse.csgraph", "scipy.stats",
    "sklearn.linear_model", "safetensors.torch", "ruamel.yaml", "pydantic", "rich.console", "rich.table",
    "rich.progress", "matplotlib.figure", "matplotlib.backends.backend_agg", "dvc.cli", "dvc.cli.parser",
    "dvc.repo.reproduce", "dvc.repo.status", "dvc.repo.checkout", "dvc.stage.cache", "dvc_data.index.fetch",
)  # fmt: skip
SHIM = """#!{python} -SE
import array, json, os, signal, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and not (words[:2] == ["-m", "tasks"] or words[0].endswith(".py")):
    os.execv({python!r}, [{python!r}, *words])
asked = json.dumps([name, words, os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as waiting:
    waiting.connect("\\0" + {address!r})
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    waiting.sendmsg([len(asked).to_bytes(4, "big")], files)
    waiting.sendall(asked)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: waiting.sendall(number.to_bytes(4, "big")))
    ended = waiting.recv(4)
sys.exit(int.from_bytes(ended, "big") if ended else 1)
"""


@functools.cache
def warm(environment: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Return an environment in which `python` and `dvc` are forked from a process that is started now."""
    folder, address = tempfile.TemporaryDirectory(), f"neuron-pruning-tests-{os.getpid()}"
    for name in ("python", "dvc"):
        place = Path(folder.name, name)
        place.write_text(SHIM.format(python=sys.executable, address=address), encoding="utf-8")
        place.chmod(0o755)
    found = {**dict(environment), "PATH": f"{folder.name}{os.pathsep}{dict(environment)['PATH']}"}
    known = {name: value for name, value in found.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, address], env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(folder.cleanup)
    atexit.register(server.kill)
    return found


def serve(address: str) -> None:
    """Fork a process for whatever is asked, until the tests have ended."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + address)
        listening.listen(64)
        os.write(1, b"ready\n")
        while True:
            ready, _, _ = select.select([listening, 0], [], [])
            if 0 in ready:
                return
            asking, _ = listening.accept()
            if not os.fork():
                listening.close()
                _attend(asking)
            asking.close()


def _attend(asking: socket.socket) -> None:
    """Run what is asked in a process group of its own, pass signals on, and end it if nobody waits any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, rights, _, _ = asking.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", rights[0][2])
    with asking.makefile("rb") as words:
        asked = json.loads(words.read(int.from_bytes(size, "big")))
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        asking.close()
        _run(files, *asked)
    for file in (0, *files):
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, asking], [], [])[0]:
        os.killpg(child, int.from_bytes(asking.recv(4), "big") or signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asking.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
    os._exit(0)


def _run(files: array.array, name: str, words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Become the process that was asked for."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    added = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    code: object = 0
    try:
        if name == "dvc":
            sys.argv = ["dvc", *words]
            code = importlib.import_module("dvc.cli").main(words)
        elif words[0] == "-m":
            sys.argv = words[1:]
            sys.path[:0] = [folder, *added]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[:0] = [str(Path(words[0]).parent.resolve()), *added]
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(sys.argv[1])
