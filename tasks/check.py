"""`python -m tasks check`: refuse bad parameters and a missing corpus before any work starts."""

from pathlib import Path

from tasks.common.console import say
from tasks.common.parameters import checked
from tasks.common.stages import PARAMETERS, read_stage, read_yaml
from tasks.prepare import check_source


def run() -> None:
    """Check params.yaml, dvc.yaml and the corpus's source.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    values = read_yaml(PARAMETERS)
    parameters = checked(values)
    source, made_here = Path(parameters.corpus.source), read_stage("sotu", None, values).outputs.values()
    if source not in made_here:
        check_source(source)
    say("params.yaml: fine")
