"""Which files and parameters a stage has: what dvc.yaml says, with its `${…}` filled in."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.common.parameters import Unexpected
from tasks.common.reading import read_yaml
from tasks.common.wording import nearest

PIPELINE, PARAMETERS, LOCK, DATA = Path("dvc.yaml"), Path("params.yaml"), Path("dvc.lock"), Path("data")


@dataclass(frozen=True)
class Stage:
    """One stage, for one variant where it has variants.

    Attributes:
        name: The stage's name, without the variant.
        variant: The variant, or None.
        inputs: `<stage>/<file stem>` → the file or folder it reads, code not among them.
        outputs: File stem → the file or folder it writes.
        sections: Names of the sections of params.yaml that it reads.
        dependencies: Every file and folder that it depends on, code among them.
    """

    name: str
    variant: str | None
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    sections: tuple[str, ...]
    dependencies: tuple[Path, ...]

    @property
    def address(self) -> str:
        """The stage's name as DVC writes it: `prune@random`."""
        return f"{self.name}@{self.variant}" if self.variant else self.name


def read_stage(name: str, variant: str | None, parameters: Mapping[str, Any]) -> Stage:
    """Return one stage as dvc.yaml describes it.

    Raises:
        Unexpected: For an unknown stage or variant, or a variant where the stage has none.
    """
    stages = _entries()
    if name not in stages:
        raise Unexpected(f"Unknown stage {name!r}; known: {list(stages)}.{nearest(name, stages)}")
    _check_variant(name, variant, stages[name], parameters)
    return _stage(name, variant, stages[name], parameters)


def read_stages(parameters: Mapping[str, Any]) -> list[Stage]:
    """Return every stage of dvc.yaml, for each variant where it has variants."""
    return [
        _stage(name, variant, entry, parameters)
        for name, entry in _entries().items()
        for variant in (parameters["variants"] if "foreach" in entry else [None])
    ]


def _entries() -> dict[str, Any]:
    stages = read_yaml(PIPELINE).get("stages")
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise Unexpected(f"Expected the pipeline's stages below `stages` in {PIPELINE}, got others.")
    return stages


def _stage(name: str, variant: str | None, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> Stage:
    entry = entry.get("do", entry)
    dependencies = [_path(text, variant, parameters) for text in entry.get("deps", [])]
    outputs = [_path(text, variant, parameters) for text in _outputs(entry)]
    return Stage(
        name=name,
        variant=variant,
        inputs={_input_name(path): path for path in dependencies if path.is_relative_to(DATA)},
        outputs={path.stem: path for path in outputs},
        sections=tuple(_fill(text, variant, parameters) for text in entry.get("params", [])),
        dependencies=tuple(dependencies),
    )


def _check_variant(name: str, variant: str | None, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    known = list(parameters["variants"]) if "foreach" in entry else []
    if known and variant not in known:
        hint = nearest(variant, known) if variant else ""
        raise Unexpected(f"Expected a variant for stage {name}, one of {known}, got {variant!r}.{hint}")
    if not known and variant is not None:
        raise Unexpected(f"Expected no variant for stage {name}, got {variant!r}.")


def _outputs(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of outputs, metrics and plots, each written alone or with settings below it."""
    for kind in ("outs", "metrics", "plots"):
        for item in entry.get(kind, []):
            yield item if isinstance(item, str) else next(iter(item))


def _path(text: str, variant: str | None, parameters: Mapping[str, Any]) -> Path:
    return Path(_fill(text, variant, parameters))


def _fill(text: str, variant: str | None, parameters: Mapping[str, Any]) -> str:
    """Return the text with `${key}` replaced by the variant and `${section.name}` by the parameter."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "key":
            return str(variant)
        section, _, field = name.partition(".")
        return str(parameters[section][field])

    return re.sub(r"\$\{([^}]+)\}", value, text)


def _input_name(path: Path) -> str:
    """Return `<stage>/<file stem>` of `data/<stage>/[<variant>/]<file>`, or `<stage>` of a whole stage's folder."""
    stage, *rest = path.relative_to(DATA).parts
    return f"{stage}/{Path(rest[-1]).stem}" if rest else stage
