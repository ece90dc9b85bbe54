"""How a published checkpoint (safetensors whose metadata has `architecture`, a vocabulary beside it) becomes ours.

The checkpoint holds one stacked LSTM, `rnn.weight_ih_l0`, `rnn.weight_ih_l1`, …; ours holds one module a layer.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pruning.corpus import END_OF_LINE, UNKNOWN, published_lines
from pruning.models import rebuild
from pruning.models.base import LanguageModel
from tasks.prepare import published_files, read_text

STACKED = re.compile(r"rnn\.(\w+)_l(\d+)")


def read_checkpoint(path: Path, *, dropout: float = 0.0) -> LanguageModel:
    """Return the model in a checkpoint, in evaluation mode.

    Args:
        path: A safetensors file; its metadata's `architecture` is JSON with `cell`, `vocabulary`, `embedding`,
            `hidden` (one width a layer) and `tied`.
        dropout: Probability of dropping an activation in training; checkpoints do not say it.

    Raises:
        ValueError: If the metadata or the tensors are not such.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {STACKED.sub(r"lstm.\2.\1_l0", name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if "architecture" not in metadata:
        raise ValueError(f"Expected `architecture` in the metadata of {path}, got {sorted(metadata)}.")
    architecture = json.loads(metadata["architecture"])
    config = {
        "family": architecture["cell"],
        "vocabulary": architecture["vocabulary"],
        "embedding": architecture["embedding"],
        "widths": architecture["hidden"],
        "decoder": "tied" if architecture["tied"] else "untied",
        "dropout": dropout,
    }
    return rebuild(config, tensors).eval()


def read_vocabulary(checkpoint: Path) -> dict[str, int]:
    """Return text → token number from the one `*vocabulary*.txt` beside a checkpoint, a token a line from 0.

    Raises:
        ValueError: If there is not exactly one such file, or it has no `<eos>`.
    """
    found = sorted(checkpoint.parent.glob("*vocabulary*.txt"))
    if len(found) != 1:
        raise ValueError(f"Expected one *vocabulary*.txt beside {checkpoint}, got {[path.name for path in found]}.")
    lines = found[0].read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if END_OF_LINE not in lines:
        raise ValueError(f"Expected {END_OF_LINE} in {found[0]}, got none.")
    return {word: number for number, word in enumerate(lines)}


def read_splits(corpus: Path, vocabulary: dict[str, int]) -> dict[str, Tensor]:
    """Return split → token numbers of a folder of published splits; words without a number become `<unk>`.

    Raises:
        ValueError: If the folder holds no published splits.
    """
    files = published_files(corpus)
    if not files:
        raise ValueError(f"Expected published train, valid and test files in {corpus}, got none.")
    return {split: _tokens(read_text(path), vocabulary) for split, path in files.items()}


def _tokens(text: str, vocabulary: dict[str, int]) -> Tensor:
    """Return the token numbers of a text, each line ended by `<eos>`."""
    words = [word for line in published_lines(text) for word in (*line, END_OF_LINE)]
    return torch.tensor([vocabulary[word if word in vocabulary else UNKNOWN] for word in words])
