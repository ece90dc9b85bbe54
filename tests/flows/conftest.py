"""A real Prefect server, and a project that a flow ran once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.pipeline import pipeline
from flows.warm import FOLDER
from tests.flow_project import behave, keep_tables, make_project, prefect_home
from tests.flows.serving import answers, free_port, running, wait_for
from tests.projects import warmed


@pytest.fixture(scope="package")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What other processes see: this code, this Python, a home of their own for Prefect, and no server."""
    kept = {name: value for name, value in warmed().items() if not name.startswith("PREFECT_")}
    home = str(prefect_home(tmp_path_factory))
    return {**kept, "PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}


@pytest.fixture(scope="package", autouse=True)
def _here() -> Iterator[None]:
    """Let the flows of this process find the same programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, warmed()[FOLDER])
        yield


@pytest.fixture(scope="package")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with its scheduler, which the flows of this process use too."""
    port = free_port()
    command = ["prefect", "server", "start", "--no-ui", "--port", str(port)]
    with running(command, environment, tmp_path_factory.mktemp("server")):
        address = f"http://127.0.0.1:{port}/api"
        wait_for(lambda: answers(f"{address}/health"), 600)  # on a busy machine
        home = Path(environment["PREFECT_HOME"])
        keep_tables(home, tmp_path_factory)
        with temporary_settings({PREFECT_API_URL: address, PREFECT_HOME: home}):
            yield address
            APILogWorker.drain_all(timeout=10)  # the last lines, while there is a server to take them


@pytest.fixture
def watched(environment: dict[str, str], server: str) -> dict[str, str]:
    return {**environment, "PREFECT_API_URL": server}


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        assert str(client.api_url).startswith(server)
        yield client


@pytest.fixture(scope="package")
def first(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A project that was run once, not to be changed, and the state that its flow run ended in."""
    assert server
    root = make_project(tmp_path_factory.mktemp("first") / "project")
    for stage in ("left", "right"):
        behave(root, stage, "sleep 4")  # longer than a busy machine needs to start the other one
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return root, pipeline(return_state=True)


@pytest.fixture
def project(first: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, and the folder that the test runs in; its log is empty."""
    root = Path(shutil.copytree(first[0], tmp_path / "project"))
    (root / "log.txt").unlink()
    monkeypatch.chdir(root)
    return root
