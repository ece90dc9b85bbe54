"""A run with values of its own is an experiment of DVC's, and its name and an artifact say what was other."""

import json
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from ruamel.yaml import YAML

from flows import alert, serve
from flows.changes import COPIES, Changes, changed_copy
from flows.pipeline import main, outcomes_of, pipeline
from tests.flow_project import behave, make_repository
from tests.flows.serving import running, wait_for
from tests.projects import ROOT, copy, run

# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.fixture
def repository(project: Path) -> Path:
    """The project that ran once, as a git repository with one commit."""
    return make_repository(project)


def test_a_run_with_values_of_its_own_leaves_the_folder_as_it_is_and_is_an_experiment(repository: Path) -> None:
    before = _files(repository)
    state = pipeline(changes=Changes(retain=0.3), return_state=True)
    assert state.message == "4 up to date, 1 ran; kept as the experiment retain-0.3"
    assert {outcome.stage for outcome in outcomes_of(state) if outcome.state == "Ran"} == {"alone"}
    assert _files(repository) == before
    assert not list((repository / COPIES).glob("flow-*"))
    assert run(["git", "worktree", "list"], repository).stdout.count("\n") == 1
    assert _retained(repository) == {"workspace": 0.5, "main": 0.5, "retain-0.3": 0.3}


def test_what_is_not_committed_takes_part_and_what_git_does_not_track_does_not(repository: Path) -> None:
    behave(repository, "left", "otherwise")
    (repository / "untracked").touch()
    (repository / "top.behaviour").chmod(0o755)
    with changed_copy(repository, {"prune.retain": (0.5, 0.3)}) as place:
        assert (place / "left.behaviour").read_text() == "otherwise"
        assert (place / "top.behaviour").stat().st_mode & 0o111
        assert not (place / "untracked").exists()
        assert (place / "params.yaml").read_text().count("# a comment") == 1


def test_a_run_is_called_after_what_it_changed_and_did_and_an_artifact_says_so(
    repository: Path, client: SyncPrefectClient
) -> None:
    assert repository.exists()
    changes = Changes(retain=0.25, further={"variants.right.by": "surgeon"})
    state = pipeline(["side"], changes=changes, return_state=True)
    called = _run_of(client, state).name
    assert called == "side, prune.retain 0.25, variants.right.by surgeon: 3 up to date"
    rows = client._client.post("/artifacts/latest/filter", json={"artifacts": {"key": {"any_": ["changes"]}}}).json()
    assert "| `prune.retain` | 0.5 | 0.25 |" in rows[0]["data"]
    assert "| `variants.right.by` | fused | surgeon |" in rows[0]["data"]
    assert "`dvc exp apply retain-0.25-by-surgeon`" in rows[0]["data"]


def test_a_stage_that_was_not_asked_for_is_not_taken_to_have_run_with_the_values(repository: Path) -> None:
    assert pipeline(["side"], changes=Changes(retain=0.3), return_state=True).is_completed()
    (revision,) = run(["dvc", "exp", "list", "--sha-only"], repository).stdout.split()
    kept = YAML(typ="safe").load(run(["git", "show", f"{revision}:dvc.lock"], repository).stdout)
    assert kept["stages"]["alone"]["params"]["params.yaml"]["prune"] == {"retain": 0.5}


def test_what_is_as_in_params_yaml_is_no_change(repository: Path, client: SyncPrefectClient) -> None:
    state = pipeline(changes=Changes(retain=0.5), return_state=True)
    assert state.message == "5 up to date"
    assert _run_of(client, state).name == "5 up to date"
    assert set(_retained(repository)) == {"workspace", "main"}


def test_a_failed_run_says_in_its_name_where_and_is_no_experiment(repository: Path, client: SyncPrefectClient) -> None:
    behave(repository, "alone", "fail")
    state = pipeline(changes=Changes(retain=0.3), return_state=True)
    assert state.is_failed()
    assert _run_of(client, state).name == "prune.retain 0.3: failed in alone"
    assert set(_retained(repository)) == {"workspace", "main"}
    assert not list((repository / COPIES).glob("flow-*"))


def test_wrong_values_are_refused_before_any_work_by_the_check_that_all_else_uses(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "tasks", project / "tasks", dirs_exist_ok=True)  # the real check, on what this project lacks
    make_repository(project)
    state = pipeline(changes=Changes(further={"prune.retian": 0.3}), return_state=True)
    assert state.is_failed()
    assert "'compute' in params.yaml" in str(state.message) or "prune.retian" in str(state.message)
    state = pipeline(changes=Changes(further={"prune.retain.deep": 0.3}), return_state=True)
    assert state.message == "Expected a name of params.yaml, such as prune.retain, got 'prune.retain.deep'."
    for word in ("prune.retain", "=0.3", "prune.retain=[1"):
        assert main(["-S", word]) == 1
        said = capsys.readouterr().err
        assert said == f"Expected a name and a value, such as prune.retain=0.3, got {word!r}.\n"


@pytest.mark.parametrize("value", [0, 1.5, "half"])
def test_the_form_refuses_what_params_yaml_would_refuse(value: Any) -> None:
    with pytest.raises(ValueError, match="retain"):
        Changes(retain=value)


def test_without_a_commit_there_is_no_experiment_and_one_sentence_says_so(project: Path) -> None:
    state = pipeline(changes=Changes(retain=0.3), return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(f"Expected a git repository with a commit in {project}, got '")


def test_the_copy_of_a_run_that_was_killed_goes_with_the_next_one(repository: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    abandoned = repository / COPIES / f"flow-{gone.pid}-1"
    run(["git", "worktree", "add", "--quiet", "--detach", str(abandoned)], repository)
    with changed_copy(repository, {"prune.retain": (0.5, 0.3)}):
        assert not abandoned.exists()


def test_a_worker_runs_what_the_form_says_and_a_failure_is_told_to_an_address(
    repository: Path, watched: dict[str, str], client: SyncPrefectClient, tmp_path: Path
) -> None:
    for name in ("flows", "prefect.yaml"):
        copy(ROOT / name, repository / name)
    run(["git", "add", "."], repository)
    words = {**watched, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with _Address() as (url, told):
        for command in (
            ["prefect", "work-pool", "create", "default-process", "--type", "process", "--overwrite"],
            ["prefect", "--no-prompt", "deploy", "--all"],
        ):
            subprocess.run(command, env=words, cwd=repository, check=True, capture_output=True)
        assert [alert.main([url]) for _ in range(2)] == [0, 0]
        deployment = client.read_deployment_by_name("pipeline/nightly")
        with pytest.raises(Exception, match=r"7 is greater than the maximum of 1"):
            client.create_flow_run_from_deployment(deployment.id, parameters={"changes": {"retain": 7}})
        with running(["prefect", "worker", "start", "--pool", "default-process"], words, tmp_path):
            good = client.create_flow_run_from_deployment(deployment.id, parameters={"changes": {"retain": 0.3}})
            wait_for(lambda: _ended(client, good), 300)
            assert _read(client, good).name == "prune.retain 0.3: 4 up to date, 1 ran"
            (repository / "check.problem").write_text('Expected a rate, got "much".')
            run(["git", "add", "--force", "check.problem"], repository)
            bad = client.create_flow_run_from_deployment(deployment.id, parameters={"changes": {"retain": 0.4}})
            wait_for(lambda: _ended(client, bad), 300)
            assert _read(client, bad).state_name == "Failed"
            wait_for(lambda: told, 120)
    # A server may tell the same twice.
    assert {"text": 'pipeline, prune.retain 0.4: refused: Failed. Expected a rate, got "much".'} in told
    assert _retained(repository) == {"workspace": 0.5, "main": 0.5, "retain-0.3": 0.3}


@pytest.mark.usefixtures("server")
def test_a_second_call_leaves_what_notices_killed_runs_alone_lest_it_forgets_those_it_waits_for() -> None:
    assert alert.main([]) == 0
    first = Automation.read(name=alert.NOTICED)
    assert alert.main([]) == 0
    assert Automation.read(name=alert.NOTICED).id == first.id


@pytest.mark.parametrize(
    ("program", "words", "sentence"),
    [
        (
            serve,
            ["--cron", "at three"],
            "Expected five fields as of cron after --cron, such as '0 3 * * *', got 'at th",
        ),
        (serve, ["--every", "0"], "Expected --every of at least 1 second, got 0.\n"),
        (serve, ["--every", "nan"], "Expected --every of at least 1 second, got nan.\n"),
        (alert, ["hooks.slack.com/x"], "Expected an address such as https://hooks.slack.com/services/…, got 'hooks."),
        (alert, ["http://[::1"], "Expected an address such as https://hooks.slack.com/services/…, got 'http://[::1'"),
    ],
)
def test_a_schedule_or_an_address_that_is_none_is_refused_before_a_server_is_asked(
    capsys: pytest.CaptureFixture[str], program: Any, words: list[str], sentence: str
) -> None:
    assert program.main(words) == 1
    assert capsys.readouterr().err.startswith(sentence)


class _Address:
    """An address on this machine, and what is told to it."""

    def __enter__(self) -> tuple[str, list[Any]]:
        told: list[Any] = []

        class Listener(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Listener)
        Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/failed", told

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _files(root: Path) -> dict[str, bytes]:
    """Return what is in the folder beside DVC's and git's own; the log and the commands only grow."""
    return {
        str(path): path.read_bytes()
        for path in sorted(root.iterdir())
        if path.is_file() and path.name not in ("log.txt", "commands.txt")
    }


def _retained(root: Path) -> dict[str, float]:
    """Return the parameter of the workspace, the commit and each experiment, by name."""
    shown = json.loads(run(["dvc", "exp", "show", "--json"], root).stdout)
    rows = [one for row in shown for one in [row, *(e["revs"][0] for e in row.get("experiments") or [])]]
    return {row["name"] or row["rev"]: row["data"]["params"]["params.yaml"]["data"]["prune"]["retain"] for row in rows}


def _run_of(client: SyncPrefectClient, state: Any) -> FlowRun:
    return client.read_flow_run(state.state_details.flow_run_id)


def _read(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    return client.read_flow_run(run.id)


def _ended(client: SyncPrefectClient, run: FlowRun) -> bool:
    state = _read(client, run).state
    return bool(state and state.is_final())
