"""Work that goes to other processes: the bytes of a run without them, also where one is killed or falls silent."""

import logging.handlers
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pruning
from pruning.ablation.joint_removal import joint_removal, removal_sets
from pruning.ablation.oracle import Ablation, oracle
from pruning.core.workers import Map, Spread
from pruning.data.windows import Windows
from pruning.repair.reconstruction import reconstruct
from pruning.signals.gradients import gradients
from tasks.__main__ import main
from tasks.common.calls import CODE, OWN, how, made, own_code, sent
from tasks.common.devices import compute_on, computing, device
from tasks.common.tokens import Stored
from tasks.common.workers import ASKED, asked_for, checked, workers
from tests.flows.serving import free_port
from tests.projects import ENVIRONMENT, ROOT, copy
from tests.tiny import text, tiny

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("without_own_models")
ABLATION = Ablation(neurons="all", tokens=60, most=120, tolerance=0.1, words=8, seed=1)
SILENT_SECONDS = 10
"""A busy machine lets a worker be silent for seconds."""
PATIENT_SECONDS = 600.0
"""How long what is slow on a busy machine may take."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Map]:
    """Two workers that are given up soon, to be tried on."""
    settings = {
        "distributed.scheduler.worker-ttl": f"{SILENT_SECONDS} s",
        "distributed.scheduler.allowed-failures": 10,
    }
    with dask.config.set(settings), workers("2") as two:
        yield two


def windows() -> Windows:
    return Windows(text(400), first=0, batch=3, bptt=6)


def test_the_oracle_is_the_same_bytes_however_its_neurons_are_shared_out(pool: Map) -> None:
    model = tiny(widths=(5, 4, 7), dtype=torch.float32)
    alone = oracle(model, windows(), ABLATION)
    assert oracle(model, windows(), ABLATION, map=pool).equals(alone)
    for count in (1, 2, 3, 16):
        assert oracle(model, windows(), ABLATION, map=Spread(workers=count)).equals(alone)


def test_networks_of_others_are_measured_in_shares_too(pool: Map) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    batches = [(torch.randn(5, 3), torch.randint(0, 2, (5,))) for _ in range(3)]
    model = pruning.adapt(network, batches[0][0], loss=nn.CrossEntropyLoss())
    alone = oracle(model, batches, ABLATION)
    assert oracle(model, batches, ABLATION, map=pool).equals(alone)
    assert oracle(model, batches, ABLATION, map=Spread(workers=4)).equals(alone)


def test_sets_of_neurons_are_removed_and_repaired_by_workers_as_here(pool: Map) -> None:
    model, read = tiny(), windows()
    measured = oracle(model, read, ABLATION)
    sets = removal_sets(measured, shares=[0.3, 0.6], seed=1)
    repair = partial(reconstruct, data=read, repair="ridge")
    alone, shared = (
        joint_removal(model, read, measured, sets=sets, tokens=100, repair=repair, **how) for how in ({}, {"map": pool})
    )
    assert shared.equals(alone)


def ended_once(mark: Path, how: signal.Signals, number: int) -> float:
    """Return a number after some work, in the midst of which the first process that gets there is ended."""
    values = torch.rand(500, generator=torch.Generator().manual_seed(number))
    if number == 2:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), how)
    return float(values.sum())


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_falls_silent_in_its_work_changes_no_result(pool: Map, tmp_path: Path, how) -> None:
    there = partial(ended_once, tmp_path / "mark", how)
    (tmp_path / "done").touch()
    expected = list(map(partial(ended_once, tmp_path / "done", how), range(6)))
    assert list(pool(there, range(6))) == expected
    assert (tmp_path / "mark").exists()


def ended_together(folder: Path, workers: int, number: int) -> int:
    """End each process that makes one of the first calls, once all of these are being made."""
    if number < workers and not (folder / f"{number} ended").exists():
        (folder / str(number)).touch()
        late = time.monotonic() + PATIENT_SECONDS
        while not all((folder / str(other)).exists() for other in range(workers)) and time.monotonic() < late:
            time.sleep(0.02)
        (folder / f"{number} ended").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail, in place of waiting for ever, after longer than anything takes."""

    def late(*_: object) -> None:
        raise AssertionError(f"Expected an end within {seconds:g} s.")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
@pytest.mark.parametrize("count", [1, 2])
def test_all_workers_may_be_killed_at_once_and_the_only_one_too(
    pool: Map, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("tasks.common.workers.LOST_SECONDS", PATIENT_SECONDS)
    there = partial(ended_together, tmp_path, count)
    with at_most(2 * PATIENT_SECONDS), workers("1") if count == 1 else nullcontext(pool) as asked:
        assert list(asked(there, range(5))) == [number**2 for number in range(5)]
    assert all((tmp_path / f"{number} ended").exists() for number in range(count))


def test_where_no_worker_comes_back_it_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(f"tasks.common.workers.{name}", 0.1)
    kind = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
    with (
        at_most(PATIENT_SECONDS),
        distributed.LocalCluster(**kind) as cluster,
        distributed.Client(cluster) as started,
        workers(cluster.scheduler_address) as asked,
    ):
        started.wait_for_workers(1)
        assert asked.workers == 1
        started.retire_workers()
        for items in ([-1], [-1, -2, -3]):  # as what is asked for last is waited for, and before the next is asked
            with pytest.raises(
                ValueError, match=r"^Expected a scheduler with workers at tcp.*, got none within 0\.1 s"
            ):
                list(asked(abs, items))


def seen(folder: Path, number: int) -> bool:
    """Leave a mark, or wait for that of the last one; say whether it was there in time."""
    if number:
        (folder / str(number)).touch()
        return True
    late = time.monotonic() + PATIENT_SECONDS
    while not (folder / "6").exists() and time.monotonic() < late:
        time.sleep(0.02)
    return (folder / "6").exists()


def test_a_call_that_takes_long_keeps_no_other_worker_waiting(pool: Map, tmp_path: Path) -> None:
    assert list(pool(partial(seen, tmp_path), range(7))) == [True] * 7


class Fatal(nn.Module):
    """Ends the first process but its maker's in which it is run, in the midst of a signal."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark, self.maker = mark, os.getpid()
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if os.getpid() != self.maker and inputs[0, 0] == 7 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        outputs: torch.Tensor = self.layers(inputs)
        return outputs


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_a_worker_that_is_killed_as_it_reads_text_changes_no_signal(pool: Map, tmp_path: Path) -> None:
    network, draw = Fatal(tmp_path / "mark"), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=draw)
    batches = [(torch.randn(5, 3, generator=draw), torch.randint(4, (5,), generator=draw)) for _ in range(9)]
    batches[4][0][0, 0] = 7
    model = pruning.adapt(network, batches[0][0], loss=nn.CrossEntropyLoss())
    alone = gradients(model, batches, batches=9)
    assert gradients(model, batches, batches=9, map=pool).equals(alone)
    assert network.mark.exists()


def refused(number: int) -> int:
    raise ValueError(f"Expected another number than {number}.")


def test_what_a_call_refuses_is_said_as_if_it_ran_here(pool: Map) -> None:
    with pytest.raises(ValueError, match=r"^Expected another number than 1\.$"):
        list(pool(refused, [1, 2]))


class Answer:
    """What Dask holds of a call that gave no result."""

    status = "error"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self, _: float) -> None:
        raise self.error


def test_what_dask_gives_up_is_said_in_a_sentence(pool: Any) -> None:
    killed = distributed.KilledWorker("call", None, 3)
    for error, sentence in (
        (killed, "Expected a worker to finish its part, got several that ended one after the other"),
        (distributed.comm.CommClosedError(), "Expected the scheduler at 2 until the work is done"),
        (distributed.client.FuturesCancelledError([]), "Expected the scheduler at 2 until the work is done"),
        (distributed.client.FutureCancelledError("call", "gone"), "Expected the scheduler at 2 until the work is done"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            pool._received(Answer(error))
    with pytest.raises(ValueError, match=r"a clone of this code, .* got one without it \(No module named 'tasks'\)"):
        pool._received(Answer(ModuleNotFoundError("No module named 'tasks'")))


@pytest.mark.parametrize(
    ("differing", "said"),
    [
        ({CODE: "other"}, r"other code in pruning/ or tasks/"),
        ({OWN: "other"}, r"other code in own/"),
        ({"torch": "1.0"}, r"torch .* instead of 1\.0"),
        ({"abacus": "1.0"}, r"abacus none instead of 1\.0"),
    ],
)
def test_a_worker_with_other_code_or_packages_computes_nothing(differing: dict[str, str], said: str) -> None:
    origins, _ = how()
    with pytest.raises(
        ValueError, match=rf"^Expected workers with this code and its packages, got one on .* with {said}"
    ):
        made(origins | differing, b"unread", b"unread", b"unread")


def test_a_worker_without_what_a_call_needs_says_so() -> None:
    lacking = b"cnowhere\nabacus\n."
    with pytest.raises(ValueError, match=r"have what a call needs, .* without \(No module named 'nowhere'\)"):
        made(*how(), lacking, b"unread")


@pytest.fixture
def as_before() -> Iterator[None]:
    flushing = computing().flushing
    yield
    compute_on("auto", float32="highest")
    torch.set_flush_denormal(flushing)


@pytest.mark.usefixtures("as_before")
def test_a_worker_without_the_device_of_the_process_that_asks_says_so() -> None:
    settings = sent(replace(computing(), device="cuda:99", flushing=True))
    with pytest.raises(ValueError, match=r"compute as this process, got one on .* cannot: Expected compute\.device"):
        made(how()[0], settings, b"unread", b"unread")


@pytest.mark.usefixtures("as_before")
def test_what_auto_came_to_is_what_workers_compute_on() -> None:
    compute_on("auto", float32="highest")
    assert computing().device == "auto"
    chosen = str(device())
    assert computing().device == chosen


def test_the_code_of_own_models_goes_with_calls_that_may_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OWN not in how()[0]
    monkeypatch.setitem(sys.modules, "own.network", sys)
    assert how()[0][OWN] == own_code()


@pytest.mark.skipif(sys.platform != "linux", reason="several addresses of one machine, as Linux has them")
def test_a_worker_elsewhere_needs_the_code_alone_and_the_scheduler_not_even_that_whose_end_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = logging.handlers.BufferingHandler(1000)
    monkeypatch.setattr(logging.getLogger("distributed.client"), "handlers", [heard])
    monkeypatch.setattr("tasks.common.workers.PATIENCE_SECONDS", PATIENT_SECONDS)
    clone, scheduler = tmp_path / "clone", f"tcp://127.0.0.2:{free_port()}"
    for name in ("pruning", "tasks"):
        copy(ROOT / name, clone / name)
    bare = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    own = bare | {"PYTHONPATH": str(clone), "TMPDIR": str(clone), "HOME": str(clone)}
    module, quiet = [sys.executable, "-m"], "--no-dashboard"
    text_of_file = Windows(Stored([text(400).numpy()], beside=tmp_path), first=0, batch=3, bptt=6)
    pids: list[int] = []
    with ExitStack() as started:
        for folder, environment, words in (
            (tmp_path, bare, ["distributed.cli.dask_scheduler", quiet, "--host", scheduler]),
            (clone, own, ["distributed.cli.dask_worker", scheduler, quiet, "--no-nanny", "--host", "127.0.0.3"]),
        ):
            process = subprocess.Popen([*module, *words], cwd=folder, env=environment, stderr=subprocess.DEVNULL)
            started.callback(process.wait)
            started.callback(process.terminate)
            pids.append(process.pid)
        late = time.monotonic() + PATIENT_SECONDS
        while not listened_to(scheduler) and time.monotonic() < late:
            time.sleep(0.1)
        with workers(scheduler) as there:
            assert list(there(os.path.abspath, ["here"])) == [str(clone / "here")]
            assert gradients(tiny(), text_of_file, batches=9, map=there).equals(gradients(tiny(), windows(), batches=9))
            with pytest.raises(ValueError, match=r"^Expected the scheduler at .* until .*; start it and its workers"):
                list(there(partial(os.kill, pids[0]), [signal.SIGKILL]))
        assert not heard.buffer


def listened_to(address: str) -> bool:
    try:
        return checked(address) == address
    except ValueError:
        return False


def test_what_cannot_be_sent_is_said_before_anything_is_computed(pool: Map) -> None:
    with socket.socket() as unsendable, pytest.raises(ValueError, match="Expected what can be sent to workers"):
        list(pool(str, [unsendable]))


@pytest.mark.parametrize(
    "asked", ["0", "-1", "many", "2.5", "host:8786", "tcp://host", "tcp://host:many", "http://h:1"]
)
def test_what_is_no_number_and_no_address_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=rf"^Expected for workers a number from 1 on, or .*, got '{asked}'\.$"):
        checked(asked)


@pytest.mark.parametrize("asked", ["1000000", "ray:1000000", "9" * 5000])
def test_more_processes_than_a_machine_can_hold_are_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(
        ValueError, match=rf"^Expected for workers at most 64 processes .* 2 cores, got {asked}; 2 make"
    ):
        checked(asked)
    assert checked("64") == "64"
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    assert checked("ray:096") == "ray:096"


def test_a_stage_says_in_a_sentence_that_nobody_listens_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{reserved.getsockname()[1]}"
        for name in ("dvc.yaml", "params.yaml"):
            (tmp_path / name).write_bytes((Path(__file__).parents[2] / name).read_bytes())
        monkeypatch.chdir(tmp_path)
        assert main(["oracle", "--workers", address]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"Expected a scheduler at {address}, got none (Connection refused); start one with")
        monkeypatch.setenv(ASKED, "0")
        assert main(["oracle"]) == 1
        assert capsys.readouterr().err.endswith("got '0'.\n")
    assert "oracle: stage" not in said.out
    assert not (tmp_path / "data").exists()


def test_the_command_line_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASKED, "3")
    assert asked_for(["oracle"]) == ("3", ["oracle"])
    assert asked_for(["prune", "--workers=2", "random"]) == ("2", ["prune", "random"])
    with pytest.raises(ValueError, match="got nothing"):
        asked_for(["oracle", "--workers"])
