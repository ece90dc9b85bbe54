"""How a published checkpoint becomes ours: it holds one stacked LSTM, `rnn.weight_ih_l0`, ours one module a layer."""

import json
import re
from collections.abc import Mapping

from torch import Tensor

from pruning.models import rebuild
from pruning.models.base import LanguageModel

STACKED = re.compile(r"rnn\.(\w+)_l(\d+)")


def unstacked(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], *, name: str, dropout: float = 0.0
) -> LanguageModel:
    """Return the model in a checkpoint, in evaluation mode.

    Args:
        metadata: Its `architecture` is JSON with `cell`, `vocabulary`, `embedding`, `hidden` (one width a layer) and
            `tied`.
        tensors: The checkpoint's tensors by their names in it.
        name: What the checkpoint is called in errors.
        dropout: Probability of dropping an activation in training; checkpoints do not say it.

    Raises:
        ValueError: If the metadata or the tensors are not such.
    """
    if "architecture" not in metadata:
        raise ValueError(f"Expected `architecture` in the metadata of {name}, got {sorted(metadata)}.")
    architecture = json.loads(metadata["architecture"])
    config = {
        "family": architecture["cell"],
        "vocabulary": architecture["vocabulary"],
        "embedding": architecture["embedding"],
        "widths": architecture["hidden"],
        "decoder": "tied" if architecture["tied"] else "untied",
        "dropout": dropout,
    }
    ours = {STACKED.sub(r"lstm.\2.\1_l0", theirs): tensor for theirs, tensor in tensors.items()}
    return rebuild(config, ours).eval()
