"""What was tried: the experiments that DVC keeps, the values that each ran with, and what its variants reached."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

from tasks.common.parameters import Unexpected, settings_of
from tasks.common.pipeline import LOCK, PARAMETERS, flat
from tasks.common.tables import read_table
from tasks.shown.asking import Words

WORKSPACE = "workspace"
TABLE, STAGE = "evaluation.parquet", "evaluate"


@dataclass(frozen=True)
class Reached:
    """What one variant reached.

    Attributes:
        hash: Of the table that says so: what has the same is the same result.
        measure: "perplexity", or "loss" where there is none.
        quality: That, of the test text after fine-tuning.
        multiply_adds: For a token.
        parameters: Of the model.
        settings: What the variant was chosen, cut and repaired by.
    """

    hash: str
    measure: str
    quality: float
    multiply_adds: int
    parameters: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Tried:
    """A commit, the workspace, or an experiment that began from a commit.

    Attributes:
        name: What DVC calls it.
        revision: Its commit; empty for the workspace.
        parameters: Its params.yaml, by dotted names.
        variants: What each variant reached.
        stale: Variants of which there is a result, of other values than these.
    """

    name: str
    revision: str
    parameters: Mapping[str, Any]
    variants: dict[str, Reached] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)


def add_which(parser: Words) -> None:
    """Let a command's words say which experiments are meant."""
    parser.add_argument("--all-commits", action="store_true", help="those of every commit, not of the last one alone")


def read_tried(*, all_commits: bool) -> list[Tried]:
    """Return the workspace, the last commit and its experiments, or every commit that has some.

    Raises:
        Unexpected: If this is no git repository with DVC's files in it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo, tempfile.TemporaryDirectory() as folder:
            names = _names(repo, all_commits=all_commits)
            reading = _Reading(Path(folder))
            return [reading.tried(name, revision) for name, revision in names.items()]
    except (DvcException, OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().partition("\n")[0].rstrip(".")
        raise Unexpected(f"Expected a git repository with experiments of DVC's, got '{said}'.") from error


def differing(tried: Sequence[Tried]) -> list[str]:
    """Return the names of the parameters that are not the same in all, and concern more than where it computes."""
    names = list(dict.fromkeys(name for each in tried for name in each.parameters))
    return [name for name in names if any(each.parameters.get(name) != tried[0].parameters.get(name) for each in tried)]


def short(name: str) -> str:
    """Return a parameter's name without its section, which `retain` and `repair` say as well.

    >>> short("prune.retain"), short("variants.enhanced.by")
    ('retain', 'enhanced.by')
    """
    section, _, rest = name.partition(".")
    return rest if section in ("prune", "reconstruct", "fuse", "variants") else name


def _names(repo: Any, *, all_commits: bool) -> dict[str, str]:
    """Return the revision of each by name: the workspace, and each commit before its experiments."""
    names, last = {WORKSPACE: ""}, repo.scm.get_rev()
    for commit, experiments in {last: [], **repo.experiments.ls(all_commits=all_commits)}.items():
        names[commit[:7]] = commit
        names |= dict(experiments)
    return names


class _Reading:
    """Reads what experiments left, each table once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[str, Mapping[str, Any] | None] = {}

    def tried(self, name: str, revision: str) -> Tried:
        values, lock = _yaml_at(revision, PARAMETERS), _yaml_at(revision, LOCK).get("stages", {})
        tried = Tried(name, revision, flat(values))
        for variant in values.get("variants", {}):
            address = f"{STAGE}@{variant}"
            out = next((out for out in lock.get(address, {}).get("outs", []) if out["path"].endswith(TABLE)), None)
            if out is None:
                continue
            row = self._row(revision, out["path"], out["md5"])
            if row is None:
                continue
            if not _follows(lock, address, values):
                tried.stale.append(variant)
                continue
            tried.variants[variant] = _reached(row, out["md5"], _settings(values, variant))
        return tried

    def _row(self, revision: str, path: str, digest: str) -> Mapping[str, Any] | None:
        """Return the row of a table that counts, from DVC's cache or its remote; None if it is nowhere."""
        if digest not in self._tables:
            from dvc.api import DVCFileSystem

            copy = self._folder / TABLE
            try:
                DVCFileSystem(rev=revision or None).get_file(path, str(copy))
            except (OSError, ValueError):
                self._tables[digest] = None
            else:
                rows = read_table(copy).query("phase == 'finetuned' and split == 'test'")
                self._tables[digest] = {str(name): value for name, value in rows.iloc[0].items()}
        return self._tables[digest]


def _reached(row: Mapping[str, Any], digest: str, settings: Mapping[str, Any]) -> Reached:
    measure = "loss" if isnan(row["perplexity"]) else "perplexity"
    sizes = int(row["multiply_adds"]), int(row["parameters"])
    return Reached(digest, measure, float(row[measure]), *sizes, settings)


def _settings(values: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Return what tells a variant from others: what it is chosen by, how many stay, and what follows the cut."""
    own = values["variants"][variant]
    return {"by": own.get("by"), **settings_of({**values["prune"], "repair": values["reconstruct"]["repair"]}, own)}


def _follows(lock: Mapping[str, Any], address: str, values: Mapping[str, Any]) -> bool:
    """Return whether a stage, and each that it needs, ran with these values and with what the others made."""
    made = {out["path"]: (name, out["md5"]) for name, stage in lock.items() for out in stage.get("outs", [])}
    waiting, seen = [address], {address}
    while waiting:
        stage = lock[waiting.pop()]
        for name, then in _recorded(stage):
            if then != _at(values, name):
                return False
        for dep in stage.get("deps", []):
            maker, digest = made.get(dep["path"], (None, dep["md5"]))
            if digest != dep["md5"]:
                return False
            if maker and maker not in seen:
                seen.add(maker)
                waiting.append(maker)
    return True


def _recorded(stage: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each parameter that a stage ran with."""
    yield from stage.get("params", {}).get(str(PARAMETERS), {}).items()


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _yaml_at(revision: str, path: Path) -> dict[str, Any]:
    """Return a YAML file of a commit, or of the workspace; nothing if it has none."""
    from ruamel.yaml import YAML

    if not revision:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    else:
        done = subprocess.run(["git", "show", f"{revision}:./{path}"], capture_output=True, text=True, check=False)
        text = done.stdout if done.returncode == 0 else ""
    return YAML(typ="safe").load(text) or {}
