"""params.yaml chooses where stages compute; what is not there is refused, and results say what it was."""

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.common import devices
from tasks.common.devices import compute_on, device, device_used, devices_there
from tasks.common.parameters import Unexpected
from tasks.common.reading import read_yaml
from tasks.settings.parameters import checked
from tests.pretended import DEVICE, pretending
from tests.projects import ROOT
from tests.schemas import TABLES

VALUES: dict[str, Any] = read_yaml(ROOT / "params.yaml")
RUN_A_MODEL = {
    "train", "hessian", "activations", "gradients", "surgeon", "intervention", "criteria", "oracle", "fuse",
    "prune", "reconstruct", "finetune", "evaluate", "path", "timing",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    compute_on("auto", float32="highest")
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


def test_the_accelerator_is_taken_where_there_is_one_and_the_cpu_where_it_is_asked_for() -> None:
    with pretending():
        compute_on("auto", float32="highest")
        assert (str(device()), device_used(), devices_there()) == (DEVICE, DEVICE, ["cpu", DEVICE])
        compute_on("cpu", float32="highest")
        assert device_used() == "cpu"
        assert (str(device()), device_used()) == ("cpu", "cpu")


@pytest.mark.parametrize("where", ["cuda", "cuda:1", "mps", "xpu"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "devices_there", lambda: ["cpu"])
    compute_on(where, float32="highest")
    with pytest.raises(
        Unexpected, match=re.escape(f"Expected compute.device auto or one of ['cpu'], which are here, got {where!r}.")
    ):
        device()


def test_the_check_refuses_a_device_that_is_not_there_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.commands import check

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(check, "check_place", lambda *_: None)
    monkeypatch.setattr(check, "check_text", lambda *_: pytest.fail("the text was looked at first"))
    monkeypatch.setattr(devices, "devices_there", lambda: ["cpu"])
    values = {**VALUES, "compute": {"device": "cuda:1", "float32": "highest"}, "model": {"source": None}}
    with pytest.raises(Unexpected, match=r"got 'cuda:1'"):
        check.check(values, checked(values))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["gpu", "cuda:", "cuda:-1", "CPU", 0])
def test_what_is_no_device_is_refused(wrong: object) -> None:
    with pytest.raises(Unexpected, match=r"compute\.device"):
        checked({**VALUES, "compute": {"device": wrong, "float32": "highest"}})


@pytest.mark.parametrize(("float32", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_the_precision_of_float32_is_set_for_products_and_for_recurrent_layers(float32: str, tf32: bool) -> None:
    compute_on("cpu", float32=float32)
    device()
    assert torch.get_float32_matmul_precision() == float32
    if torch.backends.cudnn.is_available():
        assert torch.backends.cudnn.allow_tf32 == tf32


def test_a_change_of_the_device_reruns_exactly_the_stages_that_run_a_model() -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    entries = {name: stage.get("do", stage) for name, stage in stages.items()}
    assert {name for name, entry in entries.items() if "compute" in entry.get("params", [])} == RUN_A_MODEL


def test_times_say_what_computed() -> None:
    assert TABLES["timing"].columns["device"].type == "text"


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_what_computes_uses_the_memory_again_that_it_freed() -> None:
    device()
    pages = []
    for _ in range(4):  # what earlier tests have left in pieces may not do for the first few, nor for one of the three
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        logits = [torch.ones(6_000_000) for _ in range(3)]
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del logits
    assert min(pages[1:]) < 0.5 * 3 * 24_000_000 / resource.getpagesize()
