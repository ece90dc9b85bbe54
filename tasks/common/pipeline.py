"""Which files and parameters a stage has: what dvc.yaml says, with its `${…}` filled in."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.common.parameters import Unexpected
from tasks.common.reading import read_yaml
from tasks.shown.wording import nearest

PIPELINE, PARAMETERS, LOCK, DATA = Path("dvc.yaml"), Path("params.yaml"), Path("dvc.lock"), Path("data")
EXPERIMENT = "experiment"
"""The folder with the dvc.yaml, params.yaml and dvc.lock of the experiment."""


@dataclass(frozen=True)
class Stage:
    """One stage, for one variant where it has variants.

    Attributes:
        folder: The folder of the dvc.yaml that it stands in; empty for the pipeline's own.
        name: The stage's name, without the variant. `prune_text` is `prune` of other inputs: one function.
        variant: The variant, or None.
        inputs: `<stage>/<file stem>` → the file or folder it reads, code not among them.
        outputs: File stem → the file or folder it writes.
        sections: Names of the sections that it reads, of params.yaml and of the one beside its dvc.yaml.
        dependencies: Every file and folder that it depends on, code among them.
        description: What it does, in words.
    """

    folder: str
    name: str
    variant: str | None
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    sections: tuple[str, ...]
    dependencies: tuple[Path, ...]
    description: str = ""

    @property
    def address(self) -> str:
        """The stage's name as DVC writes it: `prune@random`."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def module(self) -> str:
        """The module whose `run` is the stage."""
        return ".".join(("tasks", self.folder or "stages", self.name.partition("_")[0]))


def anew(path: Path) -> str:
    """Return what to do about a file that is lacking or damaged: DVC makes again what a stage of its wrote.

    Stages write below `data/<stage>`; other files are the user's, or what a command took out of the pipeline.
    """
    place = path.resolve()
    for folder in (EXPERIMENT, ""):
        data = (DATA / folder).resolve()
        stage = place.relative_to(data).parts[:1] if place.is_relative_to(data) else ()
        with suppress(Unexpected):  # no dvc.yaml here: nothing is DVC's
            if stage and stage[0] in _entries(folder):
                return f"run `dvc repro{folder and f' {folder / PIPELINE}'}` to make it anew"
    return "copy it whole from where it was made, or save it again"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names, such as `train.widths`."""
    values_by_path: dict[str, Any] = {}
    for name, value in values.items():
        values_by_path |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values_by_path


def read_stage(name: str, variant: str | None, parameters: Mapping[str, Any], folder: str = "") -> Stage:
    """Return one stage as dvc.yaml describes it.

    Args:
        name: The stage.
        variant: Its variant, where it has variants.
        parameters: The params.yaml beside the dvc.yaml.
        folder: Where both stand.

    Raises:
        Unexpected: For an unknown stage or variant, or a variant where the stage has none.
    """
    stages = _entries(folder)
    if name not in stages:
        raise Unexpected(f"Unknown stage {name!r}; known: {list(stages)}.{nearest(name, stages)}")
    known = _variants(stages[name], parameters)
    if known:
        expect_variant(variant, known, f" for stage {name}")
    elif variant is not None:
        raise Unexpected(f"Expected no variant for stage {name}, got {variant!r}.")
    return _stage(folder, name, variant, stages[name], parameters)


def expect_variant(variant: str | None, known: list[str], what_for: str = "") -> None:
    """Refuse a variant that there is not, or that was not named.

    Raises:
        Unexpected: What is known and the nearest of it.
    """
    if variant not in known:
        got = f"{variant!r}.{nearest(variant, known)}" if variant else "none."
        raise Unexpected(f"Expected a variant{what_for}, one of {known}, got {got}")


def read_stages(parameters: Mapping[str, Any], folder: str = "") -> list[Stage]:
    """Return every stage of a dvc.yaml, for each variant where it has variants."""
    return [
        _stage(folder, name, variant, entry, parameters)
        for name, entry in _entries(folder).items()
        for variant in (_variants(entry, parameters) if "foreach" in entry else [None])
    ]


def _entries(folder: str) -> dict[str, Any]:
    stages = read_yaml(folder / PIPELINE).get("stages")
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise Unexpected(f"Expected the pipeline's stages below `stages` in {folder / PIPELINE}, got others.")
    return stages


def _variants(entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    """Return what the stage's `foreach: ${…}` names, if it has one."""
    return [str(value) for value in parameters[entry["foreach"].strip("${}")]] if "foreach" in entry else []


def _stage(
    folder: str, name: str, variant: str | None, entry: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Stage:
    entry = entry.get("do", entry)
    dependencies = [_path(text, variant, parameters) for text in entry.get("deps", [])]
    outputs = [_path(text, variant, parameters) for text in _outputs(entry)]
    return Stage(
        folder=folder,
        name=name,
        variant=variant,
        inputs={_input_name(path, folder): path for path in dependencies if path.is_relative_to(DATA / folder)},
        outputs={path.stem: path for path in outputs},
        sections=tuple(_fill(text, variant, parameters) for text in _names(entry.get("params", []))),
        dependencies=tuple(dependencies),
        description=str(entry.get("desc", "")),
    )


def _outputs(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of outputs, metrics and plots, each written alone or with settings below it."""
    for kind in ("outs", "metrics", "plots"):
        for item in entry.get(kind, []):
            yield item if isinstance(item, str) else next(iter(item))


def _names(params: Iterable[str | Mapping[str, list[str]]]) -> Iterator[str]:
    """Yield the names of sections, each written alone or below the file that it stands in."""
    for item in params:
        yield from [item] if isinstance(item, str) else (name for names in item.values() for name in names)


def _path(text: str, variant: str | None, parameters: Mapping[str, Any]) -> Path:
    return Path(_fill(text, variant, parameters))


def _fill(text: str, variant: str | None, parameters: Mapping[str, Any]) -> str:
    """Return the text with `${key}` and `${item}` replaced by the variant and `${section.name}` by the parameter."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in ("key", "item"):
            return str(variant)
        section, _, field = name.partition(".")
        return str(parameters[section][field])

    return re.sub(r"\$\{([^}]+)\}", value, text)


def _input_name(path: Path, folder: str) -> str:
    """Return `<stage>/<file stem>` of `data/<stage>/[<variant>/]<file>`, or `<stage>` of a whole stage's folder."""
    stage, *rest = path.relative_to(DATA / folder).parts
    return f"{stage}/{Path(rest[-1]).stem}" if rest else stage
