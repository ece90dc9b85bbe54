"""The headline's script at toy size: what its phases compute, and that no interruption changes a result."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import headline
from benchmarks.headline import (
    QUICK,
    RESUME,
    Remembered,
    descended,
    main,
    narrowed,
    texts_of,
    untied_parameters,
)
from benchmarks.resumable import Kept, Sizes, state_of, tensors_of
from pruning.data.windows import Windows
from pruning.models.base import LanguageModel
from tests.tiny import EMBEDDING, VOCABULARY, recipe, text, tiny

ABSENT = ("pyarrow", "pydantic", "dvc", "prefect", "mlflow", "ruamel", "yaml", "igraph", "transformers", "tasks")
"""What a machine with a GPU may not have, or what is not to be needed there."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for seed, (split, length) in enumerate({"train": 1200, "valid": 300, "test": 300}.items()):
        words = [f"w{number}" for number in text(length, seed=seed).tolist()]
        lines = [" ".join(words[start : start + 12]) for start in range(0, length, 12)]
        (folder / f"ptb.{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(corpus: Path, where: Path, *more: str) -> int:
    """Run the script once and return its exit code."""
    needed = ("--corpus", str(corpus), "--state", str(where / "state"), "--to", str(where / "results" / "headline.md"))
    try:
        main([*needed, "--quick", "--device", "cpu", "--commit", "abc", "--epochs", "2", "3", *more])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def results(where: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what a run has come to, times left out."""
    facts = json.loads((where / "state" / "facts.json").read_text(encoding="utf-8"))
    rows = {phase: {name: of for name, of in row.items() if name != "at"} for phase, row in facts["rows"].items()}
    return rows | {"curves": facts["curves"]}, load_file(where / "state" / "taught.safetensors")


def expect_equal(one: Path, other: Path) -> None:
    """Expect two runs to have come to the same, to the last digit."""
    (rows, tensors), (others, other_tensors) = results(one), results(other)
    assert rows == others
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[name].nan_to_num(), other_tensors[name].nan_to_num()) for name in tensors)


def tied() -> LanguageModel:
    model: LanguageModel = tiny("tied", (7, EMBEDDING))
    return model


def windows() -> Windows:
    return Windows(text(200), first=0, batch=4, bptt=6)


def test_a_run_prunes_within_its_budget_and_reports_every_phase_beside_the_published_figures(
    corpus: Path, tmp_path: Path
) -> None:
    assert run(corpus, tmp_path) == 0
    rows, _ = results(tmp_path)
    assert [*rows] == ["dense", "rank", "removed", "ridge", "taught", "curves"]
    types = texts_of(corpus, QUICK)[2]
    assert rows["taught"]["parameters"] <= QUICK.share * untied_parameters(QUICK, types)
    assert max(rows["taught"]["widths"]) < QUICK.width
    assert rows["taught"]["embedding"] == QUICK.rank
    folder = tmp_path / "results"
    report = (folder / "headline.md").read_text(encoding="utf-8")
    assert "commit `abc`" in report
    assert all(published in report for published in ("78.65", "78.4", "77.8", "80.2", "**taught by the dense model**"))
    assert f"{rows['taught']['test']:.2f}" in report
    assert len((folder / "headline.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 + 3
    files = [*folder.iterdir()]
    assert len(files) <= 8
    assert all(file.stat().st_size < headline.LARGEST for file in files)


def test_a_run_that_ends_for_want_of_time_goes_on_to_the_same_results(corpus: Path, tmp_path: Path) -> None:
    assert run(corpus, tmp_path / "whole") == 0
    ends = [run(corpus, tmp_path / "parts", "--limit", "0")]
    while ends[-1] == RESUME:
        ends.append(run(corpus, tmp_path / "parts", "--limit", "0"))
    assert ends == [RESUME, RESUME, RESUME, 0]
    expect_equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("saves", [0, 1, 2, 5])
def test_a_run_that_is_killed_goes_on_to_the_same_results(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    assert run(corpus, tmp_path / "whole", "--every", "0") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "save", killed_after(saves, Kept.save))
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "killed", "--every", "0")
    assert run(corpus, tmp_path / "killed", "--every", "0") == 0
    expect_equal(tmp_path / "whole", tmp_path / "killed")


def killed_after(saves: int, save: Callable[..., None]) -> Callable[..., None]:
    """Return a `save` that is interrupted after it has been done so often, half a file being there."""
    left = [saves]

    def saving(kept: Kept, name: str, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
        if not left[0]:
            (kept.folder / f"{name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        left[0] -= 1
        save(kept, name, tensors, **metadata)

    return saving


def test_epochs_follow_from_the_seconds_and_are_decided_once(corpus: Path, tmp_path: Path) -> None:
    assert run(corpus, tmp_path, "--epochs", "0", "0", "--seconds", "6", "--limit", "0", "--every", "0") == RESUME
    facts = json.loads((tmp_path / "state" / "facts.json").read_text(encoding="utf-8"))
    plan = facts["plan"]["dense"]
    assert plan["epochs"] >= 1
    assert plan["seconds"] < headline.DENSE_UNTIL * 6
    assert run(corpus, tmp_path, "--epochs", "0", "0", "--seconds", "600", "--limit", "0") in (RESUME, 0)
    assert json.loads((tmp_path / "state" / "facts.json").read_text(encoding="utf-8"))["plan"]["dense"] == plan


def test_the_control_has_the_taught_models_widths_and_weights_of_its_own(corpus: Path, tmp_path: Path) -> None:
    assert run(corpus, tmp_path, "--control") == 0
    rows, _ = results(tmp_path)
    assert rows["control"]["widths"] == rows["taught"]["widths"]
    assert rows["control"]["test"] != rows["taught"]["test"]
    assert len(rows["curves"]["control"]) == len(rows["curves"]["taught"])


def test_an_embedding_turned_into_its_own_directions_computes_the_same() -> None:
    model = tied()
    turned = narrowed(model, EMBEDDING, torch.ones(VOCABULARY, dtype=torch.float64))
    tokens = windows()[0].tokens
    assert torch.allclose(turned(tokens)[0], model(tokens)[0], atol=1e-9)


def test_an_embedding_that_needs_fewer_dimensions_loses_nothing_with_the_others() -> None:
    model = tied()
    with torch.no_grad():
        model.encoder.weight.copy_(
            model.encoder.weight[:, :2] @ torch.linspace(-1, 1, 2 * EMBEDDING).view(2, EMBEDDING).double()
        )
    narrow = narrowed(model, 2, torch.arange(VOCABULARY, dtype=torch.float64))
    tokens = windows()[0].tokens
    assert narrow.encoder.weight.shape == (VOCABULARY, 2)
    assert torch.allclose(narrow(tokens)[0], model(tokens)[0], atol=1e-9)


def test_a_remembered_teacher_says_what_the_teacher_says_on_every_window() -> None:
    model, taught, own = tied().eval(), None, None
    remembered = Remembered(model, windows())
    for tokens, _ in windows():
        logits, own = model.predicted(tokens, own)
        theirs, taught = remembered.predicted(tokens, taught)
        assert torch.allclose(theirs, logits, atol=1e-9)


def test_gradient_descent_lowers_the_loss_and_resumes_to_the_same_bytes() -> None:
    how = replace(recipe(epochs=4), learning_rate=5.0)
    whole = list(descended(tied(), windows(), windows(), recipe=how, seed=1))
    losses = whole[-1].history["valid_loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    file = tensors_of(whole[1])
    again = state_of(file, {"finished": "0"})
    *_, last = descended(tied(), windows(), windows(), recipe=how, seed=1, resume=again)
    assert last.history.equals(whole[-1].history)
    assert all(torch.equal(last.tensors[name], tensor) for name, tensor in whole[-1].tensors.items())


def test_the_published_model_has_66_million_parameters() -> None:
    assert untied_parameters(Sizes(), 10_000) == 66_022_000


def test_the_script_runs_where_there_is_little_beside_the_library(corpus: Path, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))
runpy.run_module("benchmarks.headline", run_name="__main__")
"""
    needed = ("--corpus", str(corpus), "--state", str(tmp_path / "state"), "--to", str(tmp_path / "headline.md"))
    more = ("--quick", "--device", "cpu", "--epochs", "1", "1")
    asked = subprocess.run([sys.executable, "-c", code, *needed, *more], capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr
    assert "taught by the dense model" in asked.stdout
