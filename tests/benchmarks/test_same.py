"""What compares the results of two runs does not say that they are equal where one is not there."""

import sys
from pathlib import Path

import pytest

from benchmarks import same


@pytest.mark.parametrize("names", [("nowhere", "here"), ("here", "nowhere"), ("file", "here")])
def test_a_folder_of_results_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["same", *(str(tmp_path / name) for name in names)])
    with pytest.raises(SystemExit, match="2"):
        same.main()
    assert "Expected a folder of results, got " in capsys.readouterr().err
