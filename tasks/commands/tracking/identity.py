"""Which state of the code and of the parameters a run belongs to: its tags, and the name that tells it from others."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.pipeline import PARAMETERS, flat

DEFAULTS = ("origin/HEAD", "HEAD")
"""Where the default parameters stand: in the branch that was cloned, or else in the last commit."""
COMMIT, EXPERIMENT = "mlflow.source.git.commit", "dvc.experiment"
SHOWN, LONGEST = 3, 40
"""Differences that a name tells, and letters of each."""


def identity() -> dict[str, str]:
    """Return the tags that say which state of the code the runs belong to.

    The lock file that a reproduction writes is no change to the code, so it makes no tree dirty.
    """
    tags = {"mlflow.source.type": "LOCAL"}
    if name := os.environ.get("DVC_EXP_NAME"):
        tags[EXPERIMENT] = name
    # The first line names the commit, the last ones changes.
    lines = _git("status", "--porcelain=v2", "--branch", "--", ":(exclude,glob)**/dvc.lock").splitlines()
    if not lines:  # no git, or no repository
        return tags
    dirty = any(not line.startswith("#") for line in lines)
    return tags | {COMMIT: lines[0].split()[-1], "git.dirty": str(dirty).lower()}


def differences(values: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """Return the parameters that differ from the default ones, by dotted name; nothing where these are not known.

    Args:
        values: What params.yaml holds.
        folder: Where it stands.
    """
    path = (folder / PARAMETERS).as_posix()
    text = next((text for ref in DEFAULTS if (text := _git("show", f"{ref}:./{path}"))), "")
    try:
        default = flat(YAML(typ="safe").load(text) or {})
    except (YAMLError, AttributeError, TypeError):
        return {}
    now = flat(values)
    return {name: value for name, value in now.items() if name in default and default[name] != value}


def named(part: str, tags: Mapping[str, str], differing: Mapping[str, Any], variant: str = "") -> str:
    """Return what a run is called: its part, then what tells it from the same part of another experiment.

    >>> named("surgeon", {COMMIT: "58194083f", EXPERIMENT: "tall-oak"}, {"prune.retain": 0.3})
    'surgeon · tall-oak · prune.retain=0.3 · 5819408'

    Args:
        part: A variant, or another part of an experiment.
        tags: As `identity` gives them.
        differing: As `differences` gives them.
        variant: If the part is of one, what another variant sets by itself is left out.
    """
    others = {
        name for name in differing if variant and name.split(".")[0] == "variants" != name.split(".")[1] != variant
    }
    told = [f"{name}={value}"[:LONGEST] for name, value in differing.items() if name not in others]
    more = [f"{len(told) - SHOWN} more"] if len(told) > SHOWN else []
    parts = [part, tags.get(EXPERIMENT, ""), ", ".join([*told[:SHOWN], *more]), tags.get(COMMIT, "")[:7]]
    return " · ".join(filter(None, parts))


def _git(*words: str) -> str:
    """Return what git prints, nothing where it fails or is not there."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
