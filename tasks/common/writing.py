"""Writing so that nothing half-written is ever taken for a result, and what is said where a file cannot be used."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a used-up quota and a file beyond its limit are called."""
NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What a place that may not be written to is called."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place once the context ends well.

    The temporary name starts with a dot and is removed if anything fails. Folders are replaced whole.

    Raises:
        Unexpected: With one sentence if the disk is full or refuses to be written to.
    """
    aside = path.with_name(f".{path.name}.partial")
    with refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(aside)
        try:
            yield aside
            if path.is_dir():
                remove(path)
            aside.replace(path)
        finally:
            remove(aside)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what a disk says while `path` is written into one sentence with the path's name."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors writes it
        code = int(number[1]) if number else getattr(error, "errno", None)
        what = "make room on the disk" if code in NO_ROOM else "see that it can be written to"
        reason = os.strerror(code) if code else error  # whatever else a package says around it
        raise Unexpected(f"Expected to write {path}, got {reason}; {what}, then run the same command.") from error


def what_the_disk_says(error: OSError) -> str:
    """Return the sentence on a file or a disk that refused something, and what to do about it.

    >>> what_the_disk_says(OSError(errno.EROFS, "Read-only file system", ".dvc/tmp/lock"))
    "Expected files and a disk that can be used, got 'Read-only file system' for .dvc/tmp/lock; go on in a clone where \
you may write."
    """
    do = "see that it is there"
    if error.errno in NO_ROOM:
        do = "make room on the disk, then run the same command"
    if error.errno in NOT_OURS:
        do = "go on in a clone where you may write"
    reason, file = error.strerror or error, error.filename or "a file"
    return f"Expected files and a disk that can be used, got '{reason}' for {file}; {do}."


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        Unexpected: If there is no such file, or it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unexpected(
            f"Expected JSON in {path}, got something else ({str(reason).rstrip('.')}); {anew(path)}."
        ) from error


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
