"""What DVC's graph says: the stages, what each needs, and how each wants to be run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.scm import SCMError

FILE = "dvc.yaml"
SETTINGS = ("tags", "retries", "timeout_seconds", "alone", "first")
"""What a stage's `meta: {prefect: ...}` in dvc.yaml may say."""


@dataclass(frozen=True, kw_only=True)
class GraphStage:
    """A stage of dvc.yaml.

    Attributes:
        address: DVC's name of it, as `prune@random` or `experiment/dvc.yaml:prune@0.9`.
        folder: The folder that its dvc.yaml stands in, relative to the root's; empty for the root.
        description: Its `desc`.
        needs: Addresses of the stages whose outputs it reads.
        plots: The outputs that are plots: pictures, or folders of them.
        pages: The outputs that are pages of Markdown.
        tags: For Prefect.
        retries: How often a failed run is tried again.
        timeout_seconds: After this long it is killed; None waits for ever.
        alone: Whether no other stage runs beside it, since it measures times.
        first: Whether it starts before others that may start, since it, or what follows from it, takes longest.
    """

    address: str
    folder: str
    description: str
    needs: frozenset[str]
    plots: tuple[Path, ...]
    pages: tuple[Path, ...]
    tags: tuple[str, ...] = ()
    retries: int = 0
    timeout_seconds: float | None = None
    alone: bool = False
    first: bool = False


def read_stages(root: Path, targets: list[str] | None) -> dict[str, GraphStage]:
    """Return the targets with all stages that they need, by address.

    Args:
        root: The folder that `dvc.yaml` is in.
        targets: Addresses of stages, or names of files of stages; `prune` stands for all `prune@...`, and None for the
            root's dvc.yaml.

    Raises:
        ValueError: If a target or a setting in a stage's `meta` is unknown, or DVC looks for git where none is.
    """
    try:
        with Repo(str(root)) as repo:
            graph = repo.index.graph
            stages = {_address(node): _stage(node, graph.successors(node)) for node in graph}
    except SCMError as error:
        raise ValueError(
            f"Expected a git repository, got none that DVC can read ({error}); clone it with git, or tell DVC to do "
            "without: `dvc config core.no_scm true`."
        ) from error
    wanted = _with_needs(stages, [address for target in targets or [FILE] for address in _matching(stages, target)])
    return {address: stage for address, stage in stages.items() if address in wanted}


def _address(node: Any) -> str:
    """Return DVC's name of a stage as it is in the repository's folder, whatever folder this process is in."""
    name: str | None = getattr(node, "name", None)  # a file `….dvc` is a stage without one
    return ":".join(filter(None, [node.path_in_repo if node.path_in_repo != FILE else None, name]))


def _stage(node: Any, needed: Any) -> GraphStage:
    settings = (node.meta or {}).get("prefect", {})
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f"Unknown setting '{name}' in the meta of stage '{_address(node)}'; known: {SETTINGS}.")
    return GraphStage(
        address=_address(node),
        folder=str(Path(node.path_in_repo).parent).removeprefix("."),
        description=node.desc or "",
        needs=frozenset(map(_address, needed)),
        plots=tuple(Path(out.fs_path) for out in node.outs if out.plot),
        pages=tuple(Path(out.fs_path) for out in node.outs if Path(out.fs_path).suffix == ".md"),
        **{**settings, "tags": tuple(settings.get("tags", ()))},
    )


def _matching(stages: dict[str, GraphStage], target: str) -> list[str]:
    """Return the one stage of that address, all that a `foreach` stage of that name makes, or all of a file."""
    matching = [
        address
        for address, stage in stages.items()
        if target in (address, address.split("@")[0], str(Path(stage.folder, FILE)))
    ]
    if not matching:
        raise ValueError(f"Unknown stage '{target}'; known: {sorted(stages)}.")
    return matching


def _with_needs(stages: dict[str, GraphStage], addresses: list[str]) -> set[str]:
    wanted: set[str] = set()
    while addresses:
        address = addresses.pop()
        if address not in wanted:
            wanted.add(address)
            addresses.extend(stages[address].needs)
    return wanted
