"""`python -m tasks check`: refuse bad parameters and a missing corpus before any work, and mend what a kill left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from tasks.commands.foreseen import check_place, check_text, read_text
from tasks.common.console import say
from tasks.common.parameters import Parameters, checked
from tasks.common.pipeline import LOCK, PARAMETERS, read_stages
from tasks.common.reading import read_yaml


def run() -> None:
    """Check params.yaml, dvc.yaml and the corpus's source, and drop a half-written dvc.lock.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    values = read_yaml(PARAMETERS)
    check(values, checked(values))
    say("params.yaml: fine")
    if LOCK.is_file() and not is_whole(LOCK):
        LOCK.unlink()
        say(f"{LOCK}: half-written by a run that was killed, removed; `dvc repro` restores it from DVC's run cache")


def check(values: Mapping[str, Any], parameters: Parameters) -> None:
    """Refuse what a stage would refuse after others have worked.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    outputs = {stage.address: stage.outputs.values() for stage in read_stages(values)}
    check_place(parameters, outputs)
    check_text(parameters, read_text(parameters.corpus, outputs.get("sotu", ())))
    if source := parameters.model.source:
        from tasks.commands.trial import try_own  # PyTorch takes a second, which only such a model needs here

        try_own(source, tokens=parameters.oracle.tokens)


def is_whole(lock: Path) -> bool:
    """Return whether DVC can read a lock file: it rewrites the file in place, so a kill may leave a part of it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # a tenth of a second, and only here: no stage needs DVC
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(read_yaml(lock))
    except (YAMLError, Invalid, ValueError):  # the last: a file that is no mapping at all
        return False
    return True
