"""A search by Optuna: how much, by which criterion and with which repair a variant is cut, for quality and for cost.

    make install EXTRA=examples
    python -m examples.optuna_sweep --trials 20

Each trial is an experiment of DVC (`dvc exp run --temp`), so that nothing is computed twice, the folder stays as it is
and `python -m tasks front` shows the trials among all else that was tried. Two numbers are made small at once, the
validation perplexity (or loss) and the multiply-adds; the judged test text takes no part in the search. The study lies
in a file: the same command goes on from there, also after it was killed, and several may share it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import optuna
from dvc.api import DVCFileSystem
from dvc.repo import Repo
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState

from tasks.common.parameters import Unexpected
from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table

STUDY = Path("data/optuna.db")
CRITERIA = ("fused", "hessian", "surgeon", "random")
REPAIRS = ("none", "ridge", "imitate")
FINISHED = (TrialState.COMPLETE,)
MEASURES = ("validation perplexity", "multiply-adds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try what the study proposes and print its front; the exit code is 0, or 1 after one sentence."""
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
    try:
        study = search(given.study, given.variant, trials=given.trials, seed=given.seed)
    except Unexpected as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(front(study)) + "\n")
    return 0


def search(path: Path, variant: str, *, trials: int, seed: int) -> optuna.Study:
    """Return the study after so many finished trials; what an earlier call left is gone on from.

    Args:
        path: The SQLite file that holds it.
        variant: Whose settings are searched.
        trials: How many are to be finished.
        seed: Of the sampler.

    Raises:
        Unexpected: If there is no such variant, or a trial fails.
    """
    known = list(read_yaml(PARAMETERS)["variants"])
    if variant not in known:
        raise Unexpected(f"Expected a variant, one of {known}, got {variant!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A trial whose process was killed has no heartbeat and counts as failed after a while, beside others' that go on.
    storage = RDBStorage(f"sqlite:///{path}", heartbeat_interval=60, grace_period=300)
    study = optuna.create_study(
        study_name=variant, storage=storage, directions=["minimize"] * len(MEASURES), load_if_exists=True
    )
    # A seed of its own for each call, which would else propose again what the first one did.
    study.sampler = TPESampler(seed=seed + len(study.trials))
    if len(study.get_trials(states=FINISHED)) < trials:
        study.optimize(lambda trial: objective(trial, variant), callbacks=[MaxTrialsCallback(trials, states=FINISHED)])
    return study


def objective(trial: Trial, variant: str) -> tuple[float, int]:
    """Return what a trial reached: its validation perplexity, or loss, and its multiply-adds for a token.

    DVC runs what its values touch. An experiment of the same values on the same commit is taken as it is.
    """
    values = {
        "retain": round(trial.suggest_float("retain", 0.1, 0.9, step=0.05), 2),
        "by": trial.suggest_categorical("by", CRITERIA),
        "repair": trial.suggest_categorical("repair", REPAIRS),
    }
    name = "-".join(map(str, [variant, *values.values()]))
    with Repo() as repo:
        known = {known for experiments in repo.experiments.ls().values() for known, _ in experiments}
    if name not in known:
        _run(name, variant, values)
    return _reached(name, variant)


def _run(name: str, variant: str, values: Mapping[str, Any]) -> None:
    own = read_yaml(PARAMETERS)["variants"][variant]
    # `+` adds what the variant has no value of its own of yet.
    changes = [f"{'' if each in own else '+'}variants.{variant}.{each}={value}" for each, value in values.items()]
    settings = [word for change in changes for word in ("--set-param", change)]
    words = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *settings, f"evaluate@{variant}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # stages are run by this Python, too
    done = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise Unexpected(f"Expected trial {name} to run, got '{last}'; the same command goes on from there.")


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
        settings = f"{trial.params['retain']:.0%} by {trial.params['by']}, {trial.params['repair']}"
        lines.append(f"  {MEASURES[0]} {quality:.5g}, {cost:,.0f} {MEASURES[1]}: {settings}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
