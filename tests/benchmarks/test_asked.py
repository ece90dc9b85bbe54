"""What the options of benchmarks cannot be is refused in one sentence, and before any work, by one module for all."""

import ast
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import asked, headline
from tests.projects import ROOT


def test_every_option_of_a_benchmark_says_what_it_may_be() -> None:
    raw = re.compile(r"\btype=(?:int|float|Path)\b")
    sources = (ROOT / "benchmarks").rglob("*.py")
    assert [path.name for path in sources if raw.search(path.read_text(encoding="utf-8"))] == []


def test_every_command_and_each_of_its_options_says_what_it_is_for() -> None:
    silent = []
    for room in ("benchmarks", "deploy", "docs", "examples", "flows", "pruning", "tasks"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if "argparse" in text else ():
                called = getattr(getattr(node, "func", None), "attr", "")
                wanted = {"add_argument": {"help", "version"}, "ArgumentParser": {"description", "usage", "parents"}}
                if called in wanted and not wanted[called] & {word.arg for word in node.keywords}:
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


@pytest.mark.parametrize(
    ("read", "word", "sentence"),
    [
        (asked.count, "0", "Expected a whole number from 1, got '0'."),
        (asked.count, "2.5", "Expected a whole number from 1, got '2.5'."),
        (asked.index, "-1", "Expected a whole number from 0, got '-1'."),
        (asked.amount, "nan", "Expected a number, got 'nan'."),
        (asked.amount, "-1", "Expected a number from 0, got -1."),
        (asked.share, "0", "Expected a share in (0, 1], got 0."),
        (asked.share, "50", "Expected a share in (0, 1], got 50."),
        (asked.part, "1", "Expected a part in [0, 1), got 1."),
        (asked.there, "nowhere", "Expected a file or folder at nowhere, got none."),
        (asked.results, "nowhere", "Expected a folder of results, got none at nowhere."),
        (asked.results, "file", "Expected a folder of results, got a file at file."),
        (asked.splits, "nowhere", "Expected a file or folder at nowhere, got none."),
        (asked.splits, "empty", "Expected published train, valid and test files in empty, got none."),
        (asked.checkpoint, "empty", "Expected the file of a dense model, got the folder empty."),
        (asked.checkpoint, "file", "Expected one *vocabulary*.txt beside file, got another number of them."),
        (asked.file, "empty", "Expected a file that can be written, got the folder empty."),
        (asked.file, "file/report.md", "Expected a folder at file or none yet, got the file file."),
        (asked.folder, "file", "Expected a folder at file or none yet, got the file file."),
        (asked.size, "1024", "Expected UNITSxCOLUMNS, as 1024x64, got 1024."),
        (asked.size, "1024x0", "Expected a whole number from 1, got '0'."),
        (asked.device, "tpu", "which are here, got 'tpu'."),
    ],
)
def test_what_an_option_cannot_be_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], Any], word: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    with pytest.raises(ArgumentTypeError, match=re.escape(sentence)) as refusal:
        read(word)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("read", "word", "value"),
    [
        (asked.count, "3", 3),
        (asked.index, "0", 0),
        (asked.amount, "inf", float("inf")),
        (asked.share, "1", 1.0),
        (asked.part, "0", 0.0),
        (asked.file, "new/report.md", Path("new/report.md")),
        (asked.folder, "new/state", Path("new/state")),
        (asked.device, "cpu", "cpu"),
    ],
)
def test_what_an_option_may_be_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], Any], word: str, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(word) == value
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_names_the_option_and_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["headline", "--corpus", "missing", "--state", "state", "--to", "report.md"])
    with pytest.raises(SystemExit, match="2"):
        headline.main()
    assert "argument --corpus: Expected a file or folder at missing, got none." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
