"""A worker's clone of the repository: `python -m deploy.clones REPOSITORY CLONE CONFIG` makes one unless there is one.

A workspace of DVC's is one process's at a time. So each worker has its own, and what one has made the others fetch.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from deploy.settings import Unexpected


def make_clone(repository: str, clone: Path, config: Path) -> None:
    """Clone a repository, unless that was done, and tell DVC there which remote all clones share.

    Args:
        repository: What is cloned.
        clone: The new folder.
        config: The `.dvc/config.local` of every clone.

    Raises:
        Unexpected: If git cannot clone it.
    """
    if not clone.is_dir():
        aside = clone.with_name(f"{clone.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        done = subprocess.run(["git", "clone", "--quiet", repository, str(aside)], capture_output=True, text=True)
        if done.returncode:
            raise Unexpected(
                f"Expected a git repository for workers to clone at {repository}, got: {done.stderr.strip()}"
            )
        aside.rename(clone)
    shutil.copy2(config, clone / ".dvc/config.local")


if __name__ == "__main__":
    make_clone(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
