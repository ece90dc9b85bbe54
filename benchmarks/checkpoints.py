"""The shared checkpoint, a stacked two-layer LSTM saved elsewhere, as a model of the family `lstm`."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pruning.batching import Windows
from pruning.models import rebuild
from pruning.models.base import LanguageModel


def load_checkpoint(path: Path) -> LanguageModel:
    """Return the model in a file whose recurrent tensors are named as a stacked `nn.LSTM` names them, `rnn.*_l<k>`."""
    tensors = {_renamed(name): tensor for name, tensor in load_file(path).items()}
    vocabulary, embedding = tensors["encoder.weight"].shape
    widths = [tensor.shape[1] for name, tensor in tensors.items() if name.endswith("weight_hh_l0")]
    config = {"family": "lstm", "vocabulary": vocabulary, "embedding": embedding, "widths": widths, "dropout": 0.0}
    return rebuild({**config, "decoder": "tied"}, tensors).eval()


def read_text(vocabulary: Path, text: Path, *, batch: int, bptt: int) -> Windows:
    """Return a text of one sentence a line as windows of the vocabulary's tokens, one token a line of that file."""
    numbers = {word: number for number, word in enumerate(vocabulary.read_text(encoding="utf-8").split("\n")) if word}
    lines = text.read_text(encoding="utf-8").splitlines()
    tokens: Tensor = torch.tensor([numbers[word] for line in lines for word in (*line.split(), "<eos>")])
    return Windows(tokens, first=numbers["<eos>"], batch=batch, bptt=bptt)


def _renamed(name: str) -> str:
    """Return `lstm.1.weight_hh_l0` for `rnn.weight_hh_l1`, and other names as they are."""
    if not name.startswith("rnn."):
        return name
    tensor, _, layer = name.removeprefix("rnn.").rpartition("_l")
    return f"lstm.{layer}.{tensor}_l0"
