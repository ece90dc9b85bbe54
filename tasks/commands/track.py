"""`python -m tasks track [experiment]`: what MLflow is told of results, from files alone, once for each dvc.lock.

DVC runs it as the last stage of dvc.yaml, so that whatever reproduces the pipeline tracks too. It writes no result.
"""

import importlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from tasks.commands.tracking.failures import log_failures
from tasks.commands.tracking.sending import log_once
from tasks.commands.tracking.state import State
from tasks.commands.tracking.store import unreachable
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import EXPERIMENT
from tasks.shown.asking import Words
from tasks.shown.console import say


def run(words: Sequence[str]) -> None:
    """Log the results to MLflow, unless that was done; without a server, say how to make it up later.

    Args:
        words: `experiment`, or nothing for the pipeline; `--failed` for stages that failed alone.

    Raises:
        Unexpected: If there are no results, or others than dvc.lock and params.yaml say.
    """
    parser = Words("track", answers=False)
    parser.add_argument(
        "words", nargs="*", metavar=EXPERIMENT, help="the experiment's results, in place of the pipeline's"
    )
    parser.add_argument("--failed", action="store_true", help="only stages that failed or were killed")
    given = parser.read(words)
    if given.words not in ([], [EXPERIMENT]):
        raise Unexpected(f"Expected {EXPERIMENT!r} or nothing after 'track', got {' '.join(given.words)!r}.")
    log_failures()
    if not given.failed:
        send(" ".join(["python -m tasks track", *given.words]), State(*given.words))


def send(command: str, state: State) -> None:
    """Log a state unless that was done; whatever goes wrong there costs no result."""
    module = f"tasks.{EXPERIMENT}.tracking" if state.folder else "tasks.commands.tracking.pipeline"
    records = importlib.import_module(module).records(state)
    try:
        say(log_once(records, state, command, [_corpus(state)]))
    except Exception as error:  # whatever a server, a database or its driver raises: the results stay
        say(f"{unreachable(error)} All results are safe in data/; `{command}` logs them later.")


def _corpus(state: State) -> Any:
    """Return the corpus as a logged data set: its place, hash and number of tokens, none of its rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path = state.stage("prepare").outputs["corpus"]
    place, profile = json.dumps({"uri": str(path)}), json.dumps({"num_rows": pq.read_metadata(path).num_rows})
    dataset = Dataset(path.stem, state.hashes[path], source_type="local", source=place, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
