"""Values that one run has in place of those in params.yaml: in a copy of the repository, kept as a DVC experiment."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from dvc.repo import Repo
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import SkipJsonSchema
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pruning.core import options
from tasks.common.pipeline import PARAMETERS
from tasks.common.reading import read_yaml
from tasks.settings.bounds import Count, Share

COPIES = Path(".dvc/tmp/exps")
"""Where DVC keeps the copies of its own experiments, too."""
LONGEST = 60
"""Letters of an experiment's name."""
NONE = "–"
"""What params.yaml is said to have where it has nothing of that name."""
Changed = Mapping[str, tuple[Any, Any]]
"""(value in params.yaml, value of this run) by the name in params.yaml."""


def _value_of(name: str, meaning: str) -> Any:
    """Return the field of a value in params.yaml; on Prefect's form it is empty, where null would be a choice."""
    return Field(default=None, title=name, description=meaning, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class Changes(BaseModel):
    """Values that this run has in place of those of params.yaml, which stays as it is; an empty field changes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: options.Family | SkipJsonSchema[None] = _value_of("train.family", "What kind of network is trained.")
    strategy: options.Strategy | SkipJsonSchema[None] = _value_of("fuse.strategy", "How signals become one importance.")
    retain: Share | SkipJsonSchema[None] = _value_of("prune.retain", "The share of the neurons that stays.")
    scope: options.Scope | SkipJsonSchema[None] = _value_of("prune.scope", "Among which others a neuron is ranked.")
    repair: options.Repair | SkipJsonSchema[None] = _value_of("reconstruct.repair", "What follows the cut.")
    epochs: Count | SkipJsonSchema[None] = _value_of("finetune.epochs", "How long what is left is trained.")
    further: dict[str, Any] = Field(
        default={},
        title="further",
        description='Any other value by its name: `{"prune.floor": 16, "variants.enhanced.by": "surgeon"}`.',
    )

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value not in (None, {})}

    def named(self) -> dict[str, Any]:
        """Return what is changed, by its name in params.yaml.

        >>> Changes(retain=0.3, further={"prune.floor": 16}).named()
        {'prune.retain': 0.3, 'prune.floor': 16}
        """
        fields = {str(field.title): getattr(self, name) for name, field in type(self).model_fields.items()}
        further = fields.pop("further")
        return {**{name: value for name, value in fields.items() if value is not None}, **further}


def parsed(words: Sequence[str]) -> Changes:
    """Return what `-S name=value` says, values as they stand in YAML.

    >>> parsed(["prune.retain=0.3", "variants.enhanced.by=surgeon"]).named()
    {'prune.retain': 0.3, 'variants.enhanced.by': 'surgeon'}

    Raises:
        ValueError: If a word is no name with a value.
    """
    further = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            further[name] = YAML(typ="safe").load(value)
        except YAMLError:
            equals = ""
        if not (name and equals):
            raise ValueError(f"Expected a name and a value, such as prune.retain=0.3, got {word!r}.")
    return Changes(further=further)


def differing(root: Path, wanted: Mapping[str, Any]) -> Changed:
    """Return (value in params.yaml, value of this run) of what is wanted and is not so there.

    Args:
        root: The folder that params.yaml is in.
        wanted: Values by dotted names.
    """
    if not wanted:
        return {}
    values = read_yaml(root / PARAMETERS)
    pairs = {name: (_at(values, name), value) for name, value in wanted.items()}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def _at(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values.get(part, NONE) if isinstance(values, dict) else NONE
    return values


def experiment_name(different: Changed) -> str:
    """Return what an experiment with these values is called.

    >>> experiment_name({"prune.retain": (0.5, 0.3), "reconstruct.repair": ("imitate", "ridge")})
    'retain-0.3-repair-ridge'
    """
    words = "-".join(f"{name.rpartition('.')[2]}-{value}" for name, (_, value) in different.items())
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


@contextmanager
def changed_copy(root: Path, different: Changed) -> Iterator[Path]:
    """Yield a copy of the repository whose params.yaml has other values; it shares DVC's cache, and goes at the end.

    As `dvc exp run --temp` does it, the copy holds what git tracks, as it is in the folder, committed or not.

    Args:
        root: The repository's folder.
        different: What is to be other.

    Raises:
        ValueError: If it is no git repository with a commit, or a name leads into what holds no names.
    """
    copy = root / COPIES / f"flow-{os.getpid()}-{uuid4().hex[:8]}"
    _remove_abandoned(root)
    try:
        _git(root, "worktree", "add", "--quiet", "--detach", "--no-checkout", str(copy), "HEAD")
        tracked = _git(root, "ls-files", "-z").split("\0")
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise ValueError(
            f"Expected a git repository with a commit in {root}, got '{said}'; a run with values of its own is an "
            "experiment of DVC's, which needs one."
        ) from error
    try:
        for name in filter(None, tracked):
            if (root / name).is_file():  # not what was deleted
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name, follow_symlinks=False)
        _git(copy, "reset", "--quiet")
        _share_cache(root, copy)
        _write(copy / PARAMETERS, different)
        yield copy
    finally:
        _git(root, "worktree", "remove", "--force", str(copy))


def _share_cache(root: Path, copy: Path) -> None:
    local = root / ".dvc/config.local"
    if local.is_file():
        shutil.copy2(local, copy / ".dvc/config.local")
    with Repo(str(root)) as repo, Repo(str(copy)) as other, other.config.edit("local") as config:
        config["cache"]["dir"] = repo.cache.local_cache_dir


def _write(path: Path, different: Changed) -> None:
    """Set values of a YAML file by their dotted names; its comments stay."""
    yaml = YAML()
    values = yaml.load(path.read_text(encoding="utf-8"))
    for name, (_, value) in different.items():
        *holders, last = name.split(".")
        holder = values
        for part in holders:
            holder = holder.setdefault(part, {}) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            raise ValueError(f"Expected a name of {path.name}, such as prune.retain, got {name!r}.")
        holder[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def _remove_abandoned(root: Path) -> None:
    """Remove the copies of flows that were killed."""
    for copy in sorted((root / COPIES).glob("flow-*-*")):
        if not _lives(int(copy.name.split("-")[1])):
            _git(root, "worktree", "remove", "--force", str(copy))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout
