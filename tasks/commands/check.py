"""`python -m tasks check`: refuse bad parameters and a missing corpus before any work, and mend what a kill left."""

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.commands.foreseen import Text, check_memory, check_place, check_text, read_text
from tasks.commands.lock import mend
from tasks.common.devices import compute_on, device
from tasks.common.pipeline import EXPERIMENT, LOCK, PARAMETERS, PIPELINE, read_stages
from tasks.common.reading import read_yaml
from tasks.settings.parameters import Parameters, checked
from tasks.shown.asking import Answer, Words

CHECKED = Path(".dvc/tmp/checked")
"""The digest of what was last found to be fine."""
SHAPED = ("ceiling", "budget", "snn_ratio", "quota")
"""Settings of `prune` that the model's layers may not be able to fulfil."""


def run(words: Sequence[str]) -> Answer:
    """Check params.yaml, dvc.yaml and the corpus's source, and mend a half-written dvc.lock.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    Words("check").read(words)
    values = read_yaml(PARAMETERS)
    parameters, fine = checked(values), [str(PARAMETERS)]
    check(values, parameters)
    _remember(parameters)
    mend()
    if (EXPERIMENT / PARAMETERS).is_file():
        importlib.import_module(f"tasks.{EXPERIMENT}.settings").checked(read_yaml(EXPERIMENT / PARAMETERS))
        fine.append(str(EXPERIMENT / PARAMETERS))
        mend(EXPERIMENT / LOCK)
    return Answer({"fine": fine}, [f"{path}: fine" for path in fine])


def check_once(values: Mapping[str, Any], parameters: Parameters) -> None:
    """Check as `check` does, unless the same was checked before: for stages that DVC starts, one after the other.

    `dvc repro` and `dvc exp run -S` know nothing of `python -m tasks check`; so the first stage that they start refuses
    what any stage would.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    if not (CHECKED.is_file() and CHECKED.read_text(encoding="utf-8") == _digest(parameters)):
        check(values, parameters)
        _remember(parameters)


def _remember(parameters: Parameters) -> None:
    if CHECKED.parent.is_dir():  # not where DVC was never initialised
        CHECKED.write_text(_digest(parameters), encoding="utf-8")


def _digest(parameters: Parameters) -> str:
    """Return what changes with anything that is checked: the values, and when files were last written."""
    digest = hashlib.sha256(repr(parameters).encode("utf-8", "replace") + PIPELINE.read_bytes())
    for place in (Path(parameters.corpus.source), Path("own"), Path("learned")):
        for path in [place, *sorted(place.rglob("*"))]:
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def check(values: Mapping[str, Any], parameters: Parameters) -> None:
    """Refuse what a stage would refuse after others have worked.

    Raises:
        Unexpected: With one sentence on what is wrong.
    """
    outputs = {stage.address: stage.outputs.values() for stage in read_stages(values)}
    check_place(parameters, outputs)
    text = read_text(parameters.corpus, outputs.get("sotu", ()))
    if parameters.compute.device not in ("auto", "cpu"):
        compute_on(**parameters.compute.model_dump())
        device()
    check_text(parameters, text)
    if parameters.fuse.weights:
        from tasks.stages.fuse import read_weights

        read_weights(Path(parameters.fuse.weights), parameters.fuse.signals)
    if source := parameters.model.source:
        from tasks.commands.trial import try_own
        from tasks.commands.widths import check_layers

        check_layers(parameters, *try_own(source, tokens=parameters.oracle.tokens))
    else:
        check_memory(parameters, text, _memory())
        _check_shape(values, parameters, text)


def _check_shape(values: Mapping[str, Any], parameters: Parameters, text: Text) -> None:
    """Refuse what the layers of the model to be trained would refuse, if anything asks more of them than a share.

    PyTorch takes a second to import, and nothing else here needs it.
    """
    chosen = [values["prune"], *values["variants"].values()]
    asked = any(choice.get(name) is not None for choice in chosen for name in SHAPED)
    named = any(isinstance(choice.get("floor"), dict) for choice in chosen)
    if not (asked or named or (parameters.fuse.strategy == "learned" and not parameters.fuse.weights)):
        return
    from tasks.commands.widths import check_layers, dense_shape

    check_layers(parameters, dense_shape(parameters, text.types(parameters.corpus.vocabulary)))


def _memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
