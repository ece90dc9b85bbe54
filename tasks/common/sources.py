"""Which file of `own/` a model of the user's own comes from, known without running any of it."""

import ast
import re
from pathlib import Path

from tasks.shown.wording import nearest


def file_of_source(source: object, place: str) -> Path:
    """Return the file in `own/` that defines the function `own.<module>:<function>`, without running any of it.

    Whatever names a source (params.yaml, a model folder's configuration) comes by here before the source is imported,
    for such a name may be anybody's: only what a `def` in a file below `own/` makes is ever called, and so neither
    another package's function nor one that a module of `own/` merely imports.

    Args:
        source: What was given.
        place: Where, for the sentence.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(source, str) or not re.fullmatch(r"own(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", source):
        raise ValueError(f"Expected own.<module>:<function> at {place}, a function in the folder own/, got {source!r}")
    module, function = source.split(":")
    stem = Path(*module.split("."))
    path = next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)
    if path is None:
        hint = nearest(module, [".".join((*stem.parts[:-1], other.stem)) for other in stem.parent.glob("[!_]*.py")])
        raise ValueError(f"Expected a module in the folder own/ at {place}, got {module!r}{hint and '.' + hint}")
    if not path.resolve().is_relative_to(Path("own").resolve()):
        raise ValueError(f"Expected a module in the folder own/ at {place}, got {path}, a link to {path.resolve()}")
    names = _functions(path)
    if function not in names:
        hint = nearest(function, names)
        raise ValueError(f"Expected a function that {path} defines at {place}, got {function!r}{hint and '.' + hint}")
    return path


def _functions(path: Path) -> list[str]:
    """Return the names of the functions that a module defines."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"Expected Python in {path}, got a syntax error{line}") from error
    return [node.name for node in body if isinstance(node, ast.FunctionDef)]
