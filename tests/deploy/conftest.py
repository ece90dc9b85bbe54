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

import pytest

from deploy.postgres import program
from deploy.services import PACKAGES
from deploy.settings import Unexpected
from tests.projects import ENVIRONMENT, ROOT


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
    folder = Path(tempfile.mkdtemp(prefix="deployment-", dir="/tmp"))
    folder.chmod(0o755)
    made = Deployment(folder / "state")
    try:
        yield made
    finally:
        with suppress(AssertionError):  # where it never began
            made("stop")
        shutil.rmtree(folder)
