"""dvc.lock cut at every byte and every line: seen, mended from the last whole one, and nothing of it lost."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.commands import lock
from tasks.commands.lock import INTERNALS, mend, read_lock
from tasks.common.parameters import Unexpected
from tests.projects import ENVIRONMENT, run

PIPELINE = """
stages:
  one:
    cmd: mkdir -p data/one/folder && cp text data/one/a.txt && cp text data/one/folder/b.txt
    deps: [text]
    params: [corpus]
    outs: [data/one/a.txt, data/one/folder]
  two:
    foreach: ${variants}
    do:
      cmd: mkdir -p data/two/${key} && cp data/one/a.txt data/two/${key}/c.txt
      deps: [data/one/a.txt, data/one/folder]
      params: ['variants.${key}']
      outs: ['data/two/${key}/c.txt']
"""
PARAMETERS = "corpus: {seed: 1}\nvariants:\n  dense: {by: fused}\n  enhanced: {by: fused}\n"
CONFLICT = "<<<<<<< HEAD\n{0}=======\n{0}>>>>>>> other\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lock") / "project"
    folder.mkdir()
    for name, text in (("dvc.yaml", PIPELINE), ("params.yaml", PARAMETERS), ("text", "words")):
        (folder / name).write_text(text)
    run(["dvc", "init", "--no-scm", "--quiet"], folder)
    run(["dvc", "repro"], folder)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def lines_cut(content: bytes) -> list[bytes]:
    lines = content.splitlines(keepends=True)
    return [b"".join(lines[:number]) for number in range(len(lines))]


def test_a_lock_file_cut_at_any_byte_is_seen_with_nothing_to_compare_it_with(project: Path) -> None:
    path = project / "dvc.lock"
    content = path.read_bytes()
    outputs = lock._outputs(path)
    whole = [size for size in range(len(content) + 1) if lock._problem(path, content[:size], outputs) is None]
    assert whole == [len(content)]


def test_a_lock_file_cut_at_any_line_is_put_back_whole_from_the_last_whole_one(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "dvc.lock"
    content = path.read_bytes()
    mend()
    assert (INTERNALS / "dvc.lock.whole").read_bytes() == content
    shutil.rmtree(project / "data")  # what is missing is told by the copy alone, too
    for cut in [*lines_cut(content), content[:-1], content[: len(content) // 2 + 3]]:
        path.write_bytes(cut)
        capsys.readouterr()
        mend()
        said = capsys.readouterr().out
        assert path.read_bytes() == content
        assert "dvc.lock: " in said
        assert "kept as dvc.lock.cut, " in said
        assert (project / "dvc.lock.cut").read_bytes() == cut
        (project / "dvc.lock.cut").unlink()


def test_newer_entries_of_a_cut_lock_file_are_kept_beside_those_it_lost(project: Path) -> None:
    path = project / "dvc.lock"
    content = path.read_bytes().decode()
    mend()
    newer = content.replace("seed: 1", "seed: 2")
    path.write_text(newer[: newer.index("  two@enhanced:") + 40])
    mend()
    assert path.read_text() == newer


def test_an_earlier_cut_file_is_never_overwritten(project: Path) -> None:
    (project / "dvc.lock.cut").write_text("mine")
    path = project / "dvc.lock"
    cut = path.read_bytes()[:100]
    path.write_bytes(cut)
    mend()
    assert (project / "dvc.lock.cut").read_text() == "mine"
    assert (project / "dvc.lock.cut2").read_bytes() == cut


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 1.0])
def test_a_lock_file_without_any_copy_is_mended_as_far_as_it_goes_and_dvc_restores_the_rest(
    project: Path, part: float
) -> None:
    path = project / "dvc.lock"
    content = path.read_bytes()
    lines = lines_cut(content)
    path.write_bytes(lines[int(part * (len(lines) - 1))])
    mend()
    assert not path.exists() or content.startswith(path.read_bytes())
    assert "Running stage" not in run(["dvc", "repro"], project).stdout
    assert path.read_bytes() == content
    assert lock._problem(path, content, lock._outputs(path)) is None


def test_what_git_has_tells_a_cut_too(project: Path) -> None:
    path = project / "dvc.lock"
    content = path.read_bytes()
    run(["git", "init", "--quiet"], project)
    run(["git", "add", "dvc.lock"], project)
    run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one"], project)
    shutil.rmtree(project / "data")
    for cut in lines_cut(content):
        path.write_bytes(cut)
        mend()
        assert path.read_bytes() == content


def test_a_lock_file_of_fewer_stages_that_git_has_or_that_has_run_no_further_is_whole(project: Path) -> None:
    path = project / "dvc.lock"
    content = path.read_text()
    shutil.rmtree(project / "data/two")
    fewer = content[: content.index("  two@dense:")]
    path.write_text(fewer)
    mend()
    assert path.read_text() == fewer
    assert not (project / "dvc.lock.cut").exists()


def test_results_that_the_lock_file_does_not_know_of_are_said_and_nothing_is_changed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "dvc.lock"
    content = path.read_text()
    fewer = content[: content.index("  two@enhanced:")]
    path.write_text(fewer)
    mend()
    assert "dvc.lock: says nothing of stage two@enhanced, whose results are there; " in capsys.readouterr().out
    assert path.read_text() == fewer
    assert not (project / "dvc.lock.cut").exists()


@pytest.mark.parametrize("place", ["all", "within", "alone"])
def test_conflict_markers_are_refused_and_left_to_the_user(project: Path, place: str) -> None:
    path = project / "dvc.lock"
    content = path.read_text()
    line = "      md5: "
    changed = {
        "all": CONFLICT.format(content),
        "within": content.replace(line, CONFLICT.format(f"{line}1\n") + line, 1),
        "alone": content + "<<<<<<< HEAD\n",
    }
    path.write_text(changed[place])
    for command in (mend, read_lock):
        with pytest.raises(
            Unexpected, match=r"Expected dvc.lock after a merge that is done, got a conflict marker in "
        ):
            command()
    assert path.read_text() == changed[place]
    assert sorted(each.name for each in project.glob("dvc.lock*")) == ["dvc.lock"]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"- a\n", b"\0" * 100, b"schema: '2.0'\n", b"stages: 3\n", b"\xff\xfe\n"]
)
def test_what_is_no_lock_file_is_put_aside_and_said(
    project: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    before, path = (project / "dvc.lock").read_bytes(), project / "dvc.lock"
    path.write_bytes(content)
    with pytest.raises(
        Unexpected, match=r"Expected dvc.lock as DVC writes it, got a part of one; `python -m tasks check` m"
    ):
        read_lock()
    mend()
    assert not path.exists()
    assert (project / "dvc.lock.cut").read_bytes() == content
    assert "kept as dvc.lock.cut, nothing left of it; " in capsys.readouterr().out
    assert "Running stage" not in run(["dvc", "repro"], project).stdout
    assert path.read_bytes() == before


def test_nothing_is_mended_while_another_dvc_writes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "dvc.lock"
    content = path.read_bytes()
    path.write_bytes(content[:300])
    holding = (
        "import time, zc.lockfile as z; held = z.LockFile('.dvc/tmp/lock'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holding], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.5)
        with pytest.raises(
            Unexpected, match=r"Expected DVC at rest to mend its files, got another `dvc` at work for 0.5 s"
        ):
            mend()
        assert path.read_bytes() == content[:300]
        monkeypatch.setattr(lock, "PATIENCE_SECONDS", 30)
        monkeypatch.setattr(time, "sleep", lambda _: (path.write_bytes(content), other.kill(), other.wait()))
        mend()  # what was half-way written is whole once the writer has finished
    assert path.read_bytes() == content
    assert not (project / "dvc.lock.cut").exists()


def test_a_half_written_list_of_busy_files_is_put_aside(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".dvc/tmp/rwlock").write_text('{"write": {"/so')
    run(["dvc", "repro", "--force"], project, fails=True)
    mend()
    assert "rwlock: half-written by a run that was killed, kept as .dvc/tmp/rwlock.cut" in capsys.readouterr().out
    run(["dvc", "repro", "--force"], project)
