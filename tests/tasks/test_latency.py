"""One figure for the dense model, speed-ups with errors beside it, and whether the machine was busy."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from pruning.core.progress import silently
from tasks.__main__ import main
from tasks.common.latency import busy, in_milliseconds, measured
from tasks.common.tables import write_table
from tasks.common.waiting import THREADS, waiting
from tests.projects import ROOT
from tests.schemas import TABLES
from tests.tiny import tiny

Said = pytest.CaptureFixture[str]
VARIANTS = {"dense": 1.0, "random": 0.5, "traditional": 0.5, "enhanced": 0.5, "surgeon": 0.55}
NUMBERS = {"neurons": 256, "retention": 1.0, "parameters": 1_806_192, "multiply_adds": 1_030_144, "energy": 4.7e9}
PERPLEXITIES = {f"{phase}_perplexity": 1117.8 for phase in ("pruned", "reconstructed", "finetuned")}
LOSSES = {f"{phase}_loss": 7.019 for phase in ("pruned", "reconstructed", "finetuned")}
METRICS = {"mean_squared_error": [0.01234, "lower"], "mean_absolute_error": [0.1, "lower"]}
CHANGES = {f"{phase}_change": 0.059 for phase in ("pruned", "reconstructed", "finetuned")}


def latency(waited: float = 0.0) -> pd.DataFrame:
    """Return what may have been measured: dense at 12 ms a step, which has no error beside itself."""
    rows = [
        {
            "model": name,
            "batch": batch,
            "seconds": 0.012 * batch * kept,
            "speed_up": 1 / kept,
            "error": 0.12 * (kept < 1),
        }
        for name, kept in VARIANTS.items()
        for batch in (1, 32)
    ]
    return pd.DataFrame(rows).assign(spread=0.001, repeats=10, waited=waited, device="cpu")


def test_what_is_timed_is_timed_on_one_thread_and_what_follows_on_as_many_as_before() -> None:
    before, seen = torch.get_num_threads(), set[int]()
    model = tiny()
    model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        measured(SimpleNamespace(track=silently), {"dense": model}, to="dense", repeats=1)  # type: ignore[arg-type]
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "variant": name,
            "importance": "fused",
            "synaptic_operations": 1.0,
            **NUMBERS,
            **PERPLEXITIES,
            **LOSSES,
            **CHANGES,
        }
        for name in VARIANTS
    ]
    frame = pd.DataFrame(rows).assign(metrics=json.dumps(METRICS))
    write_table(Path("data/compare/comparison.parquet"), frame, TABLES["comparison"])
    write_table(Path("data/timing/latency.parquet"), latency(), TABLES["latency"])
    return tmp_path


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.usefixtures("compared")
def test_the_report_fits_a_terminal_and_shows_speed_ups_with_errors_beside_one_dense_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["report"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert "…" not in said
    assert "1,806,192" in said
    assert "mean_squared_error" in said
    assert "0.01234" in said
    cost = said[said.index("Cost: ") : said.index("Energy")].splitlines()
    (dense,) = (line.split() for line in cost if line.startswith("dense"))
    equal = [line.split()[1:] for line in cost if line.split()[:1] in (["random"], ["traditional"], ["enhanced"])]
    assert dense[3:] == ["12.0", "–", "384", "–"]
    assert equal == [equal[0]] * 3
    assert equal[0][2:] == ["6.00", "2.00", "±", "0.12", "192", "2.00", "±", "0.12"]
    assert "busy" not in said


@pytest.mark.usefixtures("compared")
def test_the_report_gives_programs_every_digit_and_says_when_the_machine_was_busy(capsys: Said) -> None:
    write_table(Path("data/timing/latency.parquet"), latency(waited=0.43), TABLES["latency"])
    assert main(["report", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["variant"]: row for row in found["variants"]}
    assert found["control"] == "dense"
    assert rows["random"]["metrics"] == METRICS
    assert rows["surgeon"]["latency"][0]["milliseconds"] == pytest.approx(6.6)
    assert rows["surgeon"]["latency"][0]["waited"] == 0.43
    assert main(["report"]) == 0
    assert "the measurement waited 43% for a core" in capsys.readouterr().out


def test_milliseconds_of_any_moment_are_told_of_one_dense_figure() -> None:
    elsewhere = latency().assign(seconds=99.0)
    found = in_milliseconds(elsewhere, latency(), "dense").set_index(["model", "batch"])
    assert found.loc[("dense", 1), "milliseconds"] == 12
    assert found.loc[("random", 32), "milliseconds"] == 192
    assert found.loc[("random", 32), "milliseconds_error"] == pytest.approx(192 * 0.12 / 2)


@pytest.mark.parametrize(("waited", "sentences"), [(0.0, 0), (0.04, 0), (0.06, 1), (float("nan"), 0)])
def test_a_machine_is_called_busy_from_a_twentieth_on(waited: float, sentences: int) -> None:
    assert len(busy(latency(waited))) == sentences


@pytest.mark.skipif(not THREADS.is_dir(), reason="Linux says how long threads wait")
def test_a_process_that_shares_its_core_waits_half_of_the_time() -> None:
    core = min(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as alone:
        assert alone.apply(share_on, (core, 1)) > 0.25


def share_on(core: int, rivals: int) -> float:
    """Return which share of half a second's work on one core is waited, beside so many others who work there."""
    os.sched_setaffinity(0, {core})
    children = [os.fork() for _ in range(rivals)]
    if 0 in children:
        spin(5.0)
        os._exit(0)
    with waiting() as waited:
        spin(0.5)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return waited.share


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_where_linux_does_not_say_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tasks.common.waiting.THREADS", tmp_path)
    with waiting() as waited:
        pass
    assert waited.share != waited.share
