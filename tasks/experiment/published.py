"""A published checkpoint's files: safetensors whose metadata has `architecture`, a vocabulary beside it, a corpus."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pruning.data.corpus import END_OF_LINE, numbered
from pruning.models.base import LanguageModel
from pruning.models.checkpoint import unstacked
from tasks.common.parameters import Unexpected
from tasks.stages.prepare import published_files, read_lines, read_published


def read_checkpoint(path: Path, *, dropout: float = 0.0) -> LanguageModel:
    """Return the model in a checkpoint, in evaluation mode.

    Args:
        path: A safetensors file; its metadata's `architecture` is JSON with `cell`, `vocabulary`, `embedding`,
            `hidden` (one width a layer) and `tied`.
        dropout: Probability of dropping an activation in training; checkpoints do not say it.

    Raises:
        Unexpected: If the file is damaged, or the metadata or the tensors are not such.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return unstacked(metadata, tensors, name=str(path), dropout=dropout)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unexpected(f"Expected a checkpoint in {path}, got something else ({reason}).") from error


def read_vocabulary(checkpoint: Path) -> dict[str, int]:
    """Return text → token number from the one `*vocabulary*.txt` beside a checkpoint, a token a line from 0.

    Raises:
        ValueError: If there is not exactly one such file, or it has no `<eos>`.
    """
    vocabularies = sorted(checkpoint.parent.glob("*vocabulary*.txt"))
    if len(vocabularies) != 1:
        raise ValueError(
            f"Expected one *vocabulary*.txt beside {checkpoint}, got {[path.name for path in vocabularies]}."
        )
    return read_words(vocabularies[0])


def read_words(vocabulary: Path) -> dict[str, int]:
    """Return text → token number from a text file, a token a line from 0.

    Raises:
        ValueError: If it has no `<eos>`.
    """
    lines = "".join(read_lines(vocabulary)).removesuffix("\n").split("\n")
    if END_OF_LINE not in lines:
        raise ValueError(f"Expected {END_OF_LINE} in {vocabulary}, got none.")
    return {word: number for number, word in enumerate(lines)}


def read_splits(corpus: Path, vocabulary: dict[str, int]) -> dict[str, Tensor]:
    """Return split → token numbers of a folder of published splits; words without a number become `<unk>`.

    Raises:
        ValueError: If the folder holds no published splits.
    """
    files = published_files(corpus)
    if not files:
        raise ValueError(f"Expected published train, valid and test files in {corpus}, got none.")
    return {split: torch.from_numpy(numbered(read_published(path), vocabulary)) for split, path in files.items()}
