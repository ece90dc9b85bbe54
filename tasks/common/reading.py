"""How a YAML file is read, and what is wrong with one that cannot be: one sentence with the file and the line."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tasks.common.parameters import Unexpected

CONFLICT = re.compile(rb"^(?:<{7}|={7}|>{7}|\|{7})(?: |$)", re.MULTILINE)
"""What git leaves where two sides of a merge differ."""
MARK = b"\xef\xbb\xbf"
"""The byte order mark with which some editors begin UTF-8."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file as plain values, with DVC's reading of numbers (`1e-3` is one).

    Raises:
        Unexpected: If there is no such file, or it is no mapping that DVC reads as this does.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "none"
        raise Unexpected(f"Expected {path} in the current folder, got {got}; run from the repository's root.")
    content = path.read_bytes()
    refuse_conflict(content, path)
    text = decoded(content, path)
    try:
        values = YAML(typ="safe").load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Unexpected(f"Expected YAML in {path}, got {_fault(error, text)}.") from None
    if not isinstance(values, dict) or not values:
        raise Unexpected(f"Expected sections with names in {path}, got {_kind(values)}.")
    return values


def refuse_conflict(content: bytes, path: Path) -> None:
    """Refuse a file in which a merge has left both sides."""
    if conflict := CONFLICT.search(content):
        line = content.count(b"\n", 0, conflict.start()) + 1
        raise Unexpected(
            f"Expected {path} after a merge that is done, got a conflict marker in line {line}; choose one side."
        )


def decoded(content: bytes, path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        Unexpected: If it is not UTF-8, or begins with a byte order mark, which would be read as part of the first word.
    """
    if content.startswith(MARK):
        raise Unexpected(
            f"Expected text alone in {path}, got a byte order mark before it; save it as UTF-8 without one."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unexpected(
            f"Expected UTF-8 text in {path}, got byte {content[error.start]:#04x} at {error.start}; save it as UTF-8."
        ) from None


def _fault(error: Exception, text: str) -> str:
    """Return what a YAML reader stumbled over, and where."""
    if isinstance(error, DuplicateKeyError):
        key = re.search(r'duplicate key "(.*?)"', str(error.problem))
        return f"{key[1] if key else 'a name'!r} a second time{_where(error.problem_mark)}"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return f"{_problem(error, text)}{_where(mark)}"
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    if position := getattr(error, "position", None):  # a character that YAML forbids
        line = text.count("\n", 0, position) + 1
        return f"the character U+{ord(text[position]):04X} in line {line}"
    return f"a value that is not what it looks like ({' '.join(str(error).split()).rstrip('.')})"


def _problem(error: MarkedYAMLError, text: str) -> str:
    """Return a reader's complaint in the user's words where these are clearer."""
    problem = " ".join(str(error.problem or error.context).split()).rstrip(".")
    mark = error.problem_mark
    lines = text.splitlines()
    if "'\\t'" in problem or (mark and mark.line < len(lines) and re.match(r"\s*\t", lines[mark.line])):
        return "a tab where spaces belong"
    if isinstance(error, ConstructorError) and (tag := re.search(r"for the tag '(.*?)'", problem)):
        return f"the tag {tag[1]!r}, which stands for no plain value,"
    if "single document" in str(error.context) or "another document" in problem:
        return "a second document"
    if "undefined alias" in problem and mark and (alias := re.search(r"\*[^\s,\]}]+", lines[mark.line])):
        return f"the alias {alias[0]!r} without its anchor"
    return f"a fault ({problem})"


def _where(mark: Any) -> str:
    return f" in line {mark.line + 1}" if mark is not None else ""


def _kind(values: Any) -> str:
    kinds = {list: "a list", dict: "none", type(None): "an empty file"}
    return kinds.get(type(values), f"the single value {values!r}")
