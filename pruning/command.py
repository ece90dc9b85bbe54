"""`neuron-pruning`: what the installed library tells without Python: what it can do here, what a folder holds."""

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any

import torch
from packaging.requirements import Requirement

from pruning.core.words import table_of
from pruning.extras import DISTRIBUTION
from pruning.saving import saved

EXTRAS = ("plots", "export", "pipeline")
"""The extras that are for people who use the library; the others are for those who change it."""
BESIDE = ("torchvision", "torchaudio")
"""Packages that are compiled against one build of PyTorch and fail beside another."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one question and return the exit code: 0, or 1 after one sentence on what was wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.question is None:
        parser.print_help()
        return 0
    try:
        answer, shown = about() if given.question == "about" else describe(given.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if given.json else shown)
    return 0


def about() -> tuple[dict[str, Any], str]:
    """Return what is installed, on what it can compute, and which extras are there, as values and as text."""
    answer: dict[str, Any] = {
        "version": version(DISTRIBUTION),
        "python": platform.python_version(),
        "torch": version("torch"),
        "devices": _devices(),
        "extras": {extra: _missing(extra) for extra in EXTRAS},
        "unfit": {package: reason for package in BESIDE if (reason := _unfit(package))},
    }
    rows = [
        [extra, "installed" if not missing else f"pip install '{DISTRIBUTION}[{extra}]' (no {_listed(missing)})"]
        for extra, missing in answer["extras"].items()
    ]
    lines = [
        f"{DISTRIBUTION} {answer['version']}, Python {answer['python']}, torch {answer['torch']}",
        f"devices: {', '.join(answer['devices'])}",
        "",
        *table_of(["extra", ""], rows),
        *answer["unfit"].values(),
    ]
    return answer, "\n".join(lines)


def describe(folder: str) -> tuple[dict[str, Any], str]:
    """Return what `pruning.save` wrote in a folder, as values and as text; its tensors are verified, no code is run.

    Raises:
        ValueError: If the folder is missing, damaged, half-written or of another version.
    """
    plan, named = saved(folder)
    tensors = list({id(tensor): tensor for tensor in named.values()}.values())
    answer: dict[str, Any] = {
        "network": plan.get("network"),
        "numbers": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
        "dense_parameters": _dense(plan),
        "layers": [
            {"name": layer["name"], "kind": layer.get("kind"), "width": layer.get("width"), "left": layer["left"]}
            for layer in plan["layers"]
        ],
    }
    dense = "" if answer["dense_parameters"] is None else f"; {answer['dense_parameters']:,} parameters before"
    lines = [
        f"{folder}: {answer['network'] or 'a model that says itself where its neurons are'}",
        f"{answer['numbers']:,} numbers ({', '.join(answer['types'])}) in {_size(answer['bytes'])}{dense}",
        "",
        *table_of(["layer", "kind", "before", "left", ""], [_row(layer) for layer in answer["layers"]]),
        "",
        f"smaller = pruning.restore(network, {folder!r})  # with the network built anew, dense",
    ]
    return answer, "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=DISTRIBUTION, description="Measure, choose and remove the neurons of networks."
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {version(DISTRIBUTION)}")
    questions = parser.add_subparsers(dest="question", metavar="QUESTION")
    asked = questions.add_parser("about", help="what is installed, on what it can compute, which extras are there")
    saved = questions.add_parser("describe", help="what pruning.save wrote in a folder: layers, neurons, size")
    saved.add_argument("folder", metavar="FOLDER", help="what was given to pruning.save")
    for question in (asked, saved):
        question.add_argument("--json", action="store_true", help="the same as one JSON document")
    return parser


def _row(layer: Mapping[str, Any]) -> list[str]:
    """Return a layer's cells; a model that says itself where its neurons are does not say how many they were."""
    width, left = layer["width"], layer["left"]
    return [layer["name"], layer["kind"] or "", str(width or ""), str(left), f"{left / width:.0%}" if width else ""]


def _dense(plan: Mapping[str, Any]) -> int | None:
    """Return how many parameters the network had before, None where the plan does not say."""
    if "parameters" not in plan:
        return None
    return sum(torch.Size(shape).numel() for name, shape in plan["parameters"].items() if name not in plan["one"])


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} MB" if number >= 1e6 else f"{number / 1e3:,.1f} kB"


def _devices() -> list[str]:
    """Return the devices that PyTorch sees, by the names that it takes."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    named = getattr(torch.get_device_module(accelerator), "get_device_name", None)
    names = [f"{accelerator.type}:{place}" for place in range(torch.accelerator.device_count())]
    return ["cpu", *(f"{name} ({named(name)})" if named else name for name in names)]


def _missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed, those of the extras that it names included."""
    missing = []
    for text in distribution(DISTRIBUTION).requires or []:
        wanted = Requirement(text)
        if (
            wanted.marker is None
            or not wanted.marker.evaluate({"extra": extra})
            or wanted.marker.evaluate({"extra": ""})
        ):
            continue
        if wanted.name == DISTRIBUTION:
            missing += [name for other in sorted(wanted.extras) for name in _missing(other)]
        elif not _installed(wanted.name):
            missing.append(wanted.name)
    return missing


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _listed(names: Sequence[str]) -> str:
    """Return at most three of the names."""
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _unfit(package: str) -> str:
    """Return a sentence on a package that is installed and built for another PyTorch, or nothing."""
    if not _installed(package):
        return ""
    try:
        import_module(package)
    except (RuntimeError, OSError, ImportError) as error:
        return (
            f"Expected a {package} built for torch {version('torch')}, got {package} {version(package)} "
            f"({error}); install both from one index."
        )
    return ""
