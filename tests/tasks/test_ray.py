"""Work that goes to Ray's processes: the bytes of a run without them, also where one is killed."""

import operator
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch

from pruning.ablation.oracle import Ablation, oracle
from pruning.core.workers import Map
from pruning.data.windows import Windows
from pruning.signals.gradients import gradients
from tasks.common.on_ray import RayPool, _by_value
from tasks.common.workers import checked, workers
from tests.tiny import text, tiny

pytestmark = pytest.mark.usefixtures("without_own_models")
ABLATION = Ablation(neurons="all", tokens=60, most=120, tolerance=0.1, words=8, seed=1)


@pytest.fixture(scope="module")
def pool() -> Iterator[Map]:
    """Two processes."""
    pytest.importorskip("ray", reason="ray is in no environment of ours: `make install EXTRA=ray`")
    with workers("ray:2") as two:
        yield two


def test_rays_workers_give_the_bytes_of_none(pool: Map) -> None:
    model, windows = tiny(widths=(5, 4, 7), dtype=torch.float32), Windows(text(400), first=0, batch=3, bptt=6)
    assert pool.workers == 2
    assert oracle(model, windows, ABLATION, map=pool).equals(oracle(model, windows, ABLATION))
    assert gradients(model, windows, batches=9, map=pool).equals(gradients(model, windows, batches=9))


def ended_once(mark: Path, number: int) -> int:
    """End the process that comes to the third number first."""
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_what_one_of_rays_workers_was_killed_in_is_made_by_another(pool: Map, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert list(pool(partial(ended_once, mark), range(12))) == [number**2 for number in range(12)]
    assert mark.exists()


def ended_together(folder: Path, number: int) -> int:
    """End both processes that make the first calls, once both are being made."""
    if number < 2 and not (folder / f"{number} ended").exists():
        (folder / str(number)).touch()
        while not (folder / str(1 - number)).exists():
            time.sleep(0.02)
        (folder / f"{number} ended").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_all_of_rays_workers_may_be_killed_at_once(pool: Map, tmp_path: Path) -> None:
    assert list(pool(partial(ended_together, tmp_path), range(5))) == [number**2 for number in range(5)]
    assert all((tmp_path / f"{number} ended").exists() for number in range(2))


class Deserted:
    """A cluster of Ray's whose machines are all gone."""

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        time.sleep(timeout)
        return [], calls

    def cluster_resources(self) -> dict[str, float]:
        return {"memory": 1.0}


def test_a_cluster_of_rays_that_nobody_comes_back_to_and_a_head_that_is_gone_are_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    for name in ("LOOK_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(f"tasks.common.on_ray.{name}", 0.01)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        there = RayPool(f"ray:127.0.0.1:{head.getsockname()[1]}")
        there._ray = Deserted()
        with pytest.raises(ValueError, match=r"^Expected a cluster of Ray's with a core at .*, got none within 0\.01"):
            there._received("call")
    with pytest.raises(ValueError, match=r"^Expected the head of Ray's at 127\.0\.0\.1:\d+ until the work is done"):
        there._received("call")
    with pytest.raises(ValueError, match=r"^Expected the head of Ray's at 127\.0\.0\.1:\d+ until the work is done"):
        _ = there.workers


def refused(number: int) -> int:
    raise ValueError(f"Expected another number than {number}.")


def test_what_a_call_on_ray_refuses_is_said_as_if_it_ran_here(pool: Map) -> None:
    with pytest.raises(ValueError, match=r"^Expected another number than 1\.$"):
        list(pool(refused, [1, 2]))


@pytest.mark.parametrize("asked", ["ray:0", "ray:", "ray", "ray:host", "ray:host:many", "rays:4"])
def test_what_is_no_number_and_no_address_of_rays_is_refused(asked: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^Expected for workers a number .* \(of Ray ray:4 or .*\), got '{asked}'\.$"
    ):
        checked(asked)


def test_a_cluster_of_rays_that_nobody_started_is_refused_before_anything_begins() -> None:
    with pytest.raises(ValueError, match=r"^Expected a scheduler at ray:127\.0\.0\.1:1, got none .*`ray start --head`"):
        checked("ray:127.0.0.1:1")


def test_without_the_package_workers_of_rays_are_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^Expected the package ray for workers of ray:2, got none"), workers("ray:2"):
        pass


def test_other_processes_can_ask_for_the_same_workers_of_rays(pool: Any) -> None:
    assert pool.address.startswith("ray:")
    assert checked(pool.address) == pool.address


def test_what_is_sent_to_a_head_of_rays_is_read_without_this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    as_sent = cloudpickle.dumps(_by_value())
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tasks", "pruning")]:
        monkeypatch.setitem(sys.modules, name, None)
    called = pickle.loads(as_sent)  # noqa: S301 - of this test
    assert called(pickle.dumps(operator.methodcaller("upper")), b"item") == b"ITEM"


class Failed(Exception):
    """What Ray raises of a call that raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package that stands in for Ray."""
    package: Any = ModuleType("ray")
    package.exceptions = SimpleNamespace(RayTaskError=Failed, RayError=Failed)
    package.wait = lambda calls, timeout: (calls, [])  # noqa: ARG005 - the name by which it is called
    monkeypatch.setitem(sys.modules, "ray", package)
    return package


def test_workers_of_rays_without_this_code_are_told_of_in_a_sentence(cluster: Any) -> None:
    def get(call: object) -> None:
        raise Failed(ModuleNotFoundError(f"No module named {call!r}"))

    there = RayPool("ray:host:6379")
    cluster.get, there._ray = get, cluster
    with pytest.raises(
        ValueError, match=r"^Expected workers that run in a clone of this code, .*No module named 'tasks'"
    ):
        there._received("tasks")


def lost(*_: object, **__: object) -> Any:
    """Say what Ray's client says of every call once its head is gone."""
    raise Exception("Ray Client is not connected. Please connect by calling `ray.init`.")


def test_a_head_of_rays_that_ends_is_said_in_a_sentence_and_no_other_cluster_is_looked_for(cluster: Any) -> None:
    there = RayPool("ray://host:10001")
    assert os.environ["RAY_ENABLE_AUTO_CONNECT"] == "0"
    there._ray = cluster
    cluster.remote = lambda **_: lambda _: SimpleNamespace(remote=lambda *_: object())
    cluster.put, cluster.cluster_resources = str, lambda: {"CPU": 2.0}
    cluster.wait = cluster.cancel = cluster.is_initialized = lost
    with pytest.raises(ValueError, match=r"^Expected the head of Ray's at ray://host:10001 until .* and its nodes"):
        list(there(str, range(3)))


@pytest.mark.parametrize(
    ("asked", "advice"),
    [("ray://host:10001", r"install `ray\[client\]` on both"), ("ray:host:6379", r"join it with `ray start --address")],
)
def test_a_cluster_of_rays_that_takes_nobody_is_refused_with_what_to_do(cluster: Any, asked: str, advice: str) -> None:
    def init(*_: object, **__: object) -> None:
        raise ConnectionError("nobody")

    cluster.init = init
    with pytest.raises(ValueError, match=rf"^Expected a .* got none \(nobody\); {advice}"):
        _ = RayPool(asked).workers


def test_stages_of_a_flow_ask_a_head_of_rays_as_the_flow_does(cluster: Any) -> None:
    there = RayPool("ray://host:10001")
    there._ray = cluster
    assert there.address == "ray://host:10001"
