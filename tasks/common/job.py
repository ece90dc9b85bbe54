"""What a stage's function is handed: where to read and write, its settings, and how to show progress."""

import ctypes
import hashlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from pruning.core.progress import Track
from pruning.core.tables import Column, Table
from pruning.core.workers import Map, in_turn
from tasks.common.devices import device_used
from tasks.common.parameters import settings_of
from tasks.common.pipeline import DATA, Stage

TIMING = Table(
    "timing",
    ("stage", "variant", "phase", "measure", "batch"),
    {
        "stage": Column("text", "", "stage that was timed"),
        "variant": Column("text", "", "variant, or empty"),
        "phase": Column("text", "", "phase, or empty"),
        "measure": Column("text", "", "`stage` (the whole stage) or `token` (training)"),
        "batch": Column("integer", "", "sequences side by side, or 0"),
        "seconds": Column("number", "s", "median, or the only measurement"),
        "spread": Column("number", "s", "interquartile range; 0 for one measurement"),
        "device": Column("text", "", "what computed: `cpu`, or the accelerator's name"),
    },
)


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    Attributes:
        stage: The stage's files and sections.
        parameters: All of params.yaml, checked: a `tasks.settings.parameters.Parameters`, on which no result depends.
        track: Shows progress.
        own: All of the params.yaml beside the stage's dvc.yaml where that is another one, checked.
        map: Who computes what is independent; no result depends on it.
        together: The processes that train together, a `pruning.training.together.Together`; None for one.
    """

    stage: Stage
    parameters: Any
    track: Track
    own: BaseModel | None = None
    map: Map = in_turn
    together: Any = None

    @property
    def writes(self) -> bool:
        """Whether results are this process's to write: they are the first one's."""
        return self.together is None or self.together.rank == 0

    def input(self, name: str) -> Path:
        """Return where an input is: `<stage>/<file stem>`, as dvc.yaml names it."""
        return self.stage.inputs[name]

    def output(self, name: str) -> Path:
        """Return where an output goes, by its file's stem."""
        return self.stage.outputs[name]

    def settings(self, section: str) -> dict[str, Any]:
        """Return a section of params.yaml (`prune`, `variants.random`) as keyword arguments.

        Raises:
            KeyError: If dvc.yaml does not say that the stage reads this section.
        """
        return dict(self.setting(section).model_dump())

    def setting(self, name: str) -> Any:
        """Return what params.yaml holds under a name that dvc.yaml lists (`prune`, `train.type`), as it is."""
        if name not in self.stage.sections:
            raise KeyError(f"dvc.yaml does not list the section {name!r} in the params of {self.stage.name}")
        return self._section(name)

    def settings_of_variant(self, section: str) -> dict[str, Any]:
        """Return a section as the job's variant has it: its own values before the section's."""
        return settings_of(self.settings(section), self.settings(f"variants.{self.stage.variant}"))

    @property
    def partial(self) -> Path:
        """Where an interrupted run leaves what can be resumed: a place that changes with everything it depends on."""
        digest = hashlib.sha256()
        for path in self.stage.dependencies:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.suffix != ".pyc":
                    digest.update(f"{file}\0".encode())
                    with file.open("rb") as content:
                        while part := content.read(2**20):
                            digest.update(part)
        for section in self.stage.sections:
            digest.update(repr(self._section(section)).encode())
        return DATA / self.stage.folder / ".partial" / f"{self.stage.address}-{digest.hexdigest()[:16]}"

    def _section(self, name: str) -> Any:
        section, _, entry = name.partition(".")
        known = self.own is not None and section in type(self.own).model_fields
        values = getattr(self.own if known else self.parameters, section)
        if not entry:
            return values
        return values[entry] if isinstance(values, dict) else getattr(values, entry)


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that what is killed leaves nothing writing on."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def seconds(
    job: Job, measure: str, value: float, *, phase: str = "", batch: int = 0, spread: float = 0.0
) -> pd.DataFrame:
    """Return one row of the `timing` table."""
    row = {
        "stage": job.stage.name,
        "variant": job.stage.variant or "",
        "phase": phase,
        "measure": measure,
        "batch": batch,
        "seconds": float(value),
        "spread": float(spread),
        "device": device_used(),
    }
    return pd.DataFrame([row])
