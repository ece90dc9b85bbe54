"""Pruned models beside small ones at toy size: what each job makes, and that no interruption changes a result."""

import csv
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from benchmarks.budgets import texts, together
from benchmarks.budgets.__main__ import QUICK, all_done, main, options
from benchmarks.budgets.jobs import TUNINGS, WAYS, Job, Plan, Repair, Tuning, done, held, jobs, smallest_left_out, work
from benchmarks.budgets.search import DENSE, REPAIRED, attempt, search, tuned, valid_of
from benchmarks.headline import RESUME
from benchmarks.resumable import recurrent_weights
from pruning.data.corpus import END_OF_LINE, number, published_lines
from pruning.models.base import LanguageModel
from tests.benchmarks.test_headline import corpus
from tests.projects import ROOT
from tests.tiny import EMBEDDING, VOCABULARY, text, tiny

__all__ = ["corpus"]


def plan_of(state: Path, family: str = "lstm") -> Plan:
    splits = {
        split: text(length, seed=seed)
        for seed, (split, length) in enumerate({"train": 400, "valid": 200, "test": 200}.items())
    }
    return Plan(
        QUICK, splits, 0, VOCABULARY, "cpu", state, 1, 4e-3, Repair(tokens=400, outputs=0.5), TUNINGS["slow"], family
    )


def tied() -> LanguageModel:
    model: LanguageModel = tiny("tied", (7, EMBEDDING))
    return model


def test_every_job_stands_after_those_that_it_starts_from_and_none_twice() -> None:
    listed = jobs(2, [0.5, 0.25], [1, 3, 10], 30)
    assert len(listed) == len(set(listed))
    assert all(listed.index(needed) < listed.index(job) for job in listed for needed in job.needs)


def test_no_model_from_new_weights_is_trained_for_less_than_the_pruned_one_beside_it() -> None:
    totals = {job.epochs for job in jobs(1, [0.5], [1, 3, 10], 30) if job.way == "scratch"}
    assert totals == {33, 40}


def test_as_many_parameters_are_left_by_magnitude_as_by_removal_and_they_are_the_largest() -> None:
    model = tied()
    weights = torch.cat(
        [p.flatten() for name, p in model.named_parameters() if name.startswith("lstm.") and p.ndim > 1]
    )
    smallest_left_out(model, 50)
    left = torch.cat([p.flatten() for name, p in model.named_parameters() if name.startswith("lstm.") and p.ndim > 1])
    assert int(left.count_nonzero()) == 50
    assert torch.equal(left.abs().sort().values[-50:], weights.abs().sort().values[-50:])
    assert recurrent_weights(model) == len(left)


def test_weights_that_were_left_out_stay_zero_in_training_inside_the_block_alone() -> None:
    model = tied()
    masks = smallest_left_out(model, 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> list[int]:
        model(text(12).view(6, 2))[0].sum().backward()
        optimizer.step()
        return [int(weight[mask == 0].count_nonzero()) for weight, mask in masks.items()]

    with held(masks):
        assert not any(step())
    assert any(step())


@pytest.mark.parametrize("family", ["lstm", "mixed"])
def test_all_models_of_one_share_have_the_same_widths_and_magnitude_the_same_parameters(
    family: str, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, family)
    listed = [job for job in jobs(1, [0.5], [1], 1) if job.way != "dense more"]
    assert all(work(job, plan, float("inf")) is not None for job in listed)
    rows: dict[Job, Any] = {job: facts["rows"] for job in listed if (facts := done(tmp_path, job))}
    narrow = [
        row for job, phases in rows.items() if job.way in ("surgeon", "random", "scratch") for row in phases.values()
    ]
    assert {tuple(row["widths"]) for row in narrow} == {tuple(plan.widths(0.5, plan.new(1).decoupled()))}
    assert len({row["parameters"] for row in narrow}) == 1


def test_a_job_that_ends_for_want_of_time_goes_on_to_the_same_result(tmp_path: Path) -> None:
    job = Job("scratch", 0, 0.5, 3)
    whole = work(job, plan_of(tmp_path / "whole"), float("inf"))
    assert whole is not None
    parts = [work(job, plan_of(tmp_path / "parts"), 0.0) for _ in range(3)]
    assert parts[:2] == [None, None]
    assert parts[2] is not None
    assert [parts[2]["rows"]["trained"][split] for split in ("valid", "test")] == [
        whole["rows"]["trained"][split] for split in ("valid", "test")
    ]


def test_nothing_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    assert not all_done([(plan_of(tmp_path), Job("dense", 0))], 1, 0.0)
    assert not [*tmp_path.iterdir()]


def test_the_command_writes_what_is_known_and_says_that_it_is_not_all(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["--corpus", str(corpus), "--state", str(tmp_path / "state"), "--to", str(tmp_path / "budgets.md")]
    with pytest.raises(SystemExit) as end:
        main([*needed, "--quick", "--device", "cpu", "--commit", "abc", "--limit", "0", "--seeds", "1"])
    assert end.value.code == RESUME
    assert "run the same command again" in capsys.readouterr().out
    assert "commit `abc`" in (tmp_path / "budgets.md").read_text(encoding="utf-8")
    with (tmp_path / "budgets.csv").open(encoding="utf-8") as file:
        assert [*csv.DictReader(file)] == []


def test_a_comparison_in_two_lines_is_one_and_its_earlier_line_comes_first(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.budgets.__main__.ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    shared = f"--corpus {corpus} --quick --device cpu --seeds 1 --epochs 1 --keep 0.5 --tuned 1 --imitation 400"
    folders = {name: f"--state {tmp_path / name} --to {tmp_path / name}.md" for name in ("lstm", "gru")}
    lines = [
        "# the GRU's dense model first",
        f"{shared} {folders['gru']} --family gru --ways dense",
        "",
        f"{shared} {folders['lstm']} --ways scratch",
        f"{shared} {folders['gru']} --family gru --ways surgeon taught",
    ]
    (tmp_path / "lines").write_text("\n".join(lines), encoding="utf-8")
    together.main(["--lines", str(tmp_path / "lines"), "--commit", "abc"])
    ends = re.findall(r"^(\w+/[\w-]+): valid", capsys.readouterr().out, re.MULTILINE)
    assert ends == [
        "gru/dense-100-0-0",
        "lstm/scratch-50-2-0",
        "gru/surgeon-50-0-0",
        "gru/surgeon-50-1-0",
        "gru/taught-50-2-0",
    ]
    table = (tmp_path / "gru.md").read_text(encoding="utf-8")
    assert "--ways dense`; `python" in table
    taught = next(line for line in table.splitlines() if "taught by the dense model" in line)
    assert "(" in taught.split("|")[3]


def test_the_lines_for_one_gpu_are_of_comparisons_that_begin_with_their_dense_models(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.asked.device", str)
    text = (ROOT / "benchmarks/budgets/gpu.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    asked_for = [options(shlex.split(re.sub(r"--corpus \S+", f"--corpus {corpus}", line))) for line in lines]
    known: set[Path] = set()
    for own in asked_for:
        assert own.ways == ["dense"] or own.state in known
        known.add(own.state)
    assert {own.family for own in asked_for} == {"lstm", "gru", "snn", "mixed"}
    assert {own.device for own in asked_for} == {"cuda"}


def test_the_default_runs_text_as_published_splits_has_the_same_numbers(tmp_path: Path) -> None:
    words = [END_OF_LINE, "a", "the", "<unk>"]
    tokens = {"train": [1, 2, 0, 2, 2, 0, 1, 3, 0], "valid": [2, 1, 0], "test": [1, 1, 0]}
    (tmp_path / "prepare").mkdir()
    pd.DataFrame({"token": range(4), "text": words}).to_parquet(tmp_path / "prepare/vocabulary.parquet")
    rows = [(split, place, token) for split, own in tokens.items() for place, token in enumerate(own)]
    table = pd.DataFrame(rows, columns=["split", "position", "token"])
    table.to_parquet(tmp_path / "prepare/corpus.parquet")
    texts.main(["--data", str(tmp_path), "--into", str(tmp_path / "splits")])
    lines = {split: published_lines((tmp_path / f"splits/{split}.txt").read_text(encoding="utf-8")) for split in tokens}
    assert lines["train"] == [["a", "the"], ["the", "the"], ["a", "<unk>"]]
    assert [len(own) for own in number(lines, 4).tokens.values()] == [len(own) for own in tokens.values()]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("# nothing\n", "Expected lines of options of benchmarks.budgets in {path}, got none."),
        ("{options} --device cpu\n{options} --device cuda\n",
         "Expected lines of options of benchmarks.budgets for one device in {path}, got cpu and cuda."),
    ],
)  # fmt: skip
def test_lines_that_say_nothing_or_are_for_two_devices_are_refused(
    lines: str,
    sentence: str,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.asked.device", str)
    path = tmp_path / "lines"
    path.write_text(lines.replace("{options}", f"--corpus {corpus} --state s --to t.md"), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        together.main(["--lines", str(path)])
    assert end.value.code == 2
    assert sentence.format(path=path) in capsys.readouterr().err


def test_the_search_names_the_repair_and_the_tuning_of_the_best_validation_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, repairs = plan_of(tmp_path / "made"), [Repair(400, outputs=0.5, outputs_rate=rate) for rate in (1e-9, 4e-3)]
    tunings = [Tuning(1e-9), Tuning(4e-3)]
    monkeypatch.setattr("benchmarks.budgets.search.REPAIRS", repairs)
    monkeypatch.setattr("benchmarks.budgets.search.TUNED", {1: tunings})
    work(DENSE, made, float("inf"))
    dense = tmp_path / "made" / DENSE.name / "made.safetensors"
    plan = plan_of(tmp_path / "search")
    with ThreadPoolExecutor(1) as pool:
        best, whole = search(plan, dense, pool, float("inf"))
    places = (
        [tmp_path / "search" / f"repair-{n}" for n in range(2)],
        [tmp_path / "search" / f"tuned-1-{n}" for n in range(2)],
    )
    repaired, trained = ([valid_of(replace(plan, state=folder), job) for folder in folders]
                         for folders, job in zip(places, (REPAIRED, tuned(1)), strict=True))  # fmt: skip
    assert whole
    assert best["repair"] == repairs[repaired.index(min(repaired))]._asdict()
    assert best["tuning"] == {"1": tunings[trained.index(min(trained))]._asdict()}
    assert float("inf") not in repaired + trained


def test_a_trial_that_the_time_does_not_reach_is_not_begun(tmp_path: Path) -> None:
    assert not attempt(plan_of(tmp_path), DENSE, 0.0)
    assert not [*tmp_path.iterdir()]


def test_the_stage_reads_files_that_exist_and_every_setting_of_its_own_file(tmp_path: Path) -> None:
    folder = ROOT / "benchmarks/budgets"
    yaml = YAML(typ="safe")
    stage, settings = yaml.load(folder / "dvc.yaml")["stages"]["budgets"], yaml.load(folder / "params.yaml")
    assert all((ROOT / place).exists() for place in stage["deps"][1:])
    assert set(re.findall(r"\$\{(\w+)\}", stage["cmd"])) == set(settings)
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").touch()
    settings["corpus"] = tmp_path
    words = re.sub(r"\$\{(\w+)\}", lambda found: str(settings[found[1]]), stage["cmd"]).partition("budgets ")[2]
    assert options(shlex.split(re.sub(r"\$\(.*?\)", "code", words))).ways == [*WAYS]
