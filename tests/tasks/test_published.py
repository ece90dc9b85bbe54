"""A checkpoint of one stacked LSTM gives the same logits here; what is missing beside or in it is said."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tasks.experiment.published import read_checkpoint, read_splits, read_vocabulary


def stacked(folder, *, tied=True, metadata=True):
    """Write the checkpoint of a stacked LSTM; return its path and what it computes."""
    torch.manual_seed(1)
    encoder, rnn, decoder = nn.Embedding(9, 4), nn.LSTM(4, 4, 2), nn.Linear(4, 9)
    parts = {"encoder": encoder, "rnn": rnn, "decoder": decoder}
    tensors = {f"{part}.{name}": p.detach() for part, module in parts.items() for name, p in module.named_parameters()}
    if tied:
        del tensors["decoder.weight"]
        decoder.weight = encoder.weight
    architecture = {"embedding": 4, "hidden": [4, 4], "cell": "lstm", "tied": tied, "vocabulary": 9}
    path = folder / "some.safetensors"
    save_file(tensors, path, {"architecture": json.dumps(architecture)} if metadata else None)
    return path, lambda tokens: F.linear(rnn(encoder(tokens))[0], decoder.weight, decoder.bias)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stacked_checkpoint_gives_the_same_logits(tmp_path, tied):
    path, logits_of = stacked(tmp_path, tied=tied)
    tokens = torch.arange(18).view(6, 3) % 9
    model = read_checkpoint(path, dropout=0.5)
    assert model.config.dropout == 0.5
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], logits_of(tokens), rtol=0, atol=1e-6)


def test_a_checkpoint_that_does_not_say_its_architecture_is_refused(tmp_path):
    path, _ = stacked(tmp_path, metadata=False)
    with pytest.raises(ValueError, match=r"Expected `architecture` in the metadata of .*some.safetensors, got \[\]."):
        read_checkpoint(path)


def test_words_are_numbered_by_the_vocabulary_beside_the_checkpoint(tmp_path):
    (tmp_path / "a-vocabulary.txt").write_text("b\n<eos>\na\n<unk>\n", encoding="utf-8")
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b\n\n b other\n", encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path / "some.safetensors")
    found = read_splits(tmp_path, vocabulary)
    assert list(found) == ["train", "valid", "test"]
    assert all(tokens.tolist() == [2, 0, 1, 0, 3, 1] for tokens in found.values())


def test_anything_but_one_vocabulary_with_an_end_of_line_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected one \*vocabulary\*.txt beside .*, got \[\]."):
        read_vocabulary(tmp_path / "some.safetensors")
    (tmp_path / "vocabulary.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected <eos> in .*, got none."):
        read_vocabulary(tmp_path / "some.safetensors")


def test_a_folder_without_published_splits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected published train, valid and test files in"):
        read_splits(tmp_path, {})
