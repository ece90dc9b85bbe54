"""A search by Optuna: how much, by which criterion and with which repair a variant is cut, for quality and for cost.

    make install EXTRA=examples
    python -m examples.optuna_sweep --trials 20

Each trial is an experiment of DVC (`dvc exp run --temp`), so that nothing is computed twice, the folder stays as it is
and `python -m tasks front` shows the trials among all else that was tried. Two numbers are made small at once, the
validation perplexity (or loss) and the multiply-adds; the judged test text takes no part in the search. The first trial
also makes what none changes, the dense model and the signals, where `make run` has not. The study lies in a file: the
same command goes on from there, first with the values that were interrupted, and several may share it.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import optuna
from dvc.api import DVCFileSystem
from dvc.repo import Repo
from optuna.exceptions import OptunaError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from flows.execution import CommandError, Commands
from pruning.core.faults import said
from tasks.commands.untracked import untracked
from tasks.common.interruption import INTERRUPTED
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table

STUDY = Path("data/optuna.db")
CRITERIA = ("fused", "hessian", "surgeon", "random")
REPAIRS = ("none", "ridge", "imitate")
FINISHED = (TrialState.COMPLETE,)
MEASURES = ("validation perplexity", "multiply-adds")
STAGE = re.compile(r"Running stage '(.+)':")
"""DVC's words where a stage of a trial begins."""
Say = Callable[[str], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try what the study proposes and print its front; the exit code is 0, or 1 or 130 after one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.optuna_sweep", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="how many in all, those of earlier calls among them (20)"
    )
    parser.add_argument(
        "--variant", default="enhanced", help="the one of params.yaml whose settings are searched (enhanced)"
    )
    parser.add_argument("--study", type=Path, default=STUDY, help=f"the file that the study lies in ({STUDY})")
    parser.add_argument("--seed", type=int, default=1, help="another number proposes other values (1)")
    given = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it is said here what is tried, and what comes of it
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that stages end with the search
    try:
        study = search(given.study, given.variant, trials=given.trials, seed=given.seed, say=_print)
    except Unexpected as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write("\n".join(front(study)) + "\n")
    return 0


def search(path: Path, variant: str, *, trials: int, seed: int, say: Say = str) -> optuna.Study:
    """Return the study after so many finished trials; what an earlier call left is gone on from.

    Args:
        path: The SQLite file that holds it.
        variant: Whose settings are searched.
        trials: How many are to be finished.
        seed: Of the sampler.
        say: Is called with each line on what is done.

    Raises:
        Unexpected: If there is no such variant, the file holds something else, or a trial fails.
    """
    known = list(read_yaml(PARAMETERS)["variants"])
    if variant not in known:
        raise Unexpected(f"Expected a variant, one of {known}, got {variant!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=variant,
            storage=RDBStorage(f"sqlite:///{path}"),
            directions=["minimize"] * len(MEASURES),
            load_if_exists=True,
        )
    except (OSError, SQLAlchemyError, OptunaError) as error:
        reason = getattr(error, "orig", None) or error
        raise Unexpected(
            f"Expected a file of Optuna's at {path}, or none yet, got {said(reason)}; name another one with --study."
        ) from error
    # A seed of its own for each call, which would else propose again what the first one did.
    study.sampler = TPESampler(seed=seed + len(study.trials))
    commands = Commands(Path.cwd())
    commands.warm_up(trials)
    try:
        while (done := len(study.get_trials(states=FINISHED))) < trials:
            say(f"Trial {done + 1} of {trials}")
            _try(study, variant, commands, say)
    finally:
        commands.end()
    return study


def _try(study: optuna.Study, variant: str, commands: Commands, say: Say) -> None:
    """Finish one trial. One that is interrupted is the next that the study proposes, and what it finished is kept."""
    trial = study.ask()
    try:
        quality, cost = objective(trial, variant, commands, say)
    except BaseException as error:
        study.tell(trial, state=TrialState.FAIL)
        if isinstance(error, KeyboardInterrupt):
            study.enqueue_trial(trial.params)
        raise
    study.tell(trial, (quality, cost))


def objective(trial: Trial, variant: str, commands: Commands, say: Say) -> tuple[float, int]:
    """Return what a trial reached: its validation perplexity, or loss, and its multiply-adds for a token.

    DVC runs what its values touch. An experiment of the same values on the same commit is taken as it is.
    """
    values = {
        "retain": round(trial.suggest_float("retain", 0.1, 0.9, step=0.05), 2),
        "by": trial.suggest_categorical("by", CRITERIA),
        "repair": trial.suggest_categorical("repair", REPAIRS),
    }
    begin, name = time.monotonic(), "-".join(map(str, [variant, *values.values()]))
    say(f"  {_told(values)}")
    with Repo() as repo:
        known = {known for experiments in repo.experiments.ls().values() for known, _ in experiments}
    if name not in known:
        _run(name, variant, values, commands, say)
    quality, cost = _reached(name, variant)
    say(f"  {MEASURES[0]} {quality:.5g}, {cost:,.0f} {MEASURES[1]}, after {time.monotonic() - begin:.0f} s")
    return quality, cost


def _run(name: str, variant: str, values: Mapping[str, Any], commands: Commands, say: Say) -> None:
    own = read_yaml(PARAMETERS)["variants"][variant]
    # `+` adds what the variant has no value of its own of yet.
    changes = [f"{'' if each in own else '+'}variants.{variant}.{each}={value}" for each, value in values.items()]
    settings = [word for change in changes for word in ("--set-param", change)]
    words = ["dvc", "exp", "run", "--temp", "--name", name, *settings, f"evaluate@{variant}"]

    def heard(line: str) -> None:
        if stage := STAGE.match(line):
            say(f"    {stage[1]}")

    try:
        commands.run(f"Trial {name}", words, heard)
    except CommandError as error:
        last = _why(str(error))
        lacking = untracked()
        advice = f"`git add {lacking}`, for a trial sees only what git tracks; then" if lacking else "mend that;"
        raise Unexpected(
            f"Expected trial {name} to run, got '{last}'; {advice} the same command goes on from there."
        ) from error


def _why(words: str) -> str:
    r"""Return the line of a failed trial that says why: a sentence on what was expected, else the last one.

    >>> _why("Trial failed; its last lines:\nExpected text, got none.\nERROR: failed to reproduce 'prepare'")
    'Expected text, got none.'
    """
    lines = words.strip().splitlines()
    return next((line.strip() for line in lines if re.match(r"Expected|Unknown|\w+Error:", line.strip())), lines[-1])


def _reached(revision: str, variant: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "evaluation.parquet"
        DVCFileSystem(rev=revision).get_file(f"data/evaluate/{variant}/{copy.name}", str(copy))
        row = read_table(copy).query("phase == 'finetuned' and split == 'valid'").iloc[0]
    return float(row["loss"] if isnan(row["perplexity"]) else row["perplexity"]), int(row["multiply_adds"])


def front(study: optuna.Study) -> list[str]:
    """Return a line for each trial that no other beats in both, the cheapest first."""
    lines = [f"{len(study.get_trials(states=FINISHED))} trials; nothing is both better and cheaper than these:"]
    for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
        quality, cost = trial.values
        lines.append(f"  {MEASURES[0]} {quality:.5g}, {cost:,.0f} {MEASURES[1]}: {_told(trial.params)}")
    return lines


def _told(values: Mapping[str, Any]) -> str:
    return f"{values['retain']:.0%} by {values['by']}, {values['repair']}"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
