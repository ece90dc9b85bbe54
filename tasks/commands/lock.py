"""Whether dvc.lock is whole, and how one that a kill has cut is mended so that nothing of it is lost.

DVC rewrites the file in place. A cut need not be seen by a reader of YAML: between two lines of it everything before is
a lock file too, of fewer stages. What is missing is told from the copy of the last whole one, from git, and from the
results that stand there without an entry.
"""

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.parameters import Unexpected
from tasks.common.pipeline import LOCK, PARAMETERS, read_stages
from tasks.common.reading import read_yaml, refuse_conflict
from tasks.common.writing import replacing
from tasks.shown.console import say

INTERNALS = Path(".dvc/tmp")
HEADER = "schema: '2.0'\nstages:\n"
PATIENCE_SECONDS = 60.0
"""How long another `dvc` may write before the user is asked to see to it."""
Outputs = Mapping[str, Sequence[Path]]


def read_lock(lock: Path = LOCK) -> dict[str, Any]:
    """Return what a dvc.lock says of each stage, and keep a copy of it if it is whole.

    Raises:
        Unexpected: If it has conflict markers, or cannot be read to its end.
    """
    content = lock.read_bytes()
    refuse_conflict(content, lock)
    try:
        stages: dict[str, Any] = read_yaml(lock)["stages"]
        files = [file for entry in stages.values() for file in (*entry.get("deps", []), *entry.get("outs", []))]
        readable = content.endswith(b"\n") and all({"path", "md5"} <= set(file) for file in files)
    except (Unexpected, LookupError, TypeError, AttributeError):
        readable = False
    if not readable:
        raise Unexpected(f"Expected {lock} as DVC writes it, got a part of one; `python -m tasks check` mends it.")
    if _problem(lock, content, _outputs(lock)) is None:
        _keep(lock, content)
    return stages


def expect_recorded(path: Path, hashes: Mapping[Path, str]) -> None:
    """Refuse an output, a file or a folder, that is missing or another than the lock files record.

    Args:
        path: The output.
        hashes: Output → the MD5 that DVC recorded of it.

    Raises:
        Unexpected: If it is missing, another, or not recorded.
    """
    if not path.exists() or hash_of(path) != hashes.get(path):
        got = "another" if path.exists() else "none"
        raise Unexpected(f"Expected {path} as {LOCK} records it, got {got}; run `dvc repro` or `dvc checkout`.")


def hash_of(path: Path) -> str:
    """Return what DVC records of a file, its MD5, or of a folder, that of the list of its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    files = sorted(own for own in path.rglob("*") if own.is_file())
    listed = [{"md5": hash_of(own), "relpath": own.relative_to(path).as_posix()} for own in files]
    listed.sort(key=itemgetter("relpath"))
    text = json.dumps(listed, sort_keys=True).encode()
    return f"{hashlib.md5(text, usedforsecurity=False).hexdigest()}.dir"


def mend(lock: Path = LOCK) -> None:
    """Put back what a lock file lacks and keep the cut one beside it, or copy it if it is whole.

    Raises:
        Unexpected: If it has conflict markers, which are the user's to resolve, or another `dvc` is at work.
    """
    outputs = _outputs(lock)
    if lock.is_file():
        refuse_conflict(lock.read_bytes(), lock)
        if _problem(lock, lock.read_bytes(), outputs):
            with _dvc_at_rest("lock"):
                _mend(lock, lock.read_bytes(), outputs)  # read again: what looked cut may have been half-way written
        else:
            _keep(lock, lock.read_bytes())
    _mend_rwlock()


def _mend(lock: Path, content: bytes, outputs: Outputs) -> None:
    problem = _problem(lock, content, outputs)
    if problem is None:
        _keep(lock, content)
        return
    entries = _entries(_text(content), outputs)
    known = {name: entry for name, entry in {**_committed(lock), **_kept(lock)}.items() if name in outputs}
    whole = HEADER + "".join(
        {**entries, **{name: text_of_entry for name, text_of_entry in known.items() if name not in entries}}.values()
    )
    if whole == _text(content):
        say(f"{lock}: {problem}; a run was killed before it wrote that down, and `dvc repro` does")
        return
    beside = _free(lock.with_name(f"{lock.name}.cut"))
    beside.write_bytes(content)
    if whole == HEADER:
        lock.unlink()
    else:
        with replacing(lock) as aside:
            aside.write_text(whole, encoding="utf-8", newline="\n")
    back = f"{len(whole.splitlines()) - 2} lines of entries put back" if whole != HEADER else "nothing left of it"
    say(
        f"{lock}: {problem}, since a run was killed while it was written; kept as {beside}, {back}; "
        "`dvc repro` restores the rest from DVC's run cache"
    )


def _problem(lock: Path, content: bytes, outputs: Outputs) -> str | None:
    """Return what a lock file lacks, to follow its name, None if nothing."""
    text = _text(content)
    if torn := _torn(text):
        return torn
    committed, copy = _committed_text(lock), _copy(lock)
    if text == committed or (copy.is_file() and copy.read_bytes() == content):
        return None
    entries, names = _entries(text, outputs), [_name(block) for block in _blocks(text)]
    if broken := [name for name in names if name not in entries]:
        return f"says only a part of stage {broken[-1]}"
    if len(set(names)) != len(names):
        return "says something twice"
    if lost := [name for name in _kept(lock) if name in outputs and name not in entries]:
        return f"says nothing any more of stage {lost[0]}"
    if committed.startswith(text):
        return "ends before the one that git has"
    there = [
        name
        for name, paths in outputs.items()
        if name not in entries and paths and all(path.exists() for path in paths)
    ]
    return f"says nothing of stage {there[0]}, whose results are there" if there else None


def _torn(text: str) -> str | None:
    """Return what a lock file lacks whatever its pipeline is, to follow its name, None if nothing."""
    if not text.strip():
        return "is empty"
    if not text.endswith("\n"):
        return "ends within a line"
    return None if text.startswith(HEADER) else "does not begin as DVC begins it"


def _entries(text: str, outputs: Outputs) -> dict[str, str]:
    """Return the text of each stage's entry that is complete, by the stage's address."""
    blocks, entries = _blocks(text), dict[str, str]()
    for place, block in enumerate(blocks):
        name = _name(block)
        wanted = outputs.get(name, ()) if place == len(blocks) - 1 else ()  # a cut is in the last one
        if block.endswith("\n") and _is_complete(name, block, wanted, writes=outputs.get(name) != []):
            entries[name] = block
    return entries


def _is_complete(name: str, block: str, wanted: Sequence[Path], *, writes: bool) -> bool:
    try:
        entry = YAML(typ="safe").load(block)[name]
        outs = entry["outs"] if writes else []
        files = [*entry.get("deps", []), *outs]
        whole = all("path" in file and "size" in file and (not _is_folder(file) or "nfiles" in file) for file in files)
        missing = {str(path) for path in wanted} - {file["path"] for file in outs}
        return whole and "cmd" in entry and bool(files) and not missing
    except (YAMLError, LookupError, TypeError, AttributeError, ValueError):
        return False


def _is_folder(file: Mapping[str, Any]) -> bool:
    return str(file.get("md5", "")).endswith(".dir")


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _blocks(text: str) -> list[str]:
    """Return the entries of the stages as they stand in the text."""
    return re.split(r"(?m)^(?=  \S)", text.removeprefix(HEADER))[1:] if text.startswith(HEADER) else []


def _name(block: str) -> str:
    return block.partition("\n")[0].strip().removesuffix(":").strip("'\"")


def _outputs(lock: Path) -> Outputs:
    """Return what each stage of the dvc.yaml beside a lock file writes, by its address."""
    stages = read_stages(read_yaml(lock.with_name(PARAMETERS.name)), "/".join(lock.parent.parts))
    return {stage.address: list(stage.outputs.values()) for stage in stages}


def _copy(lock: Path) -> Path:
    """Return where the last whole lock file that was seen is, among what is this machine's alone."""
    return INTERNALS / f"{'-'.join(lock.parts)}.whole"


def _kept(lock: Path) -> dict[str, str]:
    """Return the entries of the last whole lock file that was seen."""
    copy = _copy(lock)
    return _entries(_text(copy.read_bytes()), {}) if copy.is_file() else {}


def _committed(lock: Path) -> dict[str, str]:
    return _entries(_committed_text(lock), {})


def _committed_text(lock: Path) -> str:
    """Return the lock file of the last commit, nothing without git or before the first one."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{lock}"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return _text(shown.stdout)


def _keep(lock: Path, content: bytes) -> None:
    copy = _copy(lock)
    if INTERNALS.parent.is_dir() and not (copy.is_file() and copy.read_bytes() == content):
        with replacing(copy) as aside:
            aside.write_bytes(content)


def _free(path: Path) -> Path:
    """Return a path that nothing stands at: this one, or the first with a number behind it."""
    number = 2
    free = path
    while free.exists():
        free, number = path.with_name(f"{path.name}{number}"), number + 1
    return free


def _mend_rwlock() -> None:
    """Drop the list of files that DVC's processes are busy with if a kill left half of it: no DVC could start then."""
    path = INTERNALS / "rwlock"
    if path.is_file() and not _is_json(path):
        with _dvc_at_rest("rwlock.lock"):
            if not _is_json(path):
                path.replace(beside := _free(path.with_name("rwlock.cut")))
                say(f"{path}: half-written by a run that was killed, kept as {beside}")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


@contextmanager
def _dvc_at_rest(name: str) -> Iterator[None]:
    """Hold one of DVC's own locks for the length of a `with`."""
    import zc.lockfile  # of DVC's, and needed here alone

    if not INTERNALS.parent.is_dir():
        yield
        return
    INTERNALS.mkdir(exist_ok=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            held = zc.lockfile.LockFile(str(INTERNALS / name))
            break
        except zc.lockfile.LockError:
            if time.monotonic() > deadline:
                raise Unexpected(
                    f"Expected DVC at rest to mend its files, got another `dvc` at work for {PATIENCE_SECONDS:g} s; "
                    "let it finish, then run the same command."
                ) from None
            time.sleep(0.2)
    try:
        yield
    finally:
        held.close()
