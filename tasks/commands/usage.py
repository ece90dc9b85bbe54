"""What `python -m tasks --help` says: every stage and command with what it does, and of one stage what it reads."""

import shutil
from collections.abc import Iterator, Mapping
from textwrap import fill

from tasks.common.parameters import Unexpected
from tasks.common.pipeline import EXPERIMENT, PARAMETERS, PIPELINE, read_stages
from tasks.common.reading import read_yaml
from tasks.shown.asking import COMMANDS
from tasks.shown.wording import nearest


def usage() -> str:
    """Return what there is to run."""
    lines = [
        "usage: python -m tasks <stage> [variant] [--workers N|tcp://host:8786]",
        "       python -m tasks <command> [words]",
        "",
    ]
    lines += ["Commands; `python -m tasks <command> --help` says more:", *_columns(COMMANDS)]
    for folder in ("", EXPERIMENT):
        if (folder / PIPELINE).is_file():
            run = f"dvc repro {folder / PIPELINE}" if folder else "dvc repro"
            stages = {f"{folder}.{name}" if folder else name: does for name, does in _stages(folder)}
            lines += ["", f"Stages of {folder / PIPELINE}, in the order of `{run}`:", *_columns(stages)]
    return "\n".join(lines)


def _stages(folder: str) -> Iterator[tuple[str, str]]:
    """Yield each stage as it is called, and what it does."""
    for name, entry in read_yaml(folder / PIPELINE)["stages"].items():
        each = str(entry.get("foreach", "")).strip("${}").removesuffix("s")
        yield (f"{name} <{each}>" if each else name), str(entry.get("do", entry).get("desc", ""))


def usage_of(name: str, folder: str) -> str:
    """Return what one stage does, reads and writes, whatever its variant.

    Raises:
        Unexpected: If there is no such stage.
    """
    known = {stage.name: stage for stage in read_stages(read_yaml(folder / PARAMETERS), folder)}
    if name not in known:
        raise Unexpected(f"Unknown stage {name!r}; known: {list(known)}.{nearest(name, known)}")
    stage = known[name]
    lines = [f"{name}: {stage.description[:1].lower()}{stage.description[1:]}"]
    files = {"reads": stage.inputs, "writes": stage.outputs}
    listed = {verb: ", ".join(map(str, paths.values())) for verb, paths in files.items() if paths}
    return "\n".join([*lines, *_columns({**listed, "settings": ", ".join(stage.sections)})])


def _columns(texts: Mapping[str, str]) -> list[str]:
    """Return each name and, beside it, its text."""
    width, margin = max(60, shutil.get_terminal_size().columns), max(map(len, texts)) + 4
    return [
        fill(text, width, initial_indent=f"  {name}".ljust(margin), subsequent_indent=" " * margin)
        for name, text in texts.items()
    ]
