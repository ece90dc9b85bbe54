"""What a queued experiment cannot see: it runs on a copy of what git tracks, in a folder of DVC's own."""

import subprocess
from pathlib import Path

from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml

QUEUED = (".dvc", "tmp", "exps")
"""Where DVC lets experiments run that were queued, or given `--temp`."""
MOST = 5
"""Files that a sentence names."""


def checkout() -> Path:
    """Return the folder of the project's checkout: the current one, or in a queued experiment what it is a copy of."""
    parts = Path.cwd().parts
    start = next((place for place in range(len(parts)) if parts[place : place + len(QUEUED)] == QUEUED), None)
    return Path(*parts[:start])


def unseen() -> str:
    """Return the sentence on files of the user's that git does not track; nothing but in a queued experiment."""
    named = "" if checkout() == Path.cwd() else untracked()
    return f" A queued experiment sees only what git tracks: `git add {named}`, then queue it again." if named else ""


def untracked() -> str:
    """Return the first files of the user's that git does not track, as words for `git add`."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", *_places()]
    try:
        done = subprocess.run(command, cwd=checkout(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a place outside of the repository
        return ""
    files = done.stdout.splitlines()
    return " ".join(files[:MOST]) + (" …" if len(files) > MOST else "")


def _places() -> list[str]:
    """Return where in the repository users put files of their own."""
    try:
        source = Path(read_yaml(PARAMETERS)["corpus"]["source"])
    except (Unexpected, LookupError, TypeError):
        return ["own", "learned"]
    elsewhere = source.is_absolute() or ".." in source.parts
    return ["own", "learned", *([] if elsewhere else [str(source)])]
