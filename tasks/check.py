"""`python -m tasks check`: refuse bad parameters and a missing corpus before any work, and mend what a kill left."""

from pathlib import Path

from ruamel.yaml.error import YAMLError

from tasks.common.console import say
from tasks.common.parameters import checked
from tasks.common.reading import read_yaml
from tasks.common.stages import LOCK, PARAMETERS, read_stage
from tasks.prepare import check_source


def run() -> None:
    """Check params.yaml, dvc.yaml and the corpus's source, and drop a half-written dvc.lock.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    source, made_here = Path(parameters.corpus.source), read_stage("sotu", None, values).outputs.values()
    if source not in made_here:
        check_source(source)
    say("params.yaml: fine")
    if LOCK.is_file() and not is_whole(LOCK):
        LOCK.unlink()
        say(f"{LOCK}: half-written by a run that was killed, removed; `dvc repro` restores it from DVC's run cache")


def is_whole(lock: Path) -> bool:
    """Return whether DVC can read a lock file: it rewrites the file in place, so a kill may leave a part of it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # a tenth of a second, and only here: no stage needs DVC
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(read_yaml(lock))
    except (YAMLError, Invalid, ValueError):  # the last: a file that is no mapping at all
        return False
    return True
