"""Which files of weights are read: names and tensors alone, nothing that runs code."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.common.parameters import Unexpected
from tasks.common.pipeline import anew

CONVERT = 'save its weights alone, with `torch.save(model.state_dict(), "weights.pt")` or as safetensors'


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return name → tensor of a checkpoint: safetensors, or what `torch.load(weights_only=True)` reads.

    Raises:
        Unexpected: If there is no such file, it is damaged, or it holds more than names and tensors: a pickle of a
            whole model runs code when it is read, so it is not; the sentence says how to convert it.
    """
    path = Path(path)
    if not path.is_file():
        raise Unexpected(f"Expected weights at {path}, got no such file; {anew(path)}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):  # the pickle is cut off or none at all
            raise Unexpected(f"Expected weights in {path}, got a damaged file; {anew(path)}.") from error
        raise Unexpected(
            f"Expected weights alone in {path}, got Python objects; where it was made, {CONVERT}."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise Unexpected(f"Expected weights in {path}, got a damaged file; {anew(path)}.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        held = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise Unexpected(f"Expected names and tensors in {path}, got {held}; where it was made, {CONVERT}.")
    return content
