"""The search by Optuna: each trial is an experiment of DVC's, and a second call goes on from the first."""

from pathlib import Path

import pytest

from tasks.common.parameters import Unexpected
from tests.projects import run
from tests.tried_project import make_tried

pytest.importorskip("optuna")

from examples import optuna_sweep

# DVC 3.67.1 builds its graph with a property that pygtrie has deprecated; Optuna tells of a trait that is not final.
pytestmark = [
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def interrupted(*_: object) -> tuple[float, int]:
    raise KeyboardInterrupt


def test_a_search_is_gone_on_from_its_trials_are_experiments_and_the_folder_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tried(tmp_path / "project")
    monkeypatch.chdir(root)
    before = {path: path.read_bytes() for path in root.iterdir() if path.is_file()}
    assert optuna_sweep.main(["--trials", "2"]) == 0
    first = optuna_sweep.search(optuna_sweep.STUDY, "enhanced", trials=2, seed=1)
    tried = [trial.params for trial in first.trials]
    assert len(tried) == 2  # nothing more to do
    assert optuna_sweep.main(["--trials", "3"]) == 0
    study = optuna_sweep.search(optuna_sweep.STUDY, "enhanced", trials=3, seed=1)
    assert [trial.params for trial in study.trials[:2]] == tried
    assert len(study.trials) == 3
    named = run(["dvc", "exp", "list", "--name-only"], root).stdout.split()
    for trial in study.trials:
        assert f"enhanced-{trial.params['retain']:.2g}-{trial.params['by']}-{trial.params['repair']}" in named
        lost = {"random": 40, "hessian": 30, "fused": 20, "surgeon": 12}[trial.params["by"]]
        lost *= {"none": 2, "ridge": 1, "imitate": 0.5}[trial.params["repair"]]
        assert trial.values[0] == pytest.approx(101 + lost * (1 - trial.params["retain"]))
        assert trial.values[1] == int(1000 * trial.params["retain"])
    assert {path: path.read_bytes() for path in root.iterdir() if path.is_file()} == before
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Trial 1 of 2"
    assert said[2] == "    evaluate@enhanced"
    assert "2 trials; nothing is both better and cheaper than these:" in said


def test_a_trial_that_fails_or_is_interrupted_ends_the_search_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tried(tmp_path / "project")
    (root / "own").mkdir()
    (root / "own/mine.py").write_text("")
    monkeypatch.chdir(root)
    monkeypatch.setattr(optuna_sweep, "_reached", interrupted)
    monkeypatch.setattr(optuna_sweep, "_run", lambda *_: None)
    assert optuna_sweep.main(["--trials", "1"]) == 130
    monkeypatch.setattr(optuna_sweep, "_reached", lambda *_: (1.0, 2))
    first, again = optuna_sweep.search(optuna_sweep.STUDY, "enhanced", trials=1, seed=1).trials
    assert again.params == first.params
    monkeypatch.undo()
    monkeypatch.chdir(root)
    monkeypatch.setattr(optuna_sweep, "REPAIRS", ("glue",))
    assert optuna_sweep.main(["--study", "other.db", "--trials", "1"]) == 1
    interruption, *said = capsys.readouterr().err.splitlines()
    assert interruption.startswith("Interrupted; ")
    assert len(said) == 1
    assert said[0].startswith("Expected trial enhanced-")
    assert "KeyError" in said[0]
    assert said[0].endswith(
        "`git add own/mine.py`, for a trial sees only what git tracks; then the same command goes on from there."
    )
    with pytest.raises(Unexpected, match="Expected a file of Optuna's at own, or none yet, got "):
        optuna_sweep.search(Path("own"), "enhanced", trials=1, seed=1)
    with pytest.raises(Unexpected, match=r"Expected a variant, one of \['dense', 'enhanced'\], got 'enhance'\."):
        optuna_sweep.search(Path("study.db"), "enhance", trials=1, seed=1)
