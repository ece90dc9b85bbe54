"""One sentence on what a user's code raised: what it was to do, what happened, and in which line."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pruning.core.faults import in_one_line, said
from tasks.common.parameters import Unexpected

OWN = Path("own")
"""The folder of the user's code."""
PACKAGES = Path(__file__).parent.parent.parent
COMPILED = re.compile(r"operator (\w+)::\w+ does not exist|(\w+)\.so[.\d]*: undefined symbol", re.ASCII)
"""What Python says of a package (torchvision, torchaudio) whose compiled part does not fit the PyTorch there is."""


@contextmanager
def blaming(wanted: str, advice: str = "", *, about: str = "") -> Iterator[None]:
    """Within the context, let whatever the user's code raises, `sys.exit` too, become one sentence.

    A refusal of the library's own is a sentence already, and an interruption is no fault: they pass.

    Args:
        wanted: What was expected: `Expected <wanted>, got …`.
        advice: What to do, unless what the user's code raised says it.
        about: What is added to a refusal of the library's own, which does not know whose model it refuses.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit, Unexpected):
        raise
    except BaseException as error:
        if _is_refusal(error):
            what, advised = f"{in_one_line(str(error))}{f' ({about})' if about else ''}", advice
        else:
            what, advised = f"Expected {wanted}, got {_raised(error)}{_place(error)}", _advice(error) or advice
        raise Unexpected(f"{what}{f'; {advised}' if advised else ''}.") from error


def _is_refusal(error: BaseException) -> bool:
    """Return whether the library itself refused something in a sentence of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename) if frames else Path()
    ours = any(last.is_relative_to(PACKAGES / name) for name in ("pruning", "tasks"))
    words = ("Expected ", "Unknown ", "Cannot ")
    return ours and isinstance(error, ValueError | TypeError | FloatingPointError) and str(error).startswith(words)


def _raised(error: BaseException) -> str:
    """Return what was raised in words."""
    if isinstance(error, SystemExit):
        return f"a call of sys.exit({error.code!r})"
    if isinstance(error, SyntaxError):
        return f"a syntax error ({error.msg})"
    return said(error)


def _place(error: BaseException) -> str:
    """Return the last line of the user's own code on the way to what was raised; nothing if it is not on the way."""
    root = OWN.resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve().is_relative_to(root):
        return f" ({_within(error.filename)}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    frames_of_user = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(root)]
    return f" ({_within(frames_of_user[-1].filename)}, line {frames_of_user[-1].lineno})" if frames_of_user else ""


def _within(file: str) -> Path:
    return OWN / Path(file).resolve().relative_to(OWN.resolve())


def _advice(error: BaseException) -> str:
    """Return what to do about what was raised, where it says so."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install the package that holds {error.name!r}, or correct its name"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"put a file at {error.filename}, or correct its name"
    if compiled := COMPILED.search(f"{type(error).__name__}: {error}"):
        package = compiled[1] or compiled[2].removeprefix("lib")
        return f"its {package} is built for another PyTorch than {version('torch')}, so install both from one index"
    return ""
