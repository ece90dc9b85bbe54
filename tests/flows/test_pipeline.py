"""The flow against a real server and a tiny DVC project: order, what DVC did, failures, ends, schedules."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactCollectionFilter,
    ArtifactCollectionFilterKey,
    FlowRunFilter,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun
from prefect.states import Cancelling

from flows import execution
from flows.execution import Commands, changed
from flows.pipeline import outcomes_of, pipeline
from flows.stages import read_stages
from tests.flow_project import STAGES, alive, behave, log
from tests.flows.serving import free_port, running, wait_for
from tests.projects import ROOT

# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")

FLOW = [sys.executable, "-m", "flows.pipeline"]


def test_a_stage_starts_only_when_all_that_it_needs_has_ended(first: tuple[Path, Any]) -> None:
    when = _times(first[0])
    assert sorted(when) == sorted((what, name) for what in ("start", "end") for name in STAGES)
    for needed, stage in (("top", "left"), ("top", "right"), ("left", "bottom"), ("right", "bottom")):
        assert when["end", needed] < when["start", stage]


def test_independent_stages_run_side_by_side(first: tuple[Path, Any]) -> None:
    when = _times(first[0])
    assert max(when["start", "left"], when["start", "right"]) < min(when["end", "left"], when["end", "right"])


def test_no_more_stages_run_at_once_than_the_limit(project: Path) -> None:
    assert _states(pipeline(["side"], jobs=1, force=True, return_state=True))["side@left"] == "Ran"
    assert [what for what, *_ in log(project)] == ["start", "end"] * 3


def test_the_first_run_says_that_every_stage_ran(first: tuple[Path, Any]) -> None:
    state = first[1]
    assert state.is_completed()
    assert state.message == "5 ran"
    assert set(_states(state)) == {"top", "side@left", "side@right", "bottom", "alone"}


def test_a_second_run_asks_dvc_once_and_says_that_every_stage_is_up_to_date(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, run = [], Commands.run

    def counted(commands: Commands, name: str, command: list[str], *args: Any, **kwargs: Any) -> list[str]:
        started.append(command)
        return run(commands, name, command, *args, **kwargs)

    monkeypatch.setattr(Commands, "run", counted)
    assert pipeline(return_state=True).message == "5 up to date"
    assert log(project) == []
    assert [command[2] for command in started if command[0] == "dvc"] == ["status"]


def test_only_what_changed_and_what_is_below_it_gets_a_process(project: Path) -> None:
    stages = read_stages(project, None)
    commands = Commands(project)
    assert changed(commands, stages) == set()
    behave(project, "left", "otherwise")
    assert changed(commands, stages) == {"side@left", "bottom"}
    (project / "alone.txt").unlink()
    assert changed(commands, stages) == {"side@left", "bottom", "alone"}
    (project / "dvc.lock").write_text("no lock")
    assert changed(commands, stages) == set(stages)


def test_a_change_reruns_only_what_depends_on_it_and_its_undoing_is_restored(project: Path) -> None:
    before = (project / "left.behaviour").read_text()
    behave(project, "left", "otherwise")
    changed = {"side@left", "bottom"}
    assert _with_state("Ran", pipeline(return_state=True)) == changed
    behave(project, "left", before)
    assert _with_state("Restored", pipeline(return_state=True)) == changed
    assert [name for what, name, _ in log(project) if what == "start"] == ["left", "bottom"]


def test_a_task_run_is_called_after_what_its_stage_does_and_its_state_after_what_dvc_did(
    first: tuple[Path, Any], client: SyncPrefectClient
) -> None:
    run = first[1].state_details.flow_run_id
    tasks = wait_for(lambda: _all_tasks(client, run), 20)
    assert set(tasks) == {"top", "side left", "side right 50%", "bottom", "alone"}
    assert (tasks["top"].state_name, tasks["top"].state.message) == ("Ran", "Ran: The first")
    assert tasks["top"].tags == ["first"]


def test_the_stages_the_comparison_and_its_plots_are_artifacts(
    first: tuple[Path, Any], client: SyncPrefectClient
) -> None:
    assert first[1].is_completed()
    shown = {}
    for key in ("stages", "comparison", "plots"):
        wanted = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[key]))
        (shown[key],) = client._client.post(  # the synchronous client has no method for artifacts
            "/artifacts/latest/filter", json={"artifacts": wanted.model_dump(mode="json")}
        ).json()
    assert "The first" in shown["stages"]["data"]
    assert "variant  perplexity" in shown["comparison"]["data"]
    assert "](data:image/png;base64," in shown["plots"]["data"]


def test_a_failed_stage_is_named_its_dependents_never_start_and_others_finish(project: Path) -> None:
    behave(project, "left", "fail")
    behave(project, "right", "otherwise")
    state = pipeline(return_state=True)
    assert state.is_failed()
    assert "Stage 'side@left' failed with exit code" in state.message
    assert "the disk of left is full" in state.message
    expected = {"side@left": "Failed", "bottom": "Not started", "side@right": "Ran", "alone": "Up to date"}
    assert _states(state) == {"top": "Up to date", **expected}
    assert "bottom" not in {name for _, name, _ in log(project)}


def test_a_failed_stage_is_tried_again_as_often_as_its_meta_says(project: Path) -> None:
    behave(project, "top", "fail")
    assert pipeline(["top"], return_state=True).is_failed()
    assert [what for what, *_ in log(project)] == ["start", "start"]


def test_a_stage_that_takes_too_long_is_killed_with_all_its_processes(project: Path) -> None:
    behave(project, "alone", "sleep 600")
    state = pipeline(["alone"], return_state=True)
    assert state.is_failed()
    assert "Stage 'alone' was killed after 10 s" in state.message
    assert not alive(int((project / "alone.pid").read_text()))


def test_wrong_parameters_stop_the_flow_before_any_stage_with_one_sentence(project: Path) -> None:
    (project / "check.problem").write_text("Expected a rate, got 'much'.")
    behave(project, "top", "otherwise")
    state = pipeline(return_state=True)
    assert state.is_failed()
    assert state.message == "Expected a rate, got 'much'."
    assert log(project) == []


def test_a_target_that_is_no_stage_fails_the_flow_by_name(project: Path) -> None:
    assert project.exists()
    state = pipeline(["tpo"], return_state=True)
    assert state.is_failed()
    assert state.message.startswith("Unknown stage 'tpo'; known: ['alone', ")


def test_a_problem_with_tracking_costs_no_result(project: Path) -> None:
    (project / "track.problem").write_text("No server answers.")
    assert pipeline(return_state=True).is_completed()
    assert (project / "commands.txt").read_text().split()[-1] == "track"


def test_a_target_runs_with_all_that_it_needs_and_nothing_else(project: Path) -> None:
    assert set(read_stages(project, ["side@left"])) == {"top", "side@left"}
    assert set(read_stages(project, ["side", "alone"])) == {"top", "side@left", "side@right", "alone"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_flow_that_is_ended_leaves_no_process_and_the_next_run_finishes(
    project: Path, watched: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    behave(project, "right", "sleep 600")
    (project / "right.pid").unlink()
    with running([*FLOW, "side"], watched, tmp_path) as flow:
        pid = wait_for(lambda: _pid(project / "right.pid"), 30)
        assert alive(pid)
        flow.send_signal(number)
        assert flow.wait(20) != 0
        wait_for(lambda: not alive(pid), 10)
    behave(project, "right", "otherwise")
    assert _with_state("Ran", pipeline(["side"], return_state=True)) == {"side@right"}


def test_the_command_line_needs_no_server_and_says_at_the_end_what_became_of_each_stage(
    project: Path, environment: dict[str, str]
) -> None:
    behave(project, "top", "fail")
    done = subprocess.run([*FLOW, "top"], env=environment, capture_output=True, text=True, timeout=150, cwd=project)
    assert done.returncode == 1
    assert done.stdout.startswith("Failed")
    assert "the disk of top is full" in done.stdout


@pytest.mark.parametrize("module", ["flows.pipeline", "flows.serve"])
def test_a_configured_server_that_does_not_answer_ends_in_one_sentence(
    environment: dict[str, str], module: str
) -> None:
    nowhere = {**environment, "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    done = subprocess.run([sys.executable, "-m", module], env=nowhere, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith("Expected a Prefect server at PREFECT_API_URL=http://127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1


def test_serving_without_a_server_says_how_to_start_one(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "flows.serve"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run `prefect server start`" in done.stderr


def test_scheduled_runs_start_rerun_only_what_changed_and_end_their_stages_when_cancelled(
    project: Path, watched: dict[str, str], client: SyncPrefectClient, tmp_path: Path
) -> None:
    impatient = {**watched, "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
    behave(project, "alone", "otherwise")
    with running([sys.executable, "-m", "flows.serve", "--every", "4"], impatient, tmp_path):
        (run,) = wait_for(lambda: _said(client, "4 up to date, 1 ran"), 60)
        wait_for(lambda: "Running stage 'alone':" in _logged(client, run), 20)
        (project / "right.pid").unlink()
        behave(project, "right", "sleep 600")
        pid = wait_for(lambda: _pid(project / "right.pid"), 60)
        behave(project, "right", "quick")
        (run,) = [run for run in _served(client) if run.state_name == "Running"]
        client.set_flow_run_state(run.id, Cancelling())
        wait_for(lambda: not alive(pid), 30)
        wait_for(lambda: client.read_flow_run(run.id).state_name == "Cancelled", 20)


def test_what_is_deployed_is_the_pipeline_by_night_and_the_promotion_without_a_schedule(
    server: str, watched: dict[str, str], client: SyncPrefectClient
) -> None:
    assert server
    for command in ("work-pool create default-process --type process --overwrite", "--no-prompt deploy --all"):
        subprocess.run(["prefect", *command.split()], env=watched, cwd=ROOT, check=True, capture_output=True)
    deployment = client.read_deployment_by_name("pipeline/nightly")
    assert deployment.work_pool_name == "default-process"
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 3 * * *"]
    assert deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW
    assert deployment.pull_steps[0].popitem()[1]["directory"] == str(ROOT)
    promotion = client.read_deployment_by_name("promotion/champion")
    assert promotion.work_pool_name == "default-process"
    assert not promotion.schedules
    assert promotion.global_concurrency_limit.limit == 1
    assert promotion.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.ENQUEUE
    assert set(promotion.parameter_openapi_schema["properties"]) == {"within", "cost", "at_most"}
    assert promotion.pull_steps[0].popitem()[1]["directory"] == str(ROOT)


@pytest.mark.parametrize("other", ["dvc repro", "flow"])
def test_a_flow_waits_for_another_dvc_that_is_at_work_on_the_same_files(
    project: Path, watched: dict[str, str], tmp_path: Path, other: str
) -> None:
    behave(project, "left", "sleep 8")
    command = ["dvc", "repro", "bottom"] if other == "dvc repro" else [*FLOW, "bottom"]
    with running(command, watched, tmp_path) as beside:
        wait_for(lambda: ("start", "left") in _times(project), 60)
        state = pipeline(["bottom"], return_state=True)
        assert state.is_completed(), state.message
        assert beside.wait(60) == 0, (tmp_path / "output.txt").read_text()
    assert [what for what, name, _ in log(project) if name in ("left", "bottom")] == ["start", "end"] * 2
    assert pipeline(["bottom"], return_state=True).message == "4 up to date"


def test_a_flow_does_not_wait_for_ever(
    project: Path, watched: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "PATIENCE_SECONDS", 1.0)
    behave(project, "left", "sleep 600")
    with running(["dvc", "repro"], watched, tmp_path):
        wait_for(lambda: ("start", "left") in _times(project), 60)
        state = pipeline(["side@left"], return_state=True)
        assert state.is_failed()
        assert " waited 1 s for another `dvc` in vain; " in state.message


def _times(root: Path) -> dict[tuple[str, str], float]:
    return {(what, name): when for what, name, when in log(root)}


def _states(state: Any) -> dict[str, str]:
    return {outcome.stage: outcome.state for outcome in outcomes_of(state)}


def _with_state(name: str, state: Any) -> set[str]:
    return {stage for stage, found in _states(state).items() if found == name}


def _all_tasks(client: SyncPrefectClient, flow_run: Any) -> dict[str, Any]:
    """Return the task runs by name once all have ended: the server hears of them a little later."""
    found = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run]}))
    ended = all(task.state and task.state.is_final() for task in found)
    return {task.name: task for task in found} if ended and len(found) == len(STAGES) else {}


def _served(client: SyncPrefectClient) -> list[FlowRun]:
    return [run for run in client.read_flow_runs(limit=200) if run.deployment_id]


def _said(client: SyncPrefectClient, message: str) -> list[FlowRun]:
    return [run for run in _served(client) if run.state and run.state.message == message]


def _logged(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    return [line.message for line in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))]


def _pid(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


def test_stages_are_told_of_the_workers_that_the_flow_has_started(tmp_path: Path) -> None:
    commands = Commands(tmp_path, {"PRUNING_WORKERS": "tcp://here:1"})
    assert commands.run("What they see", ["printenv", "PRUNING_WORKERS"], lambda _: None) == ["tcp://here:1"]


def test_a_flow_with_workers_that_are_none_says_so_before_any_stage(project: Path) -> None:
    state = pipeline(workers="many", return_state=True)
    assert state.is_failed()
    assert state.message == (
        "Expected for workers a number from 1 on, or a scheduler's address as tcp://host:8786 "
        "(of Ray ray:4 or ray:host:6379), got 'many'."
    )
    assert not log(project)
