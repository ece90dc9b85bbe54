"""Progress says what is counted, how fast it goes and how long the rest takes, in lines where there is no terminal."""

import ast
import re

import pytest

from tasks.shown import console
from tests.projects import ROOT

COUNTED = re.compile(r", [a-z ]+$")
"""How what is shown of a loop ends: with what its items are."""


def test_every_progress_says_what_it_counts() -> None:
    silent, ours = [], [*(ROOT / "pruning").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    for path, text in ((path, path.read_text(encoding="utf-8")) for path in ours):
        for node in ast.walk(ast.parse(text)) if "track" in text else ():
            if isinstance(node, ast.Call) and isinstance(what := _counted(node), ast.Constant | ast.JoinedStr):
                last = what.values[-1] if isinstance(what, ast.JoinedStr) else what
                if not COUNTED.search(str(getattr(last, "value", ""))):
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(what)}")
    assert silent == []


def _counted(call: ast.Call) -> ast.expr | None:
    """Return what a call says of the progress that it shows."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if name == "track" and len(call.args) > 1:
        return call.args[1]
    return next((each.value for each in call.keywords if name == "computed" and each.arg == "what"), None)


def test_a_line_says_how_far_it_is_how_fast_and_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 80.0, 160.0, 160.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    assert [*console.track(["a", "b"], "joint removal, sets")] == ["a", "b"]
    assert capsys.readouterr().out == (
        "joint removal, sets: 1/2, 80 s each, 80 s left\njoint removal, sets: 2 in 160.0 s\n"
    )
