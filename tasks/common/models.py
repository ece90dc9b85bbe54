"""Models as `config.json` + `model.safetensors`, never a pickle."""

import json
from pathlib import Path

from safetensors.torch import save

from pruning.models import describe, rebuild
from pruning.models.adapted import Adapted
from pruning.models.base import LanguageModel, Measurable
from tasks import own
from tasks.common.devices import device
from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew
from tasks.common.sources import file_of_source
from tasks.common.weights import read_weights
from tasks.common.writing import read_json, replacing

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MISFITS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""What is raised where a configuration's values, or the tensors beside it, are no model's."""


def write_model(folder: Path, model: Measurable) -> None:
    """Write a model as a folder, whole or not at all."""
    config, tensors = own.describe(model) if isinstance(model, Adapted) else describe(_built_in(model, folder))
    with replacing(folder) as aside:
        aside.mkdir()
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        (aside / WEIGHTS).write_bytes(content)  # `save_file` would let nobody but its owner read it


def read_model(folder: Path | str) -> Measurable:
    """Return the model in a folder, on the device, in evaluation mode.

    Raises:
        Unexpected: If the folder does not hold a configuration and its weights.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise Unexpected(f"Expected a model ({CONFIG} and {WEIGHTS}) in {folder}, got no {name}; {anew(folder)}.")
    config, tensors = read_json(folder / CONFIG), read_weights(folder / WEIGHTS)
    if not isinstance(config, dict):
        raise Unexpected(f"Expected a model's settings by name in {folder / CONFIG}, got {config!r:.80}.")
    if "source" in config:
        _check_source(config["source"], folder / CONFIG)
    try:
        model: Measurable = own.rebuild(config, tensors) if "source" in config else rebuild(config, tensors)
    except Unexpected:
        raise
    except MISFITS as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unexpected(
            f"Expected a model in {folder}, got a {CONFIG} and a {WEIGHTS} that make none ({reason}); {anew(folder)}."
        ) from error
    return model.to(device()).eval()


def _check_source(source: object, config: Path) -> None:
    try:
        file_of_source(source, f"`source` in {config}")
    except ValueError as error:
        raise Unexpected(f"{error}.") from None


def read_language_model(folder: Path | str) -> LanguageModel:
    """Return the model in a folder as `read_model` does, of one of the families of `pruning.models`.

    Raises:
        Unexpected: If it is a user's own, or the folder does not hold a model.
    """
    return _built_in(read_model(folder), folder)


def _built_in(model: Measurable, folder: Path | str) -> LanguageModel:
    if not isinstance(model, LanguageModel):
        raise Unexpected(f"Expected a language model of a built-in family for {folder}, got a model of your own.")
    return model
