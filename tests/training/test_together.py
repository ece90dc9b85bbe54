"""Training by several processes: one's losses within rounding, also if one is killed and the command runs again."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning.data.windows import Windows
from pruning.training.together import Together
from tasks.__main__ import main
from tasks.common.models import read_model
from tasks.common.tables import read_table
from tests.projects import ROOT, TINY, run, set_parameters, write_text
from tests.tiny import text

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
THREE = Together(1, 3)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text in five columns, which two processes cannot share evenly, and a model that one process trained."""
    folder = tmp_path_factory.mktemp("together")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    write_text(folder / "text")
    set_parameters(folder, TINY)
    set_parameters(folder, {"train": {"dropout": 0.0, "batch": 5}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prepare"]) == 0
        assert main(["train"]) == 0
    shutil.move(folder / "data/train", folder / "alone")
    return folder


def test_two_processes_give_ones_losses_though_one_is_killed_and_the_command_runs_again(project: Path) -> None:
    ended = run([*TORCHRUN, "tests.training.killed", "train"], project, fails=True)
    assert ": Expected 2 processes until training ends, got" in ended.stderr
    assert "the same command goes on after the last finished epoch." in ended.stderr
    assert not (project / "data/train/model").exists()

    went_on = run([*TORCHRUN, "tasks", "train"], project)
    assert went_on.stdout.count("train: going on after 1 finished epochs") == 1
    assert went_on.stdout.count("train: epoch 2") == 1
    assert not (project / "data/train/.partial").exists()

    alone, shared = (read_table(project / folder / "history.parquet") for folder in ("alone", "data/train"))
    assert shared[["step", "tokens"]].equals(alone[["step", "tokens"]])
    np.testing.assert_allclose(shared["train_loss"], alone["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(shared["valid_loss"], alone["valid_loss"], rtol=1e-4)
    one, two = (read_model(project / folder / "model").state_dict() for folder in ("alone", "data/train"))
    assert all((one[name] - two[name]).abs().max() < 1e-3 for name in one)


def test_columns_are_shared_whole_and_each_goes_to_one() -> None:
    columns = torch.arange(20).view(2, 10)
    parts = [Together(rank, 3).own(columns) for rank in range(3)]
    assert [part.shape[1] for part in parts] == [4, 3, 3]
    assert torch.cat(parts, dim=1).equal(columns)
    assert Together().own(columns) is columns


def test_batches_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Expected windows of text for 3 processes, got validation text in list; "):
        THREE.expect([], "validation text")
    with pytest.raises(ValueError, match=r"^Expected a batch of at least 3 columns, one for each process, got 2 of "):
        THREE.expect(Windows(text(50), first=0, batch=2, bptt=5), "training text")
    Together().expect([], "anything")


def test_a_stage_that_one_process_runs_is_refused_to_several(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(["weights"]) == 1
    assert capsys.readouterr().err == (
        "process 2 of 2: Expected torchrun for one of ('train', 'finetune'), got weights; run it with --workers 2 "
        "instead.\n"
    )
