"""`python run_cache.py pull | push`: DVC's notes of which stage made what of what, to and from its remote, and no data.

`dvc fetch --run-cache` takes all data too, where `dvc repro --pull` fetches what a stage would make anew; and `dvc push
--run-cache` tries each of hundreds of notes for seconds on a remote that is down, before it tries the data. A script,
run in the repository's folder.
"""

import sys

from dvc.repo import Repo

if __name__ == "__main__":
    try:
        with Repo() as repo:
            getattr(repo.stage_cache, sys.argv[1])(None)
    except Exception as error:  # whatever a remote or its driver raises: one line, as DVC says it
        sys.exit(f"ERROR: {error}")
