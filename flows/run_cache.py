"""`python run_cache.py pull STAGE… | push`: DVC's notes of which stage made what of what, and no data, by its remote.

`dvc fetch --run-cache` takes all data too, where `dvc repro --pull` fetches what a stage would make anew; and `dvc push
--run-cache` tries each of hundreds of notes for seconds on a remote that is down, before it tries the data. A script,
run in the repository's folder.
"""

import sys
from collections.abc import Sequence

from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml


def forget_lost(repo: Repo, stages: Sequence[str]) -> None:
    """Drop from the lock those of the stages some of whose results are neither here nor on the remote.

    Of such a stage, whose lock was committed and whose data was never pushed, DVC asks for what the lock names alone,
    and runs it, though the notes name what another clone made of the same inputs.
    """
    lacking = [
        out
        for stage in repo.index.stages
        for out in stage.outs
        if stage.addressing in stages and out.use_cache and out.hash_info and out.changed_cache()
    ]
    wanted = {out.hash_info.value for out in lacking}
    there = set(repo.cloud.get_remote_odb().oids_exist(wanted)) if wanted else wanted
    lost = {out.stage.addressing: out.stage for out in lacking if out.hash_info.value not in there}.values()
    for path in {stage.dvcfile._lockfile.path for stage in lost}:
        names = {stage.name for stage in lost if stage.dvcfile._lockfile.path == path}
        with modify_yaml(path) as lock:
            for name in names:
                del lock["stages"][name]


if __name__ == "__main__":
    try:
        with Repo() as repo:
            getattr(repo.stage_cache, sys.argv[1])(None)
            if sys.argv[1] == "pull":
                with repo.lock:
                    forget_lost(repo, sys.argv[2:])
    except Exception as error:  # whatever a remote or its driver raises: one line, as DVC says it
        sys.exit(f"ERROR: {error}")
