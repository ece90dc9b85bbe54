"""A checkpoint of PyTorch's stacked LSTM language model and its text, as our model and windows."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pruning.models import build
from pruning.models.base import LanguageModel

END_OF_LINE = "<eos>"


def read_checkpoint(path: Path) -> LanguageModel:
    """Return the tied model whose tensors are named as in PyTorch's word-language-model example, decoupled."""
    tensors = {_renamed(name): tensor for name, tensor in load_file(path).items()}
    vocabulary, embedding = tensors["encoder.weight"].shape
    depth = sum(name.endswith("weight_hh_l0") for name in tensors)
    widths = [tensors[f"lstm.{index}.weight_hh_l0"].shape[1] for index in range(depth)]
    model = build("lstm", vocabulary=vocabulary, embedding=embedding, widths=widths, decoder="tied", dropout=0.0)
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "decoder.weight"})
    return model.eval().decoupled()


def read_tokens(text: Path, vocabulary: Path) -> tuple[Tensor, int]:
    """Return a text's tokens by their numbers in a vocabulary (one token a line), and the number of `<eos>`."""
    words = [word for word in vocabulary.read_text(encoding="utf-8").split("\n") if word]
    numbers = {word: number for number, word in enumerate(words)}
    lines = text.read_text(encoding="utf-8").splitlines()
    tokens = [numbers[word] for line in lines for word in [*line.split(), END_OF_LINE]]
    return torch.tensor(tokens), numbers[END_OF_LINE]


def _renamed(name: str) -> str:
    """Return our name of a tensor of the stacked model: `rnn.weight_ih_l1` is `lstm.1.weight_ih_l0`.

    >>> _renamed("rnn.weight_ih_l1"), _renamed("decoder.bias")
    ('lstm.1.weight_ih_l0', 'decoder.bias')
    """
    if not name.startswith("rnn."):
        return name
    what, layer = name.removeprefix("rnn.").rsplit("_l", 1)
    return f"lstm.{layer}.{what}_l0"
