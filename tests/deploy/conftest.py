"""A deployment in a folder that PostgreSQL's user can reach, which pytest's own folders of root's are not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from deploy.postgres import program
from deploy.processes import MARK
from deploy.services import PACKAGES
from deploy.settings import Unexpected
from tests.projects import ENVIRONMENT, ROOT

PLACE, PREFIX = Path("/tmp"), "deployment-"  # noqa: S108 - PostgreSQL's user has to reach it


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder, and the command for it."""

    state: Path

    def __call__(self, *words: str, fails: bool = False) -> str:
        """Run `python -m deploy …` and return what it says; it must succeed, or fail where that is expected."""
        command = [sys.executable, "-m", "deploy", *words, "--state", str(self.state)]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def kill(self, name: str) -> None:
        """Kill a server with all its processes as `kill -9` does: MLflow's answers go on without the first of them."""
        os.killpg(self.pid(name), signal.SIGKILL)

    def pid(self, name: str) -> int:
        """Return the number of a service's process."""
        return int(json.loads((self.state / f"run/{name}.json").read_text())["pid"])

    def environment(self) -> dict[str, str]:
        """Return what a user's shell has that read the deployment's `environment`."""
        lines = (self.state / "environment").read_text().splitlines()
        return {**ENVIRONMENT, **dict(line.removeprefix("export ").split("=", 1) for line in lines)}


@contextmanager
def deployment() -> Iterator[Deployment]:
    """Yield a deployment that nothing of is started; all of it ends with the context."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        pytest.skip(f"the extra `deploy` is not installed: no {', '.join(missing)}")
    try:
        program("initdb")
    except Unexpected as error:
        pytest.skip(str(error))
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
    folder.chmod(0o755)
    (folder / "owner").write_text(str(os.getpid()))
    try:
        yield Deployment(folder / "state")
    finally:
        _end(folder)


def _sweep() -> None:
    """End deployments of tests that were killed, which left them running."""
    for folder in PLACE.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # of another process that has just begun or ended
            if not psutil.pid_exists(int((folder / "owner").read_text())):
                _end(folder)


def _end(folder: Path) -> None:
    """Stop a deployment, kill whatever of it is left, and remove it."""
    try:
        with suppress(AssertionError):  # where it never began
            Deployment(folder / "state")("stop")
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(MARK, "").startswith(f"{folder}/"):
                    process.kill()
        shutil.rmtree(folder)
