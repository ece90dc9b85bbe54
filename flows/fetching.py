"""Fetch from DVC's remote which stage made what of what, in any clone: `dvc fetch --run-cache` without all the data.

`dvc repro --pull` then fetches the data that a stage would make anew. A script, run in the repository's folder.
"""

import sys

from dvc.repo import Repo

if __name__ == "__main__":
    try:
        with Repo() as repo:
            repo.stage_cache.pull(None)
    except Exception as error:  # whatever a remote or its driver raises: one line, as DVC says it
        sys.exit(f"ERROR: {error}")
