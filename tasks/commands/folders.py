"""Folders that a user names: a command replaces there what it made itself, as its list of it says, and nothing else."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.common.parameters import Unexpected
from tasks.common.writing import read_json, refusing, replacing
from tasks.shown.console import say

MANIFEST = ".made.json"
"""The list beside what a command made: who made it, and the SHA-256 that each file may have."""
Listed = Mapping[str, list[str]]


def check_folder(folder: Path, command: str) -> None:
    """Refuse to write where anything stands that the command did not make, or that was changed since.

    Args:
        folder: What the user named.
        command: Who is going to write there.

    Raises:
        Unexpected: With one sentence that names the first such file.
    """
    if folder.exists() and not folder.is_dir():
        raise Unexpected(f"Expected a folder to write to, got the file {folder}.")
    if not folder.is_dir():
        return
    listed = _listed(folder, command)
    for name, path in sorted(_entries(folder).items()):
        if not _is_listed(name, path, listed):
            raise Unexpected(
                f"Expected a new or empty folder, or an earlier {command} as it was written, "
                f"got {folder} with {name!r} in it; move that away, or name another folder with --to."
            )


@contextmanager
def replacing_folder(folder: Path, command: str) -> Iterator[Path]:
    """Yield an empty folder; once the context ends well it takes the place of what the command had made at `folder`.

    Raises:
        Unexpected: As `check_folder`, before and after the work: meanwhile somebody may have put something there.
    """
    folder = folder.resolve()
    check_folder(folder, command)
    with refusing(folder), _aside(folder) as aside:
        yield aside
        _write_manifest(aside, command, {name: [digest] for name, digest in _digests(aside).items()})
        check_folder(folder, command)
        earlier = aside.with_name("earlier")
        if folder.exists():
            folder.rename(earlier)
        try:
            aside.rename(folder)
        except OSError:
            if earlier.exists():
                earlier.rename(folder)
            raise
        _remove_made(earlier, command)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that nobody else has, removed at the end with what is left of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    aside = temporary / "new"
    try:
        aside.mkdir()
        yield aside
    finally:
        if aside.exists():
            shutil.rmtree(aside)
        if any(temporary.iterdir()):
            say(f"{temporary}: left there, since it holds what was not made here")
        else:
            temporary.rmdir()


def _remove_made(folder: Path, command: str) -> None:
    """Delete what is listed in a folder, then the folders that are empty; anything else stays where it is."""
    listed = _listed(folder, command)
    entries = _entries(folder) if folder.is_dir() else {}
    for name, path in entries.items():
        if name != MANIFEST and not path.is_dir() and _is_listed(name, path, listed):
            path.unlink()
    for path in [*sorted((path for path in entries.values() if path.is_dir()), reverse=True), folder]:
        if path.is_dir() and not path.is_symlink() and {entry.name for entry in path.iterdir()} <= {MANIFEST}:
            (path / MANIFEST).unlink(missing_ok=True)
            path.rmdir()


def _entries(folder: Path) -> dict[str, Path]:
    """Return everything below a folder by its path in it; links are not followed."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}


def _digests(folder: Path) -> dict[str, str]:
    return {name: _digest(path) for name, path in _entries(folder).items() if path.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_listed(name: str, path: Path, listed: Listed | None) -> bool:
    """Return whether a file is as the command left it; so is the list itself, and a folder of what is listed."""
    if listed is None or path.is_symlink():
        return False
    if path.is_dir():
        return any(other.startswith(f"{name}/") for other in listed)
    return name == MANIFEST or (path.is_file() and name in listed and _digest(path) in listed[name])


def _listed(folder: Path, command: str) -> Listed | None:
    """Return the files that the command made in a folder, None if it made none there."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        listed = read_json(path)
        return dict(listed["files"]) if listed["made_by"] == command else None
    except (Unexpected, KeyError, TypeError, ValueError):  # somebody else's
        return None


def _write_manifest(folder: Path, command: str, files: Listed) -> None:
    content = {"made_by": command, "files": dict(sorted(files.items()))}
    with replacing(folder / MANIFEST) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
