"""The results as dvc.lock records them, from which everything that MLflow is told comes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.commands.lock import expect_recorded, read_lock
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import LOCK, PARAMETERS, PIPELINE, Stage, flat, read_stage
from tasks.common.reading import read_yaml
from tasks.common.tables import read_table
from tasks.settings.parameters import checked

TRACKING = "track"
"""The stage that tracks, which is no part of a state: the results are the same before it ran and after."""


class State:
    """The results of the pipeline, or of what stands in another folder, as dvc.lock records them.

    Whatever has changed since is refused.
    """

    def __init__(self, folder: str = "") -> None:
        lock, self.folder = folder / LOCK, folder
        if not lock.is_file():
            again = f"dvc repro {folder / PIPELINE}" if folder else "dvc repro"
            raise Unexpected(f"Expected {lock} in the current folder, got none; run `{again}` to make the results.")
        self.values = read_yaml(folder / PARAMETERS)
        every = read_yaml(PARAMETERS)
        self.parameters, self._settings = checked(every), flat({**every, **self.values})
        self.lock: dict[str, Any] = read_lock(lock)
        # In order: DVC writes stages down as they end, which differs from clone to clone where two run side by side.
        results = {name: entry for name, entry in self.lock.items() if name != TRACKING}
        self.digest = hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()
        stages = (stage for path in {LOCK, lock} if path.is_file() for stage in read_lock(path).values())
        outputs = (output for stage in stages for output in stage.get("outs", []))
        self.hashes = {Path(output["path"]): str(output["md5"]) for output in outputs}

    def stage(self, name: str, variant: str | None = None) -> Stage:
        """Return a stage that has run with its present parameters and inputs."""
        stage = read_stage(name, variant, self.values, self.folder)
        if stage.address not in self.lock:
            raise Unexpected(f"Expected results of stage {stage.address}, got none; run `dvc repro` to make them.")
        ran, sections = self.lock[stage.address], tuple(f"{section}." for section in stage.sections)
        known = self._settings.items()
        now = {name: value for name, value in known if name in stage.sections or name.startswith(sections)}
        then = {
            name: value for parameters in ran.get("params", {}).values() for name, value in flat(parameters).items()
        }
        changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        changed += [dep["path"] for dep in ran["deps"] if self.hashes.get(Path(dep["path"]), dep["md5"]) != dep["md5"]]
        if changed:
            raise Unexpected(f"Expected {stage.address} to follow the change of {changed[0]}; run `dvc repro`.")
        return stage

    def table(self, stage: Stage, name: str) -> pd.DataFrame:
        """Return a table that a stage wrote."""
        path = stage.outputs[name]
        if path.is_file():
            expect_recorded(path, self.hashes)
        return read_table(path)

    def seconds(self, *stages: Stage) -> dict[str, float]:
        """Return how long each stage took, as metrics."""
        timing = pd.concat([self.table(stage, "timing") for stage in stages]).query("measure == 'stage'")
        return {f"seconds_{row['stage']}": row["seconds"] for row in timing.to_dict("records")}

    def device(self, *stages: Stage) -> dict[str, str]:
        """Return the tag that says what computed the stages: `cpu`, or the accelerators' names."""
        used = pd.concat([self.table(stage, "timing") for stage in stages])["device"]
        return {"device": ", ".join(sorted(set(used) - {"cpu"}) or ["cpu"])}
