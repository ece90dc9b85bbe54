"""The pipeline on all servers at once, each of which is killed in its turn: nothing is lost.

It takes a quarter of an hour, more on a busy machine, so it runs where it is asked for:
`WHOLE_DEPLOYMENT=1 pytest -n 0 tests/deploy/test_deployed.py`. Whatever is waited for is asked for until it is there;
`PATIENCE` is how long nothing at all may happen, and no test takes longer for its being large.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.deploy.conftest import Deployment, deployment
from tests.flow_project import alive, behave, log, make_project, make_repository
from tests.flows.serving import wait_for
from tests.projects import ROOT, copy, language_project, run

pytestmark = pytest.mark.skipif(
    not os.environ.get("WHOLE_DEPLOYMENT"), reason="minutes with all servers; WHOLE_DEPLOYMENT=1 runs it"
)
PATIENCE = 1800.0
WORKER = "worker-1"


@pytest.fixture(scope="module")
def servers() -> Iterator[Deployment]:
    """Every server, and a worker in a clone of the toy project."""
    with deployment() as made:
        repository = make_project(made.state.parent / "repository")
        copy(ROOT / "flows", repository / "flows")
        copy(ROOT / ".dvcignore", repository / ".dvcignore")
        slow = re.sub(r"timeout_seconds: \d+", f"timeout_seconds: {PATIENCE:g}", (repository / "dvc.yaml").read_text())
        (repository / "dvc.yaml").write_text(slow)  # a stage's seconds are DVC's too, which a busy machine makes many
        make_repository(repository)
        made("start", "--workers", "1", "--repository", str(repository))
        yield made


@pytest.fixture
def repository(servers: Deployment) -> Path:
    return servers.state.parent / "repository"


@pytest.fixture
def clone(servers: Deployment) -> Path:
    """Return the worker's clone, in which every stage has run before."""
    place = servers.state / "clones" / WORKER
    if not (place / "bottom.txt").is_file():
        completed(servers)
    return place


def change(repository: Path, stage: str, behaviour: str) -> None:
    """Commit what a stage does; the worker's clone has it in the next run."""
    behave(repository, stage, behaviour)
    run(["git", "commit", "--quiet", "--all", "-m", f"{stage} {behaviour}"], repository)


def ask(servers: Deployment, path: str, **body: Any) -> Any:
    address = f"{servers.environment()['PREFECT_API_URL']}/{path}"
    return httpx.post(address, json=body, timeout=120).raise_for_status().json()


def begin(servers: Deployment) -> str:
    """Ask for a run, and return its id."""
    (deployed,) = ask(servers, "deployments/filter", deployments={"name": {"any_": ["shared"]}})
    return str(ask(servers, f"deployments/{deployed['id']}/create_flow_run", state={"type": "SCHEDULED"})["id"])


def state_of(servers: Deployment, flow_run: str) -> dict[str, Any]:
    """Return a run's state; none of a kind while the server does not answer, which asking again changes."""
    try:
        (read,) = ask(servers, "flow_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
    except httpx.HTTPError:
        return {"type": None}
    return dict(read["state"])


def ended(servers: Deployment, flow_run: str) -> tuple[str, str]:
    """Return how a run ended: the state, and its message."""

    def final() -> dict[str, Any] | None:
        state = state_of(servers, flow_run)
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = wait_for(final, PATIENCE)
    return state["type"], state["message"]


def starts(clone: Path) -> list[str]:
    """Return the stages that ran in a clone, in order."""
    return [name for what, name, _ in log(clone) if what == "start"]


def completed(servers: Deployment) -> str:
    """Return what a run says that it did, which has to go well."""
    kind, message = ended(servers, begin(servers))
    assert kind == "COMPLETED", message
    return message


def test_a_worker_runs_the_pipeline_in_its_clone_and_another_clone_fetches_all_of_it(
    servers: Deployment, repository: Path, tmp_path: Path
) -> None:
    clone = servers.state / "clones" / WORKER
    if not starts(clone):
        assert completed(servers) == "5 ran"
    assert completed(servers) == "5 up to date"
    other = tmp_path / "other"
    run(["git", "clone", "--quiet", str(repository), str(other)], tmp_path)
    shutil.copy(servers.state / "config.local", other / ".dvc/config.local")
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline", "--share"],
        cwd=other,
        env=servers.environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "5 restored", done.stdout + done.stderr
    assert (other / "bottom.txt").read_text() == (clone / "bottom.txt").read_text()


def test_a_worker_that_is_killed_leaves_a_crashed_run_and_the_next_one_goes_on_from_what_is_done(
    servers: Deployment, repository: Path, clone: Path
) -> None:
    change(repository, "top", "otherwise")
    change(repository, "right", "sleep 600")
    (clone / "right.pid").unlink()
    flow_run = begin(servers)
    pid = int(wait_for(lambda: (clone / "right.pid").is_file() and (clone / "right.pid").read_text(), PATIENCE))
    wait_for(lambda: "side@left:" in (clone / "dvc.lock").read_text() and starts(clone)[-1] == "right", PATIENCE)
    worker = psutil.Process(servers.pid(WORKER))
    servers.kill(WORKER)
    worker.wait(PATIENCE)
    change(repository, "right", "otherwise")
    before = len(starts(clone))
    servers("start")
    wait_for(lambda: not alive(pid), PATIENCE)
    message = completed(servers)
    assert "top" not in starts(clone)[before:], message
    assert starts(clone)[-1] == "bottom"
    assert ended(servers, flow_run)[0] == "CRASHED"


def test_s3_that_is_killed_fails_the_run_and_the_next_one_pushes_what_it_made(
    servers: Deployment, repository: Path, clone: Path, tmp_path: Path
) -> None:
    servers.kill("s3")
    change(repository, "alone", "without S3")
    kind, message = ended(servers, begin(servers))
    assert kind == "FAILED"
    assert "The results are in this clone, and DVC's remote did not take them all" in message
    assert (clone / "alone.txt").read_text() == "alone without S3 ()"
    before = len(starts(clone))
    servers("start")
    completed(servers)
    assert len(starts(clone)) == before
    other = tmp_path / "other"
    run(["git", "clone", "--quiet", str(repository), str(other)], tmp_path)
    shutil.copy(servers.state / "config.local", other / ".dvc/config.local")
    shutil.copy(clone / "dvc.lock", other / "dvc.lock")
    run(["dvc", "pull", "dvc.yaml"], other)
    assert (other / "alone.txt").read_text() == "alone without S3 ()"


def test_mlflow_that_is_killed_is_told_later_and_keeps_what_it_was_told_in_s3(
    servers: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.__main__ import main

    project = language_project(tmp_path / "project", {})
    (project / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.environment()["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("DVC_STAGE", "train")
    servers.kill("mlflow")
    (project / "data/prepare/corpus.parquet").unlink()
    assert main(["train"]) == 1  # which tells MLflow
    (kept,) = (project / ".dvc/tmp/running").glob("*.journal")
    servers("start")
    assert main(["track", "--failed"]) == 0
    assert not kept.exists()
    for name in ("mlflow", "s3"):
        servers.kill(name)
    servers("start")
    from mlflow import MlflowClient

    client = MlflowClient(servers.environment()["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("neuron-pruning")
    (failed,) = client.search_runs([experiment.experiment_id])
    text = Path(client.download_artifacts(failed.info.run_id, "last_lines.txt", str(tmp_path))).read_text()
    assert text.splitlines()[-1].startswith("Expected the table data/prepare/corpus.parquet")


def test_postgresql_that_is_killed_comes_back_with_all_runs_under_servers_that_went_on(
    servers: Deployment, repository: Path, clone: Path
) -> None:
    completed(servers)
    assert (clone / "alone.txt").is_file()
    before = servers.pid("mlflow"), servers.pid("prefect"), servers.pid(WORKER)
    runs = ask(servers, "flow_runs/count")
    assert runs > 0
    servers.kill("postgres")
    said = servers("status", "postgres", "mlflow", "prefect", fails=True)
    assert [line.split()[:2] for line in said.splitlines()] == [
        ["postgres", "down"],
        ["mlflow", "no"],
        ["prefect", "no"],
    ]
    servers("start")
    assert (servers.pid("mlflow"), servers.pid("prefect"), servers.pid(WORKER)) == before
    assert ask(servers, "flow_runs/count") == runs
    change(repository, "alone", "after PostgreSQL")
    assert completed(servers) == "4 up to date, 1 ran"


def test_prefect_that_is_killed_under_a_run_loses_no_stage(servers: Deployment, repository: Path, clone: Path) -> None:
    change(repository, "top", "sleep 5")
    (clone / "top.pid").unlink()
    flow_run = begin(servers)
    wait_for(lambda: (clone / "top.pid").is_file(), PATIENCE)
    servers.kill("prefect")
    servers("start")
    kind, message = ended(servers, flow_run)
    assert kind in ("COMPLETED", "CRASHED", "FAILED"), message
    completed(servers)
    assert starts(clone).count("top") == len({*_behaviours(repository, "top")})
    assert completed(servers) == "5 up to date"


def _behaviours(repository: Path, stage: str) -> list[str]:
    """Return every behaviour that a stage ever had: each is run once."""
    commits = run(["git", "log", "--format=%H"], repository).stdout.split()
    return [run(["git", "show", f"{commit}:{stage}.behaviour"], repository).stdout for commit in commits]
