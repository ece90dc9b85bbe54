"""The experiment's cells: what determines each, the files it becomes, and how it is computed once and found again."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pruning.ablation.joint_removal import joint_removal
from pruning.evaluation.measures import Size
from pruning.experiment.choices import choice_of, fused_by
from pruning.experiment.judging import compare_pruning_results, joint_sets
from pruning.experiment.measured import MEASURED, Calibration
from pruning.experiment.trials import Losses, Pruning, prune_and_train, run_dense_control
from pruning.fusion.fused import to_plain
from pruning.models import build
from pruning.models import settings as settings_of
from pruning.models.base import LanguageModel
from pruning.training.loop import Recipe, train
from tasks.commands.folders import alone, check_folder, claim
from tasks.common.console import track
from tasks.common.covariances import read_covariances
from tasks.common.devices import device
from tasks.common.models import read_language_model, write_model
from tasks.common.parameters import Unexpected
from tasks.common.tables import read_table, write_table
from tasks.common.writing import read_json, replacing
from tasks.experiment.inputs import Inputs
from tasks.experiment.settings import Settings

OUTCOME, COST, COVARIANCE, WEIGHTS = "outcome.json", "cost.json", "covariance.safetensors", "weights.json"
EXPERIMENT, CELLS = "experiment", "cells"
"""Who writes the folder, and where in it computed cells gather."""
AGAIN = "delete its folder, and the same command computes it again"
SEED = 1
"""Of what is the same in all cells: the extra training, sets of neurons, the bootstrap."""
JOINT_TOKENS, JOINT_SHARE = 8_000, 0.3
"""How much text a set's joint removal is measured on at most, and which share of a layer it is."""


@dataclass(frozen=True)
class Cell:
    """One piece of the experiment.

    Attributes:
        kind: `model` (a dense model from another seed), `calibration` (all signals), `oracle` (measured removals),
            `joint` (removals of sets), `weights` (learned), `dense` (the control) or `pruning`.
        training: Which dense model, by the seed of its training; 0 for the one given.
        calibration: Seed of the calibration.
        variant: Of a pruning.
        retain: Of a pruning.
    """

    kind: str
    training: int = 0
    calibration: int = 0
    variant: str = ""
    retain: float = 1.0

    @property
    def name(self) -> str:
        """What it is called on screen."""
        what = f"{self.variant}, keep {self.retain:.0%}" if self.kind == "pruning" else self.kind
        seeds = [f"{kind} {seed}" for kind, seed in (("text", self.calibration), ("model", self.training)) if seed]
        return ", ".join([what, *seeds])

    @property
    def slug(self) -> str:
        """What its folder's name begins with; no two cells of an experiment share one."""
        own = [self.variant, f"{self.retain:g}"] if self.kind == "pruning" else []
        return "-".join([self.kind, *own, f"text{self.calibration}", f"model{self.training}"])


class Experiment:
    """The cells of one set of options, their files, and what they say together."""

    def __init__(self, settings: Settings) -> None:
        """Check the inputs.

        Raises:
            Unexpected: With one sentence on what is missing or does not fit.
        """
        self.folder = Path(settings.to)
        check_folder(self.folder, EXPERIMENT, growing=CELLS)
        self.settings, self.inputs = settings, Inputs(settings)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder for the length of a `with`."""
        claim(self.folder, EXPERIMENT, growing=CELLS)
        return alone(self.folder)

    def cells(self) -> list[Cell]:
        """Return the cells in an order in which none precedes what it needs."""
        settings, trainings = self.settings, 1 if self.settings.checkpoint else self.settings.trainings
        shares = sorted(settings.keep, reverse=True)
        middle = shares[(len(shares) - 1) // 2]
        found = [Cell("calibration"), Cell("oracle"), Cell("weights"), Cell("dense")]
        found += [Cell("joint")] if settings.sets else []
        found += [Cell("pruning", variant=name, retain=share) for share in shares for name in settings.variants]
        for seed in range(1, settings.calibrations):
            found += [Cell(kind, calibration=seed) for kind in ("calibration", "weights")]
            found += [Cell("pruning", 0, seed, name, middle) for name in settings.variants]
        for training in range(1, trainings):
            found += [Cell(kind, training) for kind in ("model", "calibration", "dense")]
            found += [Cell("pruning", training, 0, name, middle) for name in settings.variants]
        return found

    def place(self, cell: Cell) -> Path:
        """Return the cell's folder, whose name changes with all that determines the cell."""
        return self.folder / CELLS / f"{cell.slug}-{self._key(cell)}"

    def compute(self, cell: Cell) -> bool:
        """Compute a cell unless it is there already, whole or not at all; return whether it was computed now."""
        makers: dict[str, Callable[[Cell, Path], None]] = {
            "model": self._make_model,
            "calibration": self._make_apart,
            "oracle": self._make_apart,
            "joint": self._make_joint,
            "weights": self._make_weights,
            "dense": self._make_dense,
            "pruning": self._make_pruning,
        }
        place = self.place(cell)
        if place.is_dir():
            return False
        claim(self.folder, EXPERIMENT, growing=CELLS)
        with replacing(place) as aside:
            aside.mkdir()
            makers[cell.kind](cell, aside)
        return True

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables of the whole; every cell must have been computed."""
        cells = self.cells()
        given = [cell for cell in cells if cell.kind == "calibration" and not cell.training]
        joint = Cell("joint")
        return compare_pruning_results(
            [read_outcome(self.place(cell) / OUTCOME) for cell in cells if cell.kind in ("dense", "pruning")],
            calibrations={cell.calibration: self.calibration(cell) for cell in given},
            oracle=self.oracle,
            weights={cell.calibration: self.weights(cell.calibration) for cell in given},
            joint=(self._sets(), read_table(self.place(joint) / "joint_removal.parquet")) if joint in cells else None,
            costs=list(self._costs([*given, Cell("oracle")])),
            seed=SEED,
        )

    def model(self, training: int) -> LanguageModel:
        """Return a dense model, which nothing may change."""
        return (
            self.inputs.dense if training == 0 else read_language_model(self.place(Cell("model", training)) / "model")
        )

    def calibration(self, cell: Cell) -> Calibration:
        """Return what was measured of a cell's model with the cell's seed."""
        place = self.place(Cell("calibration", cell.training, cell.calibration))
        tables = {name: read_table(place / f"{name}.parquet") for name in MEASURED}
        return Calibration(tables, read_covariances(place / COVARIANCE), cell.calibration)

    def weights(self, calibration: int) -> dict[str, Any]:
        """Return the weights that were learned from a calibration of the given model."""
        place = self.place(Cell("weights", calibration=calibration))
        return dict(_plain(place / WEIGHTS))

    @property
    def oracle(self) -> pd.DataFrame:
        """Measured removals of the dense model that was given."""
        return read_table(self.place(Cell("oracle")) / "oracle.parquet")

    def _make_model(self, cell: Cell, folder: Path) -> None:
        """Train a dense model as the pipeline's was trained, from another seed."""
        settings = self.inputs.parameters.train.model_dump()
        make = {name: settings[name] for name in settings_of(settings["family"]) if name != "vocabulary"}
        seed = settings["seed"] + cell.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(settings["family"], vocabulary=self.inputs.vocabulary, **make).to(device())
        shape = {name: settings[name] for name in ("batch", "bptt")}
        windows, valid = (self.inputs.windows(split, **shape) for split in ("train", "valid"))
        model.expect(windows.targets)
        recipe = Recipe(**{field.name: settings[field.name] for field in fields(Recipe)})
        *_, last = train(model, windows, valid, recipe=recipe, seed=seed, track=track)
        model.load_state_dict(last.best())
        write_model(folder / "model", model)

    def _make_apart(self, cell: Cell, folder: Path) -> None:
        """Measure in a process of its own, so that what it needs of memory can be told."""
        words = [self.settings.model_dump_json(), cell.kind, str(cell.training), str(cell.calibration), str(folder)]
        same = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # it imports what this process would
        done = subprocess.run([sys.executable, "-m", "tasks.experiment.costs", *words], env=same, check=False)
        if done.returncode:
            raise Unexpected(f"Expected the {cell.name} to be measured, got exit code {done.returncode}; see above.")

    def _make_joint(self, _: Cell, folder: Path) -> None:
        model, text = self.inputs.dense.decoupled(), self.inputs.removal_text
        removed = joint_removal(model, text, self.oracle, sets=self._sets(), tokens=JOINT_TOKENS, track=track)
        write_table(folder / "joint_removal.parquet", removed)

    def _make_weights(self, cell: Cell, folder: Path) -> None:
        """Learn the weights of signals from measured removals."""
        found = fused_by(self.calibration(cell), choice_of("learned"), oracle=self.oracle)
        (folder / WEIGHTS).write_text(json.dumps(to_plain(found.weighing), indent=2) + "\n", encoding="utf-8")

    def _make_dense(self, cell: Cell, folder: Path) -> None:
        treatment, texts = self.inputs.treatment, self.inputs.texts(0)
        found = run_dense_control(
            self.model(cell.training), texts, treatment=treatment, seed=SEED, training=cell.training
        )
        write_outcome(folder / OUTCOME, found)

    def _make_pruning(self, cell: Cell, folder: Path) -> None:
        weights = [self.weights(other.calibration) for other in self._needs(cell) if other.kind == "weights"]
        found = prune_and_train(
            self.model(cell.training),
            self.inputs.texts(cell.calibration),
            self.calibration(cell),
            variant=cell.variant,
            retain=cell.retain,
            treatment=self.inputs.treatment,
            seed=SEED,
            training=cell.training,
            weights=weights[0] if weights else None,
        )
        write_outcome(folder / OUTCOME, found)

    def _sets(self) -> dict[str, dict[str, list[int]]]:
        return joint_sets(self.oracle, sets=self.settings.sets, share=JOINT_SHARE, seed=SEED)

    def _costs(self, cells: list[Cell]) -> Iterator[dict[str, Any]]:
        """Yield the rows of the `cost` table: the median of measured values, the largest of counts."""
        files = [_plain(self.place(cell) / COST, list) for cell in cells]
        rows = pd.DataFrame([row for file in files for row in file])
        for score, own in rows.groupby("score"):
            middle = {name: float(own[name].median()) for name in ("seconds", "peak_memory")}
            most = {name: int(own[name].max()) for name in ("forward_passes", "backward_passes")}
            yield {"score": str(score), **middle, **most, "runs": len(own)}

    def _key(self, cell: Cell) -> str:
        """Return a digest of the code, the inputs, the cell's settings, and the keys of the cells that it needs."""
        needs = [self._key(other) for other in self._needs(cell)]
        where = repr(self.inputs.parameters.compute)
        determined = [self.inputs.digest, where, cell.slug, self._determining(cell), needs]
        return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:12]

    def _needs(self, cell: Cell) -> list[Cell]:
        """Return the cells that a cell reads; weights learned of the given model serve those of other seeds."""
        model = [Cell("model", cell.training)] if cell.training and cell.kind != "model" else []
        signals = Cell("calibration", cell.training, cell.calibration)
        if cell.kind == "weights":
            return [signals, Cell("oracle")]
        if cell.kind == "pruning":
            learned = choice_of(cell.variant).strategy == "learned"
            return [*model, signals, *([Cell("weights", 0, cell.calibration)] if learned else [])]
        return [Cell("oracle")] if cell.kind == "joint" else model

    def _determining(self, cell: Cell) -> list[str]:
        """Return the settings that determine a cell beside what it needs, as text."""
        inputs, settings = self.inputs, self.settings
        trained = [repr(inputs.treatment), repr((settings.batch, settings.bptt, settings.judged, inputs.cut))]
        calibration = repr(inputs.parameters.calibration)
        found = {
            "model": [repr(inputs.parameters.train)],
            "calibration": [repr(inputs.effort), calibration],
            "oracle": [repr(inputs.removal_settings), repr(inputs.cut)],
            "joint": [repr((settings.sets, JOINT_TOKENS, JOINT_SHARE))],
            "dense": trained,
            "pruning": [*trained, calibration],
        }
        return found.get(cell.kind, [])


def write_outcome(path: Path, found: Pruning) -> None:
    """Write a pruning without its models."""
    plain = {
        "variant": found.variant,
        "retain": found.retain,
        "calibration": found.calibration,
        "training": found.training,
        "keep": {layer: own.tolist() for layer, own in found.keep.items()},
        "losses": {
            phase: {"sums": own.sums.tolist(), "tokens": own.tokens.tolist()} for phase, own in found.losses.items()
        },
        "size": vars(found.size),
    }
    path.write_text(json.dumps(plain) + "\n", encoding="utf-8")


def read_outcome(path: Path) -> Pruning:
    """Return what `write_outcome` wrote.

    Raises:
        Unexpected: If the file holds something else.
    """
    plain = _plain(path)
    try:
        losses = {
            phase: Losses(*(torch.tensor(own[name], dtype=torch.float64) for name in ("sums", "tokens")))
            for phase, own in plain.pop("losses").items()
        }
        keep = {layer: torch.tensor(own) for layer, own in plain.pop("keep").items()}
        return Pruning(keep=keep, losses=losses, size=Size(**plain.pop("size")), **plain)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unexpected(f"Expected a pruning's losses in {path}, got something else ({error}); {AGAIN}.") from error


def _plain(path: Path, kind: type = dict) -> Any:
    """Return what a cell's JSON file holds, a dictionary or a list."""
    found = read_json(path)
    if not isinstance(found, kind):
        raise Unexpected(f"Expected a {kind.__name__} in {path}, got {found!r:.80}; {AGAIN}.")
    return found
