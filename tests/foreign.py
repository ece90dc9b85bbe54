"""Models that nobody here wrote, small, in float64, with what they are called with, and how packages are found."""

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing._internal import common_pruning

Made = tuple[nn.Module, tuple[Any, ...] | dict[str, Any]]


class RNNModel(nn.Module):
    """Container module with an encoder, a recurrent module, and a decoder: as in PyTorch's example word_language_model.

    Copyright (c) 2017, PyTorch contributors; BSD 3-Clause.
    """

    def __init__(self, rnn_type, ntoken, ninp, nhid, nlayers, dropout=0.5, tie_weights=False):
        super().__init__()
        self.ntoken = ntoken
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        if rnn_type in ["LSTM", "GRU"]:
            self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, dropout=dropout)
        else:
            nonlinearity = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[rnn_type]
            self.rnn = nn.RNN(ninp, nhid, nlayers, nonlinearity=nonlinearity, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        if tie_weights:
            if nhid != ninp:
                raise ValueError("When using the tied flag, nhid must be equal to emsize")
            self.decoder.weight = self.encoder.weight
        self.init_weights()
        self.rnn_type = rnn_type
        self.nhid = nhid
        self.nlayers = nlayers

    def init_weights(self):
        initrange = 0.1
        nn.init.uniform_(self.encoder.weight, -initrange, initrange)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -initrange, initrange)

    def forward(self, input, hidden):  # noqa: A002
        emb = self.drop(self.encoder(input))
        output, hidden = self.rnn(emb, hidden)
        output = self.drop(output)
        decoded = self.decoder(output)
        decoded = decoded.view(-1, self.ntoken)
        return F.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        if self.rnn_type == "LSTM":
            return (
                weight.new_zeros(self.nlayers, bsz, self.nhid),
                weight.new_zeros(self.nlayers, bsz, self.nhid),
            )
        return weight.new_zeros(self.nlayers, bsz, self.nhid)


class Classifier(nn.Module):
    """A sentence classifier that reads a bidirectional LSTM's last states, as many tutorials have it."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads
        self.embedding = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.fc = nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, (hidden, _) = self.lstm(self.embedding(tokens))
        if self.reads == "states":
            return self.fc(torch.cat([hidden[-2], hidden[-1]], dim=1))
        return self.fc(outputs.mean(1))


class Translator(nn.Module):
    """A decoder that begins where the encoder ended, so that their neurons are coupled one to one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(3, 6, bias=False), nn.GRU(2, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(source)
        return self.out(self.decoder(target, state)[0])


class Concatenated(nn.Module):
    """Convolutions side by side, one of them grouped, whose channels are concatenated; a gated unit at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.wide = nn.Conv2d(10, 8, 3, stride=2)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.gate = nn.Linear(8 * 9, 12)
        self.out = nn.Linear(6, 2)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.relu(self.norm(torch.cat([self.left(image), torch.tanh(self.right(image))], dim=1)))
        hidden = self.grouped(F.silu(self.wide(hidden)))
        return self.out(F.glu(self.gate(hidden.flatten(1)), dim=-1))


class First(nn.Module):
    """What a recurrent layer gives, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)[0]


class HardCoded(nn.Module):
    """LeNet's way: the width of a convolution stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 4, 8), nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.conv(image)), 2)
        return self.fc2(F.relu(self.fc1(hidden.view(-1, 6 * 4))))


def floats(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int) -> Tensor:
    """Return token numbers below 11."""
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(0))


def torchvision() -> ModuleType:
    """Return torchvision, or skip the test.

    Its wheel's compiled operations may belong to another build of PyTorch, and then its import stops at their absence;
    no model here needs one, so declaring the two whose signatures are asked for is enough.
    """
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _KEPT[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision")


def transformers() -> ModuleType:
    """Return transformers, which imports torchvision where that is installed, or skip the test."""
    if find_spec("torchvision"):
        torchvision()
    return pytest.importorskip("transformers")


_KEPT: list[torch.library.Library] = []


def language_model(cell: str, *, tied: bool = False) -> Made:
    model = RNNModel(cell, 11, 6, 6, 2, tie_weights=tied).double()
    return model, (tokens(5, 3), model.init_hidden(3))


def resnet() -> Made:
    models = torchvision().models
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5), (floats(2, 3, 32, 32),)


def vgg() -> Made:
    models = torchvision().models
    with torch.device("meta"):
        model = models.VGG(nn.Sequential(), num_classes=5, init_weights=False)
    model.features = models.vgg.make_layers([8, "M", 12, 10, "M", 6], batch_norm=True)
    model.classifier = nn.Sequential(nn.Linear(6 * 49, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 5))
    return model, (floats(2, 3, 32, 32),)


def mobilenet() -> Made:
    setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1]]
    model = torchvision().models.MobileNetV2(num_classes=5, width_mult=0.25, inverted_residual_setting=setting)
    return model, (floats(2, 3, 32, 32),)


def vit() -> Made:
    model = torchvision().models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, num_classes=5
    )
    return model, (floats(2, 3, 16, 16),)


def encoder() -> Made:
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)), (floats(2, 5, 16),)


def gpt2() -> Made:
    library = transformers()
    config = library.GPT2Config(
        vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, n_inner=20
    )
    return library.GPT2LMHeadModel(config), {"input_ids": tokens(2, 7)}


def bert() -> Made:
    library = transformers()
    config = library.BertConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
    )
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    return library.BertForSequenceClassification(config), {"input_ids": tokens(2, 7), "attention_mask": mask}


def qwen() -> Made:
    """Rotary positions, two queries for each key, scales that all heads share, a gated unit; nothing is tied."""
    library = transformers()
    config = library.Qwen3Config(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=4,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return library.Qwen3ForCausalLM(config), {"input_ids": tokens(2, 7)}


FOREIGN: dict[str, Callable[[], Made]] = {
    "LSTM language model": lambda: language_model("LSTM"),
    "tied LSTM language model": lambda: language_model("LSTM", tied=True),
    "GRU language model": lambda: language_model("GRU"),
    "tanh language model": lambda: language_model("RNN_TANH"),
    "tied ReLU language model": lambda: language_model("RNN_RELU", tied=True),
    "LSTM and linear": lambda: (common_pruning.LSTMLinearModel(3, 4, 5, 3), (floats(6, 2, 3),)),
    "LSTM, norm and linear": lambda: (common_pruning.LSTMLayerNormLinearModel(3, 4, 5, 2), (floats(6, 2, 3),)),
    "classifier of outputs": lambda: (Classifier("outputs"), (tokens(3, 5),)),
    "classifier of states": lambda: (Classifier("states"), (tokens(3, 5),)),
    "translator": lambda: (Translator(), (floats(4, 2, 3), floats(5, 2, 2))),
    "linear chain": lambda: (common_pruning.LinearActivationFunctional(), (floats(3, 7),)),
    "convolutions": lambda: (common_pruning.Conv2dPoolFlatten(), (floats(1, 1, 28, 28),)),
    "concatenated": lambda: (Concatenated(), (floats(2, 3, 11, 11),)),
    "hard-coded": lambda: (HardCoded(), (floats(4, 1, 6, 6),)),
    "ResNet": resnet,
    "VGG": vgg,
    "MobileNetV2": mobilenet,
    "ViT": vit,
    "encoder": encoder,
    "GPT-2": gpt2,
    "BERT": bert,
    "Qwen3": qwen,
}
"""What is tested: a name → how the model and its inputs are made."""


def made(name: str) -> Made:
    """Return a model of `FOREIGN` in evaluation mode, in float64, with normal weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = FOREIGN[name]()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.double().parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5, generator=generator)
    for key, buffer in model.named_buffers():
        if "running" in key:
            buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype) + 0.5)
    return model.eval(), inputs
