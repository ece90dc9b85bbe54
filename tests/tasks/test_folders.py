"""Folders that a user names: replaced where the command made them, refused where anything else is in them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.commands.folders import MANIFEST, check_folder, replacing_folder
from tasks.common.parameters import Unexpected

Change = Callable[[Path], object]


def write(folder: Path, text: str = "one", command: str = "choice") -> None:
    with replacing_folder(folder, command) as aside:
        (aside / "sub").mkdir()
        (aside / "a.txt").write_text(text)
        (aside / "sub/b.txt").write_text(text)


def contents(folder: Path) -> dict[str, bytes | str]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: "folder" if path.is_dir() else path.read_bytes() for name, path in found.items()}


CHANGES: dict[str, Change] = {
    "another file": lambda folder: (folder / "mine.txt").write_text("mine"),
    "a hidden file": lambda folder: (folder / ".mine").write_text("mine"),
    "a file of a name that is written": lambda folder: (folder / "a.txt").write_text("mine"),
    "an empty folder": lambda folder: (folder / "mine").mkdir(),
    "a file deep below": lambda folder: (folder / "sub/mine.txt").write_text("mine"),
    "a link": lambda folder: (folder / "mine").symlink_to("/"),
    "a list that lies": lambda folder: (folder / MANIFEST).write_text('{"made_by": "choice", "files": {}}'),
    "a list of another command": lambda folder: (folder / MANIFEST).write_text('{"made_by": "other", "files": {}}'),
    "a list that is none": lambda folder: (folder / MANIFEST).write_text("[]"),
    "no list": lambda folder: (folder / MANIFEST).unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_a_command_did_not_make_stays_and_is_named(tmp_path: Path, change: Change, when: str) -> None:
    folder = tmp_path / "named"
    write(folder)
    if when == "before":
        change(folder)
        with pytest.raises(Unexpected, match=r"Expected a new or empty folder, or an earlier choice as it was written"):
            write(folder, "two")
    else:
        with pytest.raises(Unexpected, match=r"got .*named with '.*' in it; move"), replacing_folder(folder, "choice"):
            change(folder)
    before = contents(tmp_path)
    with pytest.raises(Unexpected, match=r"with --to\.$"):
        check_folder(folder, "choice")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["named"]


def test_an_earlier_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep/named"
    write(folder)
    before = set(contents(folder))
    write(folder, "two")
    assert set(contents(folder)) == before == {"a.txt", "sub", "sub/b.txt", MANIFEST}
    assert (folder / "sub/b.txt").read_text() == "two"
    (folder / "a.txt").unlink()
    write(folder, "three")
    assert (folder / "a.txt").read_text() == "three"
    assert [path.name for path in folder.parent.iterdir()] == ["named"]


def test_an_empty_folder_and_the_target_of_a_link_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty/a.txt").read_text() == "one"


def test_a_folder_that_another_command_made_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "named", command="export")
    with pytest.raises(Unexpected, match=r"an earlier choice as it was written, got .* with '.made.json' in it"):
        write(tmp_path / "named")


def test_a_file_at_the_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "named").write_text("mine")
    with pytest.raises(Unexpected, match=r"Expected a folder to write to, got the file .*named\."):
        write(tmp_path / "named")
    assert (tmp_path / "named").read_text() == "mine"


def test_work_that_fails_leaves_the_earlier_folder_and_what_stands_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "named")
    (tmp_path / ".named.partial").mkdir()
    (tmp_path / ".named.partial/mine.txt").write_text("mine")
    before = contents(tmp_path)

    def fail() -> None:
        with replacing_folder(tmp_path / "named", "choice") as aside:
            (aside / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(Unexpected, match=r"Expected to write .*named, got No space left on device; make room"):
        fail()
    assert contents(tmp_path) == before
